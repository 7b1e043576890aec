# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Learning rates by layer, by group of parameters and by step, and the parameters that decay."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler


@dataclass
class Schedule:
    """
    The keys of a schedule that `TrainingArguments` does not have; see [`RunArguments`].

    Args:
        warmup_epochs (`float`, *optional*): length of the warm-up; by default `warmup_steps`.
        warmup_learning_rate (`float`, *optional*): the first rate.
        min_learning_rate (`float`, *optional*): the last rate.
        cooldown_epochs (`float`, *optional*, defaults to 0): epochs at the last rate.
    """

    warmup_epochs: float | None = None
    warmup_learning_rate: float | None = None
    min_learning_rate: float | None = None
    cooldown_epochs: float = 0

    @property
    def has_ends(self) -> bool:
        """Return whether the rates at the beginning and at the end are given."""
        return not (self.warmup_learning_rate is self.min_learning_rate is None and self.cooldown_epochs == 0)

    def check(self, args: TrainingArguments) -> None:
        """Refuse rates at the ends of another schedule than a cosine."""
        if self.has_ends and args.lr_scheduler_type != SchedulerType.COSINE:
            raise ValueError(
                "warmup_learning_rate, min_learning_rate and cooldown_epochs need lr_scheduler_type: cosine, and it "
                f"is {SchedulerType(args.lr_scheduler_type).value}. Change it, or remove them."
            )

    def num_warmup_steps(self, args: TrainingArguments, num_training_steps: int, steps_per_epoch: int) -> int:
        if self.warmup_epochs is None:
            return args.get_warmup_steps(num_training_steps)
        return round(self.warmup_epochs * steps_per_epoch)

    def create(self, optimizer: Any, args: TrainingArguments, num_training_steps: int, steps_per_epoch: int) -> Any:
        """
        Return the scheduler of transformers for this schedule: with a first or a last rate, or a cool-down, its cosine
        between both (`cosine_warmup_with_min_lr`), in proportion to the rate of each group of the optimizer. The rate
        changes with each step; DeiT's changes with each epoch, and its cosine counts the epochs of the warm-up, too.
        """
        num_warmup_steps = self.num_warmup_steps(args, num_training_steps, steps_per_epoch)
        last_step = num_training_steps - round(self.cooldown_epochs * steps_per_epoch)
        if last_step < num_training_steps and num_warmup_steps >= last_step:
            raise ValueError(
                f"The warm-up takes {num_warmup_steps} steps, and the cool-down {num_training_steps - last_step}, of "
                f"{num_training_steps}. Shorten warmup_epochs or cooldown_epochs, or train longer."
            )
        name = SchedulerType(args.lr_scheduler_type)
        options: dict[str, Any] = {**cast(dict[str, Any], args.lr_scheduler_kwargs or {})}
        if self.has_ends:
            name = SchedulerType.COSINE_WARMUP_WITH_MIN_LR
            options |= {
                "min_lr_rate": (self.min_learning_rate or 0.0) / args.learning_rate,
                "warmup_lr_rate": (self.warmup_learning_rate or 0.0) / args.learning_rate,
            }
        scheduler = get_scheduler(name, optimizer, num_warmup_steps, last_step, options)
        if last_step < num_training_steps:  # transformers' cosine would rise again
            scheduler.lr_lambdas = [partial(_hold, scale, last_step - 1) for scale in scheduler.lr_lambdas]
        return scheduler


def _hold(scale: Callable[[int], float], last_step: int, step: int) -> float:
    return scale(min(step, last_step))


def names_of_decayed(model: nn.Module) -> list[str]:
    """
    Return the parameters that decay by the rule of timm and DeiT: matrices. Vectors (biases, norms, scales of layers),
    the class token and other tokens, positions, tables of position biases, and embeddings do not.
    """
    names = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            is_matrix = parameter.ndim > 1 and re.search("weight|proj", name.rpartition(".")[2])
            if is_matrix and not isinstance(module, nn.Embedding):
                names.append(name)
    return names


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
