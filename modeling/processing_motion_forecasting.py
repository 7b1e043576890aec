# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes of moving agents and lanes as inputs of a model that forecasts motion."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .code_files import SavedWithCode
from .motion_scenes import (
    HEADING_RULES,
    LANE_RULES,
    Frame,
    HeadingRule,
    LaneRule,
    Scene,
    check_scene,
    choose_lanes,
    fill_tracks,
    find_heading,
    find_headings,
    find_speeds,
    has_gap,
    sample_polyline,
)


logger = logging.get_logger(__name__)

FORMATS = ("agents_and_lanes", "polylines", "poses")
AXES = ("x", "y")
DEFAULTS: dict[str, Any] = {
    "format": "agents_and_lanes",
    "num_history_steps": 20,
    "num_future_steps": 30,
    "num_lane_points": 10,
    "heading": "last_step",
    "forward_axis": "y",
    "agent_radius": 56.0,
    "lane_radius": 65.0,
    "lane_rule": "centerline",
    "resample_lanes": True,
    "min_observed_steps": 1,
    "keep_gaps": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "mmtransformer": {
        **DEFAULTS,
        "heading": "regression",
        "lane_rule": "argoverse1_boxes",
        "resample_lanes": False,
        "min_observed_steps": 4,
        "keep_gaps": False,
    },
    "forecast_mae": {
        **DEFAULTS,
        "format": "poses",
        "num_history_steps": 50,
        "num_future_steps": 60,
        "num_lane_points": 20,
        "heading": "box_yaw",
        "forward_axis": "x",
        "agent_radius": 150.0,
        "lane_radius": 150.0,
    },
}


