# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Figures of activation maps and of their scores, for people who do not see all colours, too."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from hf_frozen_llm.plotting import LINE_COLORS, LINE_STYLES, new_figure, style_axis


# Its lightness rises evenly, and it has neither red nor green.
COLOR_MAP = "cividis"
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
SCORES = {
    "miou": "mIoU, one threshold\nof held-out images",
    "miou_oracle": "mIoU, best threshold\nof each image",
    "pointing_game": "pointing game",
    "auroc": "AUROC",
    "filtering_ratio": "filtering ratio\nto the host's tokens",
}
TOKEN_SCORES = {
    "effective_rank": "effective rank",
    "token_similarity": "cosine similarity\nof two tokens",
    "cka_to_host": "linear CKA\nto the host's tokens",
    "update_ratio": "update ratio\nof the LLM layer",
    "gradient_coherence": "gradient coherence\nof the host",
}


def plot_overlays(
    paths: Sequence[str | Path],
    images: Sequence[Image.Image],
    masks: Sequence[np.ndarray],
    maps: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
) -> None:
    """
    Write activation maps over images, a row for each image and model: the image, its mask, a map for each tap point.

    Args:
        paths (`Sequence[str | Path]`):
            The files to write, in the formats of their suffixes.
        images (`Sequence[Image.Image]`):
            The images, as the model sees them.
        masks (`Sequence[numpy.ndarray]` of shape `(rows, columns)`):
            Their masks: 1 = object, 0 = background, NaN = neither.
        maps (`Mapping[str, Mapping[str, numpy.ndarray]]`):
            For each model's name, by the name of a column, maps from 0 to 1 of shape `(images, rows, columns)`.
        title (`str`):
            The title above the images.
    """
    columns = list(
        dict.fromkeys(name for of_model in sorted(maps.values(), key=len, reverse=True) for name in of_model)
    )
    # In inches: square cells, and room for the names.
    cell, gap, left, top, bottom = 1.15, 0.06, 1.45, 0.95, 0.55
    rows = len(images) * len(maps)
    between = 0.1 * (len(images) - 1)
    width = left + (2 + len(columns)) * (cell + gap) + gap
    height = top + rows * (cell + gap) + between + bottom
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.22 / height, title, fontsize=11, ha="center", va="center")

    def add_axis(row: int, column: int) -> Any:
        x = left + column * (cell + gap)
        y = height - top - row * (cell + gap) - 0.1 * (row // len(maps)) - cell
        axis = figure.add_axes((x / width, y / height, cell / width, cell / height))
        axis.set_axis_off()
        return axis

    for column, name in enumerate(["image", "mask", *columns]):
        x = left + column * (cell + gap) + cell / 2
        y = height - top + 0.06
        figure.text(x / width, y / height, name.replace("_", "\n"), fontsize=9, ha="center", va="bottom")
    for i, image in enumerate(images):
        grey = np.asarray(image.convert("L"))
        extent = (0, image.width, image.height, 0)
        for k, (model, of_model) in enumerate(maps.items()):
            row = i * len(maps) + k
            y = height - top - row * (cell + gap) - 0.1 * i - cell / 2
            name = "\n".join(textwrap.wrap(model.replace("/", "/ "), 16)).replace("/ ", "/")
            figure.text((left - 0.1) / width, y / height, name, fontsize=9, ha="right", va="center")
            if k == 0:
                add_axis(row, 0).imshow(image, extent=extent)
                axis = add_axis(row, 1)
                axis.set_facecolor("0.5")
                axis.imshow(masks[i], cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            for column, of_column in enumerate(columns):
                if of_column not in of_model:
                    continue
                axis = add_axis(row, 2 + column)
                axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
                style = {"cmap": COLOR_MAP, "vmin": 0, "vmax": 1, "alpha": 0.75, "interpolation": "nearest"}
                drawn = axis.imshow(of_model[of_column][i], extent=extent, **style)
    axis = figure.add_axes((left / width, 0.32 / height, 2 * (cell + gap) / width, 0.1 / height))
    bar = figure.colorbar(drawn, cax=axis, orientation="horizontal", ticks=[0, 1])
    bar.ax.tick_params(labelsize=8, length=2)
    note = "activation of each token, from the lowest to the highest of its image"
    x = left + 2 * (cell + gap) + 0.15
    figure.text(x / width, 0.37 / height, note, fontsize=8.5, ha="left", va="center")
    for path in paths:
        figure.savefig(path)


def plot_scores(
    paths: Sequence[str | Path], table: pd.DataFrame, scores: Mapping[str, str], measures: Sequence[str], title: str
) -> None:
    """
    Write scores of several models at their tap points: a column for each score, a row for each measure, a colour and
    a marker for each model, with intervals.

    Args:
        paths (`Sequence[str | Path]`):
            The files to write, in the formats of their suffixes.
        table (`pandas.DataFrame`):
            `model`, `tap`, `measure`, `score`, `value`, `low` and `high`; rows without a tap point are horizontal
            lines.
        scores (`Mapping[str, str]`):
            By score, the label of its axis. Those that the table lacks are left out.
        measures (`Sequence[str]`):
            The measures.
        title (`str`):
            The title.
    """
    shown = [score for score in scores if (table["score"] == score).any()]
    measures = [measure for measure in measures if (table["measure"] == measure).any()]
    with_taps, baselines = table[table["tap"] != ""], table[table["tap"] == ""]
    models = list(dict.fromkeys(with_taps["model"]))
    of_measures = with_taps[with_taps["measure"].isin(measures)]
    by_model = [list(dict.fromkeys(rows["tap"])) for _, rows in of_measures.groupby("model", sort=False)]
    # The model with the most tap points has them in the order of the computation.
    taps = list(dict.fromkeys(tap for of_model in sorted(by_model, key=len, reverse=True) for tap in of_model))
    figure = new_figure(3.1 * len(shown) + 0.3, 2.9 * len(measures) + 1.2)
    axes = figure.subplots(len(measures), len(shown), squeeze=False)
    lines: dict[str, Any] = {}
    for measure, row in zip(measures, axes):
        for score, axis in zip(shown, row):
            if not ((of_measures["measure"] == measure) & (of_measures["score"] == score)).any():
                axis.set_axis_off()  # such as the filtering ratio of attention
                continue
            for number, model in enumerate(models):
                chosen = with_taps[
                    (with_taps["model"] == model) & (with_taps["measure"] == measure) & (with_taps["score"] == score)
                ]
                # Models side by side, so that their intervals do not cover each other.
                place = [taps.index(tap) + 0.12 * (number - (len(models) - 1) / 2) for tap in chosen["tap"]]
                errors = np.nan_to_num([chosen["value"] - chosen["low"], chosen["high"] - chosen["value"]])
                lines[model] = axis.errorbar(
                    place,
                    chosen["value"],
                    yerr=errors.clip(min=0),
                    color=LINE_COLORS[number % len(LINE_COLORS)],
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle=LINE_STYLES[number % len(LINE_STYLES)],
                    linewidth=1,
                    markersize=4.5,
                    capsize=2,
                )
            of_score = baselines[(baselines["score"] == score) & (baselines["measure"] == "")]
            for (_, baseline), dashes in zip(of_score.iterrows(), ((4, 2), (1, 2))):
                line = axis.axhline(baseline["value"], color="0.35", linewidth=1, dashes=dashes, zorder=0)
                lines[baseline["model"]] = line
            axis.set_xticks(range(len(taps)), [tap.replace("_", " ") for tap in taps], rotation=45, ha="right")
            axis.set_xlim(-0.5, len(taps) - 0.5)
            axis.set_ylabel(f"{measure}: {scores[score]}" if measure else scores[score], fontsize=9)
            axis.tick_params(labelsize=8)
            style_axis(axis)
    figure.suptitle(title, fontsize=11)
    figure.set_layout_engine("constrained")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=min(4, len(lines)), fontsize=9)
    for path in paths:
        figure.savefig(path)


def plot_removal(
    paths: Sequence[str | Path], curves: Mapping[str, Mapping[tuple[str, str], np.ndarray]], title: str
) -> None:
    """
    Write mean deletion and insertion curves, a row for each measure.

    Args:
        paths (`Sequence[str | Path]`):
            The files to write, in the formats of their suffixes.
        curves (`Mapping[str, Mapping[tuple[str, str], numpy.ndarray]]`):
            For each model's name, by measure and `deletion` or `insertion`, curves of shape `(images, steps + 1)`.
        title (`str`):
            The title.
    """
    measures = list(dict.fromkeys(measure for of_model in curves.values() for measure, _ in of_model))
    figure = new_figure(7.5, 2.7 * len(measures) + 1)
    axes = figure.subplots(len(measures), 2, squeeze=False, sharex=True, sharey=True)
    lines: dict[str, Any] = {}
    for measure, row in zip(measures, axes):
        for name, axis in zip(("deletion", "insertion"), row):
            for number, (model, of_model) in enumerate(curves.items()):
                if (measure, name) in of_model:
                    mean = of_model[measure, name].mean(0)
                    color, style = LINE_COLORS[number % len(LINE_COLORS)], LINE_STYLES[number % len(LINE_STYLES)]
                    places = np.linspace(0, 100, len(mean))
                    (lines[model],) = axis.plot(places, mean, color=color, linestyle=style, marker="o", markersize=3)
            axis.set_title(f"{name} by {measure}", fontsize=10)
            axis.set_ylim(0, 1)
            style_axis(axis)
    for axis in axes[-1]:
        axis.set_xlabel("patches deleted or inserted (%)", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("probability of the\npredicted class", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.set_layout_engine("constrained")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=min(4, len(lines)), fontsize=9)
    for path in paths:
        figure.savefig(path)
