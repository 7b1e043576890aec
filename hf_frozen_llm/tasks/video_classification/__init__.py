# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Video classification: labelled videos from the Hub, a folder, parquet files or lists of annotations."""

import importlib.util
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
from hf_frozen_llm.data.augmentation import erase_randomly, mix, rand_augment
from hf_frozen_llm.data.datasets import HFDataset, keep_encoded, select_columns
from hf_frozen_llm.data.folders import load_files_or_rows
from hf_frozen_llm.tasks.classification import ClassificationArguments, ClassificationTask, column_keys
from hf_frozen_llm.tasks.task import Batch
from hf_frozen_llm.tasks.video_classification.data import (
    INSTALL,
    VIDEO_SUFFIXES,
    VideoTransform,
    build_video_processor,
    load_annotations,
)


@dataclass
class VideoDataArguments(ClassificationArguments):
    """
    The source of videos and their conversion to tensors, besides [`ClassificationArguments`]. `dataset_name` may also
    be a folder of video files, if the split is a file of annotations in it: Something-Something's `.json`, or a `.csv`
    of paths and labels.

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
        random_crop_scale (`list[float]`, *optional*):
            Train on a random crop of all frames that covers this share of them, for example `[0.08, 1.0]`, of aspect
            ratio 3/4 to 4/3.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the training clips are mirrored.
        rand_augment_ops (`int`, *optional*, defaults to 0):
            Operations of RandAugment on a training clip, the same on all of its frames, each with probability 1/2.
        rand_augment_magnitude (`float`, *optional*, defaults to 7.0):
            Their strength, from 0 to 10, drawn with a standard deviation of 0.5.
        random_erasing (`float`, *optional*, defaults to 0.0):
            Probability that a box of a training clip, the same in all frames, is replaced by noise.
        mixup_alpha (`float`, *optional*, defaults to 0.0):
            Mixup of training clips: parameter of the beta distribution; 0 is none.
        cutmix_alpha (`float`, *optional*, defaults to 0.0):
            CutMix likewise. With both, each batch draws one of them.
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
    random_crop_scale: list[float] | None = None
    random_flip: bool = False
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 7.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    samples_per_video: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("frame_stride", "num_segments", "num_crops", "samples_per_video")
        self.check_colours()
        self.check_range("random_crop_scale", 0, 1, "[0.08, 1.0]")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing is {self.random_erasing}; it is a probability, from 0 to 1.")
        if not 0 <= self.rand_augment_magnitude <= 10:
            raise ValueError(f"rand_augment_magnitude is {self.rand_augment_magnitude}; it must lie between 0 and 10.")
        for name in ("rand_augment_ops", "mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite, and it must not be negative.")


class VideoClassification(ClassificationTask):
    """Rows have an encoded video in `video_column` and a label in `label_column`; batches have clips of bytes."""

    name = "video-classification"
    arguments = VideoDataArguments
    models = {"videomae_with_llm_block": TASK_MODELS["videomae_with_llm_block"]}
    suffixes = VIDEO_SUFFIXES

    def __init__(self, args: VideoDataArguments, processor: VideoMAEImageProcessorPil, config: Any):
        super().__init__(args, processor, config)
        if args.rand_augment_ops > 0 and importlib.util.find_spec("kornia") is None:
            raise ImportError(f"rand_augment_ops needs kornia, which is not installed: {INSTALL}")
        self.mean, self.std = (
            torch.tensor(figures).view(3, 1, 1) for figures in (processor.image_mean, processor.image_std)
        )

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

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        args, labels = self.args, batch["labels"]
        clips = batch["pixel_values"].float() / 255
        if args.rand_augment_ops > 0:
            fill = self.mean.to(clips.device)
            clips = rand_augment(clips, args.rand_augment_ops, args.rand_augment_magnitude, fill, rng)
        if args.random_flip:
            is_flipped = torch.from_numpy(rng.random(len(clips)) < 0.5).to(clips.device)
            clips = torch.where(is_flipped.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
        clips = self.normalize(clips)
        if args.random_erasing > 0:
            clips = erase_randomly(clips, args.random_erasing, rng)
        if args.mixup_alpha > 0 or args.cutmix_alpha > 0:
            clips, labels = mix(clips, labels, self.config.num_labels, args.mixup_alpha, args.cutmix_alpha, rng)
        return {"pixel_values": clips, "labels": labels}

    def views(self, batch: Batch) -> list[Batch]:
        return [{"pixel_values": self.normalize(clips.float() / 255)} for clips in batch["pixel_values"].unbind(1)]

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Average the probabilities, as the released code does; return logits of their mean."""
        if self.is_multi_label:
            shares = [F.logsigmoid(sign * logits).logsumexp(0) for sign in (1, -1)]
            return shares[0] - shares[1]
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def normalize(self, clips: torch.Tensor) -> torch.Tensor:
        return (clips - self.mean.to(clips.device)) / self.std.to(clips.device)

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        clip = batch["pixel_values"][index].float().cpu() * self.std + self.mean
        frames = clip[torch.linspace(0, len(clip) - 1, min(4, len(clip))).long()]
        axis.imshow(torch.cat(list(frames), dim=-1).permute(1, 2, 0).clip(0, 1).numpy())
