# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""LoRA on the LLM layers of a model; its other parts are trained as before."""

from typing import Any, cast

from peft import LoraConfig, LoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_frozen_llm import LLMBlock
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


def add_lora(model: PreTrainedModelWithLLMBlock, fields: dict[str, Any]) -> LoraModel:
    """
    Put LoRA on the LLM layers; all other trained parameters stay trained.

    Args:
        model ([`PreTrainedModelWithLLMBlock`]): a model with LLM layers, changed in place.
        fields (`dict[str, Any]`): fields of `peft.LoraConfig`; `target_modules` is by default every linear layer.

    Returns:
        `peft.LoraModel`: the wrapped layers; `merge_and_unload()` converts them to ordinary layers.
    """
    layers = cast(LLMBlock, model.llm_block).llm_layers
    linear = [name for name, module in layers.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    lora = LoraModel(layers, LoraConfig(**{"target_modules": linear, **fields}), "default")
    # LoRA renames the tensors of the layers.
    model._keys_to_ignore_on_save = model._keys_left_out_of_checkpoints()
    return lora
