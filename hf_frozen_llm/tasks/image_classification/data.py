# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Encoded images as tensors for an image classifier: the processor, augmentation, the example transform."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_frozen_llm.data.augmentation import draw_crop
from hf_frozen_llm.data.datasets import Example, Row
from hf_frozen_llm.data.decoded_cache import cache_pictures, load_picture
from hf_frozen_llm.data.images import decode_image, to_rgb
from hf_frozen_llm.tasks.classification import ClassificationTransform
from hf_frozen_llm.tasks.image_classification.corruptions import corrupt, is_small


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.image_classification import ImageDataArguments


def read_published_processor(
    args: "ImageDataArguments", host: str | None, revision: str | None = None
) -> dict[str, Any] | None:
    """Return the settings of a published host's image processor, of any class; `None` without such a host."""
    if host is None:
        return None
    settings: dict[str, Any] = {}
    unreadable = None
    try:
        settings, _ = ViTImageProcessorPil.get_image_processor_dict(host, revision=revision)
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
                f"to 0…1 and normalised here. Use a copy of the host with {name}=true in its preprocessor_config.json."
            )
    return settings


def find_image_size(
    args: "ImageDataArguments",
    host: Mapping[str, Any],
    published: Mapping[str, Any] | None,
    config_size: int | Sequence[int],
) -> int | Sequence[int]:
    """
    Return the size of the model's input images.

    Args:
        args ([`ImageDataArguments`]):
            Their `image_size` comes first.
        host (`Mapping[str, Any]`):
            The recipe's group `host`, whose `image_size` comes second.
        published (`Mapping[str, Any]`, *optional*):
            The result of [`read_published_processor`]. The input size of a published host can differ from its
            configuration: DINOv2 is configured for 518 pixels, and its processor gives 224.
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
    args: "ImageDataArguments", image_size: int | Sequence[int], published: Mapping[str, Any] | None
) -> ViTImageProcessorPil:
    """Return the processor that is saved with the model; it keeps the `published` host's mean and deviation."""
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
    Random crops and flips of PIL images; the rest of the augmentation is done on batches.

    Args:
        size (`tuple[int, int]`):
            Height and width of the crops.
        crop_scale (`list[float]`, *optional*):
            Smallest and largest share of the image that a crop covers; no such crops without it.
        flip (`bool`):
            Whether half of the images are mirrored.
        resample (`Image.Resampling`):
            How the crops are resized.
        padding (`int`, *optional*):
            Move the resized image by as many pixels at most, over black.
    """

    size: tuple[int, int]
    crop_scale: list[float] | None
    flip: bool
    resample: Image.Resampling
    padding: int | None = None

    @property
    def resizes(self) -> bool:
        return self.crop_scale is not None or self.padding is not None

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.crop_scale is not None:
            left, top, width, height = draw_crop(image.size, self.crop_scale, rng)
            image = image.crop((left, top, left + width, top + height)).resize(self.size[::-1], self.resample)
        if self.padding is not None:
            image = image.resize(self.size[::-1], self.resample)
            left, top = rng.integers(-self.padding, self.padding + 1, 2).tolist()
            image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def build_augmentation(args: "ImageDataArguments", image_size: int | Sequence[int]) -> Augmentation | None:
    if args.random_crop_scale is None and args.crop_padding is None and not args.random_flip:
        return None
    resample = Image.Resampling[args.interpolation.upper()]
    size = to_height_and_width(image_size)
    return Augmentation(size, args.random_crop_scale, bool(args.random_flip), resample, args.crop_padding)


def to_height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


class ImageTransform(ClassificationTransform):
    """
    Decode, augment or corrupt, resize and normalise images; see [`ClassificationTransform`] for the other arguments.

    Args:
        augmentation ([`Augmentation`], *optional*):
            Applied before resizing.
        corruption (`str`, *optional*):
            A key of `CORRUPTIONS`.
        as_bytes (`bool`, *optional*, defaults to `False`):
            Whether the pixels stay bytes, which the batch augmentation normalises.
    """

    def __init__(
        self,
        *args,
        augmentation: Augmentation | None = None,
        corruption: str | None = None,
        as_bytes: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self.corruption = corruption
        self.as_bytes = as_bytes
        self.keeps_size = False  # images that have the model's size are not resized, and not cropped
        self.is_cached = False  # see `cache`

    @property
    def cached_edge(self) -> int | None:
        """Return the largest shorter edge of cached images of which random crops are taken."""
        if self.augmentation is None or self.augmentation.crop_scale is None:
            return None
        return self.args.cached_edge or math.ceil(min(self.augmentation.size) * 8 / 7)

    def cache(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Return rows with decoded images, as [`ImageTransform.shrink`] makes them; this then takes only such rows."""
        self.is_cached = True
        args, processor, augmentation = self.args, self.processor, self.augmentation
        sizes = (dict(processor.size), dict(processor.crop_size or {}), processor.do_center_crop, processor.resample)
        resizes = augmentation is not None and (augmentation.resizes, augmentation.size, augmentation.resample)
        settings = (args.pixel_range, sizes, resizes, self.cached_edge)
        location = f"{args.dataset_name} [{self.split}]"
        return cache_pictures(
            rows, args.image_column, self.read_for_cache, settings, args.preprocessing_num_workers, location
        )

    def read_for_cache(self, encoded: Any, row: int) -> Image.Image:
        image, location = decode_image(encoded, self.locate((row,)))
        return self.shrink(to_rgb(image, self.args.pixel_range, location))

    def shrink(self, image: Image.Image) -> Image.Image:
        """Return what is the same in every epoch: the resized image, or one of which random crops can be taken."""
        if self.augmentation is None or not self.augmentation.resizes:
            return self.fit(image)
        size, edge = self.augmentation.size[::-1], self.cached_edge
        if edge is not None:
            scale = edge / min(image.size)
            if scale >= 1:
                return image
            size = (max(edge, round(image.width * scale)), max(edge, round(image.height * scale)))
        return image.resize(size, self.augmentation.resample)

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        images, labels = [], []
        for row, key in zip(rows, keys):
            encoded, location = row[self.args.image_column], self.locate(key)
            labels.append(self.find_label(row, key))
            if self.is_cached:
                image = load_picture(encoded)
            else:
                image, location = decode_image(encoded, location)
                image = to_rgb(image, self.args.pixel_range, location)
            if self.augmentation is not None:
                image = self.augmentation(image, np.random.default_rng((self.seed, *key)))
            if self.corruption is not None:
                image = self.corrupt(image, self.corruption)
            elif self.keeps_size and image.size != self.model_size:
                image = self.fit(image)
            images.append(image)
        is_fitted = (self.augmentation is not None and self.augmentation.resizes) or self.corruption is not None
        is_fitted = is_fitted or self.keeps_size or self.is_cached
        options = {"do_resize": False, "do_center_crop": False} if is_fitted else {}
        if self.as_bytes:
            options |= {"do_rescale": False, "do_normalize": False}
        pixel_values = self.processor(images, return_tensors="pt", **options)["pixel_values"]
        return [{"pixel_values": pixels, **label} for pixels, label in zip(pixel_values, labels)]

    @property
    def model_size(self) -> tuple[int, int]:
        """Return the width and height of the model's input."""
        size = self.processor.crop_size if self.processor.do_center_crop else self.processor.size
        return size["width"], size["height"]

    def corrupt(self, image: Image.Image, corruption: str) -> Image.Image:
        """Corrupt a small image at its own size and a larger one at the model's; return it at the model's size."""
        severity = self.args.corruption_severity
        if is_small(image):
            return self.fit(corrupt(image, corruption, severity))
        return corrupt(self.fit(image), corruption, severity)

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop an image as the processor does."""
        pixels = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        return Image.fromarray(pixels.transpose(1, 2, 0))
