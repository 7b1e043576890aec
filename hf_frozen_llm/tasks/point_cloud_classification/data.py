# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Read labelled point clouds: from the Hub, parquet files, or files of ScanObjectNN, ModelNet40 and the like."""

import importlib.util
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch

from hf_frozen_llm.data.datasets import Example, HFDataset, Row, find_local, load_rows, select_columns
from hf_frozen_llm.modeling.point_files import (
    POINT_SUFFIXES,
    check_expansion,
    decode_text,
    read_hdf5,
    read_points,
    split_lines,
    to_coordinates,
)
from hf_frozen_llm.modeling.point_groups import sample_farthest_points
from hf_frozen_llm.tasks.classification import ClassificationTransform, column_keys


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.point_cloud_classification import PointDataArguments


def load_clouds(args: "PointDataArguments", split: str, with_targets: bool) -> HFDataset:
    """Load one split, in one of the forms that [`PointDataArguments`] names, and check that it holds point clouds."""
    folder, where = find_local(args), f"{args.dataset_name} [{split}]"
    files = None if folder is None else find_files(folder, split, where)
    if folder is not None and folder.suffix.lower() == ".npz":
        dataset = load_npz(args, folder, split)
    elif folder is not None and Path(split).suffix.lower() == ".h5":
        dataset = load_h5(args, folder, split)
    elif files is not None:
        dataset = load_files(args, files)
    else:
        dataset = load_hub_rows(args, folder, split)
    if args.streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    dataset = format_points(args, select_columns(args, split, dataset, column_keys(args, with_targets)))
    row = next(iter(dataset.take(1)), None)
    if row is None:
        raise ValueError(f"{where} is empty.")
    shape = np.array(row[args.points_column], dtype=object).shape
    if len(shape) != 2 or shape[1] != 3:
        raise ValueError(
            f"{where}: column {args.points_column!r} holds arrays of the shape {shape}; a point cloud is (points, 3), "
            "the coordinates alone. Set points_column to another column, or leave out what is not a coordinate."
        )
    if args.max_points is not None:
        features = None  # a stream may not know its features
        if dataset.features is not None:
            points = datasets.Array2D((args.max_points, 3), find_dtype(dataset.features[args.points_column]))
            features = datasets.Features({**dataset.features, args.points_column: points})
        options = {"column": args.points_column, "max_points": args.max_points, "where": where}
        dataset = dataset.map(keep_farthest, batched=True, batch_size=32, fn_kwargs=options, features=features)
    return format_points(args, dataset)


def format_points(args: "PointDataArguments", dataset: HFDataset) -> HFDataset:
    """Read point clouds as float64 arrays; a stream, whose arrays `datasets` always rounds to float32, as lists."""
    if isinstance(dataset, datasets.IterableDataset):
        return dataset
    return dataset.with_format("numpy", columns=[args.points_column], output_all_columns=True, dtype=np.float64)


