# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Data of any task: load rows through `datasets`, take some of them, and transform them in a DataLoader."""

import glob
import itertools
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from torch.utils.data import get_worker_info
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_frozen_llm.data.arguments import DataArguments


HFDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset
Row: TypeAlias = dict[str, Any]
Example: TypeAlias = dict[str, Any]


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return up to `count` places in a sequence, from its first to its last, without repetitions."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int)).tolist()


def find_local(args: DataArguments) -> Path | None:
    """Return the file or folder named `dataset_name`, or `None` if it is a Hub id."""
    path = Path(args.dataset_name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or args.dataset_name.startswith((".", "~")) or path.suffix.lower() in (".npz", ".parquet"):
        raise FileNotFoundError(f"dataset_name is {args.dataset_name!r}, but there is no such file or folder.")
    return None


def load_rows(
    args: DataArguments, split: str, builder: str | None = None, data_files: dict[str, list[str]] | None = None
) -> HFDataset:
    """
    Load one split from the Hub, a folder or a parquet file.

    Args:
        args ([`DataArguments`]):
            Names the source.
        split (`str`):
            The split.
        builder (`str`, *optional*):
            The loader of `datasets`, such as `"imagefolder"`, that reads `data_files` instead.
        data_files (`dict[str, list[str]]`, *optional*):
            Patterns of the files of each split.
    """
    path = find_local(args)
    options: dict[str, Any] = {}
    if builder is not None:
        source, options["data_files"] = builder, data_files
    elif path is not None and path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"dataset_name is the file {str(path)!r}; only .parquet files and folders are read.")
        source, options["data_files"] = "parquet", glob.escape(str(path))
    elif path is not None and glob.escape(str(path)) != str(path):
        # datasets would take the brackets in the name of the folder for a pattern
        source, options["data_dir"] = "parquet", glob.escape(str(path))
    else:
        source = args.dataset_name if path is None else str(path)
        options = {"name": args.dataset_config_name, "revision": args.dataset_revision}
    try:
        if path is not None and path.is_dir() and builder is None:
            source, options = read_own_class_names(source, options, split)
        return datasets.load_dataset(source, split=split, streaming=args.streaming, **options)
    except ValueError as error:
        # the message of datasets names the existing splits
        raise ValueError(f"{args.dataset_name} [{split}] could not be loaded: {error}") from error


def read_own_class_names(source: str, options: dict[str, Any], split: str) -> tuple[str, dict[str, Any]]:
    """
    Return the arguments of `load_dataset` by which parquet files of a split keep the class names that they store:
    `datasets` numbers the classes of all files of a folder as its first file does.

    Raises:
        `ValueError`: if files of the same split number their classes differently.
    """
    files = datasets.load_dataset_builder(source, **options).config.data_files or {}
    if any(Path(file).suffix.lower() != ".parquet" for name in files for file in files[name]):
        return source, options
    names = {file: stored_class_names(file) for name in files for file in files[name]}
    first = next(iter(names.values()), {})
    if all(other == first for other in names.values()):
        return source, options
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(dict.fromkeys(files, 0))
    used = {part.splitname: list(files[part.splitname]) for part in parts}
    (one, classes), *others = [(file, names[file]) for name in used for file in used[name]]
    for file, other in others:
        if other != classes:
            raise ValueError(
                f"{one} and {file} number their classes differently: {classes} and {other}. Write them with the same "
                "names in the same order."
            )
    return "parquet", {"data_files": {name: [glob.escape(file) for file in used[name]] for name in used}}


def stored_class_names(file: str) -> dict[str, list[str]]:
    """Return the names of the classes, by column, in the metadata of a parquet file."""
    features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def select_columns(args: DataArguments, split: str, rows: HFDataset, keys: Sequence[str]) -> HFDataset:
    """Keep the columns that these keys name, such as `image_column`; refuse rows that lack one."""
    location = f"{args.dataset_name} [{split}]"
    first = next(iter(rows.take(1).decode(False)), None) if args.streaming else None
    if (first is None) if args.streaming else (len(rows) == 0):
        raise ValueError(f"{location} is empty.")
    columns = rows.column_names or list(first or {})
    for key in keys:
        if (column := getattr(args, key)) not in columns:
            raise ValueError(
                f"{location} has no column {column!r}; it has {', '.join(columns)}. Set {key} to one of them."
            )
    return rows.select_columns([getattr(args, key) for key in keys])


def keep_encoded(
    args: DataArguments, split: str, rows: HFDataset, key: str, feature: datasets.Image | datasets.Video
) -> HFDataset:
    """Cast the column that `key` names to encoded files; refuse a column with other content."""
    column = getattr(args, key)
    try:
        rows = rows.cast_column(column, feature)
        if args.streaming:
            next(iter(rows.take(1)))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{args.dataset_name} [{split}]: column {column!r} holds no {type(feature).__name__.lower()}s. "
            f"Set {key} to another one."
        ) from error
    return rows


def take_samples(args: DataArguments, rows: HFDataset, max_samples: int | None) -> HFDataset:
    """Take at most `max_samples` rows: always the same random ones, as rows are often sorted by class."""
    if max_samples is None or (not args.streaming and max_samples >= len(rows)):
        return rows
    return rows.take(max_samples) if args.streaming else rows.shuffle(seed=0).select(range(max_samples))


