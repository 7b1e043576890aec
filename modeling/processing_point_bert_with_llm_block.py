# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Point clouds as inputs of a Point-BERT."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .point_groups import gather_points, sample_farthest_points


MESH_SUFFIXES = (".ply", ".off", ".obj")
POINT_SUFFIXES = (*MESH_SUFFIXES, ".npy", ".txt", ".h5")
# Points sampled on the surface of a mesh, from which farthest point sampling then chooses.
SURFACE_POINTS = 8192


def _import(name: str, suffix: str) -> Any:
    # By name: transformers refuses to load a model's files from the Hub if a module that they import is missing.
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Reading {suffix} files requires {name}, which is not installed: pip install 'hf_frozen_llm[points]'"
        ) from error


def read_points(path: str | os.PathLike) -> np.ndarray:
    """
    Read a point cloud from a file.

    Args:
        path (`str` or `os.PathLike`): a `.ply`, `.off` or `.obj` file (of points, or of a mesh, on whose surface 8,192
            points are sampled, always the same ones), an `.npy` file, a `.txt` file with three or more numbers on each
            line (the first three count), separated by commas or spaces, or an `.h5` file with the dataset `data`.

    Returns:
        `np.ndarray` of shape `(points, 3)`; or `(clouds, points, 3)` from an `.npy` or `.h5` file of that shape.

    Raises:
        `FileNotFoundError`: if the file does not exist.
        `ValueError`: if the file has another format, or cannot be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    if suffix not in POINT_SUFFIXES:
        raise ValueError(f"{file}: unsupported point-cloud format; supported: {', '.join(POINT_SUFFIXES)}.")
    try:
        if suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if suffix == ".txt":
            delimiter = "," if "," in file.read_text(encoding="utf-8").partition("\n")[0] else None
            return np.loadtxt(file, delimiter=delimiter, dtype=np.float32, ndmin=2)[:, :3]
        if suffix == ".h5":
            with _import("h5py", suffix).File(file) as content:
                return content["data"][...]
        trimesh = _import("trimesh", suffix)
        # `process` would merge and reorder points in one place.
        shape = trimesh.load(file, process=False)
        if isinstance(shape, trimesh.Scene):
            shape = shape.to_geometry()
        if len(getattr(shape, "faces", ())) > 0:
            return trimesh.sample.sample_surface(shape, SURFACE_POINTS, seed=0)[0].astype(np.float32)
        return np.asarray(shape.vertices, np.float32)
    except ImportError:
        raise
    except Exception as error:  # each library raises its own kinds
        raise ValueError(f"{file} cannot be read as a point cloud: {type(error).__name__}: {error}") from error


class PointCloudProcessor(FeatureExtractionMixin):
    r"""
    Prepares point clouds as the inputs of a point cloud classifier.

    Args:
        num_points (`int`, *optional*, defaults to 1024):
            Number of points that the model gets, chosen by farthest point sampling.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether each point cloud is centred at its mean and scaled to a sphere of radius 1.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_frozen_llm import PointCloudProcessor

    >>> processor = PointCloudProcessor(num_points=1024)
    >>> processor(np.random.default_rng(0).normal(size=(5000, 3)))["points"].shape
    torch.Size([1, 1024, 3])
    ```"""

    model_input_names = ["points"]

    def __init__(self, num_points: int = 1024, do_normalize: bool = True, **kwargs: Any):
        if num_points < 1:
            raise ValueError(f"num_points is {num_points}; it must be at least 1.")
        self.num_points = num_points
        self.do_normalize = do_normalize
        super().__init__(**kwargs)

    def __call__(self, points: Any, return_tensors: str = "pt") -> BatchFeature:
        r"""
        Check, normalise and sample point clouds.

        Args:
            points (`np.ndarray`, `torch.Tensor`, `str`, `os.PathLike` or a list of these):
                One point cloud of shape `(points, 3)` or a batch of shape `(batch, points, 3)`; or a file, see
                [`read_points`]. The point clouds of a list may have different numbers of points.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: `points` of shape `(batch, num_points, 3)`, float32.

        Raises:
            `ValueError`: for point clouds of another shape, with fewer points than `num_points`, or with numbers that
                are not finite.
        """
        clouds = [self.prepare(cloud, location) for cloud, location in _separate(points)]
        if not clouds:
            raise ValueError("points is empty; give one point cloud or several.")
        sampled = [gather_points(c[None], sample_farthest_points(c[None], self.num_points)) for c in clouds]
        return BatchFeature({"points": torch.cat(sampled)}, tensor_type="pt").convert_to_tensors(return_tensors)

    def prepare(self, points: Any, location: str = "points") -> torch.Tensor:
        """Check and normalise one point cloud, with all of its points; `location` names it in errors."""
        cloud = torch.as_tensor(points)
        if cloud.ndim != 2 or cloud.shape[-1] != 3:
            raise ValueError(
                f"{location} has the shape {tuple(cloud.shape)}; a point cloud is (points, 3), the coordinates alone. "
                "Leave out normals and colours, as in points[:, :3]."
            )
        if len(cloud) < self.num_points:
            raise ValueError(
                f"{location} has {len(cloud)} points, fewer than num_points, {self.num_points}. Set num_points lower, "
                "or sample more points."
            )
        cloud = cloud.to(torch.float64)  # coordinates may lie far from the origin
        if not cloud.isfinite().all():
            row = int((~cloud.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"{location}: point {row} is {cloud[row].tolist()}; coordinates must be finite numbers.")
        if self.do_normalize:
            cloud = cloud - cloud.mean(dim=0)
            radius = cloud.norm(dim=1).max()
            if radius == 0:
                raise ValueError(f"{location}: all points are in one place.")
            cloud = cloud / radius
        return cloud.float()


def _separate(points: Any) -> Iterator[tuple[Any, str]]:
    """Yield the point clouds and the name of each in errors."""
    if isinstance(points, (str, os.PathLike)):
        content = read_points(points)
        for index, cloud in enumerate(content if content.ndim == 3 else content[None]):
            yield cloud, f"{points}, cloud {index}" if content.ndim == 3 else str(points)
    elif isinstance(points, (list, tuple)) and not (points and np.ndim(points[0]) == 1):
        for index, item in enumerate(points):
            for cloud, location in _separate(item):
                yield cloud, location if isinstance(item, (str, os.PathLike)) else f"cloud {index}"
    else:
        array = points if isinstance(points, torch.Tensor) else np.asarray(points)
        for index, cloud in enumerate(array if array.ndim == 3 else array[None]):
            yield cloud, f"cloud {index}" if array.ndim == 3 else "points"


__all__ = ["POINT_SUFFIXES", "PointCloudProcessor", "read_points"]
