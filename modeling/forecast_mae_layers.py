# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Parts of a Forecast-MAE: the encoders of histories and of lanes, and the layers on their tokens.

Source: "Forecast-MAE: Self-supervised Pre-training for Motion Forecasting with Masked Autoencoders" (ICCV 2023),
github.com/jchengai/forecast-mae, whose names and sizes these modules follow; for the attention of histories,
"Neighborhood Attention Transformer" (CVPR 2023).
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_forecast_mae_with_llm_block import ForecastMAEWithLLMBlockConfig
from .padded_attention import attend
from .stochastic_depth import drop_path, drop_path_rates


# Width of the history encoder's feed-forward layers, as a multiple of its own.
HISTORY_MLP_RATIO = 3


class NeighborhoodAttention(nn.Module):
    """
    Attention of each step to the `kernel_size` steps around it; at the ends, to the first or the last so many.

    Args:
        width (`int`): width of a step.
        num_heads (`int`): number of heads.
        kernel_size (`int`): number of steps, which is odd. In a shorter history each step attends to all.
    """

    def __init__(self, width: int, num_heads: int, kernel_size: int):
        super().__init__()
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.qkv = nn.Linear(width, 3 * width)
        self.relative_bias = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1))
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, steps, width)` to the same shape."""
        length, size = hidden_states.shape[1], self.kernel_size
        heads = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        steps = torch.arange(length, device=hidden_states.device)
        starts = (steps - size // 2).clamp(max=length - size).clamp(min=0)
        is_near = (steps >= starts[:, None]) & (steps < starts[:, None] + size)
        distances = (steps - steps[:, None]).clamp(1 - size, size - 1) + size - 1
        scores = query @ key.mT * query.shape[-1] ** -0.5 + self.relative_bias[:, distances]
        weights = scores.masked_fill(~is_near, torch.finfo(scores.dtype).min).softmax(dim=-1)
        return self.o_proj((weights @ value).transpose(1, 2).flatten(2))


class ForecastMAEMLP(nn.Module):
    def __init__(self, width: int, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_size)
        self.fc2 = nn.Linear(hidden_size, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class ForecastMAEHistoryLayer(nn.Module):
    def __init__(self, width: int, num_heads: int, kernel_size: int, eps: float, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = NeighborhoodAttention(width, num_heads, kernel_size)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = ForecastMAEMLP(width, HISTORY_MLP_RATIO * width)
        self.drop_path_rate = drop_path_rate

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        steps = steps + drop_path(self.attention(self.norm1(steps)), self.drop_path_rate, self.training)
        return steps + drop_path(self.mlp(self.norm2(steps)), self.drop_path_rate, self.training)


class ForecastMAEDownsampling(nn.Module):
    """Halve the steps and double their width."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * width, eps=eps)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(steps.mT).mT)


class ForecastMAEHistoryEncoder(nn.Module):
    """Encode histories `(agents, steps, features)` as tokens `(agents, hidden_size)`: a feature pyramid over time."""

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__()
        sizes, depth, eps = config.history_sizes, config.num_history_layers, config.layer_norm_eps
        self.embedding = nn.Conv1d(config.num_history_features, sizes[0], 3, padding=1)
        rates = drop_path_rates(config.drop_path_rate, depth * len(sizes))
        shapes = zip(sizes, config.history_attention_heads, config.history_kernel_sizes)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ForecastMAEHistoryLayer(*shape, eps=eps, drop_path_rate=rates[level * depth + index])
                for index in range(depth)
            )
            for level, shape in enumerate(shapes)
        )
        self.downsampling = nn.ModuleList(ForecastMAEDownsampling(size, eps) for size in sizes[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps=eps) for size in sizes)
        self.lateral_convs = nn.ModuleList(nn.Conv1d(size, sizes[-1], 3, padding=1) for size in sizes)
        self.output_conv = nn.Conv1d(sizes[-1], sizes[-1], 3, padding=1)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        steps = self.embedding(histories.mT).mT
        laterals = []
        for level, layers in enumerate(cast(Iterable[nn.ModuleList], self.levels)):
            if level > 0:
                steps = self.downsampling[level - 1](steps)
            for layer in layers:
                steps = layer(steps)
            laterals.append(self.lateral_convs[level](self.norms[level](steps).mT))
        merged = laterals.pop()
        while laterals:
            finer = laterals.pop()
            merged = finer + nn.functional.interpolate(merged, size=finer.shape[-1], mode="linear")
        # Only the last step is used, which depends on the last two.
        return self.output_conv(merged[..., -2:])[..., -1]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of `(batch, width, points)` whose statistics, in training, ignore padding."""

    def forward(self, points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """`mask` of shape `(batch,)`: True = real, False = padding."""
        if not self.training:
            return super().forward(points)
        values = points.float()
        kept = mask[:, None, None].to(values.dtype)
        count = (kept.sum() * points.shape[-1]).clamp(min=1)
        mean = (values * kept).sum(dim=(0, 2)) / count
        centred = values - mean[:, None]
        variance = (centred.square() * kept).sum(dim=(0, 2)) / count
        with torch.no_grad():
            # Without any lane there is nothing to learn from.
            momentum = cast(float, self.momentum) * mask.any().to(mean.dtype)
            unbiased = variance * count / (count - 1).clamp(min=1)
            for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                buffer = cast(torch.Tensor, running)
                buffer.lerp_(value.to(buffer.dtype), momentum.to(buffer.dtype))
            cast(torch.Tensor, self.num_batches_tracked).add_(1)
        normed = centred * (variance + self.eps).rsqrt()[:, None]
        return (normed * self.weight.float()[:, None] + self.bias.float()[:, None]).to(points.dtype)


class ForecastMAELaneEncoder(nn.Module):
    """Encode the points of each lane, `(batch, lanes, points, features)`, as a token; a PointNet."""

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__()
        width = config.lane_hidden_size
        self.conv1 = nn.Conv1d(config.num_lane_features, width, 1)
        self.norm1 = MaskedBatchNorm(width)
        self.conv2 = nn.Conv1d(width, 2 * width, 1)
        self.conv3 = nn.Conv1d(4 * width, 2 * width, 1)
        self.norm2 = MaskedBatchNorm(2 * width)
        self.conv4 = nn.Conv1d(2 * width, config.hidden_size, 1)

    def forward(self, lanes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`mask` of shape `(batch, lanes)`: True = lane, False = padding."""
        flat = mask.flatten()
        points = self.conv2(self.norm1(self.conv1(lanes.flatten(0, 1).mT), flat).relu())
        maximum = points.amax(dim=-1, keepdim=True).expand_as(points)
        points = self.conv4(self.norm2(self.conv3(torch.cat([maximum, points], dim=1)), flat).relu())
        return points.amax(dim=-1).unflatten(0, mask.shape)


class ForecastMAEAttention(nn.Module):
    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        count = self.config.num_attention_heads
        query, key, value = (projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj))
        heads, weights = attend(self, query, key, value, mask, count, (query.shape[-1] // count) ** -0.5)
        return self.o_proj(heads), weights


class ForecastMAELayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer on the tokens of agents and lanes."""

    def __init__(self, config: ForecastMAEWithLLMBlockConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ForecastMAEAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ForecastMAEMLP(config.hidden_size, config.intermediate_size)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`mask` of shape `(batch, tokens)`: True = token."""
        update, weights = self.attention(self.norm1(hidden_states), mask)
        hidden_states = hidden_states + drop_path(update, self.drop_path_rate, self.training)
        update = self.mlp(self.norm2(hidden_states))
        return hidden_states + drop_path(update, self.drop_path_rate, self.training), weights


__all__ = [
    "ForecastMAEHistoryEncoder",
    "ForecastMAELaneEncoder",
    "ForecastMAELayer",
    "MaskedBatchNorm",
    "NeighborhoodAttention",
]
