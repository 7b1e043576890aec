# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Video classification: labelled videos from the Hub, a folder, parquet files or lists of annotations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.augmentation import BatchAugmentation
from hf_frozen_llm.data.augmentation_arguments import AugmentationArguments
from hf_frozen_llm.data.datasets import HFDataset, keep_encoded, select_columns
from hf_frozen_llm.data.folders import load_files_or_rows
from hf_frozen_llm.tasks.classification import ClassificationArguments, ClassificationTask, column_keys
from hf_frozen_llm.tasks.task import Batch
from hf_frozen_llm.tasks.video_classification.data import (
    VIDEO_SUFFIXES,
    VideoTransform,
    build_video_processor,
    load_annotations,
)


@dataclass
class VideoDataArguments(AugmentationArguments, ClassificationArguments):
    """
    The source of videos and their conversion to tensors, besides [`ClassificationArguments`] and
    [`AugmentationArguments`]. `dataset_name` may also be a folder of video files, if the split is a file of
    annotations in it: Something-Something's `.json`, or a `.csv` of paths and labels.

    Args:
        video_column (`str`, *optional*, defaults to `"video"`):
            Column of the videos.
        sampling (`"uniform"` or `"dense"`, *optional*, defaults to `"uniform"`):
            Choice of frames. `"uniform"`: one from each of `num_frames` equal parts of the video, a random one in
            training. `"dense"`: every `frame_stride`th frame, from a random start in training.
        frame_stride (`int`, *optional*, defaults to 4):
            Step between the frames of dense sampling.
        repeat_frames (`bool`, *optional*, defaults to `False`):
            Whether frames of a video with fewer than `num_frames` are repeated, instead of refusing the video.
        num_segments (`int`, *optional*, defaults to 1):
            Evaluate on this many samples of frames of a video; the class probabilities of all views are averaged.
        num_crops (`int`, *optional*, defaults to 1):
            Evaluate on this many square crops along the longer side of the video: 1, the middle, or more.
        image_mean (`list[float]`, *optional*):
            Mean of the channels. By default that of the published host, or else ImageNet's.
        image_std (`list[float]`, *optional*):
            Standard deviation of the channels, with the same default.
        interpolation (`"bicubic"` or `"bilinear"`, *optional*, defaults to `"bilinear"`):
            How frames are resized.
        samples_per_video (`int`, *optional*, defaults to 1):
            How often a batch includes each of its videos, with new augmentation (repeated augmentation).
    """

    input_key: ClassVar[str] = "video_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *ClassificationArguments.evaluation_keys,
        "video_column",
        "sampling",
        "frame_stride",
        "repeat_frames",
        "num_segments",
        "num_crops",
    )

    video_column: str = "video"
    sampling: Literal["uniform", "dense"] = "uniform"
    frame_stride: int = 4
    repeat_frames: bool = False
    num_segments: int = 1
    num_crops: int = 1
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    samples_per_video: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("frame_stride", "num_segments", "num_crops", "samples_per_video")
        self.check_colours()


class VideoClassification(ClassificationTask):
    """Rows have an encoded video in `video_column` and a label in `label_column`; batches have clips of bytes."""

    name = "video-classification"
    arguments = VideoDataArguments
    models = {"videomae_with_llm_block": TASK_MODELS["videomae_with_llm_block"]}
    suffixes = VIDEO_SUFFIXES

    def __init__(self, args: VideoDataArguments, processor: VideoMAEImageProcessorPil, config: Any):
        super().__init__(args, processor, config)
        self.augmentation = BatchAugmentation(args, processor, config)
        self.normalize = self.augmentation.normalize

    @classmethod
    def read(cls, args: VideoDataArguments, split: str, with_targets: bool = True) -> HFDataset:
        if Path(split).suffix in (".json", ".csv"):
            rows = load_annotations(args, split)
        else:
            label_column = args.label_column if with_targets else None
            feature = datasets.Video(decode=False)
            rows = load_files_or_rows(args, split, args.input_column, feature, VIDEO_SUFFIXES, label_column)
        rows = select_columns(args, split, rows, column_keys(args, with_targets))
        return keep_encoded(args, split, rows, "video_column", datasets.Video(decode=False))

    @classmethod
    def read_files(cls, args: VideoDataArguments, files: Sequence[str]) -> datasets.Dataset:
        features = datasets.Features({args.video_column: datasets.Video(decode=False)})
        return datasets.Dataset.from_dict({args.video_column: list(files)}, features=features)

    @classmethod
    def build_processor(
        cls, args: VideoDataArguments, host: Mapping[str, Any], config: Any
    ) -> VideoMAEImageProcessorPil:
        return build_video_processor(args, host, config)

    @classmethod
    def load_processor(cls, name_or_path: str) -> Any:
        return VideoMAEImageProcessorPil.from_pretrained(name_or_path)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> VideoTransform:
        return VideoTransform(
            self.args,
            split,
            self.processor,
            self.label_ids(rows),
            seed,
            num_frames=self.config.num_frames,
            is_training=training,
        )

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> torch.utils.data.Sampler | None:
        return self.augmentation.sampler(dataset, batch_size, seed)

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        args: Any = self.args
        clips, labels = batch["pixel_values"], batch["labels"]
        clips, labels = self.augmentation(clips, labels, rng, args.interpolation, mirrors=args.random_flip)
        return {"pixel_values": clips, "labels": labels}

    def views(self, batch: Batch) -> list[Batch]:
        return [{"pixel_values": self.normalize(clips.float() / 255)} for clips in batch["pixel_values"].unbind(1)]

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Average the probabilities, as the released code does; return logits of their mean."""
        if self.is_multi_label:
            shares = [F.logsigmoid(sign * logits).logsumexp(0) for sign in (1, -1)]
            return shares[0] - shares[1]
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        clip = batch["pixel_values"][index].float().cpu() * self.augmentation.std + self.augmentation.mean
        frames = clip[torch.linspace(0, len(clip) - 1, min(4, len(clip))).long()]
        axis.imshow(torch.cat(list(frames), dim=-1).permute(1, 2, 0).clip(0, 1).numpy())