def hold_out(rows: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the rows to train on, and the held-out ones: always the same random ones, of any order of the classes."""
    parts = rows.train_test_split(test_size=share, seed=0)
    return parts["train"], parts["test"]


class ExampleTransform(Protocol):
    """Turns rows into examples. The random numbers of an example depend only on its key."""

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        """
        Args:
            rows (`Sequence[dict]`): rows of the data set, a value for each column.
            keys (`Sequence[tuple[int, ...]]`): seeds of the random numbers of each row; each ends with the row number.

        Returns:
            `list[dict]`: at least one example for each row.
        """


class TransformedDataset(torch.utils.data.Dataset):
    """
    Examples with random access. `set_epoch` changes how they are augmented. For loaders, indices from the number of
    rows on are further copies of the rows, with other augmentation.

    Args:
        rows ([`datasets.Dataset`]):
            The rows.
        transform ([`ExampleTransform`]):
            Turns rows into examples.
        numbered (`bool`):
            Whether each example has its row number in `row`, for evaluation.
    """

    def __init__(self, rows: datasets.Dataset, transform: ExampleTransform, numbered: bool):
        self.rows = rows
        self.transform = transform
        self.numbered = numbered
        # Shared memory reaches persistent loader processes.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if index >= len(self.rows):  # the end of an iteration
            raise IndexError(f"There is no row {index}; there are {len(self.rows)}.")
        return self.__getitems__([index])[0]

    def read_rows(self, indices: list[int]) -> list[Row]:
        columns = self.rows[indices]
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        places = [divmod(index, len(self.rows)) for index in indices]
        rows = self.read_rows([row for _, row in places])
        epoch = int(self.epoch)
        examples = self.transform(rows, [(epoch, copy, row) if copy else (epoch, row) for copy, row in places])
        if self.numbered:
            examples = [{**example, "row": index} for example, index in zip(examples, indices, strict=True)]
        return examples


class StreamingTransformedDataset(torch.utils.data.IterableDataset):
    """
    Examples one after the other.

    Args:
        rows ([`datasets.IterableDataset`]):
            The rows.
        transform ([`ExampleTransform`]):
            Turns rows into examples.
        repeat (`bool`):
            Whether to begin again after the last row, indefinitely. The Trainer then knows one long epoch, and skips
            to the right row when it resumes. Without it, each example has its number in `row`.
    """

    def __init__(self, rows: datasets.IterableDataset, transform: ExampleTransform, repeat: bool):
        self.rows = rows
        self.transform = transform
        self.repeat = repeat

    def __iter__(self) -> Iterator[Example]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        for epoch in itertools.count() if self.repeat else (0,):
            self.rows.set_epoch(epoch)
            number = -1
            for number, row in enumerate(self.rows):
                examples = self.transform([row], [(epoch, worker, number)])
                if not self.repeat:
                    examples = [{**example, "row": number * num_workers + worker} for example in examples]
                yield from examples
            if number < 0:
                # With more loader processes than shards, this one has nothing to repeat.
                return


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """
    transformers' sampler of batches of similar lengths, in an order that depends only on the seed and the epoch: a
    resumed run sees the same batches.

    Args:
        lengths (`list[int]`): the length of each example.
        batch_size (`int`): examples that a step of all processes reads.
        seed (`int`): seed of the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + 1_000_003 * self.epoch)
        return super().__iter__()


class RepeatedSampler(torch.utils.data.Sampler):
    """
    Repeated augmentation ("Augment your batch", CVPR 2020), as in the training of DeiT: an epoch has as many examples
    as there are rows, but several copies of each, in the same step. A step begins with one copy of each of its rows,
    so that its processes get different ones. The order depends only on the seed and the epoch of the data.

    Args:
        dataset ([`TransformedDataset`]): the examples; its indices of copies are used.
        repeats (`int`): copies of an example.
        batch_size (`int`): examples that a step of all processes reads.
        seed (`int`): seed of the order.
    """

    def __init__(self, dataset: TransformedDataset, repeats: int, batch_size: int, seed: int):
        self.dataset = dataset
        self.repeats = repeats
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        number = len(self.dataset)
        # No `set_epoch`: accelerate would call it instead of that of the data.
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * int(self.dataset.epoch))
        rows = torch.randperm(number, generator=generator)[: -(-number // self.repeats)]
        copies = number * torch.arange(self.repeats)
        indices = (rows[:, None] + copies).flatten()[:number].tolist()
        for start in range(0, number, self.batch_size):
            step = indices[start : start + self.batch_size]
            for first in range(self.repeats):
                yield from step[first :: self.repeats]


class GroupedSampler(torch.utils.data.Sampler):
    """
    Rows of a group one after the other: the rows of each group are shuffled and cut into parts, and the parts are
    shuffled. The order depends only on the seed and the epoch of the data.

    Args:
        dataset ([`TransformedDataset`]): the examples.
        groups (`Sequence`): the group of each row.
        size (`int`): most rows of a part.
        seed (`int`): seed of the order.
    """

    def __init__(self, dataset: TransformedDataset, groups: Sequence[Hashable], size: int, seed: int):
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.rows_of_groups: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups):
            self.rows_of_groups.setdefault(group, []).append(row)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        # No `set_epoch`, as above.
        rng = np.random.default_rng((self.seed, int(self.dataset.epoch)))
        shuffled = [rng.permutation(rows).tolist() for rows in self.rows_of_groups.values()]
        parts = [rows[i : i + self.size] for rows in shuffled for i in range(0, len(rows), self.size)]
        for number in rng.permutation(len(parts)):
            yield from parts[number]
