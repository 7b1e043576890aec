# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Labelled clouds of points from the Hub, parquet files, or files of ScanObjectNN, ModelNet40 and the like."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_frozen_llm.data.examples import HFDataset, Preparer, find_local, load_columns
from hf_frozen_llm.modeling.point_groups import gather_points, sample_farthest_points
from hf_frozen_llm.modeling.processing_point_bert_with_llm_block import (
    POINT_SUFFIXES,
    PointCloudProcessor,
    read_points,
)
from hf_frozen_llm.training.arguments import PointDataArguments


def load_split(args: PointDataArguments, split: str) -> HFDataset:
    """Loads one split, in one of the forms that [`PointDataArguments`] names, and checks that it holds clouds."""
    folder, where = find_local(args), f"{args.dataset_name} [{split}]"
    files = None if folder is None else find_files(folder, split, where)
    if folder is not None and folder.suffix == ".npz":
        dataset = load_npz(args, folder, split)
    elif folder is not None and Path(split).suffix == ".h5":
        dataset = load_h5(args, folder, split)
    elif files is not None:
        dataset = load_files(args, files)
    else:
        dataset = load_columns(args, split)
    if args.streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    dataset = dataset.with_format("numpy")
    row = next(iter(dataset.take(1)), None)
    if row is None:
        raise ValueError(f"{where} is empty.")
    shape = np.shape(row[args.points_column])
    if len(shape) != 2 or shape[1] != 3:
        raise ValueError(
            f"{where}: column {args.points_column!r} holds arrays of the shape {shape}; a cloud is (points, 3), the "
            "coordinates alone. Set points_column to another column, or leave out what is not a coordinate."
        )
    if args.max_points is not None:
        features = None  # a stream may not know its own
        if dataset.features is not None:
            points = datasets.Array2D((args.max_points, 3), "float32")
            label = dataset.features[args.label_column]
            features = datasets.Features({args.points_column: points, args.label_column: label})
        options = {"column": args.points_column, "max_points": args.max_points, "where": where}
        dataset = dataset.map(keep_farthest, batched=True, batch_size=32, fn_kwargs=options, features=features)
    return dataset


def load_npz(args: PointDataArguments, file: Path, split: str) -> datasets.Dataset:
    """Rows of the arrays `points` and `label` for which `split` says this one; `classes` names the labels."""
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


def load_h5(args: PointDataArguments, folder: Path, split: str) -> datasets.Dataset:
    """
    Clouds of one or several `.h5` files, as ScanObjectNN and ModelNet40 (`modelnet40_ply_hdf5_2048`) have them; the
    classes are named in `shape_names.txt`, if that is there.
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
            raise ValueError(f"{where}: {file} cannot be read as clouds `data` with `label`: {error}") from error
    names_file = folder / "shape_names.txt"
    names = names_file.read_text(encoding="utf-8").split() if names_file.is_file() else None
    points, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return in_memory(args, points, labels.astype(np.int64), names)


def in_memory(
    args: PointDataArguments, points: np.ndarray, labels: np.ndarray, names: list[str] | None
) -> datasets.Dataset:
    feature = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features(
        {args.points_column: datasets.Array2D(points.shape[1:], "float32"), args.label_column: feature}
    )
    rows = {args.points_column: points, args.label_column: labels}
    return datasets.Dataset.from_dict(rows, features=features)


def find_files(folder: Path, split: str, where: str) -> list[tuple[str, str]] | None:
    """
    Files of single clouds and their classes: those that ModelNet40's list names (`modelnet40_normal_resampled`), or
    those below the folder of the split; `None` if there are none.
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


def load_files(args: PointDataArguments, files: list[tuple[str, str]]) -> datasets.Dataset:
    """Reads files of single clouds, once; they are kept in the cache of `datasets` until one of them changes."""
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
    """`changes` is when each file was written: another time is another cache."""
    for path, label in files:
        points = read_points(path)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"{path} holds an array of the shape {points.shape}; a cloud is (points, 3).")
        yield {columns[0]: points.astype(np.float32), columns[1]: label}


def keep_farthest(rows: Mapping[str, Any], column: str, max_points: int, where: str) -> dict[str, list[np.ndarray]]:
    kept = []
    for cloud in rows[column]:
        if len(cloud) < max_points:
            raise ValueError(f"{where}: a cloud has {len(cloud)} points, fewer than max_points, {max_points}.")
        if len(cloud) > max_points:
            chosen = sample_farthest_points(torch.tensor(cloud)[None], max_points)[0]
            cloud = cloud[chosen.numpy()]
        kept.append(np.asarray(cloud, np.float32))
    return {column: kept}


