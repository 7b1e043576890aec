# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Image classification: labelled images from the Hub, a folder or parquet files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch

# Not the top-level name: before transformers 5.20 that one requires torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.augmentation import BatchAugmentation
from hf_frozen_llm.data.augmentation_arguments import AugmentationArguments
from hf_frozen_llm.data.datasets import HFDataset, keep_encoded, select_columns
from hf_frozen_llm.data.folders import load_files_or_rows
from hf_frozen_llm.data.images import FOLDER_SUFFIXES, IMAGE_SUFFIXES
from hf_frozen_llm.tasks.classification import ClassificationArguments, ClassificationTask, column_keys
from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS, SEVERITIES
from hf_frozen_llm.tasks.image_classification.data import (
    ImageTransform,
    build_augmentation,
    build_image_processor,
    find_image_size,
    read_published_processor,
)
from hf_frozen_llm.tasks.task import Batch, SuitePart, SuiteSource


@dataclass
class ImageDataArguments(AugmentationArguments, ClassificationArguments):
    """
    The source of images and their conversion to tensors, besides [`ClassificationArguments`] and
    [`AugmentationArguments`].

    Args:
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images.
        image_size (`int`, *optional*):
            Side, in pixels, of the model's square input. By default the size of the published host's image processor,
            unless `host.image_size` is set, or else the host's `image_size`. A size other than the host's requires a
            host that interpolates its positions itself (DINOv2, DINOv3, Swin).
        image_mean (`list[float]`, *optional*):
            Mean of the channels. By default ImageNet's, or that of the published host the model starts from.
        image_std (`list[float]`, *optional*):
            Standard deviation of the channels, with the same default.
        pixel_range (`list[float]`, *optional*):
            Values of black and white in images with one channel of more than 8 bits, such as `[0, 4095]` for 12 bits.
            By default the range of the type: 0 to 65535 for 16 bits, 0 to 1 for floating-point numbers.
        interpolation (`"bicubic"` or `"bilinear"`, *optional*, defaults to `"bicubic"`):
            How images are resized.
        crop_pct (`float`, *optional*):
            Evaluate on the middle of the image: the shorter edge becomes `image_size / crop_pct`, then the
            central square is cropped. By default the whole image is resized to the square.
        crop_padding (`int`, *optional*):
            Train on images of the model's size, moved at random by as many pixels at most, over black, instead of
            crops by `random_crop_scale`: 4 is usual for CIFAR, 0 is the whole image.
        cache_decoded (`bool`, *optional*, defaults to `False`):
            Whether to decode the images once, and to keep them, at the size that training and evaluation need, in the
            cache of `datasets`, mapped into memory: for data sets that fit on the disk and, to be of use, into
            memory. Images and examples are the same as without it, with two exceptions: see `cached_edge`, and
            `random_flip` alone, without crops, mirrors an image after it is resized instead of before.
        cached_edge (`int`, *optional*):
            Shorter edge to which `cache_decoded` reduces larger images of which random crops are taken. By default
            8/7 of the model's: 256 pixels for 224. Smaller images stay as they are.
        preprocessing_num_workers (`int`, *optional*):
            Processes that decode for `cache_decoded`.
        corruption (`str`, *optional*):
            Corrupt the images in `evaluate` and `predict`, not in training, by one of the 15 corruptions of
            ImageNet-C, such as `gaussian_noise` or `fog`. Images of at most 64 pixels a side are corrupted at their
            own size, with the constants of CIFAR-10-C; larger ones at the size of the model's input, with those of
            ImageNet-C.
        corruption_severity (`int`, *optional*, defaults to 3):
            Severity of the corruption, from 1 to 5.
    """

    input_key: ClassVar[str] = "image_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *ClassificationArguments.evaluation_keys,
        *("image_column", "pixel_range", "corruption", "corruption_severity"),
    )

    image_column: str = "image"
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    pixel_range: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float | None = None
    crop_padding: int | None = None
    cache_decoded: bool = False
    cached_edge: int | None = None
    preprocessing_num_workers: int | None = None
    corruption: str | None = None
    corruption_severity: int = 3

    def __post_init__(self):
        if self.crop_padding is not None and self.random_crop_scale is not None:
            raise ValueError("crop_padding and random_crop_scale are both set; remove one of the two.")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(f"crop_padding is {self.crop_padding}; it must not be negative.")
        super().__post_init__()
        if self.crop_padding is not None:
            self.random_crop_scale = None  # that of the preset
        self.check_at_least_one("image_size", "cached_edge", "preprocessing_num_workers")
        for name in ("cached_edge", "preprocessing_num_workers"):
            if getattr(self, name) is not None and not self.cache_decoded:
                raise ValueError(f"{name} is set, but cache_decoded is not, to which it applies. Set cache_decoded.")
        if self.cache_decoded and self.streaming:
            raise ValueError("cache_decoded keeps whole data sets, not streams. Set streaming to false, or remove it.")
        self.check_colours()
        if self.pixel_range is not None:
            self.check_range("pixel_range", -math.inf, math.inf, "[0, 4095]")
            if not self.pixel_range[0] < self.pixel_range[1] < math.inf:
                raise ValueError(f"pixel_range is {self.pixel_range}; white must be above black, and finite.")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must lie in (0, 1].")
        if self.corruption is not None and self.corruption not in CORRUPTIONS:
            raise ValueError(f"corruption is {self.corruption!r}; it must be one of {', '.join(CORRUPTIONS)}.")
        if self.corruption_severity not in SEVERITIES:
            raise ValueError(f"corruption_severity is {self.corruption_severity}; it must be from 1 to 5.")
        if self.corruption is None and self.corruption_severity != ImageDataArguments.corruption_severity:
            raise ValueError(
                f"corruption_severity is {self.corruption_severity}, but corruption is not set. Set it to one of "
                f"{', '.join(CORRUPTIONS)}."
            )

    def check_training(self) -> None:
        super().check_training()
        if self.corruption is not None:
            raise ValueError(
                f"corruption is {self.corruption!r}, but training, and the evaluation in it, is on clean images. "
                f"Remove it, and run `hf-frozen-llm evaluate … --corruption {self.corruption}` on the saved model."
            )

    def evaluation_changes(self) -> dict[str, Any]:
        if self.corruption is None:
            return {}
        return {"corruption": self.corruption, "corruption_severity": self.corruption_severity}


