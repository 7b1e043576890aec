# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Frozen language model layers in vision encoders, as transformers models."""

from . import auto
from .modeling.configuration_llm_block import LLMBlockConfig
from .modeling.configuration_vit_with_llm_block import ViTWithLLMBlockConfig
from .modeling.modeling_llm_block import LLMBlock
from .modeling.modeling_vit_with_llm_block import ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel
from .version import __version__


__all__ = [
    "LLMBlock",
    "LLMBlockConfig",
    "ViTWithLLMBlockConfig",
    "ViTWithLLMBlockForImageClassification",
    "ViTWithLLMBlockModel",
    "__version__",
    "auto",
]
