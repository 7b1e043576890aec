# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""LoRA on the LLM layers of a model whose other parts are trained as before."""

from typing import Any, cast

from peft import LoraConfig, LoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_frozen_llm import LLMBlock
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


def add_lora(model: PreTrainedModelWithLLMBlock, fields: dict[str, Any]) -> LoraModel:
    """
    Puts LoRA on the LLM layers; what else is trained, stays so.

    Args:
        model ([`PreTrainedModelWithLLMBlock`]): a model with LLM layers, which is changed in place.
        fields (`dict[str, Any]`): of `peft.LoraConfig`; `target_modules` is by default every linear layer.

    Returns:
        `peft.LoraModel`: whose `merge_and_unload()` makes ordinary layers of it.
    """
    layers = cast(LLMBlock, model.llm_block).llm_layers
    linear = [name for name, module in layers.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    lora = LoraModel(layers, LoraConfig(**{"target_modules": linear, **fields}), "default")
    # The layers' own tensors have other names now.
    model._keys_to_ignore_on_save = model._keys_left_out_of_checkpoints()
    return lora
