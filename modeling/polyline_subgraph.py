# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The subgraph of VectorNet, which encodes the vectors of each polyline as one token.

Source: "VectorNet: Encoding HD Maps and Agent Dynamics from Vectorized Representation" (CVPR 2020), section 3.2.
"""

import torch
from torch import nn


class PolylineSubgraphLayer(nn.Module):
    """A linear layer on each vector, and beside it the maximum over the polyline."""

    def __init__(self, in_features: int, hidden_size: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(in_features, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        features = self.norm(self.linear(vectors)).relu()
        if mask is not None:
            # Zeros never win the maximum: after the ReLU nothing is below them.
            features = features.masked_fill(~mask[..., None], 0)
        maximum = features.amax(dim=-2, keepdim=True).expand_as(features)
        return torch.cat([features, maximum], dim=-1)


class PolylineSubgraph(nn.Module):
    r"""
    Encode polylines: vectors of shape `(batch, polylines, vectors, in_features)` to `(batch, polylines, 2 *
    hidden_size)`.

    Args:
        in_features (`int`): features of a vector.
        hidden_size (`int`): width of the layers; that of a polyline is twice this.
        num_layers (`int`): number of layers.
        eps (`float`): epsilon of the layer norms.
    """

    def __init__(self, in_features: int, hidden_size: int, num_layers: int, eps: float):
        super().__init__()
        widths = [in_features] + [2 * hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(PolylineSubgraphLayer(width, hidden_size, eps) for width in widths)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`mask` of shape `(batch, polylines, vectors)`: 1 = vector, 0 = padding."""
        if mask is not None:
            mask = mask.bool()
            vectors = vectors.masked_fill(~mask[..., None], 0)
        for layer in self.layers:
            vectors = layer(vectors, mask)
        return vectors.amax(dim=-2)


__all__ = ["PolylineSubgraph"]
