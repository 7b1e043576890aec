# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a Point-BERT with an LLM block."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class PointBertWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`PointBertWithLLMBlockModel`]. The defaults are those of Point-BERT ("Point-BERT: Pre-training
    3D Point Cloud Transformers with Masked Point Modeling", CVPR 2022) for point clouds of 1,024 points.

    Args:
        num_groups (`int`, *optional*, defaults to 64):
            Number of groups of points; each becomes a token.
        group_size (`int`, *optional*, defaults to 32):
            Number of points of a group.
        encoder_channels (`tuple[int, int, int]`, *optional*, defaults to `(128, 256, 512)`):
            Hidden widths of the mini-PointNet: two for each point, and one after the group's maximum is concatenated.
        encoder_hidden_size (`int`, *optional*, defaults to 256):
            Width of the mini-PointNet's output for a group.
        position_hidden_size (`int`, *optional*, defaults to 128):
            Hidden width of the two layers that compute position embeddings from the centres of the groups.
        hidden_size (`int`, *optional*, defaults to 384):
            Width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 6):
            Number of attention heads of a layer.
        intermediate_size (`int`, *optional*, defaults to 1536):
            Width of the feed-forward layers.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        qkv_bias (`bool`, *optional*, defaults to `False`):
            Whether queries, keys and values have a bias.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Probability of dropping a layer's update in training; it rises from 0 in the first layer to this in the
            last.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        classifier_hidden_size (`int`, *optional*, defaults to 256):
            Hidden width of the classifier's two layers.
        classifier_dropout (`float`, *optional*, defaults to 0.5):
            Dropout between the classifier's two layers.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block. `None` is the plain Point-BERT, the baseline of every comparison.

    Raises:
        `ValueError`: if `llm_block.position` is not one of -1, 0, …, `num_hidden_layers`, or `hidden_size` is not a
            multiple of `num_attention_heads`.

    Example:

    ```python
    >>> from hf_frozen_llm import (
    ...     LLMBlockConfig,
    ...     PointBertWithLLMBlockConfig,
    ...     PointBertWithLLMBlockForPointCloudClassification,
    ... )

    >>> config = PointBertWithLLMBlockConfig(
    ...     num_labels=15, llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = PointBertWithLLMBlockForPointCloudClassification(config)
    ```"""

    model_type = "point_bert_with_llm_block"

    num_groups: int = 64
    group_size: int = 32
    encoder_channels: tuple[int, ...] | list[int] = (128, 256, 512)
    encoder_hidden_size: int = 256
    position_hidden_size: int = 128
    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    qkv_bias: bool = False
    drop_path_rate: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    classifier_hidden_size: int = 256
    classifier_dropout: float = 0.5
    llm_block: LLMBlockConfig | dict | None = None

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )


__all__ = ["PointBertWithLLMBlockConfig"]
