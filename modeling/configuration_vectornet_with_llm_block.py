# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a VectorNet with an LLM block."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class VectorNetWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`VectorNetWithLLMBlockModel`]. The defaults are those of "VectorNet: Encoding HD Maps and Agent
    Dynamics from Vectorized Representation" (CVPR 2020) for Argoverse 1, with six trajectories as in the frozen-LLM
    paper's table 4.

    Args:
        num_vector_features (`int`, *optional*, defaults to 9):
            Features of a vector: start and end (x, y) first, then its attributes.
        coordinate_scale (`float`, *optional*, defaults to 1.0):
            Factor of the coordinates of vectors in the first layer. Coordinates of many metres hide smaller features
            behind its layer norm; with 0.05, a network learns faster on small data. Not in the paper.
        num_future_steps (`int`, *optional*, defaults to 30):
            Number of predicted steps.
        num_modes (`int`, *optional*, defaults to 6):
            Number of predicted trajectories, K. The VectorNet paper has 1.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of a polyline's node: twice that of the subgraph's layers, 64 in the paper.
        num_subgraph_layers (`int`, *optional*, defaults to 3):
            Number of the subgraph's layers.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of layers of the global graph.
        num_attention_heads (`int`, *optional*, defaults to 1):
            Number of attention heads of the global graph.
        decoder_hidden_size (`int`, *optional*, defaults to 64):
            Hidden width of the MLPs that predict trajectories, scores and hidden nodes.
        normalize_polylines (`bool`, *optional*, defaults to `True`):
            Whether polyline features are normalised to length 1 before the global graph.
        use_identifier (`bool`, *optional*, defaults to `True`):
            Whether the global graph reads, beside the features of a polyline, the smallest x and y of its vectors'
            starts, which say which one it is when its features are hidden.
        qkv_bias (`bool`, *optional*, defaults to `False`):
            Whether queries, keys and values of the global graph have a bias.
        trajectory_loss (`"huber"`, `"l2"` or `"gaussian"`, *optional*, defaults to `"gaussian"`):
            The loss of the offsets from step to step: Huber with delta 1, squared error, or, as in the paper, the
            negative log-likelihood of a Gaussian, whose variances are predicted.
        add_constant_velocity (`bool`, *optional*, defaults to `False`):
            Whether the offsets from step to step are predicted as deviations from the target's last observed
            displacement, so that an output of 0 is constant velocity. Not in the paper; it shortens the training on
            small data.
        node_completion_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss of node completion: in training, polylines are hidden at random and predicted. The paper
            has 1.0.
        node_completion_ratio (`float`, *optional*, defaults to 0.1):
            Share of the polylines, except the target, that are hidden.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block, on the nodes of the polylines; by default after the global graph. `None` is the plain
            VectorNet, the baseline of every comparison.

    Raises:
        `ValueError`: if `llm_block.position` is not one of -1, 0, …, `num_hidden_layers`, `hidden_size` is odd or
            not a multiple of `num_attention_heads`, or a weight or share is out of its range.

    Example:

    ```python
    >>> from hf_frozen_llm import (
    ...     LLMBlockConfig,
    ...     VectorNetWithLLMBlockConfig,
    ...     VectorNetWithLLMBlockForMotionForecasting,
    ... )

    >>> config = VectorNetWithLLMBlockConfig(
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = VectorNetWithLLMBlockForMotionForecasting(config)
    ```"""

    model_type = "vectornet_with_llm_block"

    num_vector_features: int = 9
    coordinate_scale: float = 1.0
    num_future_steps: int = 30
    num_modes: int = 6
    hidden_size: int = 128
    num_subgraph_layers: int = 3
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    decoder_hidden_size: int = 64
    normalize_polylines: bool = True
    use_identifier: bool = True
    qkv_bias: bool = False
    trajectory_loss: Literal["huber", "l2", "gaussian"] = "gaussian"
    add_constant_velocity: bool = False
    node_completion_weight: float = 0.0
    node_completion_ratio: float = 0.1
    layer_norm_eps: float = 1e-5
    llm_block: LLMBlockConfig | dict | None = None

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()
        if self.hidden_size % 2 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be even, twice the subgraph's width, and a multiple of "
                f"num_attention_heads, {self.num_attention_heads}."
            )
        if self.num_vector_features < 4:
            raise ValueError(
                f"num_vector_features is {self.num_vector_features}; a vector has at least start and end, 4 numbers."
            )
        if self.node_completion_weight < 0 or not 0 < self.node_completion_ratio < 1:
            raise ValueError(
                f"node_completion_weight is {self.node_completion_weight} and node_completion_ratio "
                f"{self.node_completion_ratio}; the weight is not negative, the share between 0 and 1."
            )


__all__ = ["VectorNetWithLLMBlockConfig"]
