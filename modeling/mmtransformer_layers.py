# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Encoder and decoder layers of an mmTransformer.

Source: github.com/decisionforce/mmTransformer (`lib/models`), run for its numbers; the layers are pre-norm.
"""

from typing import TypeAlias

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_mmtransformer_with_llm_block import MMTransformerWithLLMBlockConfig
from .padded_attention import attend


StateAndWeights: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


class MMTransformerAttention(nn.Module):
    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> StateAndWeights:
        """`mask` of shape `(batch, keys)`: True = token. Without any token the output is 0."""
        heads, weights = attend(
            self, self.q_proj(query), self.k_proj(key), self.v_proj(value), mask, self.num_heads, self.scaling
        )
        output = self.o_proj(heads)
        return output if mask is None else output * mask.any(dim=-1)[:, None, None], weights


class MMTransformerMLP(nn.Module):
    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_size)
        self.fc2 = nn.Linear(hidden_size, in_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(hidden_states).relu())


class MMTransformerEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MMTransformerAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MMTransformerMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> StateAndWeights:
        normed = self.norm1(hidden_states)
        update, weights = self.attention(normed, normed, normed, mask)
        hidden_states = hidden_states + update
        return hidden_states + self.mlp(self.norm2(hidden_states)), weights


class MMTransformerEncoder(nn.Module):
    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.layers = nn.ModuleList(MMTransformerEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> list[StateAndWeights]:
        """Return the output and the attention weights of every layer, the last one after the norm."""
        outputs = []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, mask)
            outputs.append((hidden_states, weights))
        outputs[-1] = (self.norm(hidden_states), outputs[-1][1])
        return outputs


class MMTransformerDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = MMTransformerAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = MMTransformerAttention(config)
        self.norm3 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MMTransformerMLP(config.hidden_size, config.intermediate_size)

    def forward(self, proposals: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        # As released: only the values of the self-attention are normed, not its queries and keys.
        update, _ = self.self_attention(proposals, proposals, self.norm1(proposals))
        proposals = proposals + update
        # Every agent sees the same memory, so all agents of a scene attend to it at once.
        queries = self.norm2(proposals).reshape(len(memory), -1, memory.shape[-1])
        update, _ = self.cross_attention(queries, memory, memory, mask)
        proposals = proposals + update.reshape(proposals.shape)
        return proposals + self.mlp(self.norm3(proposals))


class MMTransformerDecoder(nn.Module):
    r"""
    Decode proposals, each group of which attends to itself and to a memory.

    Args:
        config ([`MMTransformerWithLLMBlockConfig`]): the model's configuration.
        num_layers (`int`): number of layers.
    """

    def __init__(self, config: MMTransformerWithLLMBlockConfig, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(MMTransformerDecoderLayer(config) for _ in range(num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, proposals: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            proposals (`torch.Tensor` of shape `(batch * groups, proposals, hidden_size)`): the queries.
            memory (`torch.Tensor` of shape `(batch, tokens, hidden_size)`): keys and values of the cross-attention.
            mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): True = token of the memory.
        """
        for layer in self.layers:
            proposals = layer(proposals, memory, mask)
        return self.norm(proposals)


__all__ = [
    "MMTransformerAttention",
    "MMTransformerDecoder",
    "MMTransformerEncoder",
    "MMTransformerEncoderLayer",
    "MMTransformerMLP",
    "StateAndWeights",
]
