# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
VectorNet with an LLM block.

Sources: "VectorNet: Encoding HD Maps and Agent Dynamics from Vectorized Representation" (CVPR 2020). For numbers,
github.com/ForeverFancy/VectorNet (subgraph and global graph) and github.com/xk-huang/yet-another-vectornet (decoder),
without what they do differently from the paper. For the tokens of the block, "Frozen Transformers in Language Models
Are Effective Visual Encoder Layers" (ICLR 2024), sections 4.4 and C.4.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_vectornet_with_llm_block import VectorNetWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .motion_forecasting import MotionErrors, MotionForecastingOutput, reduce_losses
from .padded_attention import attend
from .polyline_subgraph import PolylineSubgraph
from .pretrained_model import PreTrainedModelWithLLMBlock


# The predicted log-variances stay within these bounds, so that one scene cannot dominate a batch.
LOG_VARIANCES = (-7.0, 7.0)


@dataclass
class VectorNetModelOutput(ModelOutput):
    r"""
    Output of a VectorNet without its head.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, polylines, hidden_size)`): the nodes.
        hidden_states (`tuple[torch.Tensor]`, *optional*): with `output_hidden_states=True`.
        attentions (`tuple[torch.Tensor]`, *optional*): with `output_attentions=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VectorNetGlobalGraph(GradientCheckpointingLayer):
    """Attention of all nodes to all nodes, without scaling; its output replaces the nodes."""

    def __init__(self, config: VectorNetWithLLMBlockConfig, has_identifier: bool):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.has_identifier = has_identifier
        in_features = config.hidden_size + 2 * has_identifier
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(in_features, config.hidden_size, bias=config.qkv_bias) for _ in range(3)
        )

    def forward(
        self, nodes: torch.Tensor, identifiers: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`mask` of shape `(batch, polylines)`: True = polyline."""
        nodes = torch.cat([nodes, identifiers], dim=-1) if self.has_identifier else nodes
        query, key, value = self.q_proj(nodes), self.k_proj(nodes), self.v_proj(nodes)
        return attend(self, query, key, value, mask, self.config.num_attention_heads, scaling=1.0)