def build_processor(args: PointDataArguments, host: Mapping[str, Any], config: Any) -> PointCloudProcessor:
    """The processor that is saved with the model."""
    needed = max(config.num_groups, config.group_size)
    if args.num_points < needed:
        raise ValueError(
            f"num_points is {args.num_points}, but host.num_groups {config.num_groups} and host.group_size "
            f"{config.group_size} need at least {needed} points."
        )
    return PointCloudProcessor(num_points=args.num_points, do_normalize=args.normalize)


def load_processor(name_or_path: str) -> PointCloudProcessor:
    """The processor of a saved model."""
    return PointCloudProcessor.from_pretrained(name_or_path)


def build_preparer(
    args: PointDataArguments,
    split: str,
    processor: PointCloudProcessor,
    label_ids: dict[Any, int],
    config: Any,
    seed: int | None,
) -> "PointPreparer":
    """What is random happens to batches; `seed` and `config` make no difference."""
    return PointPreparer(args, split, processor, label_ids)


class PointPreparer(Preparer):
    """Checks and normalises clouds; see [`Preparer`]."""

    def __call__(self, values: Sequence[Any], labels: Sequence[Any], keys: Sequence[tuple[int, ...]]) -> list[dict]:
        return [
            {"points": self.processor.prepare(cloud, self.where(key)), "labels": self.find_label(label, key)}
            for cloud, label, key in zip(values, labels, keys)
        ]


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    sizes = {len(example["points"]) for example in examples}
    if len(sizes) > 1:
        raise ValueError(
            f"Clouds have {min(sizes)} to {max(sizes)} points, and those of a batch need as many as each other. Set "
            "max_points to at most the smallest number, so that all are reduced to that."
        )
    return {
        "points": torch.stack([example["points"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def build_batches(args: PointDataArguments, processor: PointCloudProcessor, num_labels: int) -> "PointBatches":
    return PointBatches(args, processor.num_points)


class PointBatches:
    """
    Chooses points of clouds and augments them, on the device.

    Args:
        args ([`PointDataArguments`]): what is done.
        num_points (`int`): points that the model sees.
    """

    def __init__(self, args: PointDataArguments, num_points: int):
        for name in ("num_candidates", "max_points"):
            value = getattr(args, name)
            if value is not None and value < num_points:
                raise ValueError(f"{name} is {value}, fewer than num_points, {num_points}.")
        self.args = args
        self.num_points = num_points

    def augment(self, inputs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """
        `num_points` of `num_candidates` points, scaled, moved and turned, as in the released code of the paper
        (`PointcloudScaleAndTranslate`; rotations are an option of ours).
        """
        points = self.choose_candidates(inputs["points"])
        return {**inputs, "points": self.change(points, rng)}

    def views(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        points = inputs["points"]
        first = {"points": gather_points(points, sample_farthest_points(points, self.num_points))}
        if self.args.num_votes == 1:
            return [first]
        candidates = self.choose_candidates(points)
        votes = range(1, self.args.num_votes)
        return [first, *({"points": self.change(candidates, np.random.default_rng(vote))} for vote in votes)]

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.mean(0)

    def choose_candidates(self, points: torch.Tensor) -> torch.Tensor:
        count = self.args.num_candidates
        if count is None or count >= points.shape[1]:
            return points
        return gather_points(points, sample_farthest_points(points, count))

    def change(self, points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        generator = torch.Generator(points.device).manual_seed(int(rng.integers(2**62)))

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator, device=points.device)

        batch = len(points)
        order = draw(batch, points.shape[1]).argsort(dim=1)
        points = gather_points(points, order[:, : self.num_points])
        if self.args.random_scale is not None:
            smallest, largest = self.args.random_scale
            points = points * (smallest + (largest - smallest) * draw(batch, 1, 3))
        if self.args.random_translation > 0:
            points = points + self.args.random_translation * (2 * draw(batch, 1, 3) - 1)
        if self.args.random_rotation is not None:
            points = points @ random_rotations(self.args.random_rotation, draw(batch, 3))
        return points


def random_rotations(axis: str, draws: torch.Tensor) -> torch.Tensor:
    """
    Rotation matrices `(batch, 3, 3)` out of uniform numbers `(batch, 3)`: around an axis, or of all rotations
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
