# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Point-BERT with an LLM block.

Source: "Point-BERT: Pre-training 3D Point Cloud Transformers with Masked Point Modeling" (CVPR 2022, github.com/
Julie-tang00/Point-BERT); for the position of the block, github.com/ziqipang/LM4VisualEncoding
(`pointcloud_classification/models/Point_BERT.py`).
"""

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_point_bert_with_llm_block import PointBertWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .point_groups import gather_points, knn_points, sample_farthest_points
from .pretrained_model import PreTrainedModelWithLLMBlock
from .stochastic_depth import drop_path, drop_path_rates


def group_points(points: torch.Tensor, num_groups: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Group points: the centres are chosen by farthest point sampling; a group is the points nearest to its centre.

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds.
        num_groups (`int`): number of groups.
        group_size (`int`): number of points of a group.

    Returns:
        `tuple`: groups of shape `(batch, num_groups, group_size, 3)`, relative to their centres, and the centres, of
        shape `(batch, num_groups, 3)`.
    """
    centers = gather_points(points, sample_farthest_points(points, num_groups))
    nearest = knn_points(points, centers, group_size).flatten(1)
    groups = gather_points(points, nearest).unflatten(1, (num_groups, group_size))
    return groups - centers[:, :, None], centers


class PointBertGroupEncoder(nn.Module):
    """A mini-PointNet: `(batch, groups, group_size, 3)` to `(batch, groups, encoder_hidden_size)`."""

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__()
        hidden1, hidden2, hidden3 = config.encoder_channels
        self.conv1 = nn.Conv1d(3, hidden1, kernel_size=1)
        self.norm1 = nn.BatchNorm1d(hidden1)
        self.conv2 = nn.Conv1d(hidden1, hidden2, kernel_size=1)
        self.conv3 = nn.Conv1d(2 * hidden2, hidden3, kernel_size=1)
        self.norm2 = nn.BatchNorm1d(hidden3)
        self.conv4 = nn.Conv1d(hidden3, config.encoder_hidden_size, kernel_size=1)

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        batch, num_groups, group_size, _ = groups.shape
        features = self.conv2(self.norm1(self.conv1(groups.flatten(0, 1).mT)).relu())
        maximum = features.amax(dim=-1, keepdim=True).expand(-1, -1, group_size)
        features = self.conv4(self.norm2(self.conv3(torch.cat([maximum, features], dim=1))).relu())
        return features.amax(dim=-1).unflatten(0, (batch, num_groups))


class PointBertPositionEmbeddings(nn.Module):
    """Position embeddings of coordinates: `(batch, groups, 3)` to `(batch, groups, hidden_size)`."""

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__()
        self.fc1 = nn.Linear(3, config.position_hidden_size)
        self.fc2 = nn.Linear(config.position_hidden_size, config.hidden_size)

    def forward(self, centers: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(centers)))


class PointBertEmbeddings(nn.Module):
    """The CLS token and the tokens of the groups, and the position embeddings that every layer adds."""

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__()
        self.config = config
        self.group_encoder = PointBertGroupEncoder(config)
        self.projection = nn.Linear(config.encoder_hidden_size, config.hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = PointBertPositionEmbeddings(config)

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups, centers = group_points(points, self.config.num_groups, self.config.group_size)
        dtype, batch = self.projection.weight.dtype, len(points)
        tokens = self.projection(self.group_encoder(groups.to(dtype)))
        positions = self.position_embeddings(centers.to(dtype))
        hidden_states = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1)
        return hidden_states, torch.cat([self.cls_position.expand(batch, -1, -1), positions], dim=1)


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
    weights = (query @ key.mT * scaling).softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class PointBertAttention(nn.Module):
    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias) for _ in range(3)
        )
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        heads, weights = attend(self, query, key, value, None, scaling=self.scaling, is_causal=False)
        return self.o_proj(heads.flatten(2)), weights


class PointBertLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer that adds the position embeddings to its input."""

    def __init__(self, config: PointBertWithLLMBlockConfig, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PointBertAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + positions
        update, _ = self.attention(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + self._drop_path(update)
        update = self.fc2(self.activation(self.fc1(self.layernorm_after(hidden_states))))
        return hidden_states + self._drop_path(update)

    def _drop_path(self, update: torch.Tensor) -> torch.Tensor:
        return drop_path(update, self.drop_path_rate, self.training)


class PointBertModel(PreTrainedModel):
    """The plain host: embeddings, layers and the final norm."""

    config: PointBertWithLLMBlockConfig
    base_model_prefix = "point_bert"
    main_input_name = "points"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["PointBertLayer", "PointBertEmbeddings"]
    _can_record_outputs = {"hidden_states": PointBertLayer, "attentions": PointBertAttention}

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__(config)
        self.embeddings = PointBertEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList(PointBertLayer(config, rate) for rate in rates)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointBertEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.cls_position, std=self.config.initializer_range)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, points: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        hidden_states, positions = self.embeddings(points)
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions=positions)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states))


# transformers before 5.23 has no such argument and needs none, as it does not resolve negative indices.
_HIDDEN_STATES = OutputRecorder(PointBertLayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


class PointBertWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: PointBertWithLLMBlockConfig
    base_model_prefix = "point_bert"
    main_input_name = "points"
    input_modalities = ["points"]
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": PointBertAttention}

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: points on a line."""
        num_points = max(1024, self.config.num_groups, self.config.group_size)
        # Not `linspace`, which transformers replaces while it loads: after that it may ignore `torch.device`.
        return {"points": torch.ones(1, num_points, 3).cumsum(dim=1) / num_points - 0.5}

    def _build(self, config: PointBertWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.point_bert = PointBertModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.point_bert.embeddings.group_encoder

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.point_bert.embeddings.group_encoder = cast(PointBertGroupEncoder, value)

    def _encode(self, points: torch.Tensor | None, **kwargs: Any) -> BaseModelOutput:
        config, point_bert = self.config, self.point_bert
        if points is None:
            raise ValueError("You have to specify points")
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(
                f"points has the shape {tuple(points.shape)}; it must be (batch, points, 3), the coordinates alone. "
                "Use PointCloudProcessor."
            )
        if points.shape[1] < max(config.num_groups, config.group_size):
            raise ValueError(
                f"Point clouds of {points.shape[1]} points cannot be grouped: num_groups is {config.num_groups} and "
                f"group_size {config.group_size}. Sample more points."
            )
        hidden_states, positions = point_bert.embeddings(points)
        layers = [partial(layer, positions=positions) for layer in point_bert.layers]
        hidden_states = self._run_layers(layers, hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=point_bert.layernorm(hidden_states))


class PointBertClassificationHead(nn.Module):
    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__()
        self.dense = nn.Linear(2 * config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.classifier_hidden_size, cast(int, config.num_labels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        features = torch.cat([hidden_states[:, 0], hidden_states[:, 1:].amax(dim=1)], dim=-1)
        return self.out_proj(self.dropout(self.dense(features).relu()))


class PointBertWithLLMBlockModel(PointBertWithLLMBlockPreTrainedModel):
    r"""
    A Point-BERT with an LLM block among its layers, without a head.

    Args:
        config ([`PointBertWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, points: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        r"""
        Args:
            points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds in a sphere of radius 1 around 0.

        Returns:
            `BaseModelOutput`: `last_hidden_state` of shape `(batch, 1 + num_groups, hidden_size)`, CLS first. With
            `output_hidden_states=True`, the block adds one hidden state at its position; with
            `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        return self._encode(points, **kwargs)


class PointBertWithLLMBlockForPointCloudClassification(PointBertWithLLMBlockPreTrainedModel):
    r"""
    A Point-BERT with an LLM block and a classifier of two layers on the CLS token and the maximum over the others.

    Args:
        config ([`PointBertWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: PointBertWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.loss_type = "ForSequenceClassification"  # transformers has no loss for point clouds
        self._build(config)
        self.classifier = PointBertClassificationHead(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            points (`torch.Tensor` of shape `(batch, points, 3)`): point clouds in a sphere of radius 1 around 0.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): classes, 0 to `config.num_labels - 1`.

        Returns:
            `SequenceClassifierOutput`: with `loss` if `labels` are given.
        """
        hidden_states = cast(torch.Tensor, self._encode(points, **kwargs).last_hidden_state)
        logits = self.classifier(hidden_states)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return SequenceClassifierOutput(loss=loss, logits=logits)


__all__ = [
    "PointBertWithLLMBlockForPointCloudClassification",
    "PointBertWithLLMBlockModel",
    "PointBertWithLLMBlockPreTrainedModel",
    "group_points",
]
