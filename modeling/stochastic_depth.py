# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth (arXiv 1603.09382), which skips the update of a layer for random examples of a batch."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn


# Dropouts whose outputs transformers' layers add to the residual stream, by their paths in a layer.
_LAST_DROPOUTS = (("dropout",), ("attention.output.dropout", "output.dropout"))


def drop_path(update: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """In training, set a layer's update `(batch, …)` to 0 with this rate for each example, and scale up the others."""
    if not training or rate == 0:
        return update
    kept = torch.rand(len(update), *[1] * (update.ndim - 1), device=update.device) >= rate
    return update * kept.to(update.dtype) / (1 - rate)


def drop_path_rates(rate: float, count: int) -> list[float]:
    """Return the rates of `count` layers, which rise linearly from 0 to `rate`."""
    return torch.linspace(0, rate, count, device="cpu").tolist()  # models are also built on the meta device


class StochasticDepthDropout(nn.Dropout):
    """
    The dropout at the end of a residual branch, followed by stochastic depth.

    Args:
        p (`float`): rate of the dropout of single values.
        drop_path_rate (`float`): rate at which the whole branch is dropped for an example.
    """

    def __init__(self, p: float, drop_path_rate: float):
        super().__init__(p)
        self.drop_path_rate = drop_path_rate

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return drop_path(super().forward(input), self.drop_path_rate, self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, drop_path_rate={self.drop_path_rate}"


def add_stochastic_depth(layers: Iterable[nn.Module], rate: float, name: str) -> None:
    """
    Drop the residual branches of layers of transformers, at rates that rise linearly from 0 in the first layer to
    `rate` in the last, as in DeiT and timm. Replace the dropouts at the ends of the branches, which have no weights:
    the keys of the model stay the same.

    Args:
        layers (`Iterable[nn.Module]`): the layers of one host, in their order.
        rate (`float`): rate of the last layer.
        name (`str`): the host's name in errors.

    Raises:
        `ValueError`: for a rate outside [0, 1), or a layer without such dropouts.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate is {rate}; it must be at least 0 and below 1.")
    if rate == 0:
        return
    layers = list(layers)
    for layer, layer_rate in zip(layers, drop_path_rates(rate, len(layers))):
        modules = dict(layer.named_modules())
        paths = next((p for p in _LAST_DROPOUTS if all(isinstance(modules.get(n), nn.Dropout) for n in p)), None)
        if paths is None:
            raise ValueError(
                f"drop_path_rate is {rate}, but the residual branches of {name} do not end with a dropout, which "
                "stochastic depth replaces. Remove drop_path_rate, or choose another host."
            )
        for path in paths if layer_rate > 0 else ():
            dropout = cast(nn.Dropout, modules[path])
            layer.set_submodule(path, StochasticDepthDropout(dropout.p, layer_rate))


__all__ = ["StochasticDepthDropout", "add_stochastic_depth", "drop_path", "drop_path_rates"]
