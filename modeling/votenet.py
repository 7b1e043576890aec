# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
VoteNet: points vote for the centres of objects, and votes near each other make a proposal.

Source: "Deep Hough Voting for 3D Object Detection in Point Clouds" (ICCV 2019) and its code
(github.com/facebookresearch/votenet), as SQA3D's code has it (github.com/SilongYong/SQA3D, `ScanQA/models`).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from .configuration_sqa3d_with_llm_block import SQA3DWithLLMBlockConfig
from .point_groups import gather_points
from .pointnet2 import FeaturePropagation, SetAbstraction, at_least_float32, sample_farthest


@dataclass
class Detection:
    r"""
    What a VoteNet finds in scenes.

    Args:
        seed_xyz (`torch.Tensor` of shape `(batch, seeds, 3)`): the points that vote.
        seed_indices (`torch.LongTensor` of shape `(batch, seeds)`): their numbers in the point cloud.
        vote_xyz (`torch.Tensor` of shape `(batch, votes, 3)`): the votes.
        proposal_xyz (`torch.Tensor` of shape `(batch, proposals, 3)`): where votes are aggregated.
        proposal_features (`torch.Tensor` of shape `(batch, proposals, proposal_size)`): the aggregated votes.
        proposal_mask (`torch.BoolTensor` of shape `(batch, proposals)`): which proposals are objects.
        objectness_logits (`torch.Tensor` of shape `(batch, proposals, 2)`): class 1 = object.
        box_centers (`torch.Tensor` of shape `(batch, proposals, 3)`): the centres of the boxes.
        heading_logits (`torch.Tensor` of shape `(batch, proposals, num_heading_bins)`): the bins of the headings.
        heading_residuals (`torch.Tensor` of shape `(batch, proposals, num_heading_bins)`): in units of half a bin.
        size_logits (`torch.Tensor` of shape `(batch, proposals, sizes)`): the size classes.
        size_residuals (`torch.Tensor` of shape `(batch, proposals, sizes, 3)`): in units of the mean size.
        class_logits (`torch.Tensor` of shape `(batch, proposals, num_object_classes)`): the object classes.
    """

    seed_xyz: torch.Tensor
    seed_indices: torch.Tensor
    vote_xyz: torch.Tensor
    proposal_xyz: torch.Tensor
    proposal_features: torch.Tensor
    proposal_mask: torch.Tensor
    objectness_logits: torch.Tensor
    box_centers: torch.Tensor
    heading_logits: torch.Tensor
    heading_residuals: torch.Tensor
    size_logits: torch.Tensor
    size_residuals: torch.Tensor
    class_logits: torch.Tensor