class ImageClassification(ClassificationTask):
    """Rows have an encoded image in `image_column` and a label in `label_column`."""

    name = "image-classification"
    arguments = ImageDataArguments
    models = {name: TASK_MODELS[name] for name in ("vit_with_llm_block", "vision_with_llm_block")}
    suffixes = IMAGE_SUFFIXES

    def __init__(self, args: ImageDataArguments, processor: Any, config: Any):
        super().__init__(args, processor, config)
        self.augmentation = BatchAugmentation(args, processor, config)

    @classmethod
    def read(cls, args: ImageDataArguments, split: str, with_targets: bool = True) -> HFDataset:
        feature, label_column = datasets.Image(decode=False), args.label_column if with_targets else None
        rows = load_files_or_rows(args, split, args.input_column, feature, FOLDER_SUFFIXES, label_column)
        rows = select_columns(args, split, rows, column_keys(args, with_targets))
        return keep_encoded(args, split, rows, "image_column", feature)

    @classmethod
    def read_files(cls, args: ImageDataArguments, files: Sequence[str]) -> datasets.Dataset:
        features = datasets.Features({args.image_column: datasets.Image(decode=False)})
        return datasets.Dataset.from_dict({args.image_column: list(files)}, features=features)

    @classmethod
    def build_processor(cls, args: ImageDataArguments, host: Mapping[str, Any], config: Any) -> Any:
        if config.num_channels != 3:
            raise ValueError(f"host.num_channels is {config.num_channels}; images are read with 3 channels (RGB).")
        published = read_published_processor(args, host.get("name_or_path"), host.get("revision"))
        return build_image_processor(args, find_image_size(args, host, published, config.image_size), published)

    @classmethod
    def load_processor(cls, name_or_path: str) -> Any:
        return AutoImageProcessor.from_pretrained(name_or_path, backend="pil", trust_remote_code=False)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> ImageTransform:
        options: dict[str, Any] = {"corruption": self.args.corruption}
        if training:
            size = self.processor.crop_size if self.processor.do_center_crop else self.processor.size
            options = {"augmentation": build_augmentation(self.args, (size["height"], size["width"]))}
            options["as_bytes"] = self.args.changes_batches
        return ImageTransform(self.args, split, self.processor, self.label_ids(rows), seed, **options)

    def prepare(self, dataset: Any) -> None:
        if self.args.cache_decoded:
            dataset.rows = dataset.transform.cache(dataset.rows)

    def suite_parts(self, suite: str, source: SuiteSource) -> list[SuitePart]:
        from hf_frozen_llm.tasks.image_classification.suites import find_suite_parts

        return find_suite_parts(self, suite, source)

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> torch.utils.data.Sampler | None:
        return self.augmentation.sampler(dataset, batch_size, seed)

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        if not self.args.changes_batches:
            return batch
        images, mode = batch["pixel_values"].unsqueeze(1), self.args.interpolation
        images, labels = self.augmentation(images, batch["labels"], rng, mode, mirrors=False)
        return {"pixel_values": images.squeeze(1), "labels": labels}

    def views(self, batch: Batch) -> list[Batch]:
        return [batch]

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        mean, std = (
            np.asarray(values)[:, None, None] for values in (self.processor.image_mean, self.processor.image_std)
        )
        pixels = batch["pixel_values"][index].float().cpu().numpy() * std + mean
        axis.imshow(pixels.transpose(1, 2, 0).clip(0, 1))
