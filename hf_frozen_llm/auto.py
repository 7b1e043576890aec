# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Makes the Auto classes of transformers know this package's models."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .modeling.configuration_llm_block import LLMBlockConfig
from .modeling.configuration_vit_with_llm_block import ViTWithLLMBlockConfig
from .modeling.modeling_llm_block import LLMBlock
from .modeling.modeling_vit_with_llm_block import ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel


AutoConfig.register("llm_block", LLMBlockConfig, exist_ok=True)
AutoModel.register(LLMBlockConfig, LLMBlock, exist_ok=True)

AutoConfig.register("vit_with_llm_block", ViTWithLLMBlockConfig, exist_ok=True)
AutoModel.register(ViTWithLLMBlockConfig, ViTWithLLMBlockModel, exist_ok=True)
AutoModelForImageClassification.register(ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification, exist_ok=True)
