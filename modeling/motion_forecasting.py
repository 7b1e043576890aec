# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The output of models that forecast motion, and the errors of their trajectories that their losses are made of."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class MotionForecastingOutput(ModelOutput):
    r"""
    Output of a model that forecasts the motion of one agent, the target.

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*): the loss, if `labels` are given.
        trajectories (`torch.Tensor` of shape `(batch, modes, steps, 2)`):
            The positions at the future steps, relative to the target's last observed position and in its frame.
        scores (`torch.Tensor` of shape `(batch, modes)`): the probabilities of the trajectories; their sum is 1.
        hidden_states (`tuple[torch.Tensor]`, *optional*): with `output_hidden_states=True`.
        attentions (`tuple[torch.Tensor]`, *optional*): with `output_attentions=True`.
    """

    loss: torch.Tensor | None = None
    trajectories: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MotionErrors:
    r"""
    The errors of trajectories, computed in float32. Future steps whose label is NaN are unknown and count nowhere.

    Args:
        offsets (`torch.Tensor` of shape `(batch, modes, steps, 2)`): predicted offsets from step to step.
        labels (`torch.Tensor` of shape `(batch, steps, 2)`): the true positions, relative to the last observed one.

    Raises:
        `ValueError`: for labels of another shape.
    """

    def __init__(self, offsets: torch.Tensor, labels: torch.Tensor):
        batch, _, steps, _ = offsets.shape
        if labels.shape != (batch, steps, 2):
            raise ValueError(
                f"labels has the shape {tuple(labels.shape)}; it must be (batch, steps, 2) = {(batch, steps, 2)}, the "
                "target's true positions at the future steps, where steps is num_future_steps."
            )
        self.offsets, labels = offsets.float(), labels.float()
        known = labels.isfinite().all(dim=-1)
        self.positions = labels.masked_fill(~known[..., None], 0)
        before = nn.functional.pad(self.positions, (0, 0, 1, 0))[:, :-1]
        self.true_offsets = self.positions - before
        # An offset is known between two known positions; the first one starts at the last observed position.
        self.known_offsets = known & nn.functional.pad(known, (1, 0), value=True)[:, :-1]
        self.known, self.is_known = known, known.any(dim=-1)
        numbers = torch.arange(1, steps + 1, device=labels.device)
        self._last = (known * numbers).argmax(dim=-1)

    def of_offsets(self, kind: str) -> torch.Tensor:
        """Return the mean error `(batch, modes)` of the offsets, `"huber"` (with delta 1) or `"l2"` (squared)."""
        target = self.true_offsets[:, None].expand_as(self.offsets)
        error = nn.functional.huber_loss if kind == "huber" else nn.functional.mse_loss
        return self.mean_over_steps(error(self.offsets, target, reduction="none"))

    def of_positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean Huber errors (with delta 1) of the positions and their mean distances, `(batch, modes)`."""
        positions = self.offsets.cumsum(dim=-2)
        truth = self.positions[:, None].expand_as(positions)
        known = self.known[:, None].to(positions.dtype)
        count = known.sum(dim=-1).clamp(min=1)
        errors = nn.functional.huber_loss(positions, truth, reduction="none").mean(dim=-1)
        # The derivative of a distance of 0 is not defined.
        squares = (positions - truth).square().sum(dim=-1).detach()
        return (errors * known).sum(dim=-1) / count, (squares.sqrt() * known).sum(dim=-1) / count

    def mean_over_steps(self, errors: torch.Tensor) -> torch.Tensor:
        """Return the mean `(batch, modes)` of errors `(batch, modes, steps, 2)` over the known offsets."""
        known = self.known_offsets[:, None, :, None].to(errors.dtype)
        return (errors * known).sum(dim=(-2, -1)) / (2 * known.sum(dim=(-2, -1))).clamp(min=1)

    def at_the_end(self) -> torch.Tensor:
        """Return the distances `(batch, modes)` at the last known step."""
        ends = self.offsets.cumsum(dim=-2)
        index = self._last[:, None, None, None].expand(-1, ends.shape[1], 1, 2)
        return (ends.gather(2, index)[:, :, 0] - self.true_ends()[:, None]).norm(dim=-1)

    def true_ends(self) -> torch.Tensor:
        """Return the last known positions `(batch, 2)`."""
        return self.positions.gather(1, self._last[:, None, None].expand(-1, 1, 2))[:, 0]


def confidence_loss(logits: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """
    Return `KL(softmax(-distances) ‖ softmax(logits))`, divided by the number of trajectories.

    Source: "Multimodal Motion Prediction with Stacked Transformers" (CVPR 2021), the
    confidence loss of its region-based training.

    Args:
        logits (`torch.Tensor` of shape `(batch, modes)`): scores before the softmax.
        distances (`torch.Tensor` of shape `(batch, modes)`): errors of the final positions.
    """
    target, predicted = (-distances.detach()).log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
    divergence = nn.functional.kl_div(predicted, target, reduction="none", log_target=True).sum(dim=-1)
    return divergence / logits.shape[-1]


def reduce_losses(
    losses: torch.Tensor, errors: MotionErrors, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    Return the mean loss of the scenes whose future is known.

    Args:
        losses (`torch.Tensor` of shape `(batch,)`): a loss for each scene.
        errors ([`MotionErrors`]): the errors of the same scenes.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Trainer's count of the batch's labels over all accumulated steps, in which each coordinate counts.
    """
    losses = losses * errors.is_known
    if num_items_in_batch is None:
        return losses.sum() / errors.is_known.sum().clamp(min=1)
    return losses.sum() * errors.positions[0].numel() / num_items_in_batch


__all__ = ["MotionErrors", "MotionForecastingOutput", "confidence_loss", "reduce_losses"]
