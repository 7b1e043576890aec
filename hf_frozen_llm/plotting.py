# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Figures of the package; matplotlib (the `plot` extra) is imported where it is used."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from hf_frozen_llm.metrics import Metric


CORRECT, WRONG = "#1a7f37", "#c2261c"
COLORS = ["#4c72b0", "#dd8452", "#55a868", "#8172b3"]
# Of many lines, for people who do not see all colours either (Okabe and Ito, jfly.uni-koeln.de/color).
LINE_COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000"]
LINE_STYLES = ["-", "--", ":", "-."]


def new_figure(width: float, height: float):
    """Return an empty matplotlib figure of `width` × `height` inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The figures need matplotlib: pip install 'hf_frozen_llm[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


def style_axis(axis: Any) -> None:
    """Draw a light grid, and no frame above and to the right."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def check_figure(name: str, file: str | Path) -> Path:
    """Return the file of a figure; refuse a format or a folder that fails only when the figure is written."""
    path, formats = Path(file), new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{name} is {str(file)!r}; matplotlib writes {', '.join(f'.{kind}' for kind in formats)}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{name} is {str(file)!r}, but there is no folder {path.parent}.")
    return path


def plot_image_grid(
    path: str | Path,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    predictions: dict[str, Sequence[str]],
    title: str,
    columns: int = 8,
) -> None:
    """
    Write a grid of images, each with its true label and every model's prediction, marked as correct (✓, green) or
    wrong (✗, red).

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        images (`Sequence[Image.Image]`):
            The images.
        labels (`Sequence[str]`):
            The true label of each image.
        predictions (`dict[str, Sequence[str]]`):
            For each model's name, its prediction for each image.
        title (`str`):
            The title above the grid.
        columns (`int`, *optional*, defaults to 8):
            Images in a row.
    """
    rows = -(-len(images) // columns)
    # In inches: every cell is a square image with a line above it and one line for each model below.
    cell, side, line, header = 1.75, 1.3, 0.19, 0.6
    cell_height = side + 0.3 + line * len(predictions) + 0.15
    width, height = columns * cell, header + rows * cell_height
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.3 / height, title, fontsize=14, ha="center", va="center")
    for i, (image, label) in enumerate(zip(images, labels)):
        row, column = divmod(i, columns)
        left = column * cell + (cell - side) / 2
        bottom = height - header - row * cell_height - 0.3 - side
        axis = figure.add_axes((left / width, bottom / height, side / width, side / height))
        axis.set_axis_off()
        axis.imshow(image, interpolation="nearest")
        center = (left + side / 2) / width
        top = (bottom + side + 0.06) / height
        figure.text(center, top, label, fontsize=11, fontweight="bold", ha="center", va="bottom")
        for k, (name, predicted) in enumerate(predictions.items()):
            color, mark = (CORRECT, "✓") if predicted[i] == label else (WRONG, "✗")
            below = (bottom - 0.05 - k * line) / height
            figure.text(
                center, below, f"{mark} {name}: {predicted[i]}", color=color, fontsize=9.5, ha="center", va="top"
            )
    figure.savefig(path)


def plot_training_curves(
    path: str | Path, histories: dict[str, list[dict[str, Any]]], title: str, evaluated: str = "held-out images"
) -> None:
    """
    Write curves of the training loss and of the accuracy on held-out images, one line for each model, with the
    last accuracy in the legend.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        histories (`dict[str, list[dict]]`):
            For each model's name, its `log_history` as `Trainer` keeps it.
        title (`str`):
            The title above the two plots.
        evaluated (`str`, *optional*, defaults to `"held-out images"`):
            The images of the accuracy, such as `"the 10,000 test images"`.
    """
    figure = new_figure(11, 4.6)
    figure.suptitle(title, fontsize=14, y=0.97)
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.115, top=0.88, wspace=0.2)
    loss_axis, accuracy_axis = figure.subplots(1, 2)
    for (name, history), color in zip(histories.items(), COLORS):
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        accuracies = [(entry["step"], 100 * entry["eval_top1"]) for entry in history if "eval_top1" in entry]
        loss_axis.plot(*zip(*losses), color=color, label=name)
        line = f"{name}, at the end {accuracies[-1][1]:.2f} %"
        accuracy_axis.plot(*zip(*accuracies), color=color, marker="o", markersize=4, label=line)
    loss_axis.set_ylabel("training loss")
    accuracy_axis.set_ylabel(f"top-1 accuracy on {evaluated} (%)")
    for axis in (loss_axis, accuracy_axis):
        axis.set_xlabel("training step")
        style_axis(axis)
        axis.legend(frameon=False)
    figure.savefig(path)


