# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Measures of tokens: one number for each token (activation maps), for each image, or for a set of images.

The paper is "Frozen Transformers in Language Models Are Effective Visual Encoder Layers" (ICLR 2024).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


def magnitude(tokens: torch.Tensor) -> torch.Tensor:
    """
    Return the L2 norm over the channels of each token minus the mean token of its image.

    Source: the paper, section 6.1 and figure E. Its pseudo-code takes the mean over `dim=0` of `[H, W, C]`, a mean of
    each column; its text says that of all tokens of the image, which is what is computed here.

    Args:
        tokens (`torch.Tensor` of shape `(batch, tokens, channels)`): the tokens that have a place in the image.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`: in float32, or float64 if the tokens are.
    """
    tokens = _in_float(tokens)
    return (tokens - tokens.mean(1, keepdim=True)).norm(dim=-1)


def frequency(tokens: torch.Tensor) -> torch.Tensor:
    """
    Return the L2 norm over the frequencies of each token's phases minus the mean phases of its image.

    Source: as [`magnitude`]. The Fourier transform is over the channels, and all of its frequencies count, so that
    each phase of a real signal counts twice. Phases are numbers between -π and π, and their mean is that of numbers,
    as in the paper, not that of angles.

    Args:
        tokens (`torch.Tensor` of shape `(batch, tokens, channels)`): the tokens that have a place in the image.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`: in float32, or float64 if the tokens are.
    """
    phases = torch.fft.fft(_in_float(tokens), dim=-1).angle()
    return (phases - phases.mean(1, keepdim=True)).norm(dim=-1)


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """
    Scale each map of shape `(batch, tokens)` to between 0 and 1. A constant map becomes 0.

    Args:
        maps (`torch.Tensor` of shape `(batch, tokens)`): one number for each token.
    """
    lowest, highest = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    # A range of rounding errors is none.
    span = torch.where(highest - lowest > 1e-6 * maps.abs().amax(1, keepdim=True), highest - lowest, torch.inf)
    return (maps - lowest) / span


def filtering_ratio(before: torch.Tensor, after: torch.Tensor, is_object: torch.Tensor) -> torch.Tensor:
    """
    Return by how much more a layer amplifies informative tokens than the others: `(o' / b') / (o / b)`, with the mean
    activation of the object's tokens o and of the background's b, before and after (') the layer. At 1 it amplifies
    both alike.

    Source: the paper's hypothesis of information filtering, section 6, that the layer distinguishes the informative
    tokens and amplifies them. The paper has no formula for it; this one is ours.

    Args:
        before (`torch.Tensor` of shape `(batch, tokens)`): activations such as [`magnitude`] before the layer.
        after (`torch.Tensor` of shape `(batch, tokens)`): activations after it.
        is_object (`torch.Tensor` of shape `(batch, tokens)`): 1 = object, 0 = background, NaN = neither.

    Returns:
        `torch.Tensor` of shape `(batch,)`: NaN for an image without object or without background.
    """

    def contrast(maps: torch.Tensor) -> torch.Tensor:
        means = [torch.where(is_object == value, maps, torch.nan).nanmean(1) for value in (1, 0)]
        return means[0] / means[1]

    return contrast(after) / contrast(before)


def update_ratio(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """
    Return by how much a layer changes its input, `‖layer(h) - h‖ / ‖h‖` (Frobenius norms over an image's tokens).

    Source: `LLMBlock.update_ratio`, which computes it for a whole batch.

    Args:
        before (`torch.Tensor` of shape `(batch, tokens, channels)`): h.
        after (`torch.Tensor` of shape `(batch, tokens, channels)`): the layer's output.

    Returns:
        `torch.Tensor` of shape `(batch,)`: the ratio of each image.
    """
    before, after = _in_float(before), _in_float(after)
    return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)


def effective_rank(tokens: torch.Tensor) -> torch.Tensor:
    """
    Return the exponential of the entropy of an image's singular values, as shares of their sum.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007).

    Args:
        tokens (`torch.Tensor` of shape `(batch, tokens, channels)`): the tokens.

    Returns:
        `torch.Tensor` of shape `(batch,)`: between 1 and the smaller of tokens and channels.
    """
    values = torch.linalg.svdvals(_in_float(tokens))
    shares = values / values.sum(1, keepdim=True)
    return torch.special.entr(shares).sum(1).exp()


def token_similarity(tokens: torch.Tensor) -> torch.Tensor:
    """
    Return the mean cosine similarity of two different tokens of an image.

    Source: Gong et al., "Vision Transformers with Patch Diversification" (2021), where it measures over-smoothing.

    Args:
        tokens (`torch.Tensor` of shape `(batch, tokens, channels)`): two tokens or more.

    Returns:
        `torch.Tensor` of shape `(batch,)`: between -1 and 1.
    """
    unit, count = torch.nn.functional.normalize(_in_float(tokens), dim=-1), tokens.shape[1]
    # The squared norm of the sum is the sum of all similarities, of which `count` are those of a token with itself.
    return (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / (count * (count - 1))


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """
    Return the linear centred kernel alignment of two representations of the same examples.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019), section 3.

    Args:
        x (`torch.Tensor` of shape `(examples, channels)`): one representation.
        y (`torch.Tensor` of shape `(examples, other channels)`): the other one.

    Returns:
        `float`: 1 if one is the other one rotated, scaled and moved; 0 if they are uncorrelated.
    """
    x, y = (_in_float(t) - _in_float(t).mean(0) for t in (x, y))
    if len(x) < x.shape[1] + y.shape[1]:
        gram_x, gram_y = x @ x.mT, y @ y.mT
        return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))
    return float((y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm()))


def gradient_coherence(
    loss_of: Callable[[int], torch.Tensor], count: int, parameters: Iterable[torch.nn.Parameter]
) -> float:
    """
    Return the mean cosine similarity of the gradients of two different examples.

    Source: Bai et al., "Frozen Language Models Are Gradient Coherence Rectifiers in Vision Transformers" (AAAI 2025).
    Gradients are computed one at a time and not kept.

    Args:
        loss_of (`Callable[[int], torch.Tensor]`): the loss of one example, by its number.
        count (`int`): the number of examples, at least 2. Those whose gradient is zero do not count.
        parameters (`Iterable[torch.nn.Parameter]`): the parameters of the gradients.

    Returns:
        `float`: between -1 / (count - 1) and 1; NaN if fewer than 2 examples count.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    unit_gradients: Any = 0
    counted = 0
    for index in range(count):
        with torch.enable_grad():
            found = torch.autograd.grad(loss_of(index), parameters, allow_unused=True)
        gradient = torch.cat([g.flatten().float() for g in found if g is not None])
        norm = gradient.norm()
        if norm > 0:
            unit_gradients, counted = unit_gradients + gradient / norm, counted + 1
    if counted < 2:
        return float("nan")
    return float((unit_gradients.square().sum() - counted) / (counted * (counted - 1)))


def _in_float(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))