def find_dtype(feature: Any) -> str:
    """Return the type that keeps a column's numbers exactly: float32 for float32 and less, else float64."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return "float32" if getattr(feature, "dtype", None) in ("float16", "float32") else "float64"


def load_hub_rows(args: "PointDataArguments", folder: Path | None, split: str) -> HFDataset:
    try:
        return load_rows(args, split)
    except (ValueError, FileNotFoundError) as error:
        if folder is None or not folder.is_dir():
            raise
        raise ValueError(
            f"{error} Files of point clouds ({', '.join(POINT_SUFFIXES)}) are read from the folders <split>/<class>/ "
            f"and <class>/<split>/ of {folder}."
        ) from error


def load_npz(args: "PointDataArguments", file: Path, split: str) -> datasets.Dataset:
    """Read the rows of the arrays `points` and `label` whose `split` is this one; `classes` names the labels."""
    where = f"{args.dataset_name} [{split}]"
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                check_expansion(member.filename, member.file_size, member.compress_size)
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("points", "label", "split", "classes") if name in content}
            names = list(content)
    except (OSError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where}: {file} cannot be read: {error}") from error
    missing = {"points", "label", "split"} - set(arrays)
    if missing:
        raise ValueError(f"{where}: the file has no array {sorted(missing)[0]!r}; it has {', '.join(names)}.")
    lengths = {name: len(np.atleast_1d(arrays[name])) for name in ("points", "label", "split")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: the arrays of {file} have different lengths: {lengths}.")
    splits = np.array(to_strings(arrays["split"]))
    rows = np.flatnonzero(splits == split)
    if len(rows) == 0:
        raise ValueError(f"{where} could not be loaded: the splits are {', '.join(sorted(set(splits.tolist())))}.")
    classes = to_strings(arrays["classes"]) if "classes" in arrays else None
    return in_memory(args, arrays["points"][rows], arrays["label"][rows], classes, f"{where}: {file}")


def load_h5(args: "PointDataArguments", folder: Path, split: str) -> datasets.Dataset:
    """
    Read point clouds of one or several `.h5` files of ScanObjectNN or ModelNet40 (`modelnet40_ply_hdf5_2048`). The
    file `shape_names.txt`, if it exists, names the classes.
    """
    where = f"{args.dataset_name} [{split}]"
    files = [folder / split] if (folder / split).is_file() else sorted(folder.glob(split))
    if not files:
        there = ", ".join(sorted(file.name for file in folder.glob("*.h5"))) or "none"
        raise FileNotFoundError(f"{where}: there is no such file in the folder; its .h5 files: {there}.")
    if importlib.util.find_spec("h5py") is None:
        raise ImportError(f"{where}: .h5 files are read by h5py: pip install 'hf_frozen_llm[points]'")
    parts = []
    for file in files:
        try:
            points, labels = read_hdf5(file, ["data", "label"])
            if len(points) != len(labels):
                raise ValueError(f"{len(points)} clouds and {len(labels)} labels")
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: {file} cannot be read as point clouds `data` with `label`: {error}") from error
        parts.append((points, labels))
    names_file = folder / "shape_names.txt"
    names = read_names(names_file) if names_file.is_file() else None
    try:
        points, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    except ValueError as error:
        raise ValueError(f"{where}: the files hold arrays of different shapes: {error}") from error
    return in_memory(args, points, labels, names, f"{where}: {', '.join(file.name for file in files[:3])}")


def in_memory(
    args: "PointDataArguments", points: np.ndarray, labels: np.ndarray, names: list[str] | None, where: str
) -> datasets.Dataset:
    """Return rows of point clouds `(clouds, points, 3)` and their labels; `where` names them in errors."""
    try:
        points = to_coordinates(points)
        feature, values = (to_label_lists if args.is_multi_label else to_labels)(labels, names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error
    if points.ndim != 3:
        raise ValueError(f"{where}: the points have the shape {points.shape}, not (clouds, points, 3).")
    array = datasets.Array2D(points.shape[1:], str(points.dtype))
    features = datasets.Features({args.points_column: array, args.label_column: feature})
    rows = {args.points_column: points, args.label_column: values}
    return datasets.Dataset.from_dict(rows, features=features)


def to_strings(array: np.ndarray) -> list[str]:
    """Return strings of an array of strings, bytes or numbers."""
    return [decode_text(value) if isinstance(value, bytes) else str(value) for value in array.reshape(-1).tolist()]


def to_label_lists(labels: np.ndarray, names: list[str] | None) -> tuple[Any, Any]:
    """Return the feature and the labels of a multi-label problem, of texts or of vectors of zeros and ones."""
    if labels.ndim == 1 and labels.dtype.kind in "OSU":
        return datasets.Value("string"), to_strings(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "the labels of a multi-label problem are texts such as 'cat|dog', or an array (clouds, classes) of zeros "
            f"and ones, not {labels.dtype} of the shape {labels.shape}"
        )
    names = [str(index) for index in range(labels.shape[1])] if names is None else names
    if len(names) != labels.shape[1]:
        raise ValueError(f"the labels have {labels.shape[1]} columns, and there are {len(names)} names of classes")
    return datasets.List(datasets.ClassLabel(names=names)), [np.flatnonzero(row).tolist() for row in labels]


def to_labels(labels: np.ndarray, names: list[str] | None) -> tuple[Any, Any]:
    """Return the feature of labels of any type, with the names of the classes if there are any, and integers."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            f"the labels have the shape {labels.shape}, not (clouds,) or (clouds, 1). Of one-hot labels, store "
            "labels.argmax(1)"
        )
    if labels.dtype.kind in "OSU":
        values = to_strings(labels)
        names = sorted(set(values)) if names is None else names
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(
                f"the labels {', '.join(unknown[:5])} are not among the classes {', '.join(names[:5])}, …"
            )
        ids = {name: index for index, name in enumerate(names)}
        return datasets.ClassLabel(names=names), np.array([ids[value] for value in values], np.int64)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"the labels are {labels.dtype}, neither integers nor strings")
    wrong = labels[~np.isfinite(labels) | (labels != np.floor(labels))]
    if len(wrong) > 0:
        raise ValueError(f"the label {wrong[0]} is no integer")
    feature = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    return feature, labels.astype(np.int64)


def read_names(file: Path) -> list[str]:
    """Return the lines of a text file; a name may have spaces."""
    return [name for line in split_lines(decode_text(file.read_bytes())) if (name := line.strip())]


