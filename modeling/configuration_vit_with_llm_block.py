# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a ViT with an LLM block."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class ViTWithLLMBlockConfig(WithLLMBlockConfigMixin, ViTConfig):
    r"""
    Configuration of a [`ViTWithLLMBlockModel`]: the fields of [`~transformers.ViTConfig`], and the block.

    Args:
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block. `None` is the plain ViT, the baseline of every comparison.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Rate of stochastic depth of the last layer; it rises linearly from 0 in the first. Each residual branch of
            the host is dropped for single examples.

    Raises:
        `ValueError`: if `llm_block.position` is not one of -1, 0, …, `num_hidden_layers`.

    Example:

    ```python
    >>> from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification

    >>> config = ViTWithLLMBlockConfig(
    ...     hidden_size=192,
    ...     num_attention_heads=3,
    ...     intermediate_size=768,
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1),
    ... )
    >>> model = ViTWithLLMBlockForImageClassification(config)
    ```"""

    model_type = "vit_with_llm_block"

    llm_block: LLMBlockConfig | dict | None = None
    drop_path_rate: float = 0.0

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()


__all__ = ["ViTWithLLMBlockConfig"]
