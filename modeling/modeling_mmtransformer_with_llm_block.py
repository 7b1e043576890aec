# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
mmTransformer with an LLM block.

Sources: "Multimodal Motion Prediction with Stacked Transformers" (CVPR 2021); github.com/decisionforce/mmTransformer
(`lib/models`), run for its numbers; for the tokens of the block, "Frozen Transformers in Language Models Are Effective
Visual Encoder Layers" (ICLR 2024), sections 4.4 and C.4.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_mmtransformer_with_llm_block import MMTransformerWithLLMBlockConfig
from .mmtransformer_layers import (
    MMTransformerDecoder,
    MMTransformerEncoder,
    MMTransformerEncoderLayer,
    MMTransformerMLP,
    StateAndWeights,
)
from .modeling_llm_block import LLMBlock
from .motion_forecasting import MotionErrors, MotionForecastingOutput, confidence_loss, reduce_losses
from .polyline_subgraph import PolylineSubgraph
from .pretrained_model import PreTrainedModelWithLLMBlock


@dataclass
class MMTransformerModelOutput(ModelOutput):
    r"""
    Output of an mmTransformer without its head.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, agents + lanes, hidden_size)`): agents first.
        proposals (`torch.Tensor` of shape `(batch, agents, num_proposals, hidden_size)`): the proposals of each agent.
        hidden_states (`tuple[torch.Tensor]`, *optional*): with `output_hidden_states=True`.
        attentions (`tuple[torch.Tensor]`, *optional*): with `output_attentions=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    proposals: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def sinusoids(length: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return the positions' sines (even channels) and cosines (odd channels), of shape `(length, width)`."""
    numbers = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
    channels = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles = numbers * torch.exp(channels * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


class MMTransformerMotionExtractor(nn.Module):
    """Encode the history of each agent, and decode it to its proposals."""

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.embedding = nn.Linear(config.num_history_features, config.hidden_size)
        self.encoder = MMTransformerEncoder(config)
        self.queries = nn.Parameter(torch.zeros(config.num_proposals, config.hidden_size))
        self.decoder = MMTransformerDecoder(config, config.num_hidden_layers)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """`(agents, steps, features)` to `(agents, num_proposals, hidden_size)`."""
        width = self.queries.shape[1]
        hidden_states = self.embedding(histories) * math.sqrt(width)
        hidden_states = hidden_states + sinusoids(histories.shape[1], width, hidden_states)
        memory, _ = self.encoder(hidden_states)[-1]
        # A copy: torch's counter of operations fails on views of parameters without gradients.
        return self.decoder(self.queries.repeat(len(memory), 1, 1), memory)


class MMTransformerFusion(nn.Module):
    def __init__(self, in_features: int, out_features: int, eps: float):
        super().__init__()
        self.fc1 = nn.Linear(in_features, out_features)
        self.norm = nn.LayerNorm(out_features, eps=eps)
        self.fc2 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.fc1(features)).relu())


class MMTransformerLaneEmbeddings(nn.Module):
    """Encode each lane as one token: `(batch, lanes, points, 2 + attributes)` to `(batch, lanes, hidden_size)`."""

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        self.subgraph = PolylineSubgraph(
            4 + config.num_lane_attributes, config.lane_hidden_size, config.num_lane_layers, config.layer_norm_eps
        )
        self.projection = nn.Linear(2 * config.lane_hidden_size, config.hidden_size)

    def forward(self, lanes: torch.Tensor) -> torch.Tensor:
        vectors = torch.cat([lanes[:, :, :-1, :2], lanes[:, :, 1:]], dim=-1)
        return self.projection(self.subgraph(vectors)) * math.sqrt(self.projection.out_features)


