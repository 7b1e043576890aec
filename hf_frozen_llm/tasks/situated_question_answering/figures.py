# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a model's answer: the scene from above and in 3D, the agent, the boxes of the tokens weighed most."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from hf_frozen_llm.modeling.configuration_sqa3d_with_llm_block import SCANNET_MEAN_SIZES
from hf_frozen_llm.plotting import COLORS, CORRECT, WRONG, new_figure
from hf_frozen_llm.tasks.situated_question_answering.scenes import to_matrix


NUM_TOKENS, NUM_ANSWERS = 4, 5
CLASS_NAMES = (
    *("cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk"),
    *("curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "other"),
)
FOUND, TRUE = "#d62728", "#1f1f1f"  # the agent's pose
# The corners of a box that its edges join: those that differ in one coordinate.
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
EDGES = [(i, j) for i in range(8) for j in range(i) if np.abs(CORNERS[i] - CORNERS[j]).sum() == 1]


def plot_answer(
    file: Path,
    points: np.ndarray,
    colors: np.ndarray,
    outputs: dict[str, np.ndarray],
    texts: dict[str, str],
    predictions: list[dict[str, Any]],
    answers: list[str],
    pose: np.ndarray | None,
) -> None:
    """
    Write a picture of the answer to a question.

    Args:
        file (`Path`): the file to write, in the format of its suffix.
        points (`numpy.ndarray` of shape `(points, 3)`): the points that the model got.
        colors (`numpy.ndarray` of shape `(points, 3)`): their colours from 0 to 1.
        outputs (`dict[str, numpy.ndarray]`): the model's `object_weights`, `object_mask`, `box_centers`, `box_sizes`,
            `class_logits` and, if it finds the agent, `situation`.
        texts (`dict[str, str]`): the `situation` and the `question`.
        predictions (`list[dict]`): the answers as `label` and `score`, the best first.
        answers (`list[str]`): the right ones, if they are known.
        pose (`numpy.ndarray` of shape `(7,)`, *optional*): the agent's true pose.
    """
    figure = new_figure(11, 4.6)
    above = figure.add_axes((0.05, 0.1, 0.3, 0.72))
    space = figure.add_axes((0.36, 0.02, 0.34, 0.84), projection="3d")
    bars = figure.add_axes((0.79, 0.5, 0.19, 0.34))
    above.scatter(*points[:, :2].T, s=2, c=colors, linewidths=0)
    space.scatter(*points.T, s=2, c=colors, linewidths=0, depthshade=False)
    weights = np.where(outputs["object_mask"], outputs["object_weights"].mean(axis=-1), 0)
    tokens = [token for token in np.argsort(-weights)[:NUM_TOKENS] if weights[token] > 0]
    names = CLASS_NAMES if outputs["class_logits"].shape[-1] == len(SCANNET_MEAN_SIZES) else ()
    lines = []
    for rank, token in enumerate(tokens):
        color = COLORS[rank % len(COLORS)]
        center, size = outputs["box_centers"][token], np.abs(outputs["box_sizes"][token])
        corners = center + CORNERS * size
        for pair in EDGES:
            space.plot(*corners[list(pair)].T, color=color, linewidth=1)
        low, high = corners.min(axis=0)[:2], corners.max(axis=0)[:2]
        above.plot([low[0], high[0], high[0], low[0], low[0]], [low[1], low[1], high[1], high[1], low[1]], color=color)
        above.text(*low, str(rank + 1), color=color, fontsize=8, ha="right", va="top")
        kind = int(outputs["class_logits"][token].argmax())
        lines.append((f"{rank + 1}  {weights[token]:.2f}  {names[kind] if names else f'class {kind}'}", color))
    poses = {"found": (outputs.get("situation"), FOUND), "true": (pose, TRUE)}
    for name, (values, color) in poses.items():
        if values is not None:
            draw_agent(above, space, values, color, f"agent, {name}")
    above.set_facecolor("#e8e8e8")  # white points are seen
    above.set_aspect("equal")
    above.tick_params(labelsize=7)
    above.set_xlabel("x in metres", fontsize=8)
    above.set_ylabel("y in metres", fontsize=8)
    if above.get_legend_handles_labels()[0]:
        # Above the scene: points may be anywhere in it.
        above.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    space.set_box_aspect(np.maximum(np.ptp(points, axis=0), 0.1))
    space.tick_params(labelsize=6)
    draw_scores(bars, predictions[:NUM_ANSWERS], answers)
    figure.text(0.73, 0.36, "Tokens weighed most: weight, class found", fontsize=8, weight="bold")
    for row, (line, color) in enumerate(lines):
        figure.text(0.73, 0.3 - 0.055 * row, line, fontsize=8, color=color)
    asked = "\n".join(textwrap.fill(texts[name], 120) for name in ("situation", "question") if texts[name])
    figure.text(0.05, 0.98, asked, fontsize=10, va="top")
    figure.savefig(file)


def draw_agent(above: Any, space: Any, pose: np.ndarray, color: str, label: str) -> None:
    """Draw an agent, which faces its own -x, as an arrow on both axes."""
    (x, y, z), norm = pose[:3], np.linalg.norm(pose[3:])
    facing = -to_matrix(pose[3:])[:, 0] * 0.8 if norm > 0 else np.zeros(3)
    above.plot(x, y, "o", color=color, markersize=5, label=label)
    above.annotate(
        "", (x + facing[0], y + facing[1]), (x, y), arrowprops={"arrowstyle": "->", "color": color, "lw": 2}
    )
    space.plot([x], [y], [z], "o", color=color, markersize=4)
    space.quiver(x, y, z, *facing, color=color, linewidth=2)


def draw_scores(axis: Any, predictions: list[dict[str, Any]], answers: list[str]) -> None:
    """Draw a bar for the score of each answer; if the right ones are known, green or red."""
    labels = [prediction["label"] for prediction in predictions]
    colors = [COLORS[0] if not answers else CORRECT if label in answers else WRONG for label in labels]
    rows = np.arange(len(labels))[::-1]
    axis.barh(rows, [prediction["score"] for prediction in predictions], color=colors)
    axis.set_yticks(rows, labels, fontsize=8)
    axis.set_xlim(0, 1)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(f"answer: {', '.join(answers)}" if answers else "score", fontsize=8)