def plot_run(path: str | Path, history: list[dict[str, Any]], metric: Metric, saved_step: int | None = None) -> None:
    """
    Write the curves of one training: its loss and, with evaluations, theirs and the main metric.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        history (`list[dict]`):
            The `log_history` as `Trainer` keeps it.
        metric ([`Metric`]):
            The metric of the task.
        saved_step (`int`, *optional*):
            The step of the saved model, which is marked.
    """
    key = f"eval_{metric.name}"
    curves = [("loss", "training"), ("eval_loss", "evaluation")]
    has_metric = any(key in entry for entry in history)
    figure = new_figure(11 if has_metric else 5.5, 4)
    axes = figure.subplots(1, 2 if has_metric else 1, squeeze=False)[0]
    for (name, label), color in zip(curves, COLORS):
        points = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
        if points:
            axes[0].plot(
                *zip(*points), color=color, marker="o" if len(points) < 20 else None, markersize=4, label=label
            )
    axes[0].set_ylabel("loss")
    axes[0].legend(frameon=False)
    if has_metric:
        points = [(entry["step"], metric.scale * entry[key]) for entry in history if entry.get(key) is not None]
        axes[1].plot(*zip(*points), color=COLORS[1], marker="o", markersize=4)
        axes[1].set_ylabel(metric.label)
    for axis in axes:
        axis.set_xlabel("training step")
        style_axis(axis)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if saved_step:
            axis.axvline(saved_step, color="grey", linestyle="--", linewidth=1, zorder=0)
    figure.tight_layout()
    figure.savefig(path)