class MMTransformerSocialLayer(MMTransformerEncoderLayer):
    """
    A layer of the social encoder on the agents' tokens. The lanes' tokens, from the map encoder's layer of the same
    depth, stand behind them, so that hidden states and attentions cover both.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        lanes: torch.Tensor,
        lane_weights: torch.Tensor | None,
        mask: torch.Tensor,
        final_norm: nn.Module | None,
    ) -> StateAndWeights:
        num_agents, num_lanes = mask.shape[1], lanes.shape[1]
        agents, weights = super().forward(hidden_states[:, :num_agents], mask)
        agents = agents if final_norm is None else final_norm(agents)
        if weights is not None and lane_weights is not None:
            pad = nn.functional.pad
            weights = pad(weights, (0, num_lanes, 0, num_lanes)) + pad(lane_weights, (num_agents, 0, num_agents, 0))
        return torch.cat([agents, lanes], dim=1), weights


class MMTransformerModel(PreTrainedModel):
    """The plain host: everything before the head."""

    config: MMTransformerWithLLMBlockConfig
    base_model_prefix = "mmtransformer"
    main_input_name = "agent_history"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MMTransformerEncoderLayer", "MMTransformerDecoderLayer", "MMTransformerSocialLayer"]
    _can_record_outputs = {"hidden_states": MMTransformerSocialLayer, "attentions": MMTransformerSocialLayer}

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__(config)
        width, position_width, eps = config.hidden_size, config.position_hidden_size, config.layer_norm_eps
        self.motion_extractor = MMTransformerMotionExtractor(config)
        self.position_fc1 = nn.Linear(2, position_width)
        self.position_norm = nn.LayerNorm(position_width, eps=eps)
        self.position_fc2 = nn.Linear(position_width, position_width)
        self.proposal_fusion = MMTransformerFusion(position_width + width, width, eps)
        self.lane_embeddings = MMTransformerLaneEmbeddings(config)
        self.lane_encoder = MMTransformerEncoder(config)
        self.lane_decoder = MMTransformerDecoder(config, config.num_hidden_layers)
        self.agent_summary = MMTransformerFusion(config.num_proposals * width, width, eps)
        self.agent_fusion = MMTransformerFusion(position_width + width, width, eps)
        self.social_layers = nn.ModuleList(MMTransformerSocialLayer(config) for _ in range(config.num_hidden_layers))
        self.social_norm = nn.LayerNorm(width, eps=eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    def encode(
        self,
        agent_history: torch.Tensor,
        agent_positions: torch.Tensor,
        lanes: torch.Tensor,
        agent_mask: torch.Tensor,
        lane_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens `(batch, agents + lanes, hidden_size)` and the proposals of all agents."""
        batch, num_agents = agent_mask.shape
        proposals = self.motion_extractor(agent_history.flatten(0, 1))
        positions = self.position_fc2(self.position_norm(self.position_fc1(agent_positions)).relu())
        repeated = positions.flatten(0, 1)[:, None].expand(-1, proposals.shape[1], -1)
        proposals = self.proposal_fusion(torch.cat([repeated, proposals], dim=-1))
        lane_tokens = self.lane_embeddings(lanes)
        lane_outputs = self.lane_encoder(lane_tokens, lane_mask)
        proposals = self.lane_decoder(proposals, lane_outputs[-1][0], lane_mask).unflatten(0, (batch, num_agents))
        agents = self.agent_fusion(torch.cat([positions, self.agent_summary(proposals.flatten(2))], dim=-1))
        hidden_states = torch.cat([agents, lane_tokens], dim=1)
        for index, (layer, (lane_tokens, lane_weights)) in enumerate(zip(self.social_layers, lane_outputs), start=1):
            final_norm = self.social_norm if index == len(self.social_layers) else None
            hidden_states, _ = layer(hidden_states, lane_tokens, lane_weights, agent_mask, final_norm)
        return hidden_states, proposals

    def complete_inputs(
        self,
        agent_history: torch.Tensor | None,
        agent_positions: torch.Tensor | None,
        lanes: torch.Tensor | None,
        agent_mask: torch.Tensor | None,
        lane_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Check the inputs, and return them in the model's type, with masks of booleans."""
        config, dtype = self.config, self.motion_extractor.queries.dtype
        if agent_history is None or agent_positions is None:
            raise ValueError("You have to specify agent_history and agent_positions")
        if agent_history.ndim != 4 or agent_history.shape[-1] != config.num_history_features:
            raise ValueError(
                f"agent_history has the shape {tuple(agent_history.shape)}; it must be (batch, agents, steps, "
                f"{config.num_history_features}), where {config.num_history_features} is num_history_features. Use "
                "MotionProcessor."
            )
        batch, num_agents = agent_history.shape[:2]
        lane_features = 2 + config.num_lane_attributes
        if lanes is None or lanes.shape[1:2] == (0,):
            # One padded lane, so that no tensor is empty.
            lanes = agent_positions.new_zeros(batch, 1, 2, lane_features)
            lane_mask = agent_positions.new_zeros(batch, 1)
        if lanes.ndim != 4 or len(lanes) != batch or lanes.shape[-1] != lane_features or lanes.shape[2] < 2:
            raise ValueError(
                f"lanes has the shape {tuple(lanes.shape)}; it must be (batch, lanes, points, features) = ({batch}, "
                f"lanes, 2 or more, {lane_features}), with 2 coordinates and num_lane_attributes attributes."
            )
        agent_mask = agent_history.new_ones(batch, num_agents) if agent_mask is None else agent_mask
        lane_mask = lanes.new_ones(lanes.shape[:2]) if lane_mask is None else lane_mask
        for name, tensor, shape in (
            ("agent_positions", agent_positions, (batch, num_agents, 2)),
            ("agent_mask", agent_mask, (batch, num_agents)),
            ("lane_mask", lane_mask, tuple(lanes.shape[:2])),
        ):
            if tensor.shape != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {shape}.")
        return (
            agent_history.to(dtype),
            agent_positions.to(dtype),
            lanes.to(dtype),
            agent_mask.bool(),
            lane_mask.bool(),
        )

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_positions: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMTransformerModelOutput:
        inputs = self.complete_inputs(agent_history, agent_positions, lanes, agent_mask, lane_mask)
        return MMTransformerModelOutput(*self.encode(*inputs))


def init_weights(module: nn.Module) -> None:
    """Initialise as the paper: Xavier for every matrix; the queries are orthogonal, as in the released code."""
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
    elif isinstance(module, MMTransformerMotionExtractor):
        init.orthogonal_(module.queries)
    elif isinstance(module, MMTransformerHead) and module.loss_scales is not None:
        init.ones_(module.loss_scales)


class MMTransformerHead(nn.Module):
    """Predict trajectories and their scores from the target's token and proposals."""

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__()
        width, decoder_width = config.hidden_size, config.decoder_hidden_size
        self.social_decoder = None
        if config.num_social_decoder_layers > 0:
            self.social_decoder = MMTransformerDecoder(config, config.num_social_decoder_layers)
        self.trajectory_fc1 = nn.Linear(2 * width, 2 * width)
        self.trajectory_norm = nn.LayerNorm(2 * width, eps=config.layer_norm_eps)
        self.trajectory_fc2 = nn.Linear(2 * width, decoder_width)
        self.trajectory_fc3 = nn.Linear(decoder_width, 2 * config.num_future_steps)
        self.score_mlp = MMTransformerMLP(2 * width, 4 * width)
        self.score_fc1 = nn.Linear(2 * width, decoder_width)
        self.score_fc2 = nn.Linear(decoder_width, 1)
        # The weights of the three losses of the region-based training, which are trained.
        has_regions = config.region_centers is not None
        self.loss_scales = nn.Parameter(torch.ones(3)) if has_regions else None

    def forward(
        self,
        target: torch.Tensor,
        proposals: torch.Tensor,
        agents: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            target (`torch.Tensor` of shape `(batch, hidden_size)`): the target's token.
            proposals (`torch.Tensor` of shape `(batch, num_proposals, hidden_size)`): the target's proposals.
            agents (`torch.Tensor` of shape `(batch, agents, hidden_size)`): all agents, for the social decoder.
            agent_mask (`torch.Tensor` of shape `(batch, agents)`): True = agent, for the social decoder.

        Returns:
            `tuple`: offsets of shape `(batch, num_proposals, num_future_steps, 2)`, and logits.
        """
        if self.social_decoder is not None:
            proposals = self.social_decoder(proposals, cast(torch.Tensor, agents), agent_mask)
        features = torch.cat([target[:, None].expand_as(proposals), proposals], dim=-1)
        # As released: there is no activation between the last two layers of either MLP.
        offsets = self.trajectory_norm(self.trajectory_fc1(features)).relu()
        offsets = self.trajectory_fc3(self.trajectory_fc2(offsets)).unflatten(-1, (-1, 2))
        return offsets, self.score_fc2(self.score_fc1(self.score_mlp(features)))[..., 0]


_HIDDEN_STATES = OutputRecorder(MMTransformerSocialLayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


class MMTransformerWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: MMTransformerWithLLMBlockConfig
    base_model_prefix = "mmtransformer"
    main_input_name = "agent_history"
    input_modalities = ["agent_history"]
    _supports_flash_attn = False  # scenes are padded
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": MMTransformerSocialLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: 32 agents and 64 lanes of 10 points."""
        return {
            "agent_history": torch.zeros(1, 32, 19, self.config.num_history_features),
            "agent_positions": torch.zeros(1, 32, 2),
            "lanes": torch.zeros(1, 64, 10, 2 + self.config.num_lane_attributes),
        }

    def _build(self, config: MMTransformerWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.mmtransformer = MMTransformerModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.mmtransformer.motion_extractor.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.mmtransformer.motion_extractor.embedding = cast(nn.Linear, value)

    def _encode(
        self, inputs: tuple[torch.Tensor, ...], only_target: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens and the proposals after the block; `only_target`: at least those of the target."""
        agent_mask, lane_mask = inputs[3:]
        tokens, proposals = self.mmtransformer.encode(*cast(Any, inputs))
        if self.llm_block is None:
            return tokens, proposals
        num_agents, count = agent_mask.shape[1], proposals.shape[2]
        if self.config.llm_block_tokens == "agents_and_lanes":
            mask = torch.cat([agent_mask, lane_mask], dim=1).to(tokens.dtype)
            return self._run_layers([], tokens, mask, slice(0, 1) if only_target else None, **kwargs), proposals
        block_input = torch.cat([proposals.flatten(1, 2), tokens[:, num_agents:]], dim=1)
        mask = torch.cat([agent_mask.repeat_interleave(count, dim=1), lane_mask], dim=1).to(tokens.dtype)
        output = self._run_layers([], block_input, mask, slice(0, count) if only_target else None, **kwargs)
        num_proposals = min(output.shape[1], num_agents * count)
        tokens = torch.cat([tokens[:, :num_agents], output[:, num_proposals:]], dim=1)
        return tokens, output[:, :num_proposals].unflatten(1, (-1, count))


class MMTransformerWithLLMBlockModel(MMTransformerWithLLMBlockPreTrainedModel):
    r"""
    An mmTransformer with an LLM block, without a head.

    Args:
        config ([`MMTransformerWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_positions: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMTransformerModelOutput:
        r"""
        Args:
            agent_history (`torch.Tensor` of shape `(batch, agents, steps, num_history_features)`):
                The history of every agent; agent 0 is the target.
            agent_positions (`torch.Tensor` of shape `(batch, agents, 2)`):
                The last observed positions, in the target's frame.
            lanes (`torch.Tensor` of shape `(batch, lanes, points, 2 + num_lane_attributes)`, *optional*):
                The points of the lanes' centrelines, in the target's frame, with their attributes.
            agent_mask (`torch.Tensor` of shape `(batch, agents)`, *optional*): 1 = agent, 0 = padding.
            lane_mask (`torch.Tensor` of shape `(batch, lanes)`, *optional*):
                1 = lane, 0 = padding. In a scene without lanes, the map decoder's attention to them adds nothing.

        Returns:
            [`MMTransformerModelOutput`]: the tokens of agents, then of lanes, after the block, and the proposals. With
            `output_hidden_states=True`, also those tokens after each layer of the social and the lane encoder, and
            the block's output; with `output_attentions=True` (and eager attention), their attentions.
        """
        inputs = self.mmtransformer.complete_inputs(agent_history, agent_positions, lanes, agent_mask, lane_mask)
        return MMTransformerModelOutput(*self._encode(inputs, **kwargs))


class MMTransformerWithLLMBlockForMotionForecasting(MMTransformerWithLLMBlockPreTrainedModel):
    r"""
    An mmTransformer with an LLM block, and a head that predicts `num_proposals` trajectories of the target.

    Args:
        config ([`MMTransformerWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: MMTransformerWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.decoder = MMTransformerHead(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        agent_history: torch.Tensor | None = None,
        agent_positions: torch.Tensor | None = None,
        lanes: torch.Tensor | None = None,
        agent_mask: torch.Tensor | None = None,
        lane_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MotionForecastingOutput:
        r"""
        Args:
            agent_history (`torch.Tensor` of shape `(batch, agents, steps, num_history_features)`):
                The history of every agent; agent 0 is the target.
            agent_positions (`torch.Tensor` of shape `(batch, agents, 2)`):
                The last observed positions, in the target's frame.
            lanes (`torch.Tensor` of shape `(batch, lanes, points, 2 + num_lane_attributes)`, *optional*):
                The points of the lanes' centrelines, in the target's frame, with their attributes.
            agent_mask (`torch.Tensor` of shape `(batch, agents)`, *optional*): 1 = agent, 0 = padding.
            lane_mask (`torch.Tensor` of shape `(batch, lanes)`, *optional*):
                1 = lane, 0 = padding. In a scene without lanes, the map decoder's attention to them adds nothing.
            labels (`torch.Tensor` of shape `(batch, num_future_steps, 2)`, *optional*):
                The target's true positions in its frame; NaN where they are unknown.

        Returns:
            [`MotionForecastingOutput`]: of the target, with `loss` if `labels` are given.
        """
        inputs = self.mmtransformer.complete_inputs(agent_history, agent_positions, lanes, agent_mask, lane_mask)
        # The social decoder reads all agents; without it the head reads only the target's token.
        only_target = self.decoder.social_decoder is None
        tokens, proposals = self._encode(inputs, only_target, **kwargs)
        agent_mask = inputs[3]
        offsets, logits = self.decoder(tokens[:, 0], proposals[:, 0], tokens[:, : agent_mask.shape[1]], agent_mask)
        if self.config.add_constant_velocity:
            offsets = offsets + inputs[0][:, 0, -1, :2][:, None, None]
        loss = None
        if labels is not None:
            loss = self._compute_loss(MotionErrors(offsets, labels), logits, kwargs.get("num_items_in_batch"))
        return MotionForecastingOutput(loss=loss, trajectories=offsets.cumsum(dim=-2), scores=logits.softmax(dim=-1))

    def _compute_loss(
        self, errors: MotionErrors, logits: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        offset_errors, distances = errors.of_offsets("huber"), errors.at_the_end()
        if self.decoder.loss_scales is None:
            best = distances.argmin(dim=1, keepdim=True)
            losses = offset_errors.gather(1, best)[:, 0] + confidence_loss(logits, distances)
            return reduce_losses(losses, errors, num_items_in_batch)
        centers = torch.tensor(self.config.region_centers, device=logits.device)
        regions = torch.cdist(errors.true_ends()[:, None], centers[None].expand(len(logits), -1, -1))[:, 0].argmin(1)
        rows = torch.arange(len(logits), device=logits.device)
        # Proposals m * N to (m + 1) * N - 1 are those of region m.
        own_errors, own_distances, own_logits = (
            values.unflatten(1, (len(centers), -1))[rows, regions] for values in (offset_errors, distances, logits)
        )
        region_logits = logits.float().unflatten(1, (len(centers), -1)).logsumexp(dim=-1)
        parts = (
            own_errors.mean(dim=1),
            confidence_loss(own_logits, own_distances),
            nn.functional.cross_entropy(region_logits, regions, reduction="none"),
        )
        scales = self.decoder.loss_scales.float()
        weighted = sum(part / scale.square() for part, scale in zip(parts, scales))
        return reduce_losses(weighted + (scales + 1).log().sum(), errors, num_items_in_batch)


__all__ = [
    "MMTransformerModelOutput",
    "MMTransformerWithLLMBlockForMotionForecasting",
    "MMTransformerWithLLMBlockModel",
    "MMTransformerWithLLMBlockPreTrainedModel",
]
