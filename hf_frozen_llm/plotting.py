# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Figures of the package; matplotlib (the `plot` extra) is imported where it is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from hf_frozen_llm.metrics import Metric


CORRECT, WRONG = "#1a7f37", "#c2261c"
COLORS = ["#4c72b0", "#dd8452", "#55a868", "#8172b3"]


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


def plot_image_grid(
    path: str | Path,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    predictions: dict[str, Sequence[str]],
    title: str,
    columns: int = 8,
) -> None:
    """
    Write a grid of images, each with its true label and every model's prediction (green: correct, red: wrong).

    Args:
        path (`str` or `Path`):
            The PNG file to write.
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
            color = CORRECT if predicted[i] == label else WRONG
            below = (bottom - 0.05 - k * line) / height
            figure.text(center, below, f"{name}: {predicted[i]}", color=color, fontsize=9.5, ha="center", va="top")
    figure.savefig(path)


def plot_training_curves(path: str | Path, histories: dict[str, list[dict[str, Any]]], title: str) -> None:
    """
    Write curves of the training loss and of the accuracy on held-out images, one line for each model.

    Args:
        path (`str` or `Path`):
            The PNG file to write.
        histories (`dict[str, list[dict]]`):
            For each model's name, its `log_history` as `Trainer` keeps it.
        title (`str`):
            The title above the two plots.
    """
    figure = new_figure(11, 4.6)
    figure.suptitle(title, fontsize=14, y=0.97)
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.115, top=0.88, wspace=0.2)
    loss_axis, accuracy_axis = figure.subplots(1, 2)
    for (name, history), color in zip(histories.items(), COLORS):
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        accuracies = [(entry["step"], 100 * entry["eval_top1"]) for entry in history if "eval_top1" in entry]
        loss_axis.plot(*zip(*losses), color=color, label=name)
        accuracy_axis.plot(*zip(*accuracies), color=color, marker="o", markersize=4, label=name)
    loss_axis.set_ylabel("training loss")
    accuracy_axis.set_ylabel("accuracy on held-out images (%)")
    for axis in (loss_axis, accuracy_axis):
        axis.set_xlabel("training step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path)


def plot_ablation(path: str | Path, runs: pd.DataFrame, metric: Metric, title: str) -> None:
    """
    Write a plot of the main metric of each variant: a point for each run, the mean and the standard deviation.

    Args:
        path (`str` or `Path`):
            The PNG file to write.
        runs (`pandas.DataFrame`):
            A row for each run: `variant`, `eval_<metric>`, `trainable_parameters` and `forward_mflop`.
        metric ([`Metric`]):
            The metric of the task.
        title (`str`):
            The title above the plot.
    """
    groups = list(runs.groupby("variant", sort=False))
    figure = new_figure(10.5, 1.5 + 0.45 * len(groups))
    axis = figure.subplots()
    names = []
    for row, (variant, of_variant) in enumerate(groups):
        scores = metric.scale * of_variant[f"eval_{metric.name}"]
        axis.plot(scores, [row] * len(scores), "o", color=COLORS[0], alpha=0.35, markersize=5)
        spread = scores.std() if len(scores) > 1 else 0.0
        axis.errorbar(scores.mean(), row, xerr=spread, fmt="s", color=COLORS[0], capsize=4, markersize=6)
        first = of_variant.iloc[0]
        trained = first["trainable_parameters"] / 1e6
        names.append(f"{variant}\n{trained:.2f} M trained, {first['forward_mflop']:,.0f} MFLOP")
    axis.set_yticks(range(len(groups)), names, fontsize=9)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlabel(f"{metric.label}: runs, mean and standard deviation over seeds")
    axis.set_title(title, fontsize=11)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
