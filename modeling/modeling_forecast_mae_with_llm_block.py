# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Forecast-MAE with an LLM block.

Source: "Forecast-MAE: Self-supervised Pre-training for Motion Forecasting with Masked Autoencoders" (ICCV 2023),
github.com/jchengai/forecast-mae, for the forecasting model, its names, sizes, initialisation and loss. For the tokens
of the block, "Frozen Transformers in Language Models Are Effective Visual Encoder Layers" (ICLR 2024), section 4.4.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_forecast_mae_with_llm_block import ForecastMAEWithLLMBlockConfig
from .configuration_llm_block import LLMBlockConfig
from .forecast_mae_layers import (
    ForecastMAEHistoryEncoder,
    ForecastMAELaneEncoder,
    ForecastMAELayer,
    NeighborhoodAttention,
)
from .modeling_llm_block import LLMBlock
from .motion_forecasting import MotionErrors, MotionForecastingOutput, reduce_losses
from .pretrained_model import PreTrainedModelWithLLMBlock
from .stochastic_depth import drop_path_rates


@dataclass
class ForecastMAEModelOutput(ModelOutput):
    r"""
    Output of a Forecast-MAE without its head.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, agents + lanes, hidden_size)`):
            The tokens after the final norm, agents first.
        hidden_states (`tuple[torch.Tensor]`, *optional*): with `output_hidden_states=True`.
        attentions (`tuple[torch.Tensor]`, *optional*): with `output_attentions=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ForecastMAEModel(PreTrainedModel):
    """The plain host: the encoders of agents and lanes, the layers on their tokens, and the final norm."""

    config: ForecastMAEWithLLMBlockConfig
    base_model_prefix = "forecast_mae"
    main_input_name = "agent_history"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ForecastMAELayer"]
    _can_record_outputs = {"hidden_states": ForecastMAELayer, "attentions": ForecastMAELayer}

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__(config)
        width, count = config.hidden_size, config.num_hidden_layers
        self.history_encoder = ForecastMAEHistoryEncoder(config)
        self.lane_encoder = ForecastMAELaneEncoder(config)
        self.pose_fc1, self.pose_fc2 = nn.Linear(4, width), nn.Linear(width, width)
        self.agent_type_embeddings = nn.Parameter(torch.zeros(config.num_agent_types, width))
        self.lane_embedding = nn.Parameter(torch.zeros(1, 1, width))
        rates = drop_path_rates(config.drop_path_rate, count)
        self.layers = nn.ModuleList(ForecastMAELayer(config, rate) for rate in rates)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    def complete_inputs(
        self,
        agent_history: torch.Tensor | None,
        agent_poses: torch.Tensor | None,
        agent_types: torch.Tensor | None,
        lanes: torch.Tensor | None,
        lane_poses: torch.Tensor | None,
        agent_mask: torch.Tensor | None,
        lane_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """Check the inputs, and return them in the model's type, with masks of booleans."""
        config, dtype = self.config, self.pose_fc1.weight.dtype
        if agent_history is None or agent_poses is None:
            raise ValueError("You have to specify agent_history and agent_poses")
        if agent_history.ndim != 4 or agent_history.shape[-1] != config.num_history_features:
            raise ValueError(
                f"agent_history has the shape {tuple(agent_history.shape)}; it must be (batch, agents, steps, "
                f"{config.num_history_features}), where {config.num_history_features} is num_history_features. Use "
                "MotionProcessor."
            )
        batch, num_agents = agent_history.shape[:2]
        if lanes is None:
            lanes = agent_history.new_zeros(batch, 0, 2, config.num_lane_features)
            lane_poses = agent_history.new_zeros(batch, 0, 4)
        if lanes.ndim != 4 or len(lanes) != batch or lanes.shape[-1] != config.num_lane_features:
            raise ValueError(
                f"lanes has the shape {tuple(lanes.shape)}; it must be (batch, lanes, points, features) = ({batch}, "
                f"lanes, points, {config.num_lane_features}), where {config.num_lane_features} is num_lane_features."
            )
        if lane_poses is None:
            raise ValueError("You have to specify lane_poses with lanes")
        if agent_types is None:
            agent_types = torch.zeros(batch, num_agents, dtype=torch.long, device=agent_history.device)
        agent_mask = agent_history.new_ones(batch, num_agents) if agent_mask is None else agent_mask
        lane_mask = lanes.new_ones(lanes.shape[:2]) if lane_mask is None else lane_mask
        for name, tensor, shape in (
            ("agent_poses", agent_poses, (batch, num_agents, 4)),
            ("agent_types", agent_types, (batch, num_agents)),
            ("lane_poses", lane_poses, (*lanes.shape[:2], 4)),
            ("agent_mask", agent_mask, (batch, num_agents)),
            ("lane_mask", lane_mask, tuple(lanes.shape[:2])),
        ):
            if tensor.shape != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {shape}.")
        return (
            agent_history.to(dtype),
            agent_poses.to(dtype),
            agent_types.long(),
            lanes.to(dtype),
            lane_poses.to(dtype),
            agent_mask.bool(),
            lane_mask.bool(),
        )

    def embed(
        self,
        agent_history: torch.Tensor,
        agent_poses: torch.Tensor,
        agent_types: torch.Tensor,
        lanes: torch.Tensor,
        lane_poses: torch.Tensor,
        agent_mask: torch.Tensor,
        lane_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens `(batch, agents + lanes, hidden_size)` and their mask."""
        agents = self.history_encoder(agent_history.flatten(0, 1)).unflatten(0, agent_mask.shape)
        agents = agents + nn.functional.embedding(agent_types, self.agent_type_embeddings)
        lane_tokens = self.lane_encoder(lanes, lane_mask) + self.lane_embedding
        poses = torch.cat([agent_poses, lane_poses], dim=1)
        positions = self.pose_fc2(nn.functional.gelu(self.pose_fc1(poses)))
        return torch.cat([agents, lane_tokens], dim=1) + positions, torch.cat([agent_mask, lane_mask], dim=1)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_poses: torch.Tensor | None = None,
        agent_types: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        lane_poses: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ForecastMAEModelOutput:
        inputs = self.complete_inputs(
            agent_history, agent_poses, agent_types, lanes, lane_poses, agent_mask, lane_mask
        )
        hidden_states, mask = self.embed(*cast(Any, inputs))
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states, mask)
        return ForecastMAEModelOutput(last_hidden_state=self.layernorm(hidden_states))


def init_weights(module: nn.Module) -> None:
    """Initialise as the published code."""
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv1d):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    elif isinstance(module, NeighborhoodAttention):
        init.trunc_normal_(module.relative_bias, std=0.02)
    elif isinstance(module, ForecastMAEModel):
        init.normal_(module.agent_type_embeddings, std=0.02)
        init.normal_(module.lane_embedding, std=0.02)


class ForecastMAEHead(nn.Module):
    """Predict trajectories and their scores from the target's token."""

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__()
        width, hidden_size = config.hidden_size, config.decoder_hidden_size
        self.mode_projection = nn.Linear(width, config.num_modes * width)
        self.trajectory_fc1, self.score_fc1 = nn.Linear(width, hidden_size), nn.Linear(width, hidden_size)
        self.trajectory_fc2, self.score_fc2 = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.trajectory_fc3, self.score_fc3 = nn.Linear(width, 2 * config.num_future_steps), nn.Linear(width, 1)

    def forward(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions of shape `(batch, num_modes, num_future_steps, 2)`, and logits."""
        modes = self.mode_projection(target).unflatten(-1, (-1, target.shape[-1]))
        positions = self.trajectory_fc2(self.trajectory_fc1(modes).relu()).relu()
        logits = self.score_fc3(self.score_fc2(self.score_fc1(modes).relu()).relu())
        return self.trajectory_fc3(positions).unflatten(-1, (-1, 2)), logits[..., 0]


_HIDDEN_STATES = OutputRecorder(ForecastMAELayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


class ForecastMAEWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: ForecastMAEWithLLMBlockConfig
    base_model_prefix = "forecast_mae"
    main_input_name = "agent_history"
    input_modalities = ["agent_history"]
    _supports_flash_attn = False  # scenes are padded
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": ForecastMAELayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: 48 agents, 50 steps, 144 lanes of 20 points."""
        return {
            "agent_history": torch.zeros(1, 48, 50, self.config.num_history_features),
            "agent_poses": torch.zeros(1, 48, 4),
            "agent_types": torch.zeros(1, 48, dtype=torch.long),
            "lanes": torch.zeros(1, 144, 20, self.config.num_lane_features),
            "lane_poses": torch.zeros(1, 144, 4),
        }

    def _build(self, config: ForecastMAEWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.forecast_mae = ForecastMAEModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.forecast_mae.history_encoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.forecast_mae.history_encoder.embedding = cast(nn.Conv1d, value)

    def _encode(
        self, inputs: tuple[torch.Tensor, ...], output_tokens: slice | None = None, **kwargs: Any
    ) -> torch.Tensor:
        hidden_states, mask = self.forecast_mae.embed(*cast(Any, inputs))
        layers = [
            partial(lambda layer, hidden_states: layer(hidden_states, mask)[0], layer)
            for layer in self.forecast_mae.layers
        ]
        return self._run_layers(layers, hidden_states, mask.to(hidden_states.dtype), output_tokens, **kwargs)


class ForecastMAEWithLLMBlockModel(ForecastMAEWithLLMBlockPreTrainedModel):
    r"""
    A Forecast-MAE with an LLM block, without a head.

    Args:
        config ([`ForecastMAEWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_poses: torch.Tensor | None = None,
        agent_types: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        lane_poses: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ForecastMAEModelOutput:
        r"""
        Args:
            agent_history (`torch.Tensor` of shape `(batch, agents, steps, num_history_features)`):
                The history of every agent; agent 0 is the target.
            agent_poses (`torch.Tensor` of shape `(batch, agents, 4)`):
                The last observed positions, in the target's frame, and the cosines and sines of the headings.
            agent_types (`torch.LongTensor` of shape `(batch, agents)`, *optional*):
                The types of the agents; by default all are vehicles, 0.
            lanes (`torch.Tensor` of shape `(batch, lanes, points, num_lane_features)`, *optional*):
                The points of the lanes' centrelines, relative to the lane's centre.
            lane_poses (`torch.Tensor` of shape `(batch, lanes, 4)`, *optional*):
                The centres of the lanes, in the target's frame, and the cosines and sines of their headings there.
            agent_mask (`torch.Tensor` of shape `(batch, agents)`, *optional*): 1 = agent, 0 = padding.
            lane_mask (`torch.Tensor` of shape `(batch, lanes)`, *optional*): 1 = lane, 0 = padding.

        Returns:
            [`ForecastMAEModelOutput`]: with `output_hidden_states=True`, the block adds one hidden state at its
            position; with `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        host = self.forecast_mae
        inputs = host.complete_inputs(
            agent_history, agent_poses, agent_types, lanes, lane_poses, agent_mask, lane_mask
        )
        return ForecastMAEModelOutput(last_hidden_state=host.layernorm(self._encode(inputs, **kwargs)))


class ForecastMAEWithLLMBlockForMotionForecasting(ForecastMAEWithLLMBlockPreTrainedModel):
    r"""
    A Forecast-MAE with an LLM block, and a head that predicts `num_modes` trajectories of the target.

    Args:
        config ([`ForecastMAEWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: ForecastMAEWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.decoder = ForecastMAEHead(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_poses: torch.Tensor | None = None,
        agent_types: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        lane_poses: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MotionForecastingOutput:
        r"""
        Args:
            agent_history (`torch.Tensor` of shape `(batch, agents, steps, num_history_features)`):
                The history of every agent; agent 0 is the target.
            agent_poses (`torch.Tensor` of shape `(batch, agents, 4)`):
                The last observed positions, in the target's frame, and the cosines and sines of the headings.
            agent_types (`torch.LongTensor` of shape `(batch, agents)`, *optional*):
                The types of the agents; by default all are vehicles, 0.
            lanes (`torch.Tensor` of shape `(batch, lanes, points, num_lane_features)`, *optional*):
                The points of the lanes' centrelines, relative to the lane's centre.
            lane_poses (`torch.Tensor` of shape `(batch, lanes, 4)`, *optional*):
                The centres of the lanes, in the target's frame, and the cosines and sines of their headings there.
            agent_mask (`torch.Tensor` of shape `(batch, agents)`, *optional*): 1 = agent, 0 = padding.
            lane_mask (`torch.Tensor` of shape `(batch, lanes)`, *optional*): 1 = lane, 0 = padding.
            labels (`torch.Tensor` of shape `(batch, num_future_steps, 2)`, *optional*):
                The target's true positions in its frame; NaN where they are unknown.

        Returns:
            [`MotionForecastingOutput`]: of the target, with `loss` if `labels` are given: the Huber loss of the
            positions of the trajectory nearest to the truth, and the cross-entropy of its score.
        """
        host = self.forecast_mae
        inputs = host.complete_inputs(
            agent_history, agent_poses, agent_types, lanes, lane_poses, agent_mask, lane_mask
        )
        tokens = self._encode(inputs, slice(0, 1), **kwargs)
        trajectories, logits = self.decoder(host.layernorm(tokens[:, 0]))
        if self.config.add_constant_velocity:
            numbers = torch.arange(1, trajectories.shape[2] + 1, device=trajectories.device, dtype=trajectories.dtype)
            trajectories = trajectories + numbers[:, None] * inputs[0][:, 0, -1, :2][:, None, None]
        loss = None
        if labels is not None:
            offsets = trajectories - nn.functional.pad(trajectories, (0, 0, 1, 0))[:, :, :-1]
            errors = MotionErrors(offsets, labels)
            of_positions, distances = errors.of_positions()
            best = distances.argmin(dim=1)
            losses = of_positions.gather(1, best[:, None])[:, 0]
            losses = losses + nn.functional.cross_entropy(logits.float(), best, reduction="none")
            loss = reduce_losses(losses, errors, kwargs.get("num_items_in_batch"))
        return MotionForecastingOutput(loss=loss, trajectories=trajectories, scores=logits.softmax(dim=-1))


__all__ = [
    "ForecastMAEModelOutput",
    "ForecastMAEWithLLMBlockForMotionForecasting",
    "ForecastMAEWithLLMBlockModel",
    "ForecastMAEWithLLMBlockPreTrainedModel",
]
