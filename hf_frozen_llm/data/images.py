# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub, a folder or parquet files, as tensors for an image classifier."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import BaseImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_frozen_llm.training.arguments import DataArguments


HFDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


def load_split(args: DataArguments, split: str) -> HFDataset:
    """Loads one split, its images still encoded, and checks that it holds what the arguments say."""
    path = Path(args.dataset_name).expanduser()
    if not path.exists() and (path.is_absolute() or args.dataset_name.startswith((".", "~"))):
        raise FileNotFoundError(f"dataset_name is {args.dataset_name!r}, but there is no such file or folder.")
    options: dict[str, Any] = {"split": split, "streaming": args.streaming}
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"dataset_name is the file {str(path)!r}; only .parquet files and folders are read.")
        source, options["data_files"] = "parquet", str(path)
    else:
        source = str(path) if path.exists() else args.dataset_name
        options |= {"name": args.dataset_config_name, "revision": args.dataset_revision}
    where = f"{args.dataset_name} [{split}]"
    try:
        dataset = datasets.load_dataset(source, **options)
    except ValueError as error:
        # datasets names the splits there are
        raise ValueError(f"{where} could not be loaded: {error}") from error

    first = next(iter(dataset.take(1)), None) if args.streaming else None
    if (first is None) if args.streaming else (len(dataset) == 0):
        raise ValueError(f"{where} is empty.")
    columns = dataset.column_names or list(first or {})
    for key in ("image_column", "label_column"):
        column = getattr(args, key)
        if column not in columns:
            raise ValueError(
                f"{where} has no column {column!r}; it has {', '.join(columns)}. Set {key} to one of them."
            )
    dataset = dataset.select_columns([args.image_column, args.label_column])
    try:
        dataset = dataset.cast_column(args.image_column, datasets.Image(decode=False))
        if args.streaming:
            next(iter(dataset.take(1)))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{where}: column {args.image_column!r} holds no images. Set image_column to one of {', '.join(columns)}."
        ) from error
    return dataset


def take_samples(args: DataArguments, dataset: HFDataset, max_samples: int | None) -> HFDataset:
    """At most `max_samples` rows: drawn, as the rows are often sorted by class, and always the same ones."""
    if max_samples is None or (not args.streaming and max_samples >= len(dataset)):
        return dataset
    return dataset.take(max_samples) if args.streaming else dataset.shuffle(seed=0).select(range(max_samples))


def find_class_names(args: DataArguments, dataset: HFDataset) -> list[str]:
    """The names of the classes, in the order of their labels."""
    feature = dataset.features[args.label_column] if dataset.features else None
    if isinstance(feature, datasets.ClassLabel):
        if args.class_names is not None and len(args.class_names) != feature.num_classes:
            raise ValueError(
                f"class_names holds {len(args.class_names)} names, but column {args.label_column!r} has "
                f"{feature.num_classes} classes."
            )
        return args.class_names or feature.names
    if args.class_names is not None:
        return args.class_names
    if args.streaming:
        raise ValueError(
            f"Column {args.label_column!r} of {args.dataset_name} does not say which classes there are, and a stream "
            "cannot be searched for them. Set class_names."
        )
    values = set(dataset.unique(args.label_column))
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if all(isinstance(value, int) for value in values):
        return [str(index) for index in range(max(values) + 1)]
    raise ValueError(
        f"{args.dataset_name}: column {args.label_column!r} must hold class labels, integers or strings in every row, "
        f"not {feature}. Set label_column to another column."
    )


def match_labels(args: DataArguments, dataset: HFDataset, label2id: Mapping[str, int]) -> dict[Any, int]:
    """Maps the values of the label column to the labels of the model, by the names of the classes if it has them."""
    feature = dataset.features[args.label_column] if dataset.features else None
    if isinstance(feature, datasets.ClassLabel):
        names = args.class_names or feature.names
        missing = [name for name in names if name not in label2id]
        if missing:
            raise ValueError(
                f"{args.dataset_name}: the model does not know the classes {', '.join(missing[:5])} of column "
                f"{args.label_column!r}; it knows {', '.join(list(label2id)[:5])}, …"
            )
        return {index: label2id[name] for index, name in enumerate(names)}
    return {**{index: index for index in range(len(label2id))}, **label2id}


