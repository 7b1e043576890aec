# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Farthest point sampling and nearest neighbours, batched, in plain PyTorch.

Distances are computed in float64 for points of any data type, and ties go to the lower index, so that every machine
finds the same groups. (MPS has no float64 and uses float32.)
"""

import torch


def _exact(points: torch.Tensor) -> torch.Tensor:
    return points.float() if points.device.type == "mps" else points.double()


def gather_points(points: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather the points `(batch, kept, 3)` of point clouds `(batch, points, 3)` at `indices` `(batch, kept)`."""
    return points.gather(1, indices[..., None].expand(-1, -1, 3))


@torch.no_grad()
def sample_farthest_points(points: torch.Tensor, num_samples: int) -> torch.Tensor:
    """
    Sample points that are far from each other: first the first point, then always the one farthest from those chosen.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        num_samples (`int`): number of points to choose.

    Returns:
        `torch.LongTensor` of shape `(batch, num_samples)`: indices of the points, in the order of choice.

    Raises:
        `ValueError`: if the point clouds have fewer than `num_samples` points.
    """
    batch, num_points, _ = points.shape
    if num_points < num_samples:
        raise ValueError(f"Cannot sample {num_samples} points: the point clouds have {num_points}.")
    # Each coordinate contiguous in memory.
    x, y, z = _exact(points).unbind(-1)
    x, y, z = x.contiguous(), y.contiguous(), z.contiguous()
    distances = torch.full_like(x, torch.inf)
    last = torch.zeros(batch, 1, dtype=torch.long, device=points.device)
    chosen = [last]
    for _ in range(num_samples - 1):
        to_last = (x - x.gather(1, last)).square_()
        to_last += (y - y.gather(1, last)).square_()
        to_last += (z - z.gather(1, last)).square_()
        distances = torch.minimum(distances, to_last)
        last = distances.argmax(dim=1, keepdim=True)  # of ties, the first
        chosen.append(last)
    return torch.cat(chosen, dim=1)


@torch.no_grad()
def knn_points(points: torch.Tensor, centers: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """
    Find the nearest points of each centre.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        centers (`torch.Tensor` of shape `(batch, centers, 3)`): the centres.
        num_neighbors (`int`): number of points for each centre.

    Returns:
        `torch.LongTensor` of shape `(batch, centers, num_neighbors)`: indices of the points, the nearest first.

    Raises:
        `ValueError`: if the point clouds have fewer than `num_neighbors` points.
    """
    num_points = points.shape[1]
    if num_points < num_neighbors:
        raise ValueError(f"Cannot find {num_neighbors} neighbours: the point clouds have {num_points} points.")
    # One cloud at a time: the distances of 32 clouds with 8,192 points and 512 centres would take a gigabyte.
    return torch.stack([_nearest(p, c, num_neighbors) for p, c in zip(_exact(points), _exact(centers))])


def _nearest(points: torch.Tensor, centers: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    distances = (points[None, :, 0] - centers[:, None, 0]).square_()
    for axis in (1, 2):
        distances += (points[None, :, axis] - centers[:, None, axis]).square_()
    # `topk` may return any of ties: choose all points nearer than the last one and, of those as near, the first ones.
    last = distances.topk(num_neighbors, dim=1, largest=False).values[:, -1:]
    nearer, equal = distances < last, distances == last
    wanted = num_neighbors - nearer.sum(dim=1, keepdim=True)
    chosen = nearer | (equal & (equal.cumsum(dim=1) <= wanted))
    order = torch.arange(points.shape[0], 0, -1, device=points.device)
    indices = (chosen * order).topk(num_neighbors, dim=1).indices
    by_distance = distances.gather(1, indices).sort(dim=1, stable=True).indices
    return indices.gather(1, by_distance)


__all__ = ["gather_points", "knn_points", "sample_farthest_points"]
