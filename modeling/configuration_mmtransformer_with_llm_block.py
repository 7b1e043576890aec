# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of an mmTransformer with an LLM block."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class MMTransformerWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`MMTransformerWithLLMBlockModel`]. The defaults are those of the released mmTransformer
    ("Multimodal Motion Prediction with Stacked Transformers", CVPR 2021) for Argoverse 1.

    Args:
        num_history_features (`int`, *optional*, defaults to 4):
            Features of a history step: the offset, its time, and whether it was observed.
        num_lane_attributes (`int`, *optional*, defaults to 3):
            Attributes of a lane's point beside its coordinates.
        num_future_steps (`int`, *optional*, defaults to 30):
            Number of predicted steps.
        num_proposals (`int`, *optional*, defaults to 6):
            Number of trajectories, K. With `region_centers` it is a multiple of their number; the paper has 36.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of layers of each encoder and decoder, except the social decoder.
        num_attention_heads (`int`, *optional*, defaults to 2):
            Number of attention heads of a layer.
        intermediate_size (`int`, *optional*, defaults to 256):
            Width of the feed-forward layers.
        position_hidden_size (`int`, *optional*, defaults to 64):
            Width of the embedded positions of agents.
        lane_hidden_size (`int`, *optional*, defaults to 32):
            Width of the subgraph's layers, which encode the vectors of a lane.
        num_lane_layers (`int`, *optional*, defaults to 2):
            Number of the subgraph's layers.
        decoder_hidden_size (`int`, *optional*, defaults to 128):
            Last hidden width of the two MLPs that predict trajectories and scores.
        num_social_decoder_layers (`int`, *optional*, defaults to 0):
            Number of layers of the social decoder, in which the target's proposals attend to all agents. The paper
            describes 4; the released code runs none.
        region_centers (`list[list[float]]`, *optional*):
            Centres of the regions of the paper's region-based training, in metres in the target's frame: a true end
            point belongs to the nearest one, and trains only that region's proposals. `None` trains the proposal
            nearest to the truth.
        add_constant_velocity (`bool`, *optional*, defaults to `False`):
            Whether the offsets from step to step are predicted as deviations from the target's last observed
            displacement, so that an output of 0 is constant velocity. Not in the paper; it shortens the training on
            small data.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        llm_block_tokens (`str`, *optional*, defaults to `"agents_and_lanes"`):
            The tokens that the LLM block processes, just before the head: one for each agent, from the social
            encoder, and one for each lane, from the map encoder; or, with `"proposals_and_lanes"`, the proposals of
            each agent instead of its token.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block. `None` is the plain mmTransformer, the baseline of every comparison.

    Raises:
        `ValueError`: if `llm_block.position` is not -1, `hidden_size` is not even or not a multiple of
            `num_attention_heads`, or `num_proposals` is not a multiple of the number of regions.

    Example:

    ```python
    >>> from hf_frozen_llm import (
    ...     LLMBlockConfig,
    ...     MMTransformerWithLLMBlockConfig,
    ...     MMTransformerWithLLMBlockForMotionForecasting,
    ... )

    >>> config = MMTransformerWithLLMBlockConfig(
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = MMTransformerWithLLMBlockForMotionForecasting(config)
    ```"""

    model_type = "mmtransformer_with_llm_block"

    num_history_features: int = 4
    num_lane_attributes: int = 3
    num_future_steps: int = 30
    num_proposals: int = 6
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    position_hidden_size: int = 64
    lane_hidden_size: int = 32
    num_lane_layers: int = 2
    decoder_hidden_size: int = 128
    num_social_decoder_layers: int = 0
    region_centers: list[list[float]] | None = None
    add_constant_velocity: bool = False
    layer_norm_eps: float = 1e-5
    # The frozen-LLM paper says "agent and lane tokens", each the encoding of a whole trajectory or lane; of
    # mmTransformer's features only these are one token for each agent.
    llm_block_tokens: Literal["agents_and_lanes", "proposals_and_lanes"] = "agents_and_lanes"
    llm_block: LLMBlockConfig | dict | None = None

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        if isinstance(self.llm_block, LLMBlockConfig) and self.llm_block.position != -1:
            raise ValueError(
                f"llm_block.position is {self.llm_block.position}; an mmTransformer has its block before the head: "
                "use -1, and choose the tokens by llm_block_tokens."
            )
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be even and a multiple of num_attention_heads, "
                f"{self.num_attention_heads}."
            )
        if self.region_centers is not None:
            if not self.region_centers or any(len(center) != 2 for center in self.region_centers):
                raise ValueError(f"region_centers is {self.region_centers}; give a list of [x, y], in metres.")
            if self.num_proposals % len(self.region_centers):
                raise ValueError(
                    f"num_proposals is {self.num_proposals}; it must be a multiple of the number of regions, "
                    f"{len(self.region_centers)}."
                )


__all__ = ["MMTransformerWithLLMBlockConfig"]
