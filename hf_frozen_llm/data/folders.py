# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Local folders of files, `<folder>/<split>/<class>/<file>`. A split is what lies below its folder, whatever the names of
the classes: `datasets` searches whole paths for the names of splits, and does not follow links.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import datasets

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import HFDataset, find_local, load_rows


Item = TypeVar("Item")

# The names that `datasets` accepts for the folder of a split.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Files with the columns of an `imagefolder` or `videofolder` of `datasets`.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Files that hold many rows.
TABLE_SUFFIXES = (".arrow", ".parquet", ".tar", ".zip")


def load_files_or_rows(
    args: DataArguments,
    split: str,
    column: str,
    feature: datasets.Image | datasets.Video,
    suffixes: Sequence[str],
    label_column: str | None,
) -> HFDataset:
    """
    Load one split of a local folder of files, or of any other data that `datasets` reads.

    Args:
        args ([`DataArguments`]):
            Names the folder.
        split (`str`):
            A folder in it, a slice of one such as `train[:90%]`, or a sum of slices.
        column (`str`):
            The column of the files.
        feature (`datasets.Image` or `datasets.Video`):
            Feature of the column of files.
        suffixes (`Sequence[str]`):
            Suffixes of the files, in small letters.
        label_column (`str`, *optional*):
            The column of the classes, which are the folders in the split. Without it, files at any depth are rows.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: the files, in the order of their paths, and their classes.
    """
    root = find_local(args)
    if root is None or not root.is_dir():
        return load_rows(args, split)
    where, kind = f"{args.dataset_name} [{split}]", type(feature).__name__.lower()
    folders = find_split_folders(root, split, where)
    inside = {name: sorted(list_files(folder)) for name, folder in folders.items()}
    files = {
        name: [file for file in found if os.path.splitext(file)[1].lower() in suffixes]
        for name, found in inside.items()
    }
    if not files or not all(files.values()):
        kinds = {os.path.splitext(file)[1].lower() for file in list_files(root)}
        if kinds.isdisjoint(suffixes) or not kinds.isdisjoint(TABLE_SUFFIXES):
            return load_rows(args, split)
        there = sorted(name for name in os.listdir(root) if (root / name).is_dir() and is_visible(name))
        raise ValueError(
            f"{where} could not be loaded: Unknown split. Files are read from <split>/<class>/<file>, and there are "
            f"no {kind}s in a folder of this split. The folders are {', '.join(there) or 'none'}."
        )
    if any(os.path.basename(file) in METADATA_FILES for found in inside.values() for file in found):
        data_files = {name: [glob.escape(file) for file in found] for name, found in inside.items()}
        return load_rows(args, split, f"{kind}folder", data_files)

    names: list[str] = []
    if label_column is not None:
        names = sorted({find_class(root, folders[name], file, where) for name in files for file in files[name]})
        check_class_folders(folders, names, suffixes, where)
    chosen = take_slices(split, files)
    features = datasets.Features({column: feature})
    columns = {column: chosen}
    if label_column is not None:
        features[label_column] = datasets.ClassLabel(names=names)
        columns[label_column] = [os.path.basename(os.path.dirname(file)) for file in chosen]
    rows = datasets.Dataset.from_dict(columns, features=features)
    return rows.to_iterable_dataset() if args.streaming else rows


def find_split_folders(root: Path, split: str, where: str) -> dict[str, Path]:
    """Return the folder of each split that `split` names; none if one is missing."""
    if (root / split).is_dir():
        return {split: root / split}
    has_splits = any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names)
    folders = {}
    for name in (re.sub(r"[\[(].*", "", part).strip() for part in split.split("+")):
        names = (name,) if (root / name).is_dir() else SPLIT_FOLDERS.get(name, ())
        found = [root / other for other in names if (root / other).is_dir()]
        if len(found) > 1:
            raise ValueError(
                f"{where}: {' and '.join(folder.name for folder in found)} are folders of {name!r}; name the split as "
                "one of them."
            )
        if not found and (name != "train" or has_splits):
            return {}
        folders[name] = found[0] if found else root  # without folders of splits, everything is the training split
    return folders


def list_files(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the files below a folder, without hidden ones; links are followed, except to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_visible(entry.name):
                continue
            if entry.is_dir():
                yield from list_files(entry.path, (*above, real))
            else:
                yield entry.path


def is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def find_class(root: Path, folder: Path, file: str, where: str) -> str:
    """Return the name of the file's folder; refuse a file that lies higher or deeper than `<split>/<class>/<file>`."""
    label, *rest = file[len(str(folder)) :].strip(os.sep).split(os.sep)
    if len(rest) == 1:
        return label
    fault = f"{where}: files are read from <split>/<class>/<file>, but {file} lies"
    if not rest:
        raise ValueError(f"{fault} outside the folders of the classes. Move it into one of them.")
    if folder == root:
        raise ValueError(
            f"{fault} deeper, and there is no folder of this split. Set dataset_name to the folder that holds the "
            "folders of the splits."
        )
    split_folder = (folder / label).relative_to(root)
    raise ValueError(
        f"{fault} {'a folder' if len(rest) == 2 else 'folders'} deeper. If the folders in {split_folder} are the "
        f"classes, name the split {str(split_folder)!r}; otherwise move the file up."
    )


def check_class_folders(folders: dict[str, Path], names: Sequence[str], suffixes: Sequence[str], where: str) -> None:
    """Refuse a folder whose files all have other suffixes: its class would be lost."""
    for folder in folders.values():
        for name in sorted(os.listdir(folder)):
            if name in names or not is_visible(name) or not (folder / name).is_dir():
                continue
            if (other := next(list_files(folder / name), None)) is not None:
                raise ValueError(
                    f"{where}: no file in the folder {folder / name} has one of the suffixes that are read "
                    f"({', '.join(suffixes)}); it has {Path(other).name}. Convert its files, or move the folder away."
                )


def take_slices(split: str, files: Mapping[str, list[Item]]) -> list[Item]:
    """Return the files, or other items, that an instruction such as `train[:90%]` takes, as `datasets` counts them."""
    if split in files:
        return files[split]
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in files.items()})
    return [file for part in parts for file in files[part.splitname][part.from_ : part.to]]