def plot_curves(
    path: str | Path,
    runs: Mapping[str, Sequence[list[dict[str, Any]]]],
    panels: Mapping[str, str],
    scales: Mapping[str, float],
    by: str = "step",
    format: str = "png",
) -> None:
    """
    Write curves of several runs: a panel for each metric, a colour for each name.

    Args:
        path (`str` or `Path`):
            The file to write.
        runs (`Mapping[str, Sequence[list[dict]]]`):
            For each name, the `log_history` of one run or more, as `Trainer` keeps it. Lines of several runs are thin.
        panels (`Mapping[str, str]`):
            For each entry of the histories that is plotted, the label of its axis.
        scales (`Mapping[str, float]`):
            Factors of entries.
        by (`str`, *optional*, defaults to `"step"`):
            The horizontal axis, `"step"` or `"epoch"`.
        format (`str`, *optional*, defaults to `"png"`):
            The format of the file.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.8 * rows + 0.25 * -(-len(runs) // columns))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    lines = {}
    for (key, label), axis in zip(panels.items(), axes):
        for number, (name, histories) in enumerate(runs.items()):
            style = LINE_STYLES[number // len(LINE_COLORS) % len(LINE_STYLES)]
            for history in histories:
                entries = [entry for entry in history if entry.get(key) is not None]
                (lines[name],) = axis.plot(
                    [entry[by] for entry in entries],
                    [scales.get(key, 1) * entry[key] for entry in entries],
                    color=LINE_COLORS[number % len(LINE_COLORS)],
                    linestyle=style,
                    linewidth=1.6 if len(histories) == 1 else 1,
                    marker="o" if len(entries) < 20 else None,
                    markersize=4,
                )
        axis.set_xlabel(f"training {by}")
        axis.set_ylabel(label)
        style_axis(axis)
    for axis in axes:  # the rest of the last row
        axis.set_visible(False)
    names = [f"{name} ({len(runs[name])} runs)" if len(runs[name]) > 1 else name for name in lines]
    figure.set_layout_engine("constrained")
    figure.legend(list(lines.values()), names, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, format=format)


def plot_robustness(path: str | Path, table: pd.DataFrame) -> None:
    """
    Write the accuracies of several models on suites of robustness: a panel of all suites and, for each suite with
    corruptions, a panel of these, each the mean of its severities, and one of the severities.

    Args:
        path (`str` or `Path`):
            The file to write, a PNG.
        table (`pandas.DataFrame`):
            A row for each `model`, `suite`, `corruption` (`"mean"` of all), `severity` and `metric`, with a `value`.
    """
    top1 = table[table.metric == "top1"]
    models = list(dict.fromkeys(top1.model))
    single, mean = top1[(top1.corruption == "") | (top1.corruption == "mean")], top1.corruption == "mean"
    corrupted = top1[(top1.corruption != "") & ~mean]
    panels = [("suite", single, "top-1 % (of corruptions: the mean)" if mean.any() else "top-1 %")]
    for suite, of_suite in corrupted.groupby("suite", sort=False):
        panels.append(("corruption", of_suite, f"{suite}: top-1 %, mean of the severities"))
        panels.append(("severity", of_suite, f"{suite}: top-1 %, mean of the corruptions"))
    counts = [part[key].nunique() for key, part, _ in panels]
    # In inches: a group of dots has a line of 0.26.
    heights = [0.9 + 0.26 * count for count in counts]
    figure = new_figure(8, sum(heights) + 0.4 + 0.22 * len(models))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axis, (key, part, label) in zip(axes, panels):
        names = list(dict.fromkeys(part[key]))
        for number, model in enumerate(models):
            values = 100 * part[part.model == model].groupby(key).value.mean().reindex(names)
            shift = 0.5 * ((number + 0.5) / len(models) - 0.5)
            axis.plot(
                values,
                np.arange(len(names)) + shift,
                "o",
                color=LINE_COLORS[number % len(LINE_COLORS)],
                markersize=5,
                label=model,
            )
        axis.set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlim(0, 100)
        axis.set_xlabel(label)
        if key == "severity":
            axis.set_ylabel("severity")
        style_axis(axis)
    figure.set_layout_engine("constrained")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", frameon=False)
    figure.savefig(path, format="png")


def plot_confusion_matrix(path: str | Path, table: pd.DataFrame) -> None:
    """
    Write a confusion matrix: counts, coloured by their share of the row.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        table (`pandas.DataFrame`):
            A row for each class: its name, and counts. The names of the other columns are those of the counts.
    """
    names, columns = table.iloc[:, 0].astype(str).tolist(), [str(name) for name in table.columns[1:]]
    counts = table.iloc[:, 1:].to_numpy()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    is_small = max(counts.shape) <= 30
    # In inches: room for the longest name on both sides, and for a number in every cell.
    cell, margin = (0.45 if is_small else 12 / max(counts.shape)), 1.1 + 0.075 * max(map(len, [*names, *columns]))
    figure = new_figure(cell * len(columns) + margin + 0.5, cell * len(names) + margin)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if is_small:
        axis.set_xticks(range(len(columns)), columns, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{counts[row, column]:,}", color=color, fontsize=8, ha="center", va="center")
    axis.set_ylabel("true class" if columns == names else "class")
    axis.set_xlabel("predicted class" if columns == names else "rows")
    figure.tight_layout()
    figure.savefig(path)


def plot_ablation(
    path: str | Path,
    runs: pd.DataFrame,
    metric: Metric,
    title: str,
    variants: Sequence[str] | None = None,
    reference: str | None = None,
) -> None:
    """
    Write a plot of the main metric of each variant: a dot for each seed, the mean and, with several seeds, the
    standard deviation.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        runs (`pandas.DataFrame`):
            A row for each run: `variant`, `eval_<metric>`, `trainable_parameters` and `forward_mflop`.
        metric ([`Metric`]):
            The metric of the task.
        title (`str`):
            The title above the plot, of one or several lines.
        variants (`Sequence[str]`, *optional*):
            All variants, in their order. Those without a run have an empty row.
        reference (`str`, *optional*):
            The variant whose mean is a vertical line.
    """
    groups = {str(variant): of_variant for variant, of_variant in runs.groupby("variant", sort=False)}
    variants = list(groups) if variants is None else variants
    names = [describe_variant(variant, groups.get(variant)) for variant in variants]
    lines = [line for name in names for line in name.splitlines()]
    # In inches: the plot itself is 6 wide, and the names have the room that they need.
    width, height = 6 + 0.075 * max(map(len, lines)), 1.9 + 0.155 * len(lines) + 0.16 * len(names)
    figure = new_figure(width, height)
    axis = figure.subplots()
    for row, variant in enumerate(variants):
        if variant not in groups:
            continue
        scores = metric.scale * groups[variant][f"eval_{metric.name}"]
        is_several = len(scores) > 1
        axis.plot(scores, [row] * len(scores), "o", color=COLORS[0], alpha=0.4 if is_several else 1, markersize=5)
        if is_several:
            style = {"fmt": "s", "color": COLORS[0], "capsize": 4, "markersize": 6}
            axis.errorbar(scores.mean(), row, xerr=scores.std(), **style)
    label = metric.label
    if runs["variant"].duplicated().any():
        label += "\ndots: seeds; squares: their mean ± standard deviation"
    if reference in groups:
        mean = metric.scale * groups[reference][f"eval_{metric.name}"].mean()
        axis.axvline(mean, color=COLORS[1], linestyle="--", linewidth=1.2, zorder=0)
        short = textwrap.shorten(str(reference), 70, placeholder=" …")
        label += f"\ndashed: {'mean of ' if len(groups[reference]) > 1 else ''}{short}"
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("\n".join(textwrap.fill(line, 80) for line in title.splitlines()), fontsize=10)
    figure.tight_layout()
    figure.savefig(path)


def describe_variant(variant: str, runs: pd.DataFrame | None) -> str:
    """Return the label of a variant: its name, in lines of at most 60 characters, and the cost of its model."""
    name = textwrap.fill(variant, 60)
    if runs is None:
        return f"{name}\nno finished run"
    first = runs.iloc[0]
    trained = first["trainable_parameters"] / 1e6
    return f"{name}\n{trained:.2f} M trained, {first['forward_mflop']:,.0f} MFLOP"


def plot_predictions(
    path: str | Path,
    images: Sequence[Image.Image],
    headings: Sequence[str],
    predictions: Sequence[Sequence[dict[str, Any]]],
    title: str = "",
    columns: int = 4,
) -> None:
    """
    Write a grid of images, each with its predictions below: a bar for each score, the best first.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix.
        images (`Sequence[Image.Image]`):
            The images.
        headings (`Sequence[str]`):
            The text above each image, such as a question.
        predictions (`Sequence[Sequence[dict]]`):
            For each image, its predictions: `label` and `score`, between 0 and 1.
        title (`str`, *optional*, defaults to `""`):
            The title above the grid, such as what was searched.
        columns (`int`, *optional*, defaults to 4):
            Images in a row.
    """
    lines = [textwrap.wrap(textwrap.shorten(heading, 84, placeholder=" …"), 30) for heading in headings]
    columns, bars = min(columns, len(images)), max(map(len, predictions))
    # In inches: every cell is a heading, a square image, and a bar for each prediction.
    cell, side, line, margin = 2.5, 2.1, 0.2, 0.12
    above, header = line * max(map(len, lines)) + margin, 0.55 if title else margin
    cell_height = above + side + 0.05 + 0.24 * bars + margin
    width, height = columns * cell, header + -(-len(images) // columns) * cell_height
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.3 / height, title, fontsize=13, ha="center", va="center")
    for i, (image, heading, of_image) in enumerate(zip(images, lines, predictions)):
        row, column = divmod(i, columns)
        left, top = column * cell + (cell - side) / 2, height - header - row * cell_height - above
        figure.text((left + side / 2) / width, (top + 0.05) / height, "\n".join(heading), fontsize=9.5, ha="center")
        axis = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axis.set_axis_off()
        axis.set_anchor("N")
        axis.imshow(image, interpolation="nearest" if max(image.size) < 100 else None)
        bottom, room = top - side - 0.05 - 0.24 * len(of_image), 0.24 * len(of_image)
        axis = figure.add_axes((left / width, bottom / height, side / width, room / height))
        axis.set(xlim=(0, 1), ylim=(len(of_image) - 0.5, -0.5))
        axis.set_axis_off()
        axis.barh(range(len(of_image)), [best["score"] for best in of_image], 0.86, color=COLORS[0], alpha=0.35)
        for place, best in enumerate(of_image):
            label = textwrap.shorten(str(best["label"]), 25, placeholder=" …")
            axis.text(0.02, place, label, fontsize=8.5, va="center")
            axis.text(0.98, place, f"{100 * best['score']:.1f} %", fontsize=8.5, ha="right", va="center")
    figure.savefig(path)