def read_published_processor(args: DataArguments, host: str | None) -> dict[str, Any] | None:
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
    args: DataArguments, host: Mapping[str, Any], published: Mapping[str, Any] | None, config_size: int | Sequence[int]
) -> int | Sequence[int]:
    """
    The size of the images that the model sees.

    Args:
        args ([`DataArguments`]):
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
    args: DataArguments, image_size: int | Sequence[int], published: Mapping[str, Any] | None
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
            left, top, width, height = self.draw_crop(image.size, rng)
            image = image.crop((left, top, left + width, top + height)).resize(self.size[::-1], self.resample)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def draw_crop(self, image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height, drawn as torchvision's `RandomResizedCrop` does."""
        width, height = image_size
        smallest, largest = self.crop_scale or (1.0, 1.0)
        for _ in range(10):
            area = width * height * rng.uniform(smallest, largest)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


def build_augmentation(args: DataArguments, image_size: int | Sequence[int]) -> Augmentation | None:
    if args.random_crop_scale is None and not args.random_flip:
        return None
    resample = Image.Resampling[args.interpolation.upper()]
    return Augmentation(to_height_and_width(image_size), args.random_crop_scale, args.random_flip, resample)


def to_height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


class ImagePreparer:
    """
    Turns rows of a dataset into the inputs of an image classifier.

    Args:
        args ([`DataArguments`]):
            Names the columns.
        split (`str`):
            Named in errors.
        processor ([`BaseImageProcessor`]):
            Resizes and normalises.
        label_ids (`dict[Any, int]`):
            The label of each value of the label column.
        augmentation ([`Augmentation`], *optional*):
            Changes the images before that.
        seed (`int`, *optional*, defaults to 0):
            An image's augmentation depends on this, and on the epoch and row (see `__call__`), alone: not on workers,
            devices, or what was drawn before. So a resumed run sees the very same images.
    """

    def __init__(
        self,
        args: DataArguments,
        split: str,
        processor: BaseImageProcessor,
        label_ids: dict[Any, int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.args = args
        self.split = split
        self.processor = processor
        self.label_ids = label_ids
        self.augmentation = augmentation
        self.seed = seed
        self.decoder = datasets.Image(mode="RGB")

    def __call__(self, images: list[Any], labels: list[Any], keys: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
        """`keys` seed the augmentation; the last number of each is the row."""
        decoded, ids = [], []
        for image, label, key in zip(images, labels, keys):
            where = f"{self.args.dataset_name} [{self.split}], row {key[-1]}"
            if label not in self.label_ids:
                raise ValueError(
                    f"{where}: {self.args.label_column!r} is {label!r}, which is none of the "
                    f"{len(set(self.label_ids.values()))} classes."
                )
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
            ids.append(self.label_ids[label])
        is_cropped = self.augmentation is not None and self.augmentation.crop_scale is not None
        options = {"do_resize": False, "do_center_crop": False} if is_cropped else {}
        pixel_values = self.processor(decoded, return_tensors="pt", **options)["pixel_values"]
        return [{"pixel_values": pixels, "labels": label} for pixels, label in zip(pixel_values, ids)]


class ImageDataset(torch.utils.data.Dataset):
    """Images with random access. `set_epoch` changes how they are augmented."""

    def __init__(self, dataset: datasets.Dataset, prepare: ImagePreparer):
        self.dataset = dataset
        self.prepare = prepare
        # Shared memory, so that it reaches loader processes that live longer than an epoch.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows, args = self.dataset[indices], self.prepare.args
        keys = [(int(self.epoch), index) for index in indices]
        return self.prepare(rows[args.image_column], rows[args.label_column], keys)


class StreamingImageDataset(torch.utils.data.IterableDataset):
    """
    Images one after the other.

    Args:
        dataset ([`datasets.IterableDataset`]):
            The rows.
        prepare ([`ImagePreparer`]):
            What is done with them.
        repeat (`bool`):
            Whether to begin again after the last row, for as long as somebody asks. The Trainer then knows one long
            epoch, and skips to the right row when it resumes.
    """

    def __init__(self, dataset: datasets.IterableDataset, prepare: ImagePreparer, repeat: bool):
        self.dataset = dataset
        self.prepare = prepare
        self.repeat = repeat

    def __iter__(self) -> Iterator[dict[str, Any]]:
        args = self.prepare.args
        worker = get_worker_info()
        for epoch in itertools.count() if self.repeat else (0,):
            self.dataset.set_epoch(epoch)
            row = -1
            for row, example in enumerate(self.dataset):
                key = (epoch, worker.id if worker else 0, row)
                yield self.prepare([example[args.image_column]], [example[args.label_column]], [key])[0]
            if row < 0:
                # More loader processes than shards: nothing to repeat in this one.
                return


def collate_images(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }
