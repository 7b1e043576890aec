# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The recipe keys of motion forecasting."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_frozen_llm.data.arguments import DataArguments


NUM_FUTURE_STEPS = 30


@dataclass
class MotionDataArguments(DataArguments):
    """
    The source of scenes and their conversion to tensors, besides [`DataArguments`]. `dataset_name` holds rows of
    scenes (see [`MotionProcessor`]), or it is a folder of Argoverse 1, Argoverse 2, ScenarioNet or ETH/UCY, a
    sensor log of Argoverse 2, or tracks in CSV files, from which scenes are read and cached. For ETH/UCY,
    `dataset_config_name` names the scene that is left out of the training and is the split `test`.

    Args:
        preset (`"mmtransformer"` or `"forecast_mae"`, *optional*):
            Pre-processing as in mmTransformer's own code, or as Forecast-MAE's, see [`MotionProcessor`].
        heading (`"last_step"`, `"regression"` or `"box_yaw"`, *optional*):
            The target's heading, which becomes +y; by default that of its last displacement.
        num_history_steps (`int`, *optional*, defaults to 20):
            Number of observed steps.
        num_future_steps (`int`, *optional*):
            Number of future steps, of scenes that are read from files and of the model; for rows of scenes,
            `host.num_future_steps` does as well. 30 by default.
        window_stride (`int`, *optional*, defaults to 1):
            Steps between the starts of two windows of a recording.
        step_seconds (`float`, *optional*):
            Time between two steps, a multiple of that of the recording, which is the default.
        min_motion (`float`, *optional*, defaults to 0.0):
            Only targets that move at least this far while they are observed, in metres; of windows of recordings.
        train_share (`float`, *optional*, defaults to 0.8):
            Share of the time of a recording that is the split `train`; the rest is `val`. For ETH/UCY and single logs.
        map_folder (`str`, *optional*):
            Folder of Argoverse 1's vector maps. By default `map_files` in `dataset_name` or beside it.
        map_radius (`float`, *optional*, defaults to 100.0):
            Read the lanes whose box comes this near to the target, in metres along each axis.
        use_lanes (`bool`, *optional*, defaults to `True`):
            Whether scenes that are read from files have lanes.
        preprocessing_num_workers (`int`, *optional*):
            Number of processes that read files of scenes.
        group_by_size (`bool`, *optional*, defaults to `True`):
            Whether training batches have scenes of similar numbers of agents and lanes, so that less is padded.
        agent_radius (`float`, *optional*):
            Leave out agents farther from the target, in metres; 56 by default.
        lane_radius (`float`, *optional*):
            Leave out lanes farther from the target, in metres; 65 by default.
        max_agents (`int`, *optional*):
            Keep only the agents nearest to the target.
        max_lanes (`int`, *optional*):
            Keep only the lanes nearest to the target.
        velocity_changes (`bool`, *optional*, defaults to `False`):
            Whether a VectorNet's vectors also have the change of velocity; see [`MotionProcessor`].
        num_predictions (`int`, *optional*):
            Predict this many trajectories: the most probable of the model's.
        suppression_distance (`float`, *optional*, defaults to 0.0):
            Put trajectories that end nearer than this to a more probable one, in metres, behind all others.
        horizons (`list[int]`, *optional*):
            Numbers of future steps after which the metrics are computed, too.
        metric_rule (`"argoverse1"` or `"smallest"`, *optional*, defaults to `"argoverse1"`):
            Whether minADE is the average error of the trajectory with the smallest final error, or the smallest one.
        miss_threshold (`float`, *optional*, defaults to 2.0):
            A final error above it, in metres, is a miss.
    """

    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *("num_predictions", "suppression_distance", "horizons", "metric_rule", "miss_threshold"),
        # the scenes are read from files again
        *("num_history_steps", "num_future_steps", "window_stride", "step_seconds", "min_motion", "train_share"),
        *("dataset_config_name", "map_folder", "map_radius", "use_lanes", "preprocessing_num_workers"),
    )

    preset: Literal["mmtransformer", "forecast_mae"] | None = None
    heading: Literal["last_step", "regression", "box_yaw"] | None = None
    num_history_steps: int = 20
    num_future_steps: int | None = None
    window_stride: int = 1
    step_seconds: float | None = None
    min_motion: float = 0.0
    train_share: float = 0.8
    map_folder: str | None = None
    map_radius: float = 100.0
    use_lanes: bool = True
    preprocessing_num_workers: int | None = None
    group_by_size: bool = True
    agent_radius: float | None = None
    lane_radius: float | None = None
    max_agents: int | None = None
    max_lanes: int | None = None
    velocity_changes: bool = False
    num_predictions: int | None = None
    suppression_distance: float = 0.0
    horizons: list[int] | None = None
    metric_rule: Literal["argoverse1", "smallest"] = "argoverse1"
    miss_threshold: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one(
            *("num_history_steps", "num_future_steps", "window_stride", "preprocessing_num_workers"),
            *("max_agents", "max_lanes", "num_predictions"),
        )
        if self.suppression_distance < 0 or self.miss_threshold <= 0:
            raise ValueError(
                f"suppression_distance is {self.suppression_distance} and miss_threshold {self.miss_threshold}; they "
                "are distances in metres: the first not negative, the second above 0."
            )
        if self.step_seconds is not None and self.step_seconds <= 0:
            raise ValueError(f"step_seconds is {self.step_seconds}; it must be above 0.")
        if not 0 < self.train_share < 1:
            raise ValueError(f"train_share is {self.train_share}; it is a share of the time, between 0 and 1.")
        if (self.lane_radius or 0) > self.map_radius:
            raise ValueError(
                f"lane_radius is {self.lane_radius}, and only lanes within map_radius, {self.map_radius}, are read. "
                "Set map_radius as high."
            )

    @property
    def future_steps(self) -> int:
        return self.num_future_steps or NUM_FUTURE_STEPS

    def evaluation_changes(self) -> dict[str, Any]:
        changes = {"metric_rule": "argoverse1", "miss_threshold": 2.0, "suppression_distance": 0.0}
        return {name: getattr(self, name) for name, default in changes.items() if getattr(self, name) != default}