class MotionProcessor(SavedWithCode, FeatureExtractionMixin):
    r"""
    Prepares scenes as the inputs of a model that forecasts motion, and brings its trajectories back to the scenes.

    A scene is a dictionary:

    - `positions`, `(agents, steps, 2)`: metres in any map coordinates; NaN where an agent was not seen;
    - `timestamps`, `(steps,)`: seconds, increasing;
    - `target`: the index of the agent to forecast, which is seen at the last observed step;
    - `headings`, `(agents, steps)`, optional: the yaw of each agent's box, in radians;
    - `velocities`, `(agents, steps, 2)`, optional: metres per second; by default those from step to step;
    - `types`, optional: for each agent, the type of its object by Argoverse 2's names; by default `"vehicle"`;
    - `lanes`, optional: dictionaries with `centerline`, `(points, 2)`, and optionally `is_intersection`,
      `turn_direction` (`"none"`, `"left"` or `"right"`) and `has_traffic_control`.

    The first `num_history_steps` steps are observed, the next `num_future_steps` are the future. All coordinates are
    centred at the target's last observed position and turned so that its heading is +y; moving or rotating a scene
    changes nothing, except with `preset="mmtransformer"`.

    Args:
        format (`"agents_and_lanes"`, `"polylines"` or `"poses"`, *optional*, defaults to `"agents_and_lanes"`):
            The model's inputs: `agent_history`, `agent_positions` and `lanes` with masks for an mmTransformer;
            `polyline_vectors` with masks for a VectorNet, whose vectors are start, end, whether it is of a lane, time,
            intersection, turn, traffic control and, with `velocity_changes`, two more; or `agent_history`,
            `agent_poses`, `agent_types`, `lanes` and `lane_poses` with masks for a Forecast-MAE.
        preset (`"mmtransformer"` or `"forecast_mae"`, *optional*):
            Defaults of the other arguments: as in mmTransformer's own pre-processing of Argoverse 1; or as in
            Forecast-MAE's of Argoverse 2, which also leaves out agents that are far from all lanes.
        num_history_steps (`int`, *optional*, defaults to 20): number of observed steps.
        num_future_steps (`int`, *optional*, defaults to 30): number of future steps.
        num_lane_points (`int`, *optional*, defaults to 10): number of points of a lane.
        heading (`"last_step"`, `"regression"` or `"box_yaw"`, *optional*, defaults to `"last_step"`):
            The target's heading: of its last displacement, of mmTransformer's line through its last positions (which
            depends on the axes), or of its box. A target that stands still has the heading of its box; without one,
            the scene is not rotated.
        forward_axis (`"x"` or `"y"`, *optional*, defaults to `"y"`):
            The axis of the target's frame along which it heads.
        agent_radius (`float`, *optional*, defaults to 56.0):
            Agents farther from the target at the last observed step, in metres, are left out, and so are unseen ones.
        lane_radius (`float`, *optional*, defaults to 65.0): lanes farther from the target are left out.
        lane_rule (`"centerline"` or `"argoverse1_boxes"`, *optional*, defaults to `"centerline"`):
            Whether the distance is to the centreline, or that of Argoverse 1's query by boxes along the map's axes.
        resample_lanes (`bool`, *optional*, defaults to `True`):
            Whether lanes are sampled at equal distances, or keep their points and repeat the last one.
        min_observed_steps (`int`, *optional*, defaults to 1): agents that were seen less often are left out.
        keep_gaps (`bool`, *optional*, defaults to `True`):
            Whether agents that were unseen for a while are kept, with these steps masked, or left out.
        velocity_changes (`bool`, *optional*, defaults to `False`):
            Whether the vectors of `"polylines"` also have their velocity less the agent's last observed one, in metres
            per second; 0 for lanes. Beside coordinates of many metres, a small network does not see how an agent
            brakes or turns. Not in the paper.
        max_agents (`int`, *optional*): keep only the agents nearest to the target, and log a warning.
        max_lanes (`int`, *optional*): keep only the lanes nearest to the target, and log a warning.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_frozen_llm import MotionProcessor

    >>> steps = np.arange(50.0)
    >>> scene = {"positions": np.stack([[steps, 0 * steps]]).swapaxes(1, 2), "timestamps": steps / 10, "target": 0}
    >>> MotionProcessor()(scene)["agent_history"].shape
    torch.Size([1, 1, 19, 4])
    ```"""

    model_input_names = ["agent_history", "agent_positions", "lanes", "agent_mask", "lane_mask"]

    def __init__(
        self,
        format: Literal["agents_and_lanes", "polylines", "poses"] | None = None,
        preset: str | None = None,
        num_history_steps: int | None = None,
        num_future_steps: int | None = None,
        num_lane_points: int | None = None,
        heading: HeadingRule | None = None,
        forward_axis: Literal["x", "y"] | None = None,
        agent_radius: float | None = None,
        lane_radius: float | None = None,
        lane_rule: LaneRule | None = None,
        resample_lanes: bool | None = None,
        min_observed_steps: int | None = None,
        keep_gaps: bool | None = None,
        velocity_changes: bool = False,
        max_agents: int | None = None,
        max_lanes: int | None = None,
        **kwargs: Any,
    ):
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; it must be one of {tuple(PRESETS)}, or None.")
        defaults = DEFAULTS if preset is None else PRESETS[preset]

        def choose(name: str, given: Any) -> Any:
            return defaults[name] if given is None else given

        self.format, self.preset = choose("format", format), preset
        self.num_history_steps: int = choose("num_history_steps", num_history_steps)
        self.num_future_steps: int = choose("num_future_steps", num_future_steps)
        self.num_lane_points: int = choose("num_lane_points", num_lane_points)
        self.heading: HeadingRule = choose("heading", heading)
        self.forward_axis = choose("forward_axis", forward_axis)
        self.agent_radius, self.lane_radius = choose("agent_radius", agent_radius), choose("lane_radius", lane_radius)
        self.lane_rule: LaneRule = choose("lane_rule", lane_rule)
        self.resample_lanes = choose("resample_lanes", resample_lanes)
        self.min_observed_steps = choose("min_observed_steps", min_observed_steps)
        self.keep_gaps = choose("keep_gaps", keep_gaps)
        self.velocity_changes, self.max_agents, self.max_lanes = velocity_changes, max_agents, max_lanes
        choices = {"format": FORMATS, "heading": HEADING_RULES, "forward_axis": AXES, "lane_rule": LANE_RULES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {known}.")
        least = {"num_history_steps": 2, "num_future_steps": 1, "num_lane_points": 2, "min_observed_steps": 1}
        for name, smallest in {**least, "max_agents": 1, "max_lanes": 1}.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}; it must be at least {smallest}.")
        super().__init__(**kwargs)

    def __call__(
        self,
        scenes: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        return_labels: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        r"""
        Prepare scenes as a batch.

        Args:
            scenes (`dict` or `list[dict]`): one scene or several.
            return_labels (`bool`, *optional*, defaults to `False`):
                Whether to add `labels`, the target's future in its frame, NaN where it is unknown.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: float32, padded to the largest scene, with masks: 1 = real, 0 = padding.

        Raises:
            `ValueError`: for scenes that lack a part, have wrong shapes or infinite numbers, timestamps that do not
                increase, or a target that is not seen at the last observed step.
        """
        scenes = [scenes] if isinstance(scenes, Mapping) else list(scenes)
        if not scenes:
            raise ValueError("scenes is empty; give one scene or several.")
        examples = [self.prepare(scene, f"scene {index}") for index, scene in enumerate(scenes)]
        return self.collate(examples, return_labels, return_tensors)

    def prepare(self, scene: Mapping[str, Any], location: str = "scene") -> dict[str, Any]:
        r"""
        Prepare one scene, without padding.

        Args:
            scene (`dict`): the scene.
            location (`str`, *optional*, defaults to `"scene"`): its name in errors.

        Returns:
            `dict`: the model's inputs without masks of padding; `labels`; `agent_futures`, the future of every agent
            in the target's frame; `agents` and `lane_indices`, the kept agents and lanes of the scene; and `frame`.
        """
        checked = check_scene(scene, self.num_history_steps, location)
        center = checked.positions[checked.target, self.num_history_steps - 1]
        forward = np.pi / 2 if self.forward_axis == "y" else 0.0
        heading = find_heading(checked, self.num_history_steps, self.heading, location)
        frame = Frame(center, float(forward - heading))
        agents = self._choose_agents(checked, center, location)
        lane_indices = choose_lanes(checked, center, self.lane_radius, self.lane_rule)
        if self.max_lanes is not None and len(lane_indices) > self.max_lanes:
            distances = [np.linalg.norm(checked.lanes[i] - center, axis=-1).min() for i in lane_indices]
            kept = np.sort(np.argsort(distances, kind="stable")[: self.max_lanes])
            logger.warning(f"{location}: max_lanes keeps the nearest {self.max_lanes} of {len(lane_indices)} lanes.")
            lane_indices = [lane_indices[i] for i in kept]
        lanes = np.zeros((len(lane_indices), self.num_lane_points, 2))
        for row, index in enumerate(lane_indices):
            lanes[row] = frame.to_frame(self._sample_lane(checked.lanes[index], f"{location}, lane {index}"))
        futures = np.full((len(agents), self.num_future_steps, 2), np.nan)
        seen_later = checked.positions[agents, self.num_history_steps :][:, : self.num_future_steps]
        futures[:, : seen_later.shape[1]] = frame.to_frame(seen_later)
        makers = (self._make_agents_and_lanes, self._make_polylines, self._make_poses)
        make = dict(zip(FORMATS, makers))[self.format]
        inputs = make(checked, frame, agents, lanes, checked.attributes[lane_indices])
        others = {"agents": agents, "lane_indices": lane_indices, "agent_futures": futures, "labels": futures[0]}
        return {**inputs, **others, "frame": frame}

    def _choose_agents(self, scene: Scene, center: np.ndarray, location: str) -> list[int]:
        """Return the kept agents, the target first."""
        is_seen = scene.is_seen
        observed = is_seen[:, : self.num_history_steps]
        distances = np.linalg.norm(scene.positions[:, self.num_history_steps - 1] - center, axis=-1)
        kept = []
        for agent in range(len(observed)):
            if agent == scene.target or not distances[agent] <= self.agent_radius:  # it is NaN if it is unseen
                continue
            future = is_seen[agent, self.num_history_steps :][: self.num_future_steps]
            is_whole = self.keep_gaps or not (has_gap(observed[agent]) or has_gap(future))
            if is_whole and observed[agent].sum() >= self.min_observed_steps:
                kept.append(agent)
        if self.max_agents is not None and len(kept) >= self.max_agents:
            nearest = np.sort(np.argsort(distances[kept], kind="stable")[: self.max_agents - 1])
            logger.warning(f"{location}: max_agents keeps the nearest {self.max_agents} of {len(kept) + 1} agents.")
            kept = [kept[i] for i in nearest]
        return [scene.target, *kept]

    def _sample_lane(self, lane: np.ndarray, location: str) -> np.ndarray:
        if self.resample_lanes:
            return sample_polyline(lane, self.num_lane_points)
        if len(lane) > self.num_lane_points:
            raise ValueError(
                f"{location} has {len(lane)} points, more than num_lane_points, {self.num_lane_points}. Set "
                "resample_lanes to True, or num_lane_points higher."
            )
        return np.concatenate([lane, np.repeat(lane[-1:], self.num_lane_points - len(lane), axis=0)])

    def _history(self, scene: Scene, frame: Frame, agents: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the filled positions in the frame, whether both ends of each step were seen, and the steps' times."""
        observed = scene.positions[agents, : self.num_history_steps]
        is_seen = np.isfinite(observed).all(axis=-1)
        filled = frame.to_frame(fill_tracks(observed))
        times = scene.timestamps[: self.num_history_steps] - scene.timestamps[0]
        return filled, is_seen[:, :-1] & is_seen[:, 1:], (times[:-1] + times[1:]) / 2

    def _make_agents_and_lanes(
        self, scene: Scene, frame: Frame, agents: list[int], lanes: np.ndarray, attributes: np.ndarray
    ) -> dict[str, np.ndarray]:
        filled, is_seen, times = self._history(scene, frame, agents)
        history = np.zeros((len(agents), self.num_history_steps - 1, 4))
        history[..., :2] = np.diff(filled, axis=1) * is_seen[..., None]
        history[..., 2], history[..., 3] = times, is_seen
        # mmTransformer's codes: 1 no, 2 yes; turns 1 none, 2 left, 3 right.
        turns = np.select([attributes[:, 1] < 0, attributes[:, 1] > 0], [2, 3], default=1)
        codes = np.stack([attributes[:, 0] + 1, turns, attributes[:, 2] + 1], axis=-1)
        repeated = np.repeat(codes[:, None], self.num_lane_points, axis=1)
        return {
            "agent_history": history,
            "agent_positions": filled[:, -1],
            "lanes": np.concatenate([lanes, repeated], axis=-1),
        }

    def _make_polylines(
        self, scene: Scene, frame: Frame, agents: list[int], lanes: np.ndarray, attributes: np.ndarray
    ) -> dict[str, np.ndarray]:
        filled, is_seen, times = self._history(scene, frame, agents)
        # An agent that was never seen twice in a row is a vector of length 0 at its last position.
        is_alone = ~is_seen.any(axis=1)
        is_seen[is_alone, -1], filled[is_alone, -2] = True, filled[is_alone, -1]
        num_vectors = max(self.num_history_steps, self.num_lane_points) - 1
        vectors = np.zeros((len(agents) + len(lanes), num_vectors, 9 + 2 * self.velocity_changes))
        mask = np.zeros(vectors.shape[:2])
        of_agents, of_lanes = vectors[: len(agents), : len(times)], vectors[len(agents) :, : self.num_lane_points - 1]
        of_agents[..., :2], of_agents[..., 2:4] = filled[:, :-1], filled[:, 1:]
        of_agents[..., 5] = times - (scene.timestamps[self.num_history_steps - 1] - scene.timestamps[0])
        of_lanes[..., :2], of_lanes[..., 2:4], of_lanes[..., 4] = lanes[:, :-1], lanes[:, 1:], 1
        of_lanes[..., 6:9] = attributes[:, None]
        if self.velocity_changes:
            seconds = np.diff(scene.timestamps[: self.num_history_steps])
            velocities = np.diff(filled, axis=1) / seconds[:, None]
            last = len(times) - 1 - is_seen[:, ::-1].argmax(axis=1)
            of_agents[..., 9:] = velocities - velocities[np.arange(len(agents)), last][:, None]
        mask[: len(agents), : len(times)], mask[len(agents) :, : self.num_lane_points - 1] = is_seen, 1
        return {"polyline_vectors": vectors * mask[..., None], "vector_mask": mask}

    def _make_poses(
        self, scene: Scene, frame: Frame, agents: list[int], lanes: np.ndarray, attributes: np.ndarray
    ) -> dict[str, np.ndarray]:
        filled, is_seen, _ = self._history(scene, frame, agents)
        history = np.zeros((len(agents), self.num_history_steps, 4))
        history[:, 1:, :2] = np.where(is_seen[..., None], np.diff(filled, axis=1), 0)
        changes = np.diff(find_speeds(scene)[agents, : self.num_history_steps], axis=1)
        history[:, 1:, 2] = np.where(is_seen & np.isfinite(changes), changes, 0)
        history[..., 3] = scene.is_seen[agents, : self.num_history_steps]
        angles = find_headings(scene, agents, self.num_history_steps) + frame.angle
        middle = self.num_lane_points // 2
        centers, along = lanes[:, middle - 1 : middle + 1].mean(axis=1), lanes[:, middle] - lanes[:, middle - 1]
        lane_angles = np.arctan2(along[:, 1], along[:, 0])
        # As published: points out of range are moved to the target, and marked.
        is_inside = (np.abs(lanes) <= self.lane_radius).all(axis=-1, keepdims=True)
        return {
            "agent_history": history,
            "agent_poses": np.column_stack([filled[:, -1], np.cos(angles), np.sin(angles)]),
            "agent_types": scene.types[agents],
            "lanes": np.concatenate([lanes * is_inside - centers[:, None], is_inside], axis=-1),
            "lane_poses": np.column_stack([centers, np.cos(lane_angles), np.sin(lane_angles)]),
        }

    @property
    def input_parts(self) -> tuple[str, ...]:
        """The inputs that [`MotionProcessor.prepare`] makes, which batches pad and complete by masks."""
        if self.format == "polylines":
            return ("polyline_vectors", "vector_mask")
        if self.format == "poses":
            return ("agent_history", "agent_poses", "agent_types", "lanes", "lane_poses")
        return ("agent_history", "agent_positions", "lanes")

    def collate(
        self, examples: Sequence[Mapping[str, Any]], return_labels: bool = False, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Pad scenes that [`MotionProcessor.prepare`] has prepared, and return them as a batch."""
        batch = {name: _pad(examples, name) for name in self.input_parts}
        if self.format == "polylines":
            batch["polyline_mask"] = _mask(examples, "polyline_vectors")
        else:
            batch["agent_mask"], batch["lane_mask"] = _mask(examples, "agent_history"), _mask(examples, "lanes")
        if return_labels:
            batch["labels"] = np.stack([example["labels"] for example in examples])
        tensors = {name: torch.from_numpy(array).float() for name, array in batch.items()}
        if "agent_types" in tensors:
            tensors["agent_types"] = tensors["agent_types"].long()
        return BatchFeature(tensors, tensor_type="pt").convert_to_tensors(return_tensors)

    def post_process(
        self,
        outputs: Any,
        frames: Sequence[Frame],
        num_modes: int | None = None,
        min_distance: float = 0.0,
    ) -> list[dict[str, np.ndarray]]:
        r"""
        Bring trajectories back to the coordinates of their scenes, the most probable first.

        Args:
            outputs ([`MotionForecastingOutput`]): the model's output.
            frames (`list[Frame]`): `frame` of each scene, from [`MotionProcessor.prepare`].
            num_modes (`int`, *optional*): keep this many; all of them by default.
            min_distance (`float`, *optional*, defaults to 0.0):
                Put a trajectory that ends nearer than this, in metres, to a more probable one behind all others.

        Returns:
            `list[dict]`: of each scene, `trajectories` `(modes, steps, 2)` and `scores` `(modes,)`, whose sum is 1.
        """
        results = []
        trajectories, scores = (np.asarray(t.detach().float().cpu()) for t in (outputs.trajectories, outputs.scores))
        for frame, modes, probabilities in zip(frames, trajectories, scores):
            order = np.argsort(-probabilities, kind="stable")
            modes, probabilities = modes[order].astype(np.float64), probabilities[order].astype(np.float64)
            kept = suppress_near_ends(modes[:, -1], min_distance)[:num_modes]
            results.append(
                {
                    "trajectories": frame.to_scene(modes[kept]),
                    "scores": probabilities[kept] / probabilities[kept].sum(),
                }
            )
        return results


def suppress_near_ends(ends: np.ndarray, min_distance: float) -> np.ndarray:
    """Return the indices of `ends`, best first; those nearer than `min_distance` to a better one come last."""
    kept: list[int] = []
    for index, end in enumerate(ends):
        if all(np.linalg.norm(end - ends[other]) >= min_distance for other in kept):
            kept.append(index)
    return np.array(kept + [index for index in range(len(ends)) if index not in kept])


def _pad(examples: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    arrays = [example[name] for example in examples]
    padded = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]))
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return padded


def _mask(examples: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    counts = np.array([len(example[name]) for example in examples])
    return (np.arange(counts.max()) < counts[:, None]).astype(np.float64)


__all__ = ["MotionProcessor"]
