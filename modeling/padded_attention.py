# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Attention over scenes, whose numbers of agents, lanes, objects or words differ, so that they are padded."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(dim=-1)
    weights = nn.functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    num_heads: int,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""
    Attend by the implementation that the configuration of a module chooses.

    Args:
        module (`nn.Module`): the attention, with a `config` and `is_causal = False`.
        query (`torch.Tensor` of shape `(batch, queries, width)`): queries; `key` and `value` are alike.
        mask (`torch.Tensor` of shape `(batch, keys)`, *optional*): True = token, False = padding.
        num_heads (`int`): number of heads.
        scaling (`float`): factor of the scores.
        dropout (`float`, *optional*, defaults to 0.0): dropout of the weights, in training.

    Returns:
        `tuple`: the heads side by side, of shape `(batch, queries, width)`, and the weights, if they are computed.
    """
    query, key, value = (tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    bias = None
    if mask is not None:
        lowest = torch.finfo(query.dtype).min
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)[:, None, None]
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    dropout = dropout if module.training else 0.0
    heads, weights = function(module, query, key, value, bias, scaling=scaling, dropout=dropout, is_causal=False)
    return heads.flatten(2), weights


__all__ = ["attend"]
