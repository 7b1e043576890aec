# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Point clouds as inputs of a Point-BERT."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .code_files import SavedWithCode
from .point_files import POINT_SUFFIXES, read_points, to_coordinates
from .point_groups import gather_points, sample_farthest_points


class PointCloudProcessor(SavedWithCode, FeatureExtractionMixin):
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
        try:
            cloud = (
                points if isinstance(points, torch.Tensor) else torch.from_numpy(to_coordinates(np.asarray(points)))
            )
        except ValueError as error:
            raise ValueError(f"{location}: {error}.") from error
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
