# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Operations and parameters of a model, counted on the meta device: exact, and without any weights."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.training.lora import add_lora


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The classifier of a configuration without its weights."""
    with torch.device("meta"):
        return find_task(config.model_type).models[config.model_type](config)


def make_inputs(config: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """Inputs of a classifier on the meta device; clouds have the 1,024 points of the paper."""
    if config.model_type == "point_bert_with_llm_block":
        return {"points": torch.empty(batch_size, 1024, 3, device="meta")}
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else [config.image_size] * 2
    frames = [config.num_frames] if config.model_type == "videomae_with_llm_block" else []
    return {"pixel_values": torch.empty(batch_size, *frames, config.num_channels, *size, device="meta")}


def count_flops(
    config: PreTrainedConfig, batch_size: int, freeze_host: bool = False, lora: dict[str, Any] | None = None
) -> tuple[float, float]:
    """
    Floating point operations of a classifier for one input: of a forward in evaluation, and of a training step.

    Args:
        config (`PreTrainedConfig`): of a model with an LLM block.
        batch_size (`int`): inputs of a step. What is computed once in a step is shared among them.
        freeze_host (`bool`, *optional*, defaults to `False`): whether the host is not trained.
        lora (`dict[str, Any]`, *optional*): fields of `peft.LoraConfig`, if the LLM layers are trained by LoRA.

    Returns:
        `tuple[float, float]`: both counts, a multiplication and an addition being two.
    """
    model: Any = build_on_meta(config)
    inputs = make_inputs(config, batch_size)
    labels = torch.zeros(batch_size, dtype=torch.long, device="meta")
    if freeze_host:
        model.freeze_host()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.eval()(**inputs)
    if lora is not None:
        with torch.device("meta"):
            add_lora(model, lora)
    with FlopCounterMode(display=False) as step:
        model.train()(**inputs, labels=labels).loss.backward()
    return forward.get_total_flops() / batch_size, step.get_total_flops() / batch_size
