# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Read labelled point clouds: from the Hub, parquet files, or files of ScanObjectNN, ModelNet40 and the like."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch

from hf_frozen_llm.data.datasets import Example, HFDataset, Row, find_local, load_rows, select_columns
from hf_frozen_llm.modeling.point_groups import sample_farthest_points
from hf_frozen_llm.modeling.processing_point_bert_with_llm_block import POINT_SUFFIXES, read_points
from hf_frozen_llm.tasks.classification import ClassificationTransform, column_keys


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.point_cloud_classification import PointDataArguments


def load_clouds(args: "PointDataArguments", split: str, with_targets: bool) -> HFDataset:
    """Load one split, in one of the forms that [`PointDataArguments`] names, and check that it holds point clouds."""
    folder, where = find_local(args), f"{args.dataset_name} [{split}]"
    files = None if folder is None else find_files(folder, split, where)
    if folder is not None and folder.suffix == ".npz":
        dataset = load_npz(args, folder, split)
    elif folder is not None and Path(split).suffix == ".h5":
        dataset = load_h5(args, folder, split)
    elif files is not None:
        dataset = load_files(args, files)
    else:
        dataset = load_rows(args, split)
    if args.streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    dataset = select_columns(args, split, dataset, column_keys(args, with_targets)).with_format("numpy")
    row = next(iter(dataset.take(1)), None)
    if row is None:
        raise ValueError(f"{where} is empty.")
    shape = np.shape(row[args.points_column])
    if len(shape) != 2 or shape[1] != 3:
        raise ValueError(
            f"{where}: column {args.points_column!r} holds arrays of the shape {shape}; a point cloud is (points, 3), "
            "the coordinates alone. Set points_column to another column, or leave out what is not a coordinate."
        )
    if args.max_points is not None:
        features = None  # a stream may not know its features
        if dataset.features is not None:
            points = datasets.Array2D((args.max_points, 3), "float32")
            features = datasets.Features({**dataset.features, args.points_column: points})
        options = {"column": args.points_column, "max_points": args.max_points, "where": where}
        dataset = dataset.map(keep_farthest, batched=True, batch_size=32, fn_kwargs=options, features=features)
    return dataset


def load_npz(args: "PointDataArguments", file: Path, split: str) -> datasets.Dataset:
    """Read the rows of the arrays `points` and `label` whose `split` is this one; `classes` names the labels."""
    where = f"{args.dataset_name} [{split}]"
    with np.load(file, allow_pickle=False) as content:
        missing = {"points", "label", "split"} - set(content)
        if missing:
            raise ValueError(f"{where}: the file has no array {sorted(missing)[0]!r}; it has {', '.join(content)}.")
        splits = content["split"]
        rows = np.flatnonzero(splits == split)
        if len(rows) == 0:
            raise ValueError(f"{where} could not be loaded: the splits are {', '.join(sorted(set(splits.tolist())))}.")
        points, labels = content["points"][rows], content["label"][rows].astype(np.int64)
        names = content["classes"].tolist() if "classes" in content else None
    return in_memory(args, points.astype(np.float32), labels, names)


def load_h5(args: "PointDataArguments", folder: Path, split: str) -> datasets.Dataset:
    """
    Read point clouds of one or several `.h5` files of ScanObjectNN or ModelNet40 (`modelnet40_ply_hdf5_2048`). The
    file `shape_names.txt`, if it exists, names the classes.
    """
    where = f"{args.dataset_name} [{split}]"
    files = sorted(folder.glob(split))
    if not files:
        there = ", ".join(sorted(file.name for file in folder.glob("*.h5"))) or "none"
        raise FileNotFoundError(f"{where}: there is no such file in the folder; its .h5 files: {there}.")
    if importlib.util.find_spec("h5py") is None:
        raise ImportError(f"{where}: .h5 files are read by h5py: pip install 'hf_frozen_llm[points]'")
    import h5py

    parts = []
    for file in files:
        try:
            with h5py.File(file) as content:
                parts.append((content["data"][...].astype(np.float32), content["label"][...].reshape(-1)))
        except (KeyError, OSError) as error:
            raise ValueError(f"{where}: {file} cannot be read as point clouds `data` with `label`: {error}") from error
    names_file = folder / "shape_names.txt"
    names = names_file.read_text(encoding="utf-8").split() if names_file.is_file() else None
    points, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return in_memory(args, points, labels.astype(np.int64), names)


def in_memory(
    args: "PointDataArguments", points: np.ndarray, labels: np.ndarray, names: list[str] | None
) -> datasets.Dataset:
    feature = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features(
        {args.points_column: datasets.Array2D(points.shape[1:], "float32"), args.label_column: feature}
    )
    rows = {args.points_column: points, args.label_column: labels}
    return datasets.Dataset.from_dict(rows, features=features)


def find_files(folder: Path, split: str, where: str) -> list[tuple[str, str]] | None:
    """
    Find files of single point clouds and their classes: those in ModelNet40's list (`modelnet40_normal_resampled`), or
    those below the folder of the split. Return `None` if there are none.
    """
    if split.endswith(".txt"):
        if not (folder / split).is_file():
            raise FileNotFoundError(f"{where}: there is no file {folder / split}.")
        names = (folder / split).read_text(encoding="utf-8").split()
        classes = [name.rpartition("_")[0] for name in names]
        paths = [folder / label / f"{name}.txt" for label, name in zip(classes, names)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{where}: {len(missing)} of {len(paths)} files are missing: {missing[0]}, …")
        return [(str(path), label) for path, label in zip(paths, classes)]
    found = sorted(path for path in (folder / split).glob("*/*") if path.suffix.lower() in POINT_SUFFIXES)
    return [(str(path), path.parent.name) for path in found] or None


def load_files(args: "PointDataArguments", files: list[tuple[str, str]]) -> datasets.Dataset:
    """Read files of single point clouds once; the cache of `datasets` keeps them until one of them changes."""
    features = datasets.Features(
        {
            args.points_column: datasets.Array2D((None, 3), "float32"),
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
        yield {columns[0]: points.astype(np.float32), columns[1]: label}


def keep_farthest(rows: Mapping[str, Any], column: str, max_points: int, where: str) -> dict[str, list[np.ndarray]]:
    kept = []
    for cloud in rows[column]:
        if len(cloud) < max_points:
            raise ValueError(f"{where}: a point cloud has {len(cloud)} points, fewer than max_points, {max_points}.")
        if len(cloud) > max_points:
            chosen = sample_farthest_points(torch.tensor(cloud)[None], max_points)[0]
            cloud = cloud[chosen.numpy()]
        kept.append(np.asarray(cloud, np.float32))
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
