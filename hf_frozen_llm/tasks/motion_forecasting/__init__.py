# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Motion forecasting: the future positions of one agent of a scene, from its past, the other agents' and the map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import datasets
import numpy as np
import torch

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, SeededLengthGroupedSampler, load_rows
from hf_frozen_llm.metrics import DrivableAreaCompliance, Metric, TrajectoryErrors
from hf_frozen_llm.modeling.motion_scenes import Frame
from hf_frozen_llm.modeling.processing_motion_forecasting import MotionProcessor
from hf_frozen_llm.plotting_motion import animate_scene, plot_scenes
from hf_frozen_llm.tasks.motion_forecasting.arguments import MotionDataArguments
from hf_frozen_llm.tasks.motion_forecasting.baselines import BASELINES, forecast_baselines
from hf_frozen_llm.tasks.motion_forecasting.readers import (
    SceneDataset,
    read_drivable_areas,
    read_scenes,
    scene_sizes,
)
from hf_frozen_llm.tasks.motion_forecasting.scene_files import SUFFIXES, read_scene_file
from hf_frozen_llm.tasks.motion_forecasting.submissions import (
    write_argoverse1_submission,
    write_argoverse2_submission,
)
from hf_frozen_llm.tasks.task import Batch, Record, Task


# by model type: the inputs that MotionProcessor makes
FORMATS: dict[str, Literal["agents_and_lanes", "polylines", "poses"]] = {
    "vectornet_with_llm_block": "polylines",
    "mmtransformer_with_llm_block": "agents_and_lanes",
    "forecast_mae_with_llm_block": "poses",
}


class SceneTransform:
    """Turn rows into scenes in their target's frame; in evaluation, with the target's history, for the baselines."""

    def __init__(self, processor: MotionProcessor, split: str, training: bool):
        self.processor, self.split, self.training = processor, split, training

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        names = (*self.processor.input_parts, "labels", "frame")
        examples = []
        for row, key in zip(rows, keys):
            row = read_scene_file(row["file"]) if "file" in row else row
            prepared = self.processor.prepare(row, f"{self.split}, row {key[-1]}")
            example = {name: prepared[name] for name in names}
            if not self.training:
                steps = slice(0, self.processor.num_history_steps)
                history = np.array(row["positions"][int(row["target"])][steps], dtype=np.float64)
                example |= {"history": history, "times": np.array(row["timestamps"][steps], dtype=np.float64)}
            examples.append(example)
        return examples


