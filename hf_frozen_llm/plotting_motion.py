# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Pictures and animations of scenes and of forecasts in them; matplotlib (the `plot` extra) is imported in use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_frozen_llm.modeling.motion_scenes import Frame, Scene, check_scene, find_heading
from hf_frozen_llm.plotting import new_figure


LANE, OTHERS, HISTORY, TRUTH, FORECAST = "#c9ccd1", "#7a8aa0", "#1f4e9c", "#1a7f37", "#d9480f"
# Metres around what is drawn, and the least height and width of a picture.
MARGIN, SMALLEST_SIDE = 8.0, 40.0
LENGTHS_OF_SCALES = (1, 2, 5, 10, 20, 50, 100)


def plot_scenes(
    path: str | Path,
    scenes: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]] | None = None,
    num_history_steps: int = 20,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> None:
    """
    Write a grid of scenes, each turned so that its target heads upwards: lanes, what was observed of the target and of
    the other agents, the target's true future, and its forecasts with their scores.

    Args:
        path (`str` or `Path`):
            The file to write, in the format of its suffix, such as `.png` or `.svg`.
        scenes (`Sequence[Mapping[str, Any]]`):
            Scenes as [`MotionProcessor`] takes them.
        predictions (`Sequence[Mapping[str, Any]]`, *optional*):
            Of each scene, the `trajectories` `(modes, steps, 2)`, in its coordinates, and their `scores`, as
            [`MotionProcessor.post_process`] and `predict` return them.
        num_history_steps (`int`, *optional*, defaults to 20):
            Number of observed steps.
        titles (`Sequence[str]`, *optional*):
            A title for each scene.
        columns (`int`, *optional*, defaults to 4):
            Scenes in a row.

    Raises:
        `ImportError`: without matplotlib.
        `ValueError`: for wrong scenes, or other numbers of predictions or titles than of scenes.
    """
    views = make_views(scenes, predictions, num_history_steps, titles)
    columns = min(columns, len(views))
    rows = -(-len(views) // columns)
    # In inches: every scene is a square below its title; a single one leaves room for the legend.
    cell, footer = (3.2 if columns > 1 else 5.0), 0.5
    width, height = cell * columns, (cell + 0.25) * rows + footer
    figure = new_figure(width, height)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / height, bottom=footer / height, wspace=0.03)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(views) :]:
        axis.set_axis_off()
    for axis, view in zip(axes, views):
        view.draw(axis)
    add_legend(figure, views)
    figure.savefig(path)


def animate_scene(
    path: str | Path,
    scene: Mapping[str, Any],
    prediction: Mapping[str, Any] | None = None,
    num_history_steps: int = 20,
    title: str = "",
    frames_per_second: int = 10,
) -> None:
    """
    Write a scene as an animation, a frame for each step: first the history, then the forecasts beside what happened.

    Args:
        path (`str` or `Path`):
            The `.gif` file to write.
        scene (`Mapping[str, Any]`):
            A scene as [`MotionProcessor`] takes it.
        prediction (`Mapping[str, Any]`, *optional*):
            Its `trajectories` and `scores`.
        num_history_steps (`int`, *optional*, defaults to 20):
            Number of observed steps.
        title (`str`, *optional*):
            The title.
        frames_per_second (`int`, *optional*, defaults to 10):
            Speed; 10 is that of scenes with a step each 0.1 s.
    """
    predictions = None if prediction is None else [prediction]
    (view,) = make_views([scene], predictions, num_history_steps, [title])
    figure = new_figure(5, 5.7)
    from matplotlib.animation import FuncAnimation, PillowWriter

    axis = figure.add_axes((0.01, 0.1, 0.98, 0.83))
    add_legend(figure, [view])

    def draw(step: int) -> None:
        axis.clear()
        view.draw(axis, step)

    animation = FuncAnimation(figure, draw, frames=range(1, len(view.target) + 1))
    animation.save(path, writer=PillowWriter(fps=frames_per_second), dpi=100)