def find_files(folder: Path, split: str, where: str) -> list[tuple[str, str]] | None:
    """
    Find files of single point clouds and their classes: those in ModelNet40's list (`modelnet40_normal_resampled`),
    or those in `<split>/<class>/` or, as in ModelNet40's own archive, `<class>/<split>/`. Return `None` if there are
    none.
    """
    if split.lower().endswith(".txt"):
        if not (folder / split).is_file():
            raise FileNotFoundError(f"{where}: there is no file {folder / split}.")
        names = read_names(folder / split)
        classes = [name.rpartition("_")[0] for name in names]
        paths = [folder / label / f"{name}.txt" for label, name in zip(classes, names)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{where}: {len(missing)} of {len(paths)} files are missing: {missing[0]}, …")
        return [(str(path), label) for path, label in zip(paths, classes)]
    folders = [(path, path.name) for path in list_visible(folder / split)]
    return list_clouds(folders) or list_clouds([(path / split, path.name) for path in list_visible(folder)]) or None


def list_clouds(folders: list[tuple[Path, str]]) -> list[tuple[str, str]]:
    """Return the files of point clouds in folders, each with the class of its folder."""
    return [
        (str(path), label)
        for folder, label in folders
        for path in list_visible(folder)
        if path.suffix.lower() in POINT_SUFFIXES and path.is_file()
    ]


def list_visible(folder: Path) -> list[Path]:
    """Return the content of a folder without hidden files and what systems add to archives, such as `__MACOSX`."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def load_files(args: "PointDataArguments", files: list[tuple[str, str]]) -> datasets.Dataset:
    """Read files of single point clouds once; the cache of `datasets` keeps them until one of them changes."""
    features = datasets.Features(
        {
            args.points_column: datasets.Array2D((None, 3), "float64"),
            args.label_column: datasets.ClassLabel(names=sorted({label for _, label in files})),
        }
    )
    changes = [Path(path).stat().st_mtime_ns for path, _ in files]
    options = {"files": files, "columns": (args.points_column, args.label_column), "changes": changes}
    try:
        return datasets.Dataset.from_generator(generate_rows, features=features, gen_kwargs=options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def generate_rows(files: list[tuple[str, str]], columns: tuple[str, str], changes: list[int]) -> Iterator[dict]:
    """Read the files; `changes`, the times at which they were written, only changes the key of the cache."""
    for path, label in files:
        points = read_points(path)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"{path} holds an array of the shape {points.shape}; a point cloud is (points, 3).")
        yield {columns[0]: points.astype(np.float64), columns[1]: label}


def keep_farthest(rows: Mapping[str, Any], column: str, max_points: int, where: str) -> dict[str, list[np.ndarray]]:
    kept = []
    for cloud in rows[column]:
        cloud = np.asarray(cloud, np.float64)
        if len(cloud) < max_points:
            raise ValueError(f"{where}: a point cloud has {len(cloud)} points, fewer than max_points, {max_points}.")
        if len(cloud) > max_points:
            chosen = sample_farthest_points(torch.tensor(cloud)[None], max_points)[0]
            cloud = cloud[chosen.numpy()]
        kept.append(cloud)
    return {column: kept}


def load_single_files(args: "PointDataArguments", files: Sequence[str]) -> datasets.Dataset:
    """Return a row for each file, which is read when the row is transformed."""
    return datasets.Dataset.from_dict({args.points_column: list(files)})


class PointCloudTransform(ClassificationTransform):
    """
    Check and normalise point clouds; see [`ClassificationTransform`]. A point cloud from a file is reduced to the
    number of points in the model's input, so that files of all sizes fit into a batch, unless several votes draw from
    all points.
    """

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        examples = []
        for row, key in zip(rows, keys):
            cloud = row[self.args.points_column]
            if isinstance(cloud, str):
                points = self.read_file(cloud)
            else:
                points = self.processor.prepare(cloud, self.locate(key))
            examples.append({"points": points, **self.find_label(row, key)})
        return examples

    def read_file(self, file: str) -> torch.Tensor:
        """Return the point cloud of a file, with as many points as an evaluation uses."""
        cloud = read_points(file)
        if cloud.ndim == 3:
            if len(cloud) != 1:
                raise ValueError(f"{file} holds {len(cloud)} point clouds; give files with one point cloud each.")
            cloud = cloud[0]
        if self.args.max_points is not None:
            cloud = keep_farthest({"points": [cloud]}, "points", self.args.max_points, file)["points"][0]
        points = self.processor.prepare(cloud, file)
        if self.args.num_votes > 1:
            return points
        return points[sample_farthest_points(points[None], self.processor.num_points)[0]]


def random_rotations(axis: str, draws: torch.Tensor) -> torch.Tensor:
    """
    Return rotation matrices `(batch, 3, 3)` from uniform numbers `(batch, 3)`: around an axis, or of all rotations
    uniformly (K. Shoemake, "Uniform random rotations", Graphics Gems III, 1992).
    """
    u, v, w = draws.unbind(1)
    if axis == "any":
        v, w = 2 * torch.pi * v, 2 * torch.pi * w
        x, y = (1 - u).sqrt() * v.sin(), (1 - u).sqrt() * v.cos()
        z, r = u.sqrt() * w.sin(), u.sqrt() * w.cos()
    else:
        half = torch.pi * u
        x, y, z = (half.sin() if name == axis else torch.zeros_like(half) for name in "xyz")
        r = half.cos()
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * r), 2 * (x * z + y * r)),
        (2 * (x * y + z * r), 1 - 2 * (x * x + z * z), 2 * (y * z - x * r)),
        (2 * (x * z - y * r), 2 * (y * z + x * r), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
