# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The operators and layers of PointNet++, batched, in plain PyTorch.

Source: "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space" (NeurIPS 2017); for the order
of neighbours, ties and points near the origin, the CUDA kernels of github.com/facebookresearch/votenet (`pointnet2`),
whose indices these operators reproduce. Distances have the type of the points, at least float32.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from .point_groups import gather_points


# The kernels never sample a point whose squared distance to the origin is at most this, except the first point.
NEAR_ORIGIN = 1e-3
# Threads of a kernel, which decide ties.
MAX_THREADS = 512
# Distances that are in memory at the same time.
MAX_DISTANCES = 2**23


def at_least_float32(points: torch.Tensor) -> torch.Tensor:
    return points if points.dtype in (torch.float32, torch.float64) else points.float()


def tie_order(num_points: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Return the indices of the points, the winners of ties first.

    The kernel spreads the points over threads, the largest power of two up to 512 and the number of points; each keeps
    the first of its farthest points, and a tournament between halves of the threads keeps the lower one. So the thread
    wins whose number, with its bits reversed, is smallest.
    """
    num_bits = min(num_points, MAX_THREADS).bit_length() - 1
    index = torch.arange(num_points, device=device)
    reverse = sum((((index >> bit) & 1) << (num_bits - 1 - bit) for bit in range(num_bits)), torch.zeros_like(index))
    return (reverse * num_points + index).argsort()


@torch.no_grad()
def sample_farthest(points: torch.Tensor, num_samples: int) -> torch.Tensor:
    """
    Sample points that are far from each other, as the published kernel does: first the first point, then always the
    one farthest from those chosen, except points within 3.2 cm of the origin. If none is left, indices repeat.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        num_samples (`int`): number of points to choose; it may exceed the number of points.

    Returns:
        `torch.LongTensor` of shape `(batch, num_samples)`: indices of the points, in the order of choice.
    """
    order = tie_order(points.shape[1], points.device)
    # The first of equal maxima in this order is the kernel's choice. Each coordinate is contiguous in memory.
    x, y, z = (axis.contiguous() for axis in at_least_float32(points)[:, order].unbind(-1))
    distances = torch.full_like(x, 1e10).masked_fill_(x.square() + y.square() + z.square() <= NEAR_ORIGIN, -1)
    last = torch.zeros(len(points), 1, dtype=torch.long, device=points.device)  # point 0 is the first in this order
    chosen = [last]
    for _ in range(num_samples - 1):
        to_last = (x - x.gather(1, last)).square_()
        to_last += (y - y.gather(1, last)).square_()
        to_last += (z - z.gather(1, last)).square_()
        distances = torch.minimum(distances, to_last, out=distances)
        last = distances.argmax(dim=1, keepdim=True)
        chosen.append(last)
    return order[torch.cat(chosen, dim=1)]


def _squared_distances(centers: torch.Tensor, points: torch.Tensor) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield squared distances of some centres `(centers, points)`, with the number of the cloud and their place."""
    step = max(1, MAX_DISTANCES // max(1, points.shape[1]))
    for item, (of_cloud, cloud) in enumerate(zip(at_least_float32(centers), at_least_float32(points))):
        axes = cloud.T.contiguous()
        for start in range(0, len(of_cloud), step):
            part = slice(start, start + step)
            distances = (of_cloud[part, 0, None] - axes[0]).square_()
            for axis in (1, 2):
                distances += (of_cloud[part, axis, None] - axes[axis]).square_()
            yield item, part, distances


@torch.no_grad()
def query_ball(points: torch.Tensor, centers: torch.Tensor, radius: float, num_neighbors: int) -> torch.Tensor:
    """
    Find points nearer to each centre than a radius: the first ones by index, not the nearest. Fewer than
    `num_neighbors` are filled up with the first one; without any, all are point 0.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        centers (`torch.Tensor` of shape `(batch, centers, 3)`): the centres.
        radius (`float`): the radius, whose square is rounded to float32.
        num_neighbors (`int`): number of points for each centre.

    Returns:
        `torch.LongTensor` of shape `(batch, centers, num_neighbors)`: indices of the points.
    """
    num_points = points.shape[1]
    indices = torch.empty(*centers.shape[:2], num_neighbors, dtype=torch.long, device=points.device)
    square = torch.tensor(radius, dtype=torch.float32, device="cpu").square()
    ranks = torch.arange(1, num_neighbors + 1, dtype=torch.int32, device=points.device)
    for item, part, distances in _squared_distances(centers, points):
        counts = (distances < square).cumsum(dim=1, dtype=torch.int32)
        # The k-th neighbour is where the count reaches k.
        found = torch.searchsorted(counts, ranks.expand(len(counts), -1).contiguous())
        first = found[:, :1]
        found = torch.where(found < num_points, found, first)
        indices[item, part] = found.masked_fill_(first == num_points, 0)
    return indices


@torch.no_grad()
def find_three_nearest(points: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Find the three nearest known points of each point; ties go to the lower index.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): the points.
        known (`torch.Tensor` of shape `(batch, known, 3)`): the known points. If there are fewer than three, the
            others are index 0 at an infinite distance.

    Returns:
        `tuple`: the indices, of shape `(batch, points, 3)`, and the distances.
    """
    shape = (*points.shape[:2], 3)
    indices = torch.zeros(shape, dtype=torch.long, device=points.device)
    nearest = at_least_float32(points).new_zeros(shape)
    for item, part, distances in _squared_distances(points, known):
        for rank in range(3):
            index = distances.argmin(dim=1, keepdim=True)
            indices[item, part, rank] = index[:, 0]
            nearest[item, part, rank] = distances.gather(1, index)[:, 0]
            distances.scatter_(1, index, torch.inf)
    return indices, nearest.sqrt_()


def gather_features(features: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather features `(batch, channels, points)` at `indices` `(batch, …)`: `(batch, channels, …)`."""
    places = indices.flatten(1)[:, None].expand(-1, features.shape[1], -1)
    return features.gather(2, places).unflatten(2, indices.shape[1:])


def group_neighbors(
    points: torch.Tensor,
    centers: torch.Tensor,
    features: torch.Tensor | None,
    indices: torch.Tensor,
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Group the neighbours of each centre: their positions relative to it, divided by `scale`, then their features.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        centers (`torch.Tensor` of shape `(batch, centers, 3)`): the centres.
        features (`torch.Tensor` of shape `(batch, channels, points)`, *optional*): features of the points.
        indices (`torch.LongTensor` of shape `(batch, centers, neighbors)`): the neighbours.
        scale (`float`, *optional*, defaults to 1.0): the radius, by which positions are normalised.

    Returns:
        `torch.Tensor` of shape `(batch, 3 + channels, centers, neighbors)`.
    """
    positions = gather_points(points, indices.flatten(1)).unflatten(1, indices.shape[1:])
    relative = ((positions - centers[:, :, None]) / scale).permute(0, 3, 1, 2)
    if features is None:
        return relative
    return torch.cat([relative.to(features.dtype), gather_features(features, indices)], dim=1)


def interpolate_three_nearest(features: torch.Tensor, indices: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """
    Interpolate the features of known points `(batch, channels, known)` at points whose three nearest are given, by
    the inverse distances: `(batch, channels, points)`. Only the features get gradients.
    """
    weights = 1 / (distances + 1e-8)
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(features.dtype)
    return (gather_features(features, indices) * weights[:, None]).sum(dim=-1)


class PointNetLayer(nn.Module):
    """The same linear layer, batch norm and ReLU on every point, `(batch, channels, points, neighbors)`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(features)).relu_()


def make_layers(channels: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(PointNetLayer(*pair) for pair in pairwise(channels))


class SetAbstraction(nn.Module):
    """
    Describe the neighbourhood of each centre: a small network on every neighbour, and their maximum.

    Args:
        in_channels (`int`): features of a point.
        channels (`Sequence[int]`): the widths of the layers.
        radius (`float`): the radius of a neighbourhood.
        num_neighbors (`int`): number of neighbours of a centre.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], radius: float, num_neighbors: int):
        super().__init__()
        self.radius, self.num_neighbors = radius, num_neighbors
        self.layers = make_layers([in_channels + 3, *channels])

    def forward(self, points: torch.Tensor, features: torch.Tensor | None, centers: torch.Tensor) -> torch.Tensor:
        """Return the centres' features, `(batch, channels, centers)`."""
        indices = query_ball(points, centers, self.radius, self.num_neighbors)
        grouped = group_neighbors(points, centers, features, indices, self.radius)
        # Channels last: linear layers and norms of small width are several times faster on a CPU.
        grouped = grouped.to(next(self.layers.parameters()).dtype, memory_format=torch.channels_last)
        for layer in self.layers:
            grouped = layer(grouped)
        return grouped.amax(dim=-1)


class FeaturePropagation(nn.Module):
    """
    Interpolate the features of fewer points at more points, and put them together with those that these have.

    Args:
        in_channels (`int`): features of both, together.
        channels (`Sequence[int]`): the widths of the layers.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        self.layers = make_layers([in_channels, *channels])

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, known: torch.Tensor, known_features: torch.Tensor
    ) -> torch.Tensor:
        interpolated = interpolate_three_nearest(known_features, *find_three_nearest(points, known))
        joined = torch.cat([interpolated, features], dim=1)[..., None]
        for layer in self.layers:
            joined = layer(joined)
        return joined[..., 0]


__all__ = [
    "FeaturePropagation",
    "SetAbstraction",
    "at_least_float32",
    "find_three_nearest",
    "gather_features",
    "group_neighbors",
    "interpolate_three_nearest",
    "query_ball",
    "sample_farthest",
]
