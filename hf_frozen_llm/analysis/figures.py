# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Figures of activation maps and of their scores, for people who do not see all colours, too."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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


# Draws one cell of a figure into matplotlib's axis.
DrawCell = Callable[[Any], Any]


class OverlayRow(NamedTuple):
    """
    A row of cells of [`plot_cells`].

    Args:
        heading (`str`, *optional*): a line above the row, which begins a new example; `""` is only some space.
        label (`str`): the text on its left.
        cells (`Mapping[str, Callable]`): by column, a function that draws into an axis.
    """

    heading: str | None
    label: str
    cells: Mapping[str, DrawCell]


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

    def draw_mask(mask: np.ndarray, axis: Any) -> None:
        axis.set_facecolor("0.5")
        axis.imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

    rows = []
    for i, (image, mask) in enumerate(zip(images, masks)):
        pixels = np.asarray(image.convert("RGB"))
        for k, (model, of_model) in enumerate(maps.items()):
            first: dict[str, DrawCell] = {"image": partial(draw_image, pixels, None), "mask": partial(draw_mask, mask)}
            cells = {column: partial(draw_image, pixels, of_column[i]) for column, of_column in of_model.items()}
            rows.append(OverlayRow(None if k else "", model, {**(first if k == 0 else {}), **cells}))
    plot_cells(paths, rows, ["image", "mask", *name_columns(maps.values())], title)


def name_columns(maps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of several models; the one with the most has them in the order of the computation."""
    return list(dict.fromkeys(name for of_model in sorted(maps, key=len, reverse=True) for name in of_model))


def draw_image(pixels: np.ndarray, values: np.ndarray | None, axis: Any) -> None:
    """
    Draw an image, or a map over the image in grey.

    Args:
        pixels (`numpy.ndarray` of shape `(height, width, 3)`): the image, in bytes or from 0 to 1.
        values (`numpy.ndarray` of shape `(rows, columns)`, *optional*): the map, from 0 to 1.
        axis: matplotlib's axis.
    """
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    if values is None:
        axis.imshow(pixels, extent=extent)
        return
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255 if pixels.dtype == np.uint8 else 1, extent=extent)
    style = {"cmap": COLOR_MAP, "vmin": 0, "vmax": 1, "alpha": 0.75, "interpolation": "nearest"}
    axis.imshow(values, extent=extent, **style)


def plot_cells(
    paths: Sequence[str | Path],
    rows: Sequence[OverlayRow],
    columns: Sequence[str],
    title: str,
    cell: tuple[float, float] = (1.15, 1.15),
    projection: str | None = None,
) -> None:
    """
    Write a grid of cells with the names of its rows and columns, and the colours of activations.

    Args:
        paths (`Sequence[str | Path]`):
            The files to write, in the formats of their suffixes.
        rows (`Sequence[OverlayRow]`):
            The rows.
        columns (`Sequence[str]`):
            The columns, in their order. A row need not have all of them.
        title (`str`):
            The title above the columns.
        cell (`tuple[float, float]`, *optional*, defaults to `(1.15, 1.15)`):
            Width and height of a cell, in inches.
        projection (`str`, *optional*):
            That of all axes, such as `"3d"`.
    """
    from matplotlib.cm import ScalarMappable

    # In inches: room for the names.
    gap, left, top, bottom = 0.06, 1.45, 0.95, 0.55
    above = np.cumsum([0 if row.heading is None else 0.32 if row.heading else 0.1 for row in rows])
    tops = top + above + np.arange(len(rows)) * (cell[1] + gap)
    width = left + len(columns) * (cell[0] + gap) + gap
    height = tops[-1] + cell[1] + gap + bottom
    figure = new_figure(width, height)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **style)

    write(width / 2, 0.22, title, fontsize=11, ha="center", va="center")
    for column, name in enumerate(columns):
        x = left + column * (cell[0] + gap) + cell[0] / 2
        write(x, top - 0.06, name.replace("_", "\n"), fontsize=9, ha="center", va="bottom")
    for y, row in zip(tops, rows):
        if row.heading:
            write(left, y - 0.05, row.heading, fontsize=9, ha="left", va="bottom")
        # Names are wrapped at slashes and underscores, too.
        lines = [re.sub(r"([/_])(?=.)", r"\1 ", line) for line in row.label.split("\n")]
        wrapped = "\n".join("\n".join(textwrap.wrap(line, 16)) for line in lines)
        label = re.sub(r"([/_]) ", r"\1", wrapped)
        write(left - 0.1, y + cell[1] / 2, label, fontsize=9, ha="right", va="center")
        for column, name in enumerate(columns):
            if name in row.cells:
                x = left + column * (cell[0] + gap)
                place = (x / width, 1 - (y + cell[1]) / height, cell[0] / width, cell[1] / height)
                axis = figure.add_axes(place, projection=projection, xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                row.cells[name](axis)
    bar_axis = figure.add_axes((left / width, 0.32 / height, 2.4 / width, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(cmap=COLOR_MAP), cax=bar_axis, orientation="horizontal", ticks=[0, 1])
    bar.ax.tick_params(labelsize=8, length=2)
    note = "activation of each token, from the lowest to the highest of its input"
    write(left + 2.55, height - 0.37, note, fontsize=8.5, ha="left", va="center")
    for path in paths:
        # Of pictures, more pixels only make a larger file.
        figure.savefig(path, dpi=100)


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
