# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scenes of moving agents and lanes: their schema, the target's frame, and the geometry of tracks and lanes.

Source of the rules that are called mmTransformer's: github.com/decisionforce/mmTransformer (its pre-processing of
Argoverse 1), and argoai/argoverse-api for the lanes near a point; both were run for their numbers.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np


HeadingRule: TypeAlias = Literal["last_step", "regression", "box_yaw"]
HEADING_RULES = ("last_step", "regression", "box_yaw")
LaneRule: TypeAlias = Literal["centerline", "argoverse1_boxes"]
LANE_RULES = ("centerline", "argoverse1_boxes")
TURNS = {"none": 0, "left": -1, "right": 1}
# Types of objects as Forecast-MAE groups Argoverse 2's; any other type is in the last group. The names are those of
# Argoverse 2's scenarios and sensor logs, and of Argoverse 1, whose tracks are of vehicles for the most part.
TYPE_GROUPS = {
    **dict.fromkeys(("vehicle", "bus", "regular_vehicle", "large_vehicle", "box_truck", "truck", "truck_cab"), 0),
    **dict.fromkeys(("articulated_bus", "school_bus", "vehicular_trailer", "agent", "av", "others"), 0),
    "pedestrian": 1,
    **dict.fromkeys(("motorcyclist", "cyclist", "bicyclist", "wheeled_rider"), 2),
}
OTHER_TYPES = 3

# Shorter displacements, in metres, give no direction.
SMALLEST_MOTION = 0.01
# argoverse-api takes every lane to be this wide, in metres.
ARGOVERSE1_LANE_WIDTH = 3.8


@dataclass
class Frame:
    """
    The target's frame: `rotation @ (point - center)` has the target at 0, heading to +y.

    Args:
        center (`np.ndarray` of shape `(2,)`): the target's last observed position, in the scene's coordinates.
        angle (`float`): the rotation, counter-clockwise, in radians.
    """

    center: np.ndarray
    angle: float

    @property
    def rotation(self) -> np.ndarray:
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cosine, -sine], [sine, cosine]])

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        return (points - self.center) @ self.rotation.T

    def to_scene(self, points: Any) -> np.ndarray:
        return np.asarray(points, dtype=np.float64) @ self.rotation + self.center


@dataclass
class Scene:
    """A checked scene; see [`MotionProcessor`] for its parts."""

    positions: np.ndarray
    timestamps: np.ndarray
    target: int
    headings: np.ndarray | None
    velocities: np.ndarray | None
    types: np.ndarray
    lanes: list[np.ndarray]
    attributes: np.ndarray

    @property
    def is_seen(self) -> np.ndarray:
        return np.isfinite(self.positions).all(axis=-1)


def check_scene(scene: Any, num_history_steps: int, location: str) -> Scene:
    """
    Return a checked scene; `location` names it in errors.

    Raises:
        `ValueError`: for missing parts, wrong shapes, infinite numbers, timestamps that do not increase, and a target
            that is not seen at the last observed step.
    """
    missing = [name for name in ("positions", "timestamps", "target") if scene.get(name) is None]
    if missing:
        raise ValueError(f"{location} has no {', '.join(missing)}; it has {sorted(scene)}.")
    positions = np.array(scene["positions"], dtype=np.float64)
    timestamps = np.asarray(scene["timestamps"], dtype=np.float64)
    if positions.ndim != 3 or positions.shape[-1] != 2:
        raise ValueError(f"{location}: positions has the shape {positions.shape}; it must be (agents, steps, 2).")
    num_agents, num_steps, _ = positions.shape
    if timestamps.shape != (num_steps,):
        raise ValueError(f"{location}: timestamps has the shape {timestamps.shape}, and positions {num_steps} steps.")
    if num_steps < num_history_steps:
        raise ValueError(f"{location} has {num_steps} steps, fewer than num_history_steps, {num_history_steps}.")
    if np.isinf(positions).any() or not np.isfinite(timestamps).all():
        raise ValueError(f"{location} holds infinite numbers; a position that was not observed is NaN.")
    if (np.diff(timestamps) <= 0).any():
        step = int(np.argmax(np.diff(timestamps) <= 0)) + 1
        raise ValueError(f"{location}: timestamps do not increase at step {step}; sort the rows by time.")
    target = int(scene["target"])
    if not 0 <= target < num_agents:
        raise ValueError(f"{location}: target is {target}; it must be the index of one of the {num_agents} agents.")
    if not np.isfinite(positions[target, num_history_steps - 1]).all():
        raise ValueError(
            f"{location}: the target, agent {target}, is not seen at step {num_history_steps - 1}, the last observed "
            "one, where its frame is."
        )
    # A position of which one coordinate is unknown is unknown.
    positions[~np.isfinite(positions).all(axis=-1)] = np.nan
    headings = None
    if scene.get("headings") is not None:
        headings = np.asarray(scene["headings"], dtype=np.float64)
        if headings.shape != (num_agents, num_steps):
            raise ValueError(f"{location}: headings has the shape {headings.shape}; it must be (agents, steps).")
    velocities = None
    if scene.get("velocities") is not None:
        velocities = np.asarray(scene["velocities"], dtype=np.float64)
        if velocities.shape != positions.shape:
            raise ValueError(f"{location}: velocities has the shape {velocities.shape}; it must be {positions.shape}.")
    names = scene.get("types")
    names = ["vehicle"] * num_agents if names is None else [str(name).lower() for name in names]
    if len(names) != num_agents:
        raise ValueError(f"{location}: types has {len(names)} names for {num_agents} agents.")
    types = np.array([TYPE_GROUPS.get(name, OTHER_TYPES) for name in names])
    lanes, attributes = check_lanes(scene.get("lanes") or [], location)
    return Scene(positions, timestamps, target, headings, velocities, types, lanes, attributes)