class VectorNetModel(PreTrainedModel):
    """The plain host: the subgraph and the global graph."""

    config: VectorNetWithLLMBlockConfig
    base_model_prefix = "vectornet"
    main_input_name = "polyline_vectors"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["VectorNetGlobalGraph"]
    _can_record_outputs = {"hidden_states": VectorNetGlobalGraph, "attentions": VectorNetGlobalGraph}

    def __init__(self, config: VectorNetWithLLMBlockConfig):
        super().__init__(config)
        self.subgraph = PolylineSubgraph(
            config.num_vector_features, config.hidden_size // 2, config.num_subgraph_layers, config.layer_norm_eps
        )
        self.layers = nn.ModuleList(
            VectorNetGlobalGraph(config, has_identifier=config.use_identifier and index == 0)
            for index in range(config.num_hidden_layers)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)

    def complete_inputs(
        self,
        polyline_vectors: torch.Tensor | None,
        vector_mask: torch.Tensor | None,
        polyline_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Check the inputs, and return them in the model's type, with masks of booleans."""
        features = self.config.num_vector_features
        if polyline_vectors is None:
            raise ValueError("You have to specify polyline_vectors")
        if polyline_vectors.ndim != 4 or polyline_vectors.shape[-1] != features:
            raise ValueError(
                f"polyline_vectors has the shape {tuple(polyline_vectors.shape)}; it must be (batch, polylines, "
                f"vectors, {features}), where {features} is num_vector_features. Use MotionProcessor."
            )
        shape = tuple(polyline_vectors.shape[:3])
        vector_mask = polyline_vectors.new_ones(shape) if vector_mask is None else vector_mask
        if vector_mask.shape != shape:
            raise ValueError(f"vector_mask has the shape {tuple(vector_mask.shape)}; it must be {shape}.")
        vector_mask = vector_mask.bool()
        polyline_mask = vector_mask.any(dim=-1) if polyline_mask is None else polyline_mask
        if polyline_mask.shape != shape[:2]:
            raise ValueError(f"polyline_mask has the shape {tuple(polyline_mask.shape)}; it must be {shape[:2]}.")
        return polyline_vectors.to(self.dtype), vector_mask, polyline_mask.bool()

    def embed(self, vectors: torch.Tensor, vector_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nodes of the polylines and their identifiers, of shape `(batch, polylines, 2)`."""
        scales = vectors.new_ones(vectors.shape[-1])
        scales[:4] = self.config.coordinate_scale
        nodes = self.subgraph(vectors * scales, vector_mask)
        if self.config.normalize_polylines:
            nodes = nn.functional.normalize(nodes, dim=-1)
        starts = vectors[..., :2].masked_fill(~vector_mask[..., None], torch.finfo(vectors.dtype).max)
        is_empty = ~vector_mask.any(dim=-1, keepdim=True)
        return nodes, starts.amin(dim=2).masked_fill(is_empty, 0)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        polyline_vectors: torch.Tensor | None = None,
        vector_mask: torch.Tensor | None = None,
        polyline_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VectorNetModelOutput:
        vectors, vector_mask, mask = self.complete_inputs(polyline_vectors, vector_mask, polyline_mask)
        nodes, identifiers = self.embed(vectors, vector_mask)
        for layer in self.layers:
            nodes, _ = layer(nodes, identifiers, mask)
        return VectorNetModelOutput(last_hidden_state=nodes)


class VectorNetMLP(nn.Module):
    def __init__(self, config: VectorNetWithLLMBlockConfig, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.norm = nn.LayerNorm(config.decoder_hidden_size, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.decoder_hidden_size, out_features)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.fc1(nodes)).relu())


class VectorNetHead(nn.Module):
    """Predict trajectories and their scores from the target's node, and the features of hidden nodes."""

    def __init__(self, config: VectorNetWithLLMBlockConfig):
        super().__init__()
        self.num_modes, self.num_future_steps = config.num_modes, config.num_future_steps
        # Two coordinates and, for a Gaussian, their log-variances.
        self.num_outputs = 4 if config.trajectory_loss == "gaussian" else 2
        self.trajectory_mlp = VectorNetMLP(config, config.num_modes * config.num_future_steps * self.num_outputs)
        self.score_mlp = VectorNetMLP(config, config.num_modes) if config.num_modes > 1 else None
        has_completion = config.node_completion_weight > 0
        self.node_mlp = VectorNetMLP(config, config.hidden_size) if has_completion else None

    def forward(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return offsets, with log-variances if there are any, `(batch, modes, steps, 2)`, and logits."""
        shape = (self.num_modes, self.num_future_steps, self.num_outputs)
        outputs = self.trajectory_mlp(target).unflatten(-1, shape)
        logits = target.new_zeros(len(target), 1) if self.score_mlp is None else self.score_mlp(target)
        return outputs[..., :2], outputs[..., 2:], logits


_HIDDEN_STATES = OutputRecorder(VectorNetGlobalGraph)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


class VectorNetWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: VectorNetWithLLMBlockConfig
    base_model_prefix = "vectornet"
    main_input_name = "polyline_vectors"
    input_modalities = ["polyline_vectors"]
    _supports_flash_attn = False  # scenes are padded
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": VectorNetGlobalGraph}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: 96 polylines of 19 vectors."""
        return {"polyline_vectors": torch.zeros(1, 96, 19, self.config.num_vector_features)}

    def _build(self, config: VectorNetWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.vectornet = VectorNetModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.vectornet.subgraph

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vectornet.subgraph = cast(PolylineSubgraph, value)

    def _run_graph(
        self,
        nodes: torch.Tensor,
        identifiers: torch.Tensor,
        mask: torch.Tensor,
        output_tokens: slice | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        layers = [
            partial(lambda layer, hidden_states: layer(hidden_states, identifiers, mask)[0], layer)
            for layer in self.vectornet.layers
        ]
        return self._run_layers(layers, nodes, mask.to(nodes.dtype), output_tokens, **kwargs)


class VectorNetWithLLMBlockModel(VectorNetWithLLMBlockPreTrainedModel):
    r"""
    A VectorNet with an LLM block, without a head.

    Args:
        config ([`VectorNetWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: VectorNetWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        polyline_vectors: torch.Tensor | None = None,
        vector_mask: torch.Tensor | None = None,
        polyline_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VectorNetModelOutput:
        r"""
        Args:
            polyline_vectors (`torch.Tensor` of shape `(batch, polylines, vectors, num_vector_features)`):
                The vectors of the agents' trajectories and of the lanes; polyline 0 is the target.
            vector_mask (`torch.Tensor` of shape `(batch, polylines, vectors)`, *optional*): 1 = vector, 0 = padding.
            polyline_mask (`torch.Tensor` of shape `(batch, polylines)`, *optional*):
                1 = polyline, 0 = padding; by default, those that have a vector.

        Returns:
            [`VectorNetModelOutput`]: with `output_hidden_states=True`, the block adds one hidden state at its
            position; with `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        vectors, vector_mask, mask = self.vectornet.complete_inputs(polyline_vectors, vector_mask, polyline_mask)
        nodes, identifiers = self.vectornet.embed(vectors, vector_mask)
        return VectorNetModelOutput(self._run_graph(nodes, identifiers, mask, **kwargs))


class VectorNetWithLLMBlockForMotionForecasting(VectorNetWithLLMBlockPreTrainedModel):
    r"""
    A VectorNet with an LLM block, and a head that predicts `num_modes` trajectories of the target.

    Args:
        config ([`VectorNetWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: VectorNetWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.decoder = VectorNetHead(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        polyline_vectors: torch.Tensor | None = None,
        vector_mask: torch.Tensor | None = None,
        polyline_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        hidden_polylines: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MotionForecastingOutput:
        r"""
        Args:
            polyline_vectors (`torch.Tensor` of shape `(batch, polylines, vectors, num_vector_features)`):
                The vectors of the agents' trajectories and of the lanes; polyline 0 is the target.
            vector_mask (`torch.Tensor` of shape `(batch, polylines, vectors)`, *optional*): 1 = vector, 0 = padding.
            polyline_mask (`torch.Tensor` of shape `(batch, polylines)`, *optional*):
                1 = polyline, 0 = padding; by default, those that have a vector.
            labels (`torch.Tensor` of shape `(batch, num_future_steps, 2)`, *optional*):
                The target's true positions in its frame; NaN where they are unknown.
            hidden_polylines (`torch.BoolTensor` of shape `(batch, polylines)`, *optional*):
                The polylines whose features are hidden. By default, in training with node completion, a random choice.

        Returns:
            [`MotionForecastingOutput`]: of the target, with `loss` if `labels` are given.
        """
        vectors, vector_mask, mask = self.vectornet.complete_inputs(polyline_vectors, vector_mask, polyline_mask)
        nodes, identifiers = self.vectornet.embed(vectors, vector_mask)
        completes_nodes = self.decoder.node_mlp is not None and labels is not None
        if hidden_polylines is None and completes_nodes and self.training:
            hidden_polylines = torch.rand(mask.shape, device=mask.device) < self.config.node_completion_ratio
            hidden_polylines[:, 0] = False
        whole = nodes
        if hidden_polylines is not None:
            hidden_polylines = hidden_polylines.bool() & mask
            nodes = nodes.masked_fill(hidden_polylines[..., None], 0)
        output_tokens = None if hidden_polylines is not None and completes_nodes else slice(0, 1)
        nodes = self._run_graph(nodes, identifiers, mask, output_tokens, **kwargs)
        offsets, log_variances, logits = self.decoder(nodes[:, 0])
        if self.config.add_constant_velocity:
            # The last vector of the target is the last that is real; a target without any stands still.
            numbers = torch.arange(1, vectors.shape[2] + 1, device=vectors.device)
            last = vectors[torch.arange(len(vectors)), 0, (vector_mask[:, 0] * numbers).argmax(dim=-1)]
            offsets = offsets + (last[:, 2:4] - last[:, :2])[:, None, None]
        loss = None
        if labels is not None:
            losses, errors = self._compute_losses(offsets, log_variances, logits, labels)
            if completes_nodes and hidden_polylines is not None:
                completion = self._complete_nodes(nodes, whole, hidden_polylines)
                losses = losses + self.config.node_completion_weight * completion
            loss = reduce_losses(losses, errors, kwargs.get("num_items_in_batch"))
        return MotionForecastingOutput(loss=loss, trajectories=offsets.cumsum(dim=-2), scores=logits.softmax(dim=-1))

    def _compute_losses(
        self, offsets: torch.Tensor, log_variances: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, MotionErrors]:
        """Return the loss of each scene: of the trajectory that ends nearest to the truth, and of its score."""
        errors = MotionErrors(offsets, labels)
        if self.config.trajectory_loss == "gaussian":
            variances = log_variances.float().clamp(*LOG_VARIANCES).exp()
            target = errors.true_offsets[:, None].expand_as(errors.offsets)
            likelihoods = nn.functional.gaussian_nll_loss(errors.offsets, target, variances, reduction="none")
            of_modes = errors.mean_over_steps(likelihoods)
        else:
            of_modes = errors.of_offsets(self.config.trajectory_loss)
        best = errors.at_the_end().argmin(dim=1)
        losses = of_modes.gather(1, best[:, None])[:, 0]
        if logits.shape[1] == 1:
            return losses, errors
        return losses + nn.functional.cross_entropy(logits.float(), best, reduction="none"), errors

    def _complete_nodes(self, nodes: torch.Tensor, whole: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean Huber loss of the predicted features of each scene's hidden nodes."""
        predicted = cast(VectorNetMLP, self.decoder.node_mlp)(nodes).float()
        losses = nn.functional.huber_loss(predicted, whole.float(), reduction="none").mean(dim=-1)
        return (losses * hidden).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)


__all__ = [
    "VectorNetModelOutput",
    "VectorNetWithLLMBlockForMotionForecasting",
    "VectorNetWithLLMBlockModel",
    "VectorNetWithLLMBlockPreTrainedModel",
]
