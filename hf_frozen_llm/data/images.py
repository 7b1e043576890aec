# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub, a folder or parquet files, as tensors for an image classifier."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

# Not the top-level name: before transformers 5.20 that one asks for torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_frozen_llm.data.examples import HFDataset, Preparer, keep_encoded, load_columns
from hf_frozen_llm.training.arguments import ImageDataArguments


def load_split(args: ImageDataArguments, split: str) -> HFDataset:
    """Loads one split, its images still encoded, and checks that it holds what the arguments say."""
    return keep_encoded(args, split, load_columns(args, split), datasets.Image(decode=False))


def build_processor(args: ImageDataArguments, host: Mapping[str, Any], config: Any) -> ViTImageProcessorPil:
    """The processor that is saved with the model."""
    if config.num_channels != 3:
        raise ValueError(f"host.num_channels is {config.num_channels}; images are read with 3 channels (RGB).")
    published = read_published_processor(args, host.get("name_or_path"))
    return build_image_processor(args, find_image_size(args, host, published, config.image_size), published)


def load_processor(name_or_path: str) -> Any:
    """The processor of a saved model."""
    return AutoImageProcessor.from_pretrained(name_or_path, backend="pil")


def build_preparer(
    args: ImageDataArguments, split: str, processor: Any, label_ids: dict[Any, int], config: Any, seed: int | None
) -> "ImagePreparer":
    """Without a `seed`, for evaluation."""
    if seed is None:
        return ImagePreparer(args, split, processor, label_ids)
    size = processor.crop_size if processor.do_center_crop else processor.size
    augmentation = build_augmentation(args, (size["height"], size["width"]))
    return ImagePreparer(args, split, processor, label_ids, seed, augmentation=augmentation)


def build_batches(args: ImageDataArguments, processor: Any, num_labels: int) -> None:
    """Nothing is done with batches of images."""


def read_published_processor(args: ImageDataArguments, host: str | None) -> dict[str, Any] | None:
    """The figures of a published host's image processor, which may be of any class; `None` without such a host."""
    if host is None:
        return None
    settings: dict[str, Any] = {}
    unreadable = None
    try:
        settings, _ = ViTImageProcessorPil.get_image_processor_dict(host)
    except OSError as error:
        unreadable = error
    missing = [name for name in ("image_mean", "image_std") if (getattr(args, name) or settings.get(name)) is None]
    if missing:
        raise ValueError(
            f"host.name_or_path {host!r} has no image processor (preprocessor_config.json) that says "
            f"{' and '.join(missing)}. Set image_mean and image_std to those that the host was trained with."
        ) from unreadable
    for name in ("do_rescale", "do_normalize"):
        if settings.get(name) is False:
            raise ValueError(
                f"The image processor of host.name_or_path {host!r} has {name}=False, but images are always rescaled "
                "to 0…1 and normalised here. Use a copy of the host whose preprocessor_config.json says so."
            )
    return settings


def find_image_size(
    args: ImageDataArguments,
    host: Mapping[str, Any],
    published: Mapping[str, Any] | None,
    config_size: int | Sequence[int],
) -> int | Sequence[int]:
    """
    The size of the images that the model sees.

    Args:
        args ([`ImageDataArguments`]):
            Their `image_size` comes first.
        host (`Mapping[str, Any]`):
            The recipe's group `host`, whose `image_size` comes second.
        published (`Mapping[str, Any]`, *optional*):
            What [`read_published_processor`] gave. A published host need not see images of its configuration's size:
            DINOv2 is configured for 518 pixels and made for 224.
        config_size (`int` or `Sequence[int]`):
            The size in the host's configuration.

    Returns:
        `int` or `Sequence[int]`: the side of a square, or height and width.
    """
    if args.image_size is not None:
        return args.image_size
    if published is None or "image_size" in host:
        return config_size
    size = (published.get("crop_size") if published.get("do_center_crop", True) else None) or published.get("size")
    if isinstance(size, Mapping):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    return size or config_size


def build_image_processor(
    args: ImageDataArguments, image_size: int | Sequence[int], published: Mapping[str, Any] | None
) -> ViTImageProcessorPil:
    """The processor that is saved with the model; the `published` host's mean and deviation are kept."""
    height, width = to_height_and_width(image_size)
    figures = (
        {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD} if published is None else published
    )
    sizes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if args.crop_pct is not None:
        if height != width:
            raise ValueError(f"crop_pct needs a square image_size, not {height}x{width}.")
        sizes = {
            "size": {"shortest_edge": int(height / args.crop_pct)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    return ViTImageProcessorPil(
        image_mean=args.image_mean or figures["image_mean"],
        image_std=args.image_std or figures["image_std"],
        resample=Image.Resampling[args.interpolation.upper()],
        **sizes,
    )


@dataclass
class Augmentation:
    """
    Random crops and flips of PIL images.

    Args:
        size (`tuple[int, int]`):
            Height and width of the crops.
        crop_scale (`list[float]`, *optional*):
            Smallest and largest share of the image that a crop covers; no crops without it.
        flip (`bool`):
            Whether half of the images are mirrored.
        resample (`Image.Resampling`):
            How the crops are resized.
    """

    size: tuple[int, int]
    crop_scale: list[float] | None
    flip: bool
    resample: Image.Resampling

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.crop_scale is not None:
            left, top, width, height = draw_crop(image.size, self.crop_scale, rng)
            image = image.crop((left, top, left + width, top + height)).resize(self.size[::-1], self.resample)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def draw_crop(
    image_size: tuple[int, int], scale: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """
    Left, top, width and height of a random crop that covers this share of an image of this width and height, drawn as
    torchvision's `RandomResizedCrop` does.
    """
    width, height = image_size
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def build_augmentation(args: ImageDataArguments, image_size: int | Sequence[int]) -> Augmentation | None:
    if args.random_crop_scale is None and not args.random_flip:
        return None
    resample = Image.Resampling[args.interpolation.upper()]
    return Augmentation(to_height_and_width(image_size), args.random_crop_scale, args.random_flip, resample)


def to_height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


class ImagePreparer(Preparer):
    """Decodes, augments, resizes and normalises images; see [`Preparer`] for the other arguments."""

    def __init__(self, *args, augmentation: Augmentation | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self.decoder = datasets.Image(mode="RGB")

    def __call__(self, values: Sequence[Any], labels: Sequence[Any], keys: Sequence[tuple[int, ...]]) -> list[dict]:
        decoded, ids = [], []
        for image, label, key in zip(values, labels, keys):
            where = self.where(key)
            ids.append(self.find_label(label, key))
            try:
                picture = self.decoder.decode_example(image)
            except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
                name = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
                raise ValueError(f"{where}{name}: the image cannot be decoded: {error}") from error
            if picture is None:
                raise ValueError(f"{where}: the image is missing.")
            if self.augmentation is not None:
                picture = self.augmentation(picture, np.random.default_rng((self.seed, *key)))
            decoded.append(picture)
        is_cropped = self.augmentation is not None and self.augmentation.crop_scale is not None
        options = {"do_resize": False, "do_center_crop": False} if is_cropped else {}
        pixel_values = self.processor(decoded, return_tensors="pt", **options)["pixel_values"]
        return [{"pixel_values": pixels, "labels": label} for pixels, label in zip(pixel_values, ids)]


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }
