# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The size of an LLM layer's update relative to its input, and the input scale at which the two are equal."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .llm_layer_call import LLMLayerCaller


_FACTORS = [10 ** (exponent / 2) for exponent in range(10, -7, -1)]


@torch.no_grad()
def layer_update_ratio(layer: nn.Module, layer_input: torch.Tensor, caller: LLMLayerCaller) -> float:
    """
    Return `‖layer(h) - h‖ / ‖h‖` (Frobenius norms over all tokens), without dropout.

    Args:
        layer (`nn.Module`): the first of the block's decoder layers, or a copy of it.
        layer_input (`torch.Tensor` of shape `(batch, tokens, D)`): h.
        caller ([`LLMLayerCaller`]): calls the layer.
    """
    with _eager_attention(caller), _in_evaluation(layer):
        update = caller.call(0, layer, layer_input, None).float() - layer_input.float()
    return (update.norm() / layer_input.float().norm()).item()


def balanced_input_scale(layer: nn.Module, std: float, caller: LLMLayerCaller) -> float:
    """
    Return the largest factor of the layer's input at which its update is as large as the input, to five digits. The
    input is 64 standard-normal tokens times `std`: no data are needed, and every machine finds the same factor.

    Args:
        layer (`nn.Module`): the first of the block's decoder layers; a copy in float32 on the CPU is used.
        std (`float`): standard deviation of the layer's input at the factor 1.
        caller ([`LLMLayerCaller`]): calls the layer.

    Raises:
        `ValueError`: if there is no such factor.
    """
    config = caller.config
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = std * torch.randn(1, 64, config.hidden_size, generator=generator, device="cpu", dtype=torch.float32)
    with _eager_attention(caller):
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in layer.parameters()):
            layer = copy.deepcopy(layer).to("cpu", torch.float32)

        def log_ratio(log_factor: float) -> float:
            ratio = layer_update_ratio(layer, math.exp(log_factor) * tokens, caller)
            return math.log(ratio) if ratio > 0 else -math.inf

        # A layer that norms its updates (OLMo 2) has several such factors: after the largest one, the update is small.
        right = left = (math.inf, math.inf)
        for factor in _FACTORS:
            right, left = left, (math.log(factor), log_ratio(math.log(factor)))
            if not left[1] < 0:
                break
        if not left[1] >= 0 or not math.isfinite(right[1]):
            found = "is never as large as" if left[1] < 0 else "is not smaller than"
            raise ValueError(
                f"input_scale='balanced' cannot be found for layer {caller.indices[0]} of {config.model_type} "
                f"({type(layer).__name__}): its update {found} its input at factors between {_FACTORS[-1]:g} and "
                f"{_FACTORS[0]:g}. Give input_scale a number."
            )
        return float(f"{math.exp(_find_zero(log_ratio, left, right)):.5g}")


def _find_zero(
    function: Callable[[float], float], left: tuple[float, float], right: tuple[float, float], tolerance: float = 1e-6
) -> float:
    """Return the zero between two points of a function by the Illinois method: this one is almost a line."""
    (a, f_a), (b, f_b) = left, right
    replaced = ""
    for _ in range(100):
        middle = (a * f_b - b * f_a) / (f_b - f_a)
        value = function(middle)
        if abs(value) < tolerance or abs(b - a) < tolerance:
            break
        side = "b" if (value < 0) == (f_b < 0) else "a"
        if side == "b":
            b, f_b, f_a = middle, value, f_a / 2 if replaced == side else f_a
        else:
            a, f_a, f_b = middle, value, f_b / 2 if replaced == side else f_b
        replaced = side
    return middle


@contextmanager
def _eager_attention(caller: LLMLayerCaller) -> Iterator[None]:
    """Others, such as flash attention, run only on some devices and in some data types."""
    config = caller.config
    before, config._attn_implementation_internal = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation_internal = before


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    in_training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in in_training:
            m.training = True


__all__ = ["balanced_input_scale", "layer_update_ratio"]