class MotionForecasting(Task):
    """
    Rows are scenes with the columns `positions`, `timestamps` and `target`, and `headings` and `lanes` if any. Those
    that are read from files have the columns of `readers.FEATURES`.
    """

    name = "motion-forecasting"
    arguments = MotionDataArguments
    models = {name: TASK_MODELS[name] for name in FORMATS}
    main_metric = Metric("minFDE_6", "minFDE (k = 6), m", greater_is_better=False)
    suffixes = SUFFIXES

    @classmethod
    def read(cls, args: MotionDataArguments, split: str, with_targets: bool = True) -> HFDataset:
        if (scenes := read_scenes(args, split, with_targets)) is not None:
            return scenes.to_iterable_dataset() if args.streaming else scenes
        rows = load_rows(args, split)
        names = set(rows.column_names or ("positions", "timestamps", "target"))
        if missing := sorted({"positions", "timestamps", "target"} - names):
            raise ValueError(
                f"{args.dataset_name} [{split}] has no column {', '.join(missing)}; it has {sorted(names)}. A row is "
                "a scene, as MotionProcessor describes it."
            )
        return rows

    @classmethod
    def read_files(cls, args: MotionDataArguments, files: Sequence[str]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"file": list(files)})

    @classmethod
    def check_plot(cls, rows: HFDataset) -> None:
        if not isinstance(rows, datasets.Dataset):
            raise ValueError(f"{cls.name}: plot needs scenes that are not streamed.")

    @classmethod
    def check_submission(cls, rows: HFDataset, path: str | Path) -> None:
        if missing := {"scene_id", "track_id"} - set(rows.column_names or ()):
            raise ValueError(
                f"A submission names scenes and tracks, but there is no column {' or '.join(sorted(missing))}. Give a "
                "split of Argoverse 1 or 2."
            )
        if Path(path).suffix not in (".h5", ".parquet"):
            raise ValueError(
                f"submission is {str(path)!r}; it must end in .h5, for Argoverse 1, or in .parquet, for Argoverse 2."
            )

    @classmethod
    def config_fields(cls, args: MotionDataArguments, rows: HFDataset) -> dict[str, Any]:
        fields = {} if args.num_future_steps is None else {"num_future_steps": args.num_future_steps}
        return {**fields, "num_vector_features": 11} if args.velocity_changes else fields

    @classmethod
    def build_processor(cls, args: MotionDataArguments, host: Mapping[str, Any], config: Any) -> MotionProcessor:
        names = (
            *("preset", "heading", "num_history_steps", "agent_radius", "lane_radius", "max_agents", "max_lanes"),
            "velocity_changes",
        )
        return MotionProcessor(
            format=FORMATS[config.model_type],
            num_future_steps=config.num_future_steps,
            **{name: getattr(args, name) for name in names},
        )

    @classmethod
    def load_processor(cls, name_or_path: str) -> MotionProcessor:
        return MotionProcessor.from_pretrained(name_or_path)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> SceneTransform:
        return SceneTransform(self.processor, f"{self.args.dataset_name} [{split}]", training)

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        read, steps = "scene_id" in (rows.column_names or ()), self.processor.num_history_steps
        future = self.processor.num_future_steps
        if read and (self.args.num_history_steps, self.args.future_steps) != (steps, future):
            raise ValueError(
                f"{self.args.dataset_name} [{split}]: num_history_steps is {self.args.num_history_steps} and "
                f"num_future_steps {self.args.future_steps}, but the model has {steps} and {future}. Set the first "
                f"key to {steps} and the second one to {future}; host.num_future_steps is of no use here."
            )
        if self.args.streaming or "file" in (rows.column_names or ()):
            return super().dataset(rows, split, training, seed)
        return SceneDataset(rows, self.example_transform(rows, split, training, seed), numbered=not training)

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> SeededLengthGroupedSampler | None:
        if self.args.streaming or not self.args.group_by_size:
            return None
        return SeededLengthGroupedSampler(scene_sizes(dataset.rows, self.processor.agent_radius), batch_size, seed)

    def collate(self, examples: list[Example]) -> Batch:
        batch = dict(self.processor.collate(examples, return_labels=True))
        if "row" in examples[0]:
            batch["row"] = torch.tensor([example["row"] for example in examples])
            frames = [[*example["frame"].center, example["frame"].angle] for example in examples]
            batch["frames"] = torch.tensor(frames, dtype=torch.float64)
            for name in ("history", "times"):
                batch[name] = torch.from_numpy(np.stack([example[name] for example in examples]))
        return batch

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each scene the `trajectories`, the most probable first, and their `scores`; and, if its future is
        known, the `truth`, `None` where it is not, the forecasts of the `baselines`, and the `loss`. All positions are
        in the scene's coordinates.
        """
        batch = dict(batch)
        numbers = batch.pop("row").tolist()
        values, histories, times = (batch.pop(name).cpu().numpy() for name in ("frames", "history", "times"))
        frames = [Frame(value[:2], float(value[2])) for value in values]
        labels = batch["labels"].double().cpu().numpy()
        output = model(**batch)
        outputs = SimpleNamespace(trajectories=output["trajectories"], scores=output["scores"])
        predictions = self.processor.post_process(
            outputs, frames, self.args.num_predictions, self.args.suppression_distance
        )
        records = []
        for number, frame, of_scene, label, history, seconds in zip(
            numbers, frames, predictions, labels, histories, times
        ):
            record: Record = {"row": number, **{name: array.tolist() for name, array in of_scene.items()}}
            known = np.isfinite(label).all(axis=-1)
            if known.any():
                points = frame.to_scene(label).tolist()
                record["truth"] = [point if is_known else None for point, is_known in zip(points, known)]
                record["baselines"] = {
                    name: points.tolist() for name, points in forecast_baselines(history, seconds, len(label)).items()
                }
                record["loss"] = float(output["loss"])
            records.append(record)
        return records

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        scored = [record for record in records if "truth" in record]
        if not scored:
            raise ValueError("No scene has a known future, so that there are no metrics: use `predict`.")
        areas = read_drivable_areas(self.args, rows)
        cities = rows["city"][:] if areas else []

        def score(forecasts: list[Any], probabilities: Any = None) -> dict[str, float]:
            errors = self.find_errors(scored, forecasts, probabilities)
            if not areas:
                return errors
            metric = DrivableAreaCompliance(keep_in_memory=True)
            of_scored = [cities[record["row"]] for record in scored]
            return errors | metric.compute(predictions=forecasts, references=of_scored, rasters=areas)

        errors = score([record["trajectories"] for record in scored], [record["scores"] for record in scored])
        baselines = [
            {"baseline": name, **score([record["baselines"][name] for record in scored])} for name in BASELINES
        ]
        return {"loss": float(np.mean([record["loss"] for record in scored])), **errors, "baselines": baselines}

    def find_errors(self, records: list[Record], forecasts: list[Any], probabilities: Any = None) -> dict[str, float]:
        unknown = [np.nan, np.nan]
        return TrajectoryErrors(keep_in_memory=True).compute(
            predictions=forecasts,
            references=[[point or unknown for point in record["truth"]] for record in records],
            probabilities=probabilities,
            horizons=self.args.horizons or (),
            miss_threshold=self.args.miss_threshold,
            rule=self.args.metric_rule,
        )

    def plot(self, path: str | Path, rows: Sequence[Row], records: Sequence[Record], names: Sequence[str]) -> None:
        """Write a picture of the scenes and their forecasts, or, as a `.gif` file, an animation of the first one."""
        scenes = [read_scene_file(row["file"]) if "file" in row else row for row in rows]
        steps = self.processor.num_history_steps
        if Path(path).suffix.lower() == ".gif":
            animate_scene(path, scenes[0], records[0], steps, names[0])
        else:
            plot_scenes(path, scenes, records, steps, names)

    def write_submission(self, path: str | Path, rows: HFDataset, records: Sequence[Record]) -> None:
        """Write an `.h5` file as Argoverse 1 takes it, or a `.parquet` file as Argoverse 2 does."""
        scenes, tracks = rows["scene_id"][:], rows["track_id"][:]
        if Path(path).suffix == ".h5":
            if others := [scene for scene in scenes if not scene.isdecimal()]:
                raise ValueError(f"The scene {others[0]} has no number; sequences of Argoverse 1 have one.")
            write_argoverse1_submission(
                path,
                {int(scenes[r["row"]]): r["trajectories"] for r in records},
                {int(scenes[r["row"]]): r["scores"] for r in records},
            )
        else:
            write_argoverse2_submission(
                path,
                {scenes[r["row"]]: {tracks[r["row"]]: r["trajectories"]} for r in records},
                {scenes[r["row"]]: r["scores"] for r in records},
            )

    def describe(self, record: Record) -> dict[str, Any]:
        return {name: value for name, value in record.items() if name not in ("row", "baselines", "loss")}