class VoteNetVoting(nn.Module):
    """Every seed votes for the centre of its object, and changes its features."""

    def __init__(self, channels: int, vote_factor: int):
        super().__init__()
        self.vote_factor = vote_factor
        self.conv1, self.conv2 = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)
        self.norm1, self.norm2 = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)
        self.conv3 = nn.Conv1d(channels, (3 + channels) * vote_factor, 1)

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return votes, `(batch, votes, 3)`, and their features, `(batch, channels, votes)`; a seed's in a row."""
        hidden = self.norm1(self.conv1(features)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        changes = self.conv3(hidden).mT.unflatten(-1, (self.vote_factor, -1))
        votes = (xyz[:, :, None] + changes[..., :3]).flatten(1, 2)
        return votes, (features.mT[:, :, None] + changes[..., 3:]).flatten(1, 2).mT


class VoteNetProposal(nn.Module):
    """Describe the box of each proposal."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        width, num_sizes = config.proposal_size, len(cast(list, config.mean_sizes))
        self.parts = [2, 3, *[config.num_heading_bins] * 2, num_sizes, 3 * num_sizes, config.num_object_classes]
        self.conv1, self.conv2 = nn.Conv1d(width, width, 1, bias=False), nn.Conv1d(width, width, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.conv3 = nn.Conv1d(width, sum(self.parts), 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the parts of the description, each of shape `(batch, proposals, …)`."""
        hidden = self.norm1(self.conv1(features)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        return self.conv3(hidden).mT.split(self.parts, dim=-1)


class VoteNet(nn.Module):
    """The detector: a PointNet++, votes, proposals."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        self.config = config
        in_channels = config.num_point_features
        levels, widths = [], []
        for channels, radius, num_neighbors in zip(
            cast(list, config.point_channels), cast(list, config.radii), cast(list, config.num_neighbors)
        ):
            levels.append(SetAbstraction(in_channels, channels, radius, num_neighbors))
            in_channels = channels[-1]
            widths.append(in_channels)
        self.levels = nn.ModuleList(levels)
        first, second = cast(list, config.propagation_channels)
        self.propagation1 = FeaturePropagation(widths[3] + widths[2], first)
        self.propagation2 = FeaturePropagation(first[-1] + widths[1], second)
        self.voting = VoteNetVoting(second[-1], config.vote_factor)
        self.vote_aggregation = SetAbstraction(
            second[-1], [config.proposal_size] * 3, config.vote_radius, config.vote_num_neighbors
        )
        self.proposal = VoteNetProposal(config)

    def encode_points(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the seeds `(batch, seeds, 3)`, their features `(batch, channels, seeds)`, and their indices."""
        dtype = next(self.levels.parameters()).dtype
        xyz = at_least_float32(points[..., :3])
        features = points[..., 3:].mT.to(dtype) if points.shape[-1] > 3 else None
        levels, seed_indices = [], None
        for level, num_samples in zip(self.levels, cast(list, self.config.num_samples)):
            indices = sample_farthest(xyz, num_samples)
            centers = gather_points(xyz, indices)
            features, xyz = level(xyz, features, centers), centers
            levels.append((xyz, features))
            # The seeds are the points of the second level. The first points of the first level are published as their
            # indices: points sampled in order of distance are sampled again in this order.
            seed_indices = indices if seed_indices is None else seed_indices
        (seeds, of_seeds), (third, of_third), (fourth, of_fourth) = levels[1:]
        of_third = self.propagation1(third, of_third, fourth, of_fourth)
        of_seeds = self.propagation2(seeds, of_seeds, third, of_third)
        return seeds, of_seeds, cast(torch.Tensor, seed_indices)[:, : seeds.shape[1]]

    def forward(
        self,
        points: torch.Tensor,
        object_centers: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
    ) -> Detection:
        """
        Detect objects in point clouds `(batch, points, 3 + features)`. With annotated `object_centers` `(batch,
        objects, 3)` and their mask, votes are aggregated there, and not where votes are far from each other.
        """
        seeds, of_seeds, seed_indices = self.encode_points(points)
        votes, of_votes = self.voting(seeds, of_seeds)
        of_votes = of_votes / of_votes.norm(dim=1, keepdim=True)
        if object_centers is None:
            centers = gather_points(votes, sample_farthest(votes, self.config.num_proposals))
        else:
            centers = object_centers.to(votes.dtype)
        features = self.vote_aggregation(votes, of_votes, centers)
        objectness, offsets, heading, heading_residuals, size, size_residuals, classes = self.proposal(features)
        return Detection(
            seed_xyz=seeds,
            seed_indices=seed_indices,
            vote_xyz=votes,
            proposal_xyz=centers,
            proposal_features=features.mT,
            proposal_mask=objectness.argmax(dim=-1) == 1 if object_mask is None else object_mask.bool(),
            objectness_logits=objectness,
            box_centers=centers + offsets,
            heading_logits=heading,
            heading_residuals=heading_residuals,
            size_logits=size,
            size_residuals=size_residuals.unflatten(-1, (-1, 3)),
            class_logits=classes,
        )


def box_sizes(detection: Detection, mean_sizes: torch.Tensor) -> torch.Tensor:
    """Return the sizes of the proposals' boxes, `(batch, proposals, 3)`, of the likeliest size class."""
    size_class = detection.size_logits.argmax(dim=-1, keepdim=True)
    residuals = detection.size_residuals.gather(2, size_class[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    return mean_sizes[size_class[..., 0]] * (1 + residuals)


def box_corners(centers: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the eight corners of boxes, `(…, 8, 3)`, in the published order."""
    x, y, z = [1, 1, -1, -1] * 2, [1, -1, -1, 1] * 2, [1] * 4 + [-1] * 4
    return centers[..., None, :] + sizes[..., None, :] / 2 * sizes.new_tensor([x, y, z]).T


@dataclass
class ObjectLabels:
    r"""
    The annotated objects of scenes. Rows of padding are zero; the nearest object of a proposal may be one, as in the
    published code.

    Args:
        centers (`torch.Tensor` of shape `(batch, objects, 3)`): the centres of the boxes.
        mask (`torch.Tensor` of shape `(batch, objects)`): 1 = object, 0 = padding.
        classes (`torch.LongTensor` of shape `(batch, objects)`): the object classes.
        size_classes (`torch.LongTensor` of shape `(batch, objects)`): the size classes.
        size_residuals (`torch.Tensor` of shape `(batch, objects, 3)`): size less the mean size of its class.
        heading_classes (`torch.LongTensor` of shape `(batch, objects)`): the bins of the headings.
        heading_residuals (`torch.Tensor` of shape `(batch, objects)`): angle less the centre of its bin.
        votes (`torch.Tensor` of shape `(batch, points, 9)`): from each point to the centres of up to three objects.
        vote_mask (`torch.Tensor` of shape `(batch, points)`): 1 = the point belongs to an object.
    """

    centers: torch.Tensor
    mask: torch.Tensor
    classes: torch.Tensor
    size_classes: torch.Tensor
    size_residuals: torch.Tensor
    heading_classes: torch.Tensor
    heading_residuals: torch.Tensor
    votes: torch.Tensor
    vote_mask: torch.Tensor


NEAR, FAR = 0.3, 0.6
OBJECTNESS_WEIGHTS = (0.2, 0.8)


def mean_where(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / (mask.sum() + 1e-6)


def vote_loss(detection: Detection, labels: ObjectLabels) -> torch.Tensor:
    """Return the L1 distance of the nearest vote of a seed to the nearest of its labels, over seeds on objects."""
    seeds, indices = detection.seed_xyz, detection.seed_indices
    mask = labels.vote_mask.gather(1, indices).to(seeds.dtype)
    votes = labels.votes.gather(1, indices[..., None].expand(-1, -1, labels.votes.shape[-1]))
    targets = seeds[:, :, None] + votes.unflatten(-1, (-1, 3)).to(seeds.dtype)
    predicted = detection.vote_xyz.unflatten(1, (seeds.shape[1], -1))
    distances = (predicted[:, :, :, None] - targets[:, :, None]).abs().sum(dim=-1)
    return mean_where(distances.flatten(2).amin(dim=-1), mask)


def detection_losses(detection: Detection, labels: ObjectLabels, mean_sizes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the losses of a detection by name: `vote`, `objectness`, `box` and `class`."""
    proposals, centers = detection.proposal_xyz, labels.centers.to(detection.proposal_xyz.dtype)
    with torch.no_grad():
        squares, nearest = (proposals[:, :, None] - centers[:, None]).square().sum(dim=-1).min(dim=2)
        distances = (squares + 1e-6).sqrt()
        positive, is_decided = distances < NEAR, (distances < NEAR) | (distances > FAR)
    dtype = detection.objectness_logits.dtype
    weight = detection.objectness_logits.new_tensor(OBJECTNESS_WEIGHTS)
    objectness = nn.functional.cross_entropy(
        detection.objectness_logits.mT, positive.long(), weight=weight, reduction="none"
    )
    mask = positive.to(dtype)
    classes = labels.classes.gather(1, nearest)
    of_class = nn.functional.cross_entropy(detection.class_logits.mT, classes, reduction="none")
    return {
        "vote": vote_loss(detection, labels),
        "objectness": mean_where(objectness, is_decided.to(dtype)),
        "box": box_loss(detection, labels, nearest, mask, mean_sizes),
        "class": mean_where(of_class, mask),
    }


def box_loss(
    detection: Detection, labels: ObjectLabels, nearest: torch.Tensor, mask: torch.Tensor, mean_sizes: torch.Tensor
) -> torch.Tensor:
    """Return the loss of the boxes of the proposals in `mask`, each compared with its nearest object."""
    centers = labels.centers.to(detection.box_centers.dtype)
    squares = (detection.box_centers[:, :, None] - centers[:, None]).square().sum(dim=-1)
    to_objects = mean_where(squares.amin(dim=2), mask)
    to_proposals = mean_where(squares.amin(dim=1), labels.mask.to(squares.dtype))
    heading_classes = labels.heading_classes.gather(1, nearest)
    heading = nn.functional.cross_entropy(detection.heading_logits.mT, heading_classes, reduction="none")
    half_bin = math.pi / detection.heading_logits.shape[-1]
    residual = detection.heading_residuals.gather(2, heading_classes[..., None])[..., 0]
    target = labels.heading_residuals.gather(1, nearest).to(residual.dtype) / half_bin
    heading_residual = nn.functional.huber_loss(residual, target, reduction="none")
    size_classes = labels.size_classes.gather(1, nearest)
    size = nn.functional.cross_entropy(detection.size_logits.mT, size_classes, reduction="none")
    rows = size_classes[..., None, None].expand(-1, -1, 1, 3)
    residual = detection.size_residuals.gather(2, rows)[:, :, 0]
    target = labels.size_residuals.gather(1, nearest[..., None].expand(-1, -1, 3)) / mean_sizes[size_classes]
    size_residual = nn.functional.huber_loss(residual, target.to(residual.dtype), reduction="none").mean(dim=-1)
    losses = 0.1 * heading + heading_residual + 0.1 * size + size_residual
    return to_objects + to_proposals + mean_where(losses, mask)


__all__ = ["Detection", "ObjectLabels", "VoteNet", "VoteNetVoting", "box_corners", "box_sizes", "detection_losses"]
