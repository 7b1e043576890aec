# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Point cloud classification: labelled point clouds from the Hub, parquet files or the files of known data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.datasets import Example, HFDataset
from hf_frozen_llm.modeling.point_files import POINT_SUFFIXES
from hf_frozen_llm.modeling.point_groups import gather_points, sample_farthest_points
from hf_frozen_llm.modeling.processing_point_bert_with_llm_block import PointCloudProcessor
from hf_frozen_llm.tasks.classification import ClassificationArguments, ClassificationTask
from hf_frozen_llm.tasks.point_cloud_classification.data import (
    PointCloudTransform,
    load_clouds,
    load_single_files,
    random_rotations,
)
from hf_frozen_llm.tasks.task import Batch


@dataclass
class PointDataArguments(ClassificationArguments):
    """
    The source of point clouds and their conversion to tensors, besides [`ClassificationArguments`]. `dataset_name` may
    also be

    - an `.npz` file with the arrays `points` (clouds, points, 3), `label` (integers from 0 or names), `split` and,
      optionally, `classes`;
    - a folder of `.h5` files that the splits name, as ScanObjectNN and ModelNet40 have them (`data` and `label`):
      `train_split: training_objectdataset.h5`, or with wildcards, `ply_data_train*.h5`;
    - a folder of text files that a split's list names, as ModelNet40 has them (`train_split: modelnet40_train.txt`);
    - a folder with a sub-folder for each split, and in it one for each class, of `.ply`, `.off`, `.obj`, `.npy`,
      `.txt` or `.xyz` files; or with a sub-folder for each class, and in it one for each split, as in ModelNet40's own
      archive.

    Args:
        points_column (`str`, *optional*, defaults to `"points"`):
            Column of the point clouds, for a Hub id or parquet files.
        num_points (`int`, *optional*, defaults to 1024):
            Number of points in the model's input, chosen by farthest point sampling.
        num_candidates (`int`, *optional*):
            In training, choose this many by farthest point sampling, then `num_points` of them at random. By default,
            draw `num_points` from the whole point cloud.
        max_points (`int`, *optional*):
            Reduce each point cloud to this many points once, by farthest point sampling; the cache of `datasets` keeps
            the result.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether point clouds are moved to the origin and scaled to a sphere of radius 1.
        random_scale (`list[float]`, *optional*):
            Smallest and largest factor of each coordinate in training, for example `[0.6667, 1.5]`.
        random_translation (`float`, *optional*, defaults to 0.0):
            Largest random translation of training point clouds along each axis, in either direction.
        random_rotation (`"x"`, `"y"`, `"z"` or `"any"`, *optional*):
            Axis of random rotations of training point clouds, by any angle; `"any"` is any rotation.
        num_votes (`int`, *optional*, defaults to 1):
            Evaluate on this many samples of points, and average the logits: the first without augmentation, the others
            with the augmentation of training.
    """

    input_key: ClassVar[str] = "points_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *ClassificationArguments.evaluation_keys,
        "points_column",
        "num_candidates",
        "max_points",
        "random_scale",
        "random_translation",
        "random_rotation",
        "num_votes",
    )

    points_column: str = "points"
    num_points: int = 1024
    num_candidates: int | None = None
    max_points: int | None = None
    normalize: bool = True
    random_scale: list[float] | None = None
    random_translation: float = 0.0
    random_rotation: Literal["x", "y", "z", "any"] | None = None
    num_votes: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("num_points", "num_candidates", "max_points", "num_votes")
        self.check_range("random_scale", 0, float("inf"), "[0.6667, 1.5]")
        if self.random_translation < 0:
            raise ValueError(f"random_translation is {self.random_translation}; it must not be negative.")


