# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a Forecast-MAE with an LLM block."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class ForecastMAEWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`ForecastMAEWithLLMBlockModel`]. The defaults are those of the published Forecast-MAE
    ("Forecast-MAE: Self-supervised Pre-training for Motion Forecasting with Masked Autoencoders", ICCV 2023) for
    Argoverse 2.

    Args:
        num_history_features (`int`, *optional*, defaults to 4):
            Features of a history step: the offset, the change of speed, and whether the agent was observed.
        num_lane_features (`int`, *optional*, defaults to 3):
            Features of a lane's point: its coordinates relative to the lane's centre, and whether it is in range.
        num_agent_types (`int`, *optional*, defaults to 4):
            Number of types of agents: vehicles, pedestrians, cyclists and others.
        num_future_steps (`int`, *optional*, defaults to 60):
            Number of predicted steps.
        num_modes (`int`, *optional*, defaults to 6):
            Number of predicted trajectories, K.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Number of the encoder's layers.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads of an encoder layer.
        intermediate_size (`int`, *optional*, defaults to 512):
            Width of the encoder's feed-forward layers.
        num_history_layers (`int`, *optional*, defaults to 2):
            Number of layers of neighbourhood attention in each level of the history encoder. From level to level the
            steps halve and the width doubles, up to `hidden_size`.
        history_attention_heads (`list[int]`, *optional*, defaults to `(2, 4, 8)`):
            Number of attention heads in each of these levels.
        history_kernel_sizes (`list[int]`, *optional*, defaults to `(3, 3, 5)`):
            Number of steps to which a step attends, in each of these levels.
        lane_hidden_size (`int`, *optional*, defaults to 128):
            First hidden width of the lane encoder; the second is twice this.
        decoder_hidden_size (`int`, *optional*, defaults to 256):
            Hidden width of the MLPs that predict trajectories and scores.
        drop_path_rate (`float`, *optional*, defaults to 0.2):
            Rate of stochastic depth of the last layer of the encoder and of the history encoder; it rises from 0.
        add_constant_velocity (`bool`, *optional*, defaults to `False`):
            Whether positions are predicted as deviations from constant velocity, that of the target's last observed
            displacement. Not in the paper; it shortens the training on small data.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block, on the tokens of agents and lanes; by default after the encoder's layers, before its norm.
            `None` is the plain Forecast-MAE, the baseline of every comparison.

    Raises:
        `ValueError`: if `llm_block.position` is not one of -1, 0, …, `num_hidden_layers`, or the sizes do not fit
            each other.

    Example:

    ```python
    >>> from hf_frozen_llm import (
    ...     ForecastMAEWithLLMBlockConfig,
    ...     ForecastMAEWithLLMBlockForMotionForecasting,
    ...     LLMBlockConfig,
    ... )

    >>> config = ForecastMAEWithLLMBlockConfig(
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = ForecastMAEWithLLMBlockForMotionForecasting(config)
    ```"""

    model_type = "forecast_mae_with_llm_block"

    num_history_features: int = 4
    num_lane_features: int = 3
    num_agent_types: int = 4
    num_future_steps: int = 60
    num_modes: int = 6
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 512
    num_history_layers: int = 2
    history_attention_heads: tuple[int, ...] | list[int] = (2, 4, 8)
    history_kernel_sizes: tuple[int, ...] | list[int] = (3, 3, 5)
    lane_hidden_size: int = 128
    decoder_hidden_size: int = 256
    drop_path_rate: float = 0.2
    add_constant_velocity: bool = False
    layer_norm_eps: float = 1e-5
    llm_block: LLMBlockConfig | dict | None = None

    @property
    def history_sizes(self) -> list[int]:
        """The widths of the history encoder's levels; the last one is `hidden_size`."""
        count = len(self.history_attention_heads)
        return [self.hidden_size // 2 ** (count - 1 - level) for level in range(count)]

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}."
            )
        heads, kernels = self.history_attention_heads, self.history_kernel_sizes
        if not heads or len(heads) != len(kernels):
            raise ValueError(
                f"history_attention_heads is {heads} and history_kernel_sizes {kernels}; both must have one number "
                "for each level."
            )
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"history_kernel_sizes is {kernels}; its numbers must be odd.")
        sizes = self.history_sizes
        if self.hidden_size % 2 ** (len(heads) - 1) or any(size % count for size, count in zip(sizes, heads)):
            raise ValueError(
                f"hidden_size is {self.hidden_size}, so the levels of the history encoder are {sizes} wide; they must "
                f"double from level to level and be multiples of history_attention_heads, {heads}."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be at least 0 and below 1.")


__all__ = ["ForecastMAEWithLLMBlockConfig"]
