# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Learning rates by layer and by group of parameters, and their drops."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def scale_learning_rates(optimizer: Any, model: Any, layer_decay: float, scales: Mapping[str, float]) -> None:
    """
    Split the groups of an optimizer, so that each parameter learns at its own rate.

    Args:
        optimizer (`torch.optim.Optimizer`): an optimizer before its first step, which is changed.
        model (`PreTrainedModelWithLLMBlock`): the model it trains.
        layer_decay (`float`): see [`RunArguments`].
        scales (`Mapping[str, float]`): see `learning_rate_scales` of [`RunArguments`].

    Raises:
        `ValueError`: if the host has no layers one after the other, or a pattern fits no trained parameter.
    """
    if layer_decay == 1 and not scales:
        return
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = dict.fromkeys(trained, 1.0)
    if layer_decay < 1:
        factors = decay_by_layer(list(factors), model.base_model_prefix, layer_decay)
    groups = group_patterns(model.base_model_prefix)
    for key, scale in scales.items():
        pattern = re.compile(groups.get(key, key))
        matching = [name for name in factors if pattern.search(name)]
        if not matching and key not in groups:  # a plain host has no projections
            raise ValueError(
                f"learning_rate_scales: {key!r} fits no trained parameter. Give one of {', '.join(groups)}, or a "
                f"regular expression that a name contains, such as {next(iter(factors))!r}."
            )
        for name in matching:
            factors[name] *= scale
    by_parameter = {trained[name]: factor for name, factor in factors.items()}
    split_groups(optimizer, by_parameter)


def group_patterns(prefix: str) -> dict[str, str]:
    """Return a regular expression for each named group of parameters of a model whose host is called `prefix`."""
    return {
        "host": rf"^{prefix}\.",
        "embeddings": rf"^{prefix}\.embeddings\.",
        "projections": r"^llm_block\.(input|output|skip)_projection\.",
        "head": rf"^(?!{prefix}\.|llm_block\.)",
    }


def decay_by_layer(names: list[str], prefix: str, layer_decay: float) -> dict[str, float]:
    """Return the factors of layer-wise decay, as in BEiT (github.com/microsoft/unilm) and VideoMAE."""
    layers = {name: re.match(rf"{prefix}\.(?:encoder\.)?layers?\.(\d+)\.(.+)", name) for name in names}
    found = {name: match for name, match in layers.items() if match}
    if not found or any(re.search(r"\bblocks\.\d", match[2]) for match in found.values()):
        raise ValueError(f"layer_decay needs a host with layers one after the other, unlike {prefix}. Remove it.")
    depths = {name: int(match[1]) + 1 for name, match in found.items()}
    top = max(depths.values()) + 1
    return {
        name: layer_decay ** (top - (0 if name.startswith(f"{prefix}.embeddings.") else depths.get(name, top)))
        for name in names
    }


def split_groups(optimizer: Any, factors: Mapping[nn.Parameter, float]) -> None:
    """Make a group of each factor in each group of the optimizer."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group.pop("params"):
            by_factor.setdefault(factors[parameter], []).append(parameter)
        for factor, parameters in by_factor.items():
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * factor})


def drop_learning_rates(optimizer: Any, drops: Sequence[float], factor: float, num_warmup_steps: int) -> LambdaLR:
    """Return a schedule that multiplies the learning rates by `factor` from each of the steps `drops` on."""

    def scale(step: int) -> float:
        warmup = min(1.0, step / num_warmup_steps) if num_warmup_steps else 1.0
        return warmup * factor ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, scale)