class PointCloudClassification(ClassificationTask):
    """Rows have a point cloud `(points, 3)` in `points_column` and a label in `label_column`."""

    name = "point-cloud-classification"
    arguments = PointDataArguments
    models = {"point_bert_with_llm_block": TASK_MODELS["point_bert_with_llm_block"]}
    suffixes = POINT_SUFFIXES

    def __init__(self, args: PointDataArguments, processor: PointCloudProcessor, config: Any):
        super().__init__(args, processor, config)
        self.num_points = processor.num_points
        for name in ("num_candidates", "max_points"):
            value = getattr(args, name)
            if value is not None and value < self.num_points:
                raise ValueError(f"{name} is {value}, fewer than num_points, {self.num_points}.")

    @classmethod
    def read(cls, args: PointDataArguments, split: str, with_targets: bool = True) -> HFDataset:
        return load_clouds(args, split, with_targets)

    @classmethod
    def read_files(cls, args: PointDataArguments, files: Sequence[str]) -> datasets.Dataset:
        return load_single_files(args, files)

    @classmethod
    def build_processor(cls, args: PointDataArguments, host: Mapping[str, Any], config: Any) -> PointCloudProcessor:
        needed = max(config.num_groups, config.group_size)
        if args.num_points < needed:
            raise ValueError(
                f"num_points is {args.num_points}, but host.num_groups {config.num_groups} and host.group_size "
                f"{config.group_size} need at least {needed} points."
            )
        return PointCloudProcessor(num_points=args.num_points, do_normalize=args.normalize)

    @classmethod
    def load_processor(cls, name_or_path: str) -> PointCloudProcessor:
        return PointCloudProcessor.from_pretrained(name_or_path)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> PointCloudTransform:
        return PointCloudTransform(self.args, split, self.processor, self.label_ids(rows), seed)

    def collate(self, examples: list[Example]) -> Batch:
        sizes = {len(example["points"]) for example in examples}
        if len(sizes) > 1:
            raise ValueError(
                f"Point clouds have {min(sizes)} to {max(sizes)} points, but all point clouds of a batch need the "
                "same number. Set max_points to at most the smallest number, to reduce all of them to it."
            )
        return super().collate(examples)

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """
        Take `num_points` of `num_candidates` points, scale, translate and rotate them, as in the paper's released code
        (`PointcloudScaleAndTranslate`; rotations are an addition).
        """
        points = self.choose_candidates(batch["points"])
        return {**batch, "points": self.change(points, rng)}

    def views(self, batch: Batch) -> list[Batch]:
        points = batch["points"]
        first = {"points": gather_points(points, sample_farthest_points(points, self.num_points))}
        if self.args.num_votes == 1:
            return [first]
        candidates = self.choose_candidates(points)
        votes = range(1, self.args.num_votes)
        return [first, *({"points": self.change(candidates, np.random.default_rng(vote))} for vote in votes)]

    def choose_candidates(self, points: torch.Tensor) -> torch.Tensor:
        count = self.args.num_candidates
        if count is None or count >= points.shape[1]:
            return points
        return gather_points(points, sample_farthest_points(points, count))

    def change(self, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        generator = torch.Generator(points.device).manual_seed(int(rng.integers(2**62)))

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator, device=points.device)

        batch = len(points)
        order = draw(batch, points.shape[1]).argsort(dim=1)
        points = gather_points(points, order[:, : self.num_points])
        if self.args.random_scale is not None:
            smallest, largest = self.args.random_scale
            points = points * (smallest + (largest - smallest) * draw(batch, 1, 3))
        if self.args.random_translation > 0:
            points = points + self.args.random_translation * (2 * draw(batch, 1, 3) - 1)
        if self.args.random_rotation is not None:
            points = points @ random_rotations(self.args.random_rotation, draw(batch, 3))
        return points

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        x, y, z = batch["points"][index].float().cpu().unbind(-1)
        order = z.argsort()  # the nearest on top, as seen from above
        axis.scatter(x[order], y[order], c=z[order], s=2, cmap="viridis")
        axis.set_aspect("equal")
