# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Labelled examples of any kind: loading them through `datasets`, their classes, and how a DataLoader gets them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow
import torch
from torch.utils.data import get_worker_info

from hf_frozen_llm.training.arguments import DataArguments


HFDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


def find_local(args: DataArguments) -> Path | None:
    """The file or folder that `dataset_name` says, or `None` if it is a Hub id."""
    path = Path(args.dataset_name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or args.dataset_name.startswith((".", "~")) or path.suffix in (".npz", ".parquet"):
        raise FileNotFoundError(f"dataset_name is {args.dataset_name!r}, but there is no such file or folder.")
    return None


def load_columns(args: DataArguments, split: str) -> HFDataset:
    """Loads one split from the Hub, a folder or a parquet file, and keeps the columns of inputs and labels."""
    path = find_local(args)
    options: dict[str, Any] = {}
    if path is not None and path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"dataset_name is the file {str(path)!r}; only .parquet files and folders are read.")
        source, options["data_files"] = "parquet", str(path)
    else:
        source = args.dataset_name if path is None else str(path)
        options = {"name": args.dataset_config_name, "revision": args.dataset_revision}
    try:
        dataset = datasets.load_dataset(source, split=split, streaming=args.streaming, **options)
    except ValueError as error:
        # datasets names the splits there are
        raise ValueError(f"{args.dataset_name} [{split}] could not be loaded: {error}") from error
    return select_columns(args, split, dataset)


def select_columns(args: DataArguments, split: str, dataset: HFDataset) -> HFDataset:
    where = f"{args.dataset_name} [{split}]"
    first = next(iter(dataset.take(1).decode(False)), None) if args.streaming else None
    if (first is None) if args.streaming else (len(dataset) == 0):
        raise ValueError(f"{where} is empty.")
    columns = dataset.column_names or list(first or {})
    for key in (args.input_key, "label_column"):
        column = getattr(args, key)
        if column not in columns:
            raise ValueError(
                f"{where} has no column {column!r}; it has {', '.join(columns)}. Set {key} to one of them."
            )
    return dataset.select_columns([args.input_column, args.label_column])


def keep_encoded(
    args: DataArguments, split: str, dataset: HFDataset, feature: datasets.Image | datasets.Video
) -> HFDataset:
    """Makes the column of inputs one of files, not decoded yet, or says that it is none."""
    try:
        dataset = dataset.cast_column(args.input_column, feature)
        if args.streaming:
            next(iter(dataset.take(1)))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{args.dataset_name} [{split}]: column {args.input_column!r} holds no {type(feature).__name__.lower()}s. "
            f"Set {args.input_key} to another one."
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


class Preparer:
    """
    Turns rows of a dataset into inputs of a model.

    Args:
        args ([`DataArguments`]):
            Names the columns.
        split (`str`):
            Named in errors.
        processor:
            The processor that is saved with the model.
        label_ids (`dict[Any, int]`):
            The label of each value of the label column.
        seed (`int`, *optional*, defaults to 0):
            What is random about an example depends on this, and on the epoch and row (see `__call__`), alone: not on
            workers, devices, or what was drawn before. So a resumed run sees the very same examples.
    """

    def __init__(
        self, args: DataArguments, split: str, processor: Any, label_ids: dict[Any, int], seed: int = 0
    ) -> None:
        self.args = args
        self.split = split
        self.processor = processor
        self.label_ids = label_ids
        self.seed = seed

    def __call__(self, values: Sequence[Any], labels: Sequence[Any], keys: Sequence[tuple[int, ...]]) -> list[dict]:
        """`keys` seed what is random; the last number of each is the row."""
        raise NotImplementedError

    def where(self, key: tuple[int, ...]) -> str:
        return f"{self.args.dataset_name} [{self.split}], row {key[-1]}"

    def find_label(self, label: Any, key: tuple[int, ...]) -> int:
        if label not in self.label_ids:
            raise ValueError(
                f"{self.where(key)}: {self.args.label_column!r} is {label!r}, which is none of the "
                f"{len(set(self.label_ids.values()))} classes."
            )
        return self.label_ids[label]


class PreparedDataset(torch.utils.data.Dataset):
    """Examples with random access. `set_epoch` changes how they are augmented."""

    def __init__(self, dataset: datasets.Dataset, prepare: Preparer):
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
        return self.prepare(rows[args.input_column], rows[args.label_column], keys)


class StreamingPreparedDataset(torch.utils.data.IterableDataset):
    """
    Examples one after the other.

    Args:
        dataset ([`datasets.IterableDataset`]):
            The rows.
        prepare ([`Preparer`]):
            What is done with them.
        repeat (`bool`):
            Whether to begin again after the last row, for as long as somebody asks. The Trainer then knows one long
            epoch, and skips to the right row when it resumes.
    """

    def __init__(self, dataset: datasets.IterableDataset, prepare: Preparer, repeat: bool):
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
                yield from self.prepare([example[args.input_column]], [example[args.label_column]], [key])
            if row < 0:
                # More loader processes than shards: nothing to repeat in this one.
                return
