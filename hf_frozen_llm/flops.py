# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Count the operations of a model on the meta device: exact, and without weights."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from hf_frozen_llm.auto import OTHER_MODELS, TASK_MODELS


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the task model of a configuration without its weights."""
    saved_class = (config.architectures or [""])[0]
    with torch.device("meta"):
        return OTHER_MODELS.get(saved_class, TASK_MODELS[config.model_type])(config)


def count_flops(
    config: PreTrainedConfig, batch_size: int, freeze_host: bool = False, lora: dict[str, Any] | None = None
) -> tuple[float, float]:
    """
    Count the floating point operations for one input: of a forward in evaluation, and of a training step.

    Args:
        config (`PreTrainedConfig`): The configuration of a model of this package.
        batch_size (`int`): The inputs of a step. They share the cost of operations that run once in a step.
        freeze_host (`bool`, *optional*, defaults to `False`): Whether the host is frozen, too.
        lora (`dict[str, Any]`, *optional*): The fields of `peft.LoraConfig` if LoRA trains the LLM layers.

    Returns:
        `tuple[float, float]`: both counts of the matrix products; a multiplication and an addition are two operations.
    """
    model: Any = build_on_meta(config)
    with torch.device("meta"):
        dummies = model.dummy_inputs
    inputs = {name: tensor[:1].expand(batch_size, *tensor.shape[1:]) for name, tensor in dummies.items()}
    if freeze_host:
        model.freeze_host()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.eval()(**inputs)
    if lora is not None:
        from hf_frozen_llm.training.lora import add_lora  # imports peft, which takes long

        with torch.device("meta"):
            add_lora(model, lora)
    with FlopCounterMode(display=False) as step:
        # A sum replaces the loss, for any targets: losses have no matrix products.
        outputs = [value for value in model.train()(**inputs).to_tuple() if isinstance(value, torch.Tensor)]
        loss: Any = sum(value.sum() for value in outputs if value.is_floating_point())
        loss.backward()
    return forward.get_total_flops() / batch_size, step.get_total_flops() / batch_size