class SceneView:
    """A scene in its target's frame, heading upwards, with its forecasts."""

    def __init__(self, scene: Scene, prediction: Mapping[str, Any] | None, num_history_steps: int, title: str):
        heading = find_heading(scene, num_history_steps, "last_step", title)
        frame = Frame(scene.positions[scene.target, num_history_steps - 1], float(np.pi / 2 - heading))
        self.title, self.now = title, num_history_steps
        self.lanes = [frame.to_frame(lane) for lane in scene.lanes]
        tracks = frame.to_frame(scene.positions)
        self.target, self.others = tracks[scene.target], np.delete(tracks, scene.target, axis=0)
        self.forecasts, self.scores = np.zeros((0, 0, 2)), np.zeros(0)
        if prediction is not None:
            order = np.argsort(-np.asarray(prediction["scores"]), kind="stable")
            self.forecasts = frame.to_frame(np.asarray(prediction["trajectories"], dtype=float))[order]
            self.scores = np.asarray(prediction["scores"], dtype=float)[order]
        self.low, self.high = self._find_limits()

    def _find_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners of a square around the target's track and the forecasts."""
        points = np.concatenate([self.target, self.forecasts.reshape(-1, 2)])
        points = points[np.isfinite(points).all(axis=-1)]
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        half = max((points.max(axis=0) - points.min(axis=0)).max() / 2 + MARGIN, SMALLEST_SIDE / 2)
        return middle - half, middle + half

    def draw(self, axis: Any, step: int | None = None) -> None:
        """Draw everything, or what is known after this many steps."""
        seen = self.now if step is None else min(step, self.now)
        for lane in self.lanes:
            axis.plot(*lane.T, color=LANE, linewidth=1.2, zorder=1)
        current = seen if step is None else step
        for track in self.others:
            axis.plot(*track[:current].T, color=OTHERS, linewidth=1, zorder=2)
            if current <= len(track) and np.isfinite(track[current - 1]).all():
                axis.plot(*track[current - 1], "o", color=OTHERS, markersize=3, zorder=2)
        axis.plot(*self.target[:seen].T, color=HISTORY, linewidth=2.4, zorder=4, solid_capstyle="round")
        axis.plot(*self.target[min(seen, len(self.target)) - 1], "o", color=HISTORY, markersize=6, zorder=6)
        num_later = len(self.target) - self.now if step is None else max(step - self.now, 0)
        if step is None or step >= self.now:
            self._draw_future(axis, num_later)
        axis.set_xlim(self.low[0], self.high[0])
        axis.set_ylim(self.low[1], self.high[1])
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(self.title, fontsize=9, pad=4)
        self._draw_scale(axis)

    def _draw_future(self, axis: Any, num_later: int) -> None:
        start = self.target[self.now - 1 : self.now]
        truth = np.concatenate([start, self.target[self.now :][:num_later]])
        axis.plot(*truth.T, color=TRUTH, linewidth=2, linestyle=(0, (3, 1.5)), zorder=5)
        if len(truth) > 1 and np.isfinite(truth[-1]).all():
            axis.plot(*truth[-1], "*", color=TRUTH, markersize=9, zorder=6)
        best = self.scores.max(initial=0)
        for forecast, score in zip(self.forecasts, self.scores):
            # Even an improbable trajectory remains visible.
            strength = 0.3 + 0.7 * score / best if best > 0 else 1
            axis.plot(*np.concatenate([start, forecast]).T, color=FORECAST, alpha=strength, linewidth=1.6, zorder=3)
            axis.plot(*forecast[-1], "o", color=FORECAST, alpha=strength, markersize=4, zorder=3)
        self._label_scores(axis)

    def _label_scores(self, axis: Any) -> None:
        """Write each score at the end of its trajectory, and not over those of more probable ones."""
        side, start = self.high[0] - self.low[0], self.target[self.now - 1]
        taken: list[np.ndarray] = []
        for forecast, score in zip(self.forecasts, self.scores):
            outwards = forecast[-1] - start
            length = np.linalg.norm(outwards)
            step = 0.045 * side * (outwards / length if length > 0 else np.array([1.0, 0.0]))
            place = forecast[-1] + step
            while any((np.abs(place - other) < np.array([0.1, 0.045]) * side).all() for other in taken):
                place = place + 0.5 * step
            taken.append(place)
            style = {"fontsize": 7, "ha": "center", "va": "center", "zorder": 7, "clip_on": True}
            axis.text(*place, f"{100 * score:.0f} %", color=FORECAST, **style)

    def _draw_scale(self, axis: Any) -> None:
        side = self.high[0] - self.low[0]
        length = max(each for each in LENGTHS_OF_SCALES if each <= max(side / 4, LENGTHS_OF_SCALES[0]))
        left, bottom = self.low + 0.05 * side
        axis.plot([left, left + length], [bottom, bottom], color="black", linewidth=2, zorder=8, solid_capstyle="butt")
        axis.text(left + length / 2, bottom + 0.015 * side, f"{length} m", fontsize=7, ha="center", zorder=8)


def make_views(
    scenes: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]] | None,
    num_history_steps: int,
    titles: Sequence[str] | None,
) -> list[SceneView]:
    if not scenes:
        raise ValueError("scenes is empty; give one scene or several.")
    for name, values in (("predictions", predictions), ("titles", titles)):
        if values is not None and len(values) != len(scenes):
            raise ValueError(f"{name} has {len(values)} entries; it must have one for each of {len(scenes)} scenes.")
    views = []
    for index, scene in enumerate(scenes):
        title = f"scene {index}" if titles is None else titles[index]
        prediction = None if predictions is None else predictions[index]
        views.append(SceneView(check_scene(scene, num_history_steps, title), prediction, num_history_steps, title))
    return views


def add_legend(figure: Any, views: Sequence[SceneView]) -> None:
    from matplotlib.lines import Line2D

    entries: list[tuple[str, dict[str, Any]]] = [
        ("lanes", {"color": LANE, "linewidth": 1.2}),
        ("other agents", {"color": OTHERS, "linewidth": 1, "marker": "o", "markersize": 3}),
        ("observed", {"color": HISTORY, "linewidth": 2.4}),
        ("truth", {"color": TRUTH, "linewidth": 2, "linestyle": (0, (3, 1.5))}),
    ]
    if any(len(view.forecasts) for view in views):
        entries.append(("forecasts, with their scores", {"color": FORECAST, "linewidth": 1.6}))
    handles = [Line2D([], [], label=label, **style) for label, style in entries]
    is_narrow = figure.get_figwidth() < 6
    figure.legend(handles=handles, loc="lower center", ncol=3 if is_narrow else 5, frameon=False, fontsize=8)


__all__ = ["animate_scene", "plot_scenes"]