def check_lanes(lanes: Any, location: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the centrelines, and the attributes `(lanes, 3)`: intersection, turn (-1, 0, 1), traffic control."""
    centerlines, attributes = [], np.zeros((len(lanes), 3))
    for index, lane in enumerate(lanes):
        points = np.asarray(lane["centerline"], dtype=np.float64)
        if points.ndim != 2 or points.shape[-1] != 2 or len(points) < 2 or not np.isfinite(points).all():
            raise ValueError(
                f"{location}: the centerline of lane {index} has the shape {points.shape}; it must be (points, 2), of "
                "at least two points with finite numbers."
            )
        turn = str(lane.get("turn_direction") or "none").lower()
        if turn not in TURNS:
            raise ValueError(f"{location}: turn_direction of lane {index} is {turn!r}; it must be in {list(TURNS)}.")
        centerlines.append(points)
        attributes[index] = bool(lane.get("is_intersection")), TURNS[turn], bool(lane.get("has_traffic_control"))
    return centerlines, attributes


# The heading of the target.


def find_heading(scene: Scene, num_history_steps: int, rule: HeadingRule, location: str) -> float:
    """Return the target's heading at the last observed step, in radians."""
    history = scene.positions[scene.target, :num_history_steps]
    if rule == "box_yaw":
        if scene.headings is None or not np.isfinite(scene.headings[scene.target, num_history_steps - 1]):
            raise ValueError(
                f"{location} has no heading of the target at the last observed step, which heading='box_yaw' needs. "
                "Use 'last_step'."
            )
        return float(scene.headings[scene.target, num_history_steps - 1])
    history = history[np.isfinite(history).all(axis=-1)]
    direction = regress_direction(history) if rule == "regression" else last_displacement(history)
    if direction is not None:
        return math.atan2(direction[1], direction[0])
    # A target that stands still: its box, if there is one, or no rotation.
    yaw = np.nan if scene.headings is None else scene.headings[scene.target, num_history_steps - 1]
    return float(yaw) if np.isfinite(yaw) else math.pi / 2


def last_displacement(history: np.ndarray) -> np.ndarray | None:
    """Return the displacement to the last position from the one before, or from the last one that is not at it."""
    displacements = history[-1] - history[-2::-1]
    moved = np.linalg.norm(displacements, axis=-1) > SMALLEST_MOTION
    return displacements[moved.argmax()] if moved.any() else None


def find_headings(scene: Scene, agents: list[int], num_history_steps: int) -> np.ndarray:
    """
    Return the headings of agents at the last observed step: of their boxes, or of their last displacements. Those that
    stand still, without a box, have the target's.
    """
    headings = np.full(len(agents), find_heading(scene, num_history_steps, "last_step", "scene"))
    for row, agent in enumerate(agents):
        yaw = np.nan if scene.headings is None else scene.headings[agent, num_history_steps - 1]
        history = scene.positions[agent, :num_history_steps]
        direction = last_displacement(history[np.isfinite(history).all(axis=-1)])
        if np.isfinite(yaw):
            headings[row] = yaw
        elif direction is not None:
            headings[row] = math.atan2(direction[1], direction[0])
    return headings


def find_speeds(scene: Scene) -> np.ndarray:
    """Return the speeds `(agents, steps)`, NaN where unknown; without velocities, those since the last step."""
    if scene.velocities is not None:
        return np.linalg.norm(scene.velocities, axis=-1)
    speeds = np.full(scene.positions.shape[:2], np.nan)
    speeds[:, 1:] = np.linalg.norm(np.diff(scene.positions, axis=1), axis=-1) / np.diff(scene.timestamps)
    return speeds


def regress_direction(history: np.ndarray) -> np.ndarray | None:
    """
    Return the direction of a line fitted to the last positions, as mmTransformer: the last seven, or more of them
    until they span two metres. Motion exactly along y, on which its code stops, is along y here.
    """
    last, start = history[-1], max(len(history) - 7, 0)
    while start > 0:
        displacement = last - history[start]
        if np.linalg.norm(displacement) >= 2 and displacement @ (last - history[0]) >= 0:
            break
        start -= 1
    points = history[start:]
    motion = points[-2:].mean(axis=0) - points[:2].mean(axis=0)
    spread = np.ptp(points, axis=0)
    if spread.max() <= SMALLEST_MOTION or not motion.any():
        return None
    free, dependent = (0, 1) if spread[0] > spread[1] else (1, 0)
    centred = points - points.mean(axis=0)
    direction = np.ones(2)
    direction[dependent] = (centred[:, free] @ centred[:, dependent]) / (centred[:, free] @ centred[:, free])
    return direction if direction @ motion >= 0 else -direction


# Lanes.


def choose_lanes(scene: Scene, center: np.ndarray, radius: float, rule: LaneRule) -> list[int]:
    """
    Return the lanes near a point: `"centerline"` those whose centreline comes within `radius`; `"argoverse1_boxes"`
    those whose bounding box, 3.8 m wide, overlaps the square of that half side, which depends on the axes.
    """
    if rule == "centerline":
        return [index for index, lane in enumerate(scene.lanes) if distance_to_polyline(center, lane) <= radius]
    chosen = []
    for index, lane in enumerate(scene.lanes):
        low, high = lane_box(lane)
        if (low <= center + radius).all() and (high >= center - radius).all():
            chosen.append(index)
    return chosen


def distance_to_polyline(point: np.ndarray, polyline: np.ndarray) -> float:
    starts, vectors = polyline[:-1], np.diff(polyline, axis=0)
    lengths = np.maximum((vectors**2).sum(axis=-1), 1e-12)
    along = np.clip(((point - starts) * vectors).sum(axis=-1) / lengths, 0, 1)
    return float(np.linalg.norm(starts + along[:, None] * vectors - point, axis=-1).min())


def lane_box(lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates of a lane that is 3.8 m wide, as argoverse-api makes it."""
    lane = lane[np.concatenate([[True], (np.diff(lane, axis=0) != 0).any(axis=-1)])]
    tangents = np.gradient(lane, axis=0)
    normals = tangents[:, ::-1] * [1, -1] / np.linalg.norm(tangents, axis=-1, keepdims=True)
    sides = np.concatenate([lane + side * ARGOVERSE1_LANE_WIDTH / 2 * normals for side in (1, -1)])
    return sides.min(axis=0), sides.max(axis=0)


def sample_polyline(polyline: np.ndarray, num_points: int) -> np.ndarray:
    """Return points at equal distances along a polyline, its ends included."""
    lengths = np.concatenate([[0], np.linalg.norm(np.diff(polyline, axis=0), axis=-1).cumsum()])
    wanted = np.linspace(0, lengths[-1], num_points)
    return np.stack([np.interp(wanted, lengths, polyline[:, axis]) for axis in (0, 1)], axis=-1)


# Tracks.


def has_gap(is_seen: np.ndarray) -> bool:
    """Return whether a track is unseen between steps at which it is seen."""
    steps = np.flatnonzero(is_seen)
    return len(steps) > 0 and steps[-1] - steps[0] + 1 > len(steps)


def fill_tracks(tracks: np.ndarray) -> np.ndarray:
    """Return tracks in which unseen steps have the position seen before, or at the start the first one."""
    is_seen = np.isfinite(tracks).all(axis=-1)
    first = is_seen.argmax(axis=-1)[:, None]
    steps = np.arange(tracks.shape[1])
    last = np.maximum.accumulate(np.where(is_seen, steps, -1), axis=-1)
    return np.take_along_axis(tracks, np.maximum(last, first)[..., None], axis=1)


__all__ = [
    "Frame",
    "Scene",
    "check_scene",
    "choose_lanes",
    "fill_tracks",
    "find_heading",
    "find_headings",
    "find_speeds",
    "has_gap",
    "sample_polyline",
]
