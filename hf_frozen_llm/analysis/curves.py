# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Deletion and insertion: the prediction while patches are removed from an image, or added, by their activation."""

from collections.abc import Callable

import torch


@torch.no_grad()
def deletion_and_insertion(
    predict: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, maps: torch.Tensor, steps: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the probability of the class predicted for the whole image while patches are deleted, those with the highest
    activation first, and while they are inserted into an empty image in the same order. A map that ranks patches by
    their use for the prediction has a low deletion and a high insertion curve.

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models" (BMVC 2018). Both
    curves here use patches instead of pixels, and an empty image of the processor's mean colour.

    Args:
        predict (`Callable[[torch.Tensor], torch.Tensor]`): from pixel values to logits of shape `(batch, classes)`.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised images.
        maps (`torch.Tensor` of shape `(batch, rows, columns)`): the activation of each patch.
        steps (`int`, *optional*, defaults to 10): how many parts of the patches are deleted one after the other.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: deletion and insertion, each of shape `(batch, steps + 1)`.
    """
    (height, width), (rows, columns) = pixel_values.shape[-2:], maps.shape[1:]
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).unflatten(1, (rows, columns))
    ranks = ranks.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)[:, None]
    predicted = predict(pixel_values).argmax(-1, keepdim=True)
    deletion, insertion = [], []
    for step in range(steps + 1):
        is_first = ranks < round(step / steps * rows * columns)
        probabilities = predict(torch.cat([pixel_values * ~is_first, pixel_values * is_first])).softmax(-1)
        of_predicted = probabilities.gather(-1, predicted.repeat(2, 1))[:, 0]
        deletion.append(of_predicted[: len(predicted)])
        insertion.append(of_predicted[len(predicted) :])
    return torch.stack(deletion, dim=1), torch.stack(insertion, dim=1)


def area_under_curve(curves: torch.Tensor) -> torch.Tensor:
    """
    Return the area under curves over the share of patches, by the trapezoidal rule: the mean probability.

    Args:
        curves (`torch.Tensor` of shape `(batch, steps + 1)`): one of [`deletion_and_insertion`].
    """
    return torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)
