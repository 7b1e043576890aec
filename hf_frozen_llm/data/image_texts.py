# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Images with texts: tables of file names (CSV, JSON lines), or any data that `datasets` reads."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Row, find_local, keep_encoded, load_rows, select_columns
from hf_frozen_llm.data.folders import take_slices


TABLE_SUFFIXES = (".csv", ".jsonl", ".json")
Columns = dict[str, list[Any]]


@dataclass
class ImageTextArguments(DataArguments):
    """
    The source of images and texts, and their conversion to tensors, besides [`DataArguments`]. `dataset_name` may also
    be a CSV or JSON lines file (its split is called `train`), or a folder of such files, one for each split.

    Args:
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images, or of the names of their files.
        image_folder (`str`, *optional*):
            Folder of the files. By default that of the table.
        tokenizer_name_or_path (`str`, *optional*):
            Hub id or folder of the tokenizer. By default that of the published text encoder; without one, a tokenizer
            of at most `host.text_config.vocab_size` tokens is made from the texts of `train_split`.
        max_length (`int`, *optional*, defaults to 50):
            Largest number of tokens of a text, special tokens included.
        truncation (`bool`, *optional*, defaults to `True`):
            Whether longer texts are cut off, with a warning; otherwise they are errors.
    """

    evaluation_keys: ClassVar[tuple[str, ...]] = ("image_column", "image_folder", "truncation")

    image_column: str = "image"
    image_folder: str | None = None
    tokenizer_name_or_path: str | None = None
    max_length: int = 50
    truncation: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; two tokens of a text are special, so give at least 3.")
        if self.streaming:
            raise ValueError(
                "streaming is set, but all texts are read before training: answers are counted, and captions are "
                "drawn from all. Remove it."
            )


def name_splits(split: str) -> list[str]:
    """Return the splits of an instruction: of `train[:90%]+validation` `train` and `validation`."""
    return [re.sub(r"[\[(].*", "", part).strip() for part in split.split("+")]


def load_image_table(args: ImageTextArguments, split: str, names: Sequence[str]) -> tuple[datasets.Dataset, Columns]:
    """
    Load one split.

    Args:
        args ([`ImageTextArguments`]):
            Names the source.
        split (`str`):
            The split, or an instruction such as `train[:90%]`.
        names (`Sequence[str]`):
            The other columns that are read, if they are there.

    Returns:
        `tuple[datasets.Dataset, dict[str, list]]`: the encoded images, in the only column `image`, and the values of
            the other columns.
    """
    root = find_local(args)
    rows = None if root is None else read_tables(args, root, split)
    if rows is None or root is None:
        return load_columns(args, split, names, root)
    location = f"{args.dataset_name} [{split}]"
    if not rows:
        raise ValueError(f"{location} is empty.")
    there = list(dict.fromkeys(name for row in rows for name in row))
    if args.image_column not in there:
        raise ValueError(
            f"{location} has no column {args.image_column!r}; it has {', '.join(there)}. Set image_column to one of "
            "them."
        )
    folder = root.parent if root.is_file() else root
    images = image_files(args, folder, [row.get(args.image_column) for row in rows])
    return images, {name: [row.get(name) for row in rows] for name in names if name in there}


def read_tables(args: ImageTextArguments, root: Path, split: str) -> list[Row] | None:
    """Return the rows of the tables of a split; `None` if `root` has none of them."""
    if root.is_file():
        if root.suffix.lower() not in TABLE_SUFFIXES:
            return None
        if name_splits(split) != ["train"]:
            raise ValueError(f"{args.dataset_name} [{split}] could not be loaded: Unknown split. The file is 'train'.")
        files = {"train": root}
    else:
        names = name_splits(split)
        candidates = {name: [root / name, *(root / f"{name}{suffix}" for suffix in TABLE_SUFFIXES)] for name in names}
        found = {name: [file for file in files if file.is_file()] for name, files in candidates.items()}
        if not all(found.values()):
            return None
        files = {name: paths[0] for name, paths in found.items()}
    if any(file.suffix.lower() not in TABLE_SUFFIXES for file in files.values()):
        return None
    return take_slices(split, {name: read_table(file) for name, file in files.items()})


def read_table(file: Path) -> list[Row]:
    """Return the rows of a CSV, JSON lines or JSON file; the values of CSV are texts."""
    if file.suffix.lower() == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    text = file.read_text(encoding="utf-8")
    try:
        lines = [text] if text.lstrip().startswith("[") else [line for line in text.split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}. Write an object on each line.") from error
    rows = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold an object on each line, with a value for each column.")
    return rows


def image_files(args: ImageTextArguments, folder: Path, names: Sequence[Any]) -> datasets.Dataset:
    """Return image files as rows; refuse files that do not exist."""
    folder = folder if args.image_folder is None else Path(args.image_folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"image_folder is {args.image_folder!r}, but there is no such folder.")
    if lacking := [row for row, name in enumerate(names) if not isinstance(name, str) or not name.strip()]:
        raise ValueError(
            f"{args.dataset_name}, row {lacking[0]}: {args.image_column!r} names no file ({len(lacking):,} of "
            f"{len(names):,} rows)."
        )
    paths = [str(folder / name) for name in names]
    is_there = {path: Path(path).is_file() for path in dict.fromkeys(paths)}
    if missing := [path for path, exists in is_there.items() if not exists]:
        raise FileNotFoundError(
            f"{args.dataset_name}: {len(missing):,} of {len(is_there):,} images do not exist, the first is "
            f"{missing[0]}. Set image_folder to their folder."
        )
    return datasets.Dataset.from_dict({"image": paths}, datasets.Features({"image": datasets.Image(decode=False)}))


def load_columns(
    args: ImageTextArguments, split: str, names: Sequence[str], root: Path | None
) -> tuple[datasets.Dataset, Columns]:
    """Load data that `datasets` reads, see [`load_image_table`]."""
    rows: Any = load_rows(args, split)
    images = select_columns(args, split, rows, ["image_column"])
    columns = {name: rows.with_format(None)[name][:] for name in names if name in rows.column_names}
    if isinstance(images.features[args.image_column], datasets.Value) and (root is not None or args.image_folder):
        return image_files(args, root or Path(), images[args.image_column][:]), columns
    images = keep_encoded(args, split, images, "image_column", datasets.Image(decode=False))
    return images if args.image_column == "image" else images.rename_column(args.image_column, "image"), columns


def read_texts(value: Any) -> list[str]:
    """Return the texts of a value: `a|b`, a list as JSON, or a list of texts or of dictionaries with an `answer`."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else text.split("|") if text else []
    if isinstance(value, dict):  # a list of dictionaries, as `datasets` gives it
        value = value.get("answer")
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is no list of texts")
    items = [item.get("answer") if isinstance(item, dict) else item for item in value]
    if any(item is None or isinstance(item, (list, dict)) for item in items):
        raise ValueError(f"{value!r} holds something that is no text")
    return [item.strip() if isinstance(item, str) else json.dumps(item) for item in items]


def read_text(value: Any) -> str:
    """Return a text; numbers and truth values as in JSON, and nothing as the empty text."""
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def refuse_empty(location: str, name: str, texts: Sequence[str]) -> None:
    """Refuse a column that holds empty texts."""
    if empty := [row for row, text in enumerate(texts) if not text]:
        raise ValueError(
            f"{location}, row {empty[0]}: the {name} is empty ({len(empty):,} of {len(texts):,} are). Remove these "
            "rows."
        )
