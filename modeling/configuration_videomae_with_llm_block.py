# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a VideoMAE with an LLM block."""

from huggingface_hub.dataclasses import strict
from transformers import VideoMAEConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class VideoMAEWithLLMBlockConfig(WithLLMBlockConfigMixin, VideoMAEConfig):
    r"""
    Configuration of a [`VideoMAEWithLLMBlockModel`]: the fields of [`~transformers.VideoMAEConfig`], and the block.

    Args:
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block. `None` is the plain VideoMAE encoder, the baseline of every comparison.
        fc_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the norm before the classifier. The default is that of transformers; the paper's released code
            uses 1e-6.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Rate of stochastic depth of the last layer; it rises linearly from 0 in the first. Each residual branch of
            the host is dropped for single examples.

    Raises:
        `ValueError`: if `llm_block.position` is not one of -1, 0, …, `num_hidden_layers`.

    Example:

    ```python
    >>> from hf_frozen_llm import (
    ...     LLMBlockConfig,
    ...     VideoMAEWithLLMBlockConfig,
    ...     VideoMAEWithLLMBlockForVideoClassification,
    ... )

    >>> config = VideoMAEWithLLMBlockConfig(
    ...     hidden_size=384,
    ...     num_attention_heads=6,
    ...     intermediate_size=1536,
    ...     num_labels=174,
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1),
    ... )
    >>> model = VideoMAEWithLLMBlockForVideoClassification(config)
    ```"""

    model_type = "videomae_with_llm_block"

    llm_block: LLMBlockConfig | dict | None = None
    fc_norm_eps: float = 1e-5
    drop_path_rate: float = 0.0

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()


__all__ = ["VideoMAEWithLLMBlockConfig"]
