# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Motion forecasting: the future positions of one agent of a scene, from its past, the other agents' and the map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, load_rows
from hf_frozen_llm.metrics import Metric, TrajectoryErrors
from hf_frozen_llm.modeling.motion_scenes import Frame
from hf_frozen_llm.modeling.processing_motion_forecasting import MotionProcessor
from hf_frozen_llm.tasks.task import Batch, Record, Task


# by model type: the inputs that MotionProcessor makes
FORMATS: dict[str, Literal["agents_and_lanes", "polylines", "poses"]] = {
    "vectornet_with_llm_block": "polylines",
    "mmtransformer_with_llm_block": "agents_and_lanes",
    "forecast_mae_with_llm_block": "poses",
}


@dataclass
class MotionDataArguments(DataArguments):
    """
    The source of scenes and their conversion to tensors, besides [`DataArguments`].

    Args:
        preset (`"mmtransformer"` or `"forecast_mae"`, *optional*):
            Pre-processing as in mmTransformer's own code, or as Forecast-MAE's, see [`MotionProcessor`].
        heading (`"last_step"`, `"regression"` or `"box_yaw"`, *optional*):
            The target's heading, which becomes +y; by default that of its last displacement.
        num_history_steps (`int`, *optional*):
            Number of observed steps; 20 by default, 50 with `preset: forecast_mae`. The number of future steps is
            `host.num_future_steps`.
        agent_radius (`float`, *optional*):
            Leave out agents farther from the target, in metres; 56 by default.
        lane_radius (`float`, *optional*):
            Leave out lanes farther from the target, in metres; 65 by default.
        max_agents (`int`, *optional*):
            Keep only the agents nearest to the target.
        max_lanes (`int`, *optional*):
            Keep only the lanes nearest to the target.
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
        "num_predictions",
        "suppression_distance",
        "horizons",
        "metric_rule",
        "miss_threshold",
    )

    preset: Literal["mmtransformer", "forecast_mae"] | None = None
    heading: Literal["last_step", "regression", "box_yaw"] | None = None
    num_history_steps: int | None = None
    agent_radius: float | None = None
    lane_radius: float | None = None
    max_agents: int | None = None
    max_lanes: int | None = None
    num_predictions: int | None = None
    suppression_distance: float = 0.0
    horizons: list[int] | None = None
    metric_rule: Literal["argoverse1", "smallest"] = "argoverse1"
    miss_threshold: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("num_history_steps", "max_agents", "max_lanes", "num_predictions")
        if self.suppression_distance < 0 or self.miss_threshold <= 0:
            raise ValueError(
                f"suppression_distance is {self.suppression_distance} and miss_threshold {self.miss_threshold}; they "
                "are distances in metres: the first not negative, the second above 0."
            )

    def evaluation_changes(self) -> dict[str, Any]:
        changes = {"metric_rule": "argoverse1", "miss_threshold": 2.0, "suppression_distance": 0.0}
        return {name: getattr(self, name) for name, default in changes.items() if getattr(self, name) != default}


class SceneTransform:
    """Turn rows into scenes in their target's frame."""

    def __init__(self, processor: MotionProcessor, split: str):
        self.processor, self.split = processor, split

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        prepared = [self.processor.prepare(row, f"{self.split}, row {key[-1]}") for row, key in zip(rows, keys)]
        names = (*self.processor.input_parts, "labels", "frame")
        return [{name: example[name] for name in names} for example in prepared]


class MotionForecasting(Task):
    """Rows are scenes with the columns `positions`, `timestamps` and `target`, and `headings` and `lanes` if any."""

    name = "motion-forecasting"
    arguments = MotionDataArguments
    models = {name: TASK_MODELS[name] for name in FORMATS}
    main_metric = Metric("minFDE_6", "minFDE (k = 6), m", greater_is_better=False)

    @classmethod
    def read(cls, args: MotionDataArguments, split: str, with_targets: bool = True) -> HFDataset:
        rows = load_rows(args, split)
        names = set(rows.column_names or ("positions", "timestamps", "target"))
        if missing := sorted({"positions", "timestamps", "target"} - names):
            raise ValueError(
                f"{args.dataset_name} [{split}] has no column {', '.join(missing)}; it has {sorted(names)}. A row is "
                "a scene, as MotionProcessor describes it."
            )
        return rows

    @classmethod
    def build_processor(cls, args: MotionDataArguments, host: Mapping[str, Any], config: Any) -> MotionProcessor:
        names = ("preset", "heading", "num_history_steps", "agent_radius", "lane_radius", "max_agents", "max_lanes")
        return MotionProcessor(
            format=FORMATS[config.model_type],
            num_future_steps=config.num_future_steps,
            **{name: getattr(args, name) for name in names},
        )

    @classmethod
    def load_processor(cls, name_or_path: str) -> MotionProcessor:
        return MotionProcessor.from_pretrained(name_or_path)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> SceneTransform:
        return SceneTransform(self.processor, f"{self.args.dataset_name} [{split}]")

    def collate(self, examples: list[Example]) -> Batch:
        batch = dict(self.processor.collate(examples, return_labels=True))
        if "row" in examples[0]:
            batch["row"] = torch.tensor([example["row"] for example in examples])
            frames = [[*example["frame"].center, example["frame"].angle] for example in examples]
            batch["frames"] = torch.tensor(frames, dtype=torch.float64)
        return batch

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each scene the `trajectories`, the most probable first, and their `scores`; and, if its future is
        known, the `truth`, `None` where it is not, and the `loss`. All positions are in the scene's coordinates.
        """
        batch = dict(batch)
        numbers, values = batch.pop("row").tolist(), batch.pop("frames").cpu().numpy()
        frames = [Frame(value[:2], float(value[2])) for value in values]
        labels = batch["labels"].double().cpu().numpy()
        output = model(**batch)
        outputs = SimpleNamespace(trajectories=output["trajectories"], scores=output["scores"])
        predictions = self.processor.post_process(
            outputs, frames, self.args.num_predictions, self.args.suppression_distance
        )
        records = []
        for number, frame, of_scene, label in zip(numbers, frames, predictions, labels):
            record: Record = {"row": number, **{name: array.tolist() for name, array in of_scene.items()}}
            known = np.isfinite(label).all(axis=-1)
            if known.any():
                points = frame.to_scene(label).tolist()
                record["truth"] = [point if is_known else None for point, is_known in zip(points, known)]
                record["loss"] = float(output["loss"])
            records.append(record)
        return records

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        scored = [record for record in records if "truth" in record]
        if not scored:
            raise ValueError("No scene has a known future, so that there are no metrics: use `predict`.")
        unknown = [np.nan, np.nan]
        errors = TrajectoryErrors(keep_in_memory=True).compute(
            predictions=[record["trajectories"] for record in scored],
            references=[[point or unknown for point in record["truth"]] for record in scored],
            probabilities=[record["scores"] for record in scored],
            horizons=self.args.horizons or (),
            miss_threshold=self.args.miss_threshold,
            rule=self.args.metric_rule,
        )
        return {"loss": float(np.mean([record["loss"] for record in scored])), **errors}
