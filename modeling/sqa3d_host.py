# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The plain SQA3D model: a VoteNet, an LSTM for situation and question, and layers in which objects attend to words.

Sources: "SQA3D: Situated Question Answering in 3D Scenes" (ICLR 2023) and its code (github.com/SilongYong/SQA3D,
`ScanQA`), whose outputs this module reproduces; the layers are those of "Deep Modular Co-Attention Networks for Visual
Question Answering" (CVPR 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_sqa3d_with_llm_block import SQA3DWithLLMBlockConfig
from .padded_attention import attend
from .votenet import Detection, VoteNet


OBJECT_ATTENTION = "object_attention"


@dataclass
class SQA3DModelOutput(ModelOutput):
    """
    Outputs of the model without its heads.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, objects, hidden_size)`): the visual tokens.
        pooler_output (`torch.Tensor` of shape `(batch, 3 * pooler_output_size)`): the pooled situation, question and
            visual tokens; without a situation, of the others' sum, `(batch, pooler_output_size)`.
        object_mask (`torch.BoolTensor` of shape `(batch, objects)`): which visual tokens are objects.
        hidden_states (`tuple[torch.Tensor]`, *optional*): the visual tokens before and after each layer.
        attentions (`tuple[torch.Tensor]`, *optional*): the self-attention of the visual tokens in each layer.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    object_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SQA3DTexts:
    """The words of situations and questions, `(batch, words, hidden_size)`, with their masks: True = word."""

    situation: torch.Tensor | None
    question: torch.Tensor
    situation_mask: torch.Tensor | None
    question_mask: torch.Tensor


class SQA3DLayerNorm(nn.Module):
    """A layer norm by the unbiased standard deviation, to which epsilon is added."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        centred = hidden_states - hidden_states.mean(dim=-1, keepdim=True)
        return self.weight * centred / (hidden_states.std(dim=-1, keepdim=True) + self.eps) + self.bias


class SQA3DAttention(nn.Module):
    """Attention of tokens to tokens. A query that sees no token attends to all of them alike."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(
        self, hidden_states: torch.Tensor, others: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Without any token to attend to, queries of zeros weigh all alike, and nothing is learnt from the weights.
        sees_any = mask.any(dim=1, keepdim=True)
        heads, weights = attend(
            self,
            self.q_proj(hidden_states) * sees_any[..., None],
            self.k_proj(others),
            self.v_proj(others),
            mask | ~sees_any,
            self.config.num_attention_heads,
            scaling=(self.config.hidden_size // self.config.num_attention_heads) ** -0.5,
            dropout=self.config.hidden_dropout_prob,
        )
        return self.o_proj(heads), weights


class SQA3DMLP(nn.Module):
    def __init__(self, in_features: int, hidden_size: int, out_features: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_features, hidden_size), nn.Linear(hidden_size, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(nn.functional.gelu(self.fc1(hidden_states))))


class SQA3DTextLayer(GradientCheckpointingLayer):
    """A post-norm layer of a text: self-attention, feed-forward network."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        width = config.hidden_size
        self.attention = SQA3DAttention(config)
        self.mlp = SQA3DMLP(width, config.intermediate_size or 4 * width, width, config.hidden_dropout_prob)
        self.norm1, self.norm2 = (SQA3DLayerNorm(width, config.layer_norm_eps) for _ in range(2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = self.norm1(words + self.dropout(self.attention(words, words, mask)[0]))
        return self.norm2(words + self.dropout(self.mlp(words)))


class SQA3DFusionLayer(GradientCheckpointingLayer):
    """A post-norm layer of the visual tokens: self-attention, attention to a text, feed-forward network."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        width = config.hidden_size
        self.object_attention, self.text_attention = SQA3DAttention(config), SQA3DAttention(config)
        self.mlp = SQA3DMLP(width, config.intermediate_size or 4 * width, width, config.hidden_dropout_prob)
        self.norm1, self.norm2, self.norm3 = (SQA3DLayerNorm(width, config.layer_norm_eps) for _ in range(3))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, objects: torch.Tensor, words: torch.Tensor, object_mask: torch.Tensor, word_mask: torch.Tensor
    ) -> torch.Tensor:
        objects = self.norm1(objects + self.dropout(self.object_attention(objects, objects, object_mask)[0]))
        objects = self.norm2(objects + self.dropout(self.text_attention(objects, words, word_mask)[0]))
        return self.norm3(objects + self.dropout(self.mlp(objects)))


class SQA3DPooler(nn.Module):
    """Sum tokens by learnt weights, once for each glimpse."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        width, glimpses = config.hidden_size, config.num_glimpses
        self.mlp = SQA3DMLP(width, config.pooler_hidden_size, glimpses, config.hidden_dropout_prob)
        self.out_proj = nn.Linear(width * glimpses, config.pooler_output_size)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pooled tokens, and their weights `(batch, tokens, num_glimpses)`; `mask`: True = token."""
        scores = self.mlp(tokens)
        weights = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=1)
        return self.out_proj((weights.mT @ tokens).flatten(1)), weights


class SQA3DTextEncoder(nn.Module):
    """The LSTM that situations and questions share, on vectors of words or, with `vocab_size`, on their numbers."""

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__()
        size, vocab_size = config.word_embedding_size, config.vocab_size
        self.word_embeddings = None if vocab_size is None else nn.Embedding(vocab_size, size)
        self.dropout = nn.Dropout(config.word_dropout_prob)
        self.lstm = nn.LSTM(
            size,
            config.hidden_size,
            config.num_lstm_layers,
            batch_first=True,
            bidirectional=config.bidirectional_lstm,
            dropout=config.hidden_dropout_prob if config.num_lstm_layers > 1 else 0.0,
        )

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the states of words `(batch, words, size)`, those of padding as zeros; `mask`: True = word."""
        words = self.dropout(words)
        if not self.lstm.bidirectional:
            # Words after the last one do not change the states before.
            return self.lstm(words)[0] * mask[..., None]
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1]
        )
        return states * mask[..., None]


@torch.no_grad()
def init_sqa3d_weights(module: nn.Module) -> None:
    """Initialise as the published code does: PyTorch's defaults, and Kaiming's for the layers of PointNet++."""
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight)
    elif isinstance(module, (nn.Linear, nn.Conv1d)):
        bound = (module.weight[0].numel()) ** -0.5
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.LSTM):
        bound = module.hidden_size**-0.5
        for parameter in module.parameters():
            init.uniform_(parameter, -bound, bound)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight)


class SQA3DModel(PreTrainedModel):
    """The plain host: the detector, the text encoder, the layers of words and objects, and the poolers."""

    config: SQA3DWithLLMBlockConfig
    base_model_prefix = "sqa3d"
    main_input_name = "points"
    input_modalities = ["points", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["SQA3DFusionLayer", "SQA3DTextLayer", "VoteNet", "SQA3DTextEncoder"]
    _can_record_outputs = {
        "hidden_states": SQA3DFusionLayer,
        "attentions": OutputRecorder(SQA3DAttention, index=1, layer_name=OBJECT_ATTENTION),
    }

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__(config)
        width, count = config.hidden_size, config.num_hidden_layers
        self.text_encoder = SQA3DTextEncoder(config)
        self.text_projection = nn.Linear(width * (1 + config.bidirectional_lstm), width)
        if config.use_situation:
            count = count // 2
            self.situation_layers = nn.ModuleList(SQA3DTextLayer(config) for _ in range(count))
            self.situation_pooler = SQA3DPooler(config)
        else:
            self.pooled_norm = SQA3DLayerNorm(config.pooler_output_size, config.layer_norm_eps)
        self.question_layers = nn.ModuleList(SQA3DTextLayer(config) for _ in range(count))
        self.question_pooler = SQA3DPooler(config)
        if config.use_points:
            self.detector = VoteNet(config)
            self.object_norm = nn.BatchNorm1d(config.proposal_size) if config.normalize_proposals else None
            self.object_projection = nn.Linear(config.proposal_size, width)
            if config.use_situation:
                self.situation_fusion_layers = nn.ModuleList(SQA3DFusionLayer(config) for _ in range(count))
            self.question_fusion_layers = nn.ModuleList(SQA3DFusionLayer(config) for _ in range(count))
            self.object_pooler = SQA3DPooler(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_sqa3d_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        embeddings = self.text_encoder.word_embeddings
        return self.text_encoder.lstm if embeddings is None else embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        name = "lstm" if self.text_encoder.word_embeddings is None else "word_embeddings"
        setattr(self.text_encoder, name, value)

    def encode_texts(
        self,
        situation: tuple[torch.Tensor | None, ...],
        question: tuple[torch.Tensor | None, ...],
    ) -> SQA3DTexts:
        """Encode texts, each given by the vectors of its words, its mask, and the numbers of its words."""
        question_words, question_mask = self._encode_text("question", question, self.question_layers)
        if not self.config.use_situation:
            return SQA3DTexts(None, question_words, None, question_mask)
        situation_words, situation_mask = self._encode_text("situation", situation, self.situation_layers)
        return SQA3DTexts(situation_words, question_words, situation_mask, question_mask)

    def _encode_text(
        self, name: str, text: tuple[torch.Tensor | None, ...], layers: nn.ModuleList
    ) -> tuple[torch.Tensor, torch.Tensor]:
        words, mask = self._embed_words(name, *text)
        words = nn.functional.gelu(self.text_projection(self.text_encoder(words, mask)))
        for layer in layers:
            words = layer(words, mask)
        return words, mask

    def _embed_words(
        self, name: str, embeds: torch.Tensor | None, mask: torch.Tensor | None, ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of a text's words, and its mask of booleans; without a mask, all are words."""
        size, embeddings = self.config.word_embedding_size, self.text_encoder.word_embeddings
        if (embeds is None) == (ids is None):
            raise ValueError(f"You have to specify {name}_embeds or {name}_ids, and only one of them")
        if ids is not None:
            if embeddings is None:
                raise ValueError(
                    f"{name}_ids needs a model that holds the vectors of words: set vocab_size, or give {name}_embeds."
                )
            embeds = embeddings(ids)
        embeds = cast(torch.Tensor, embeds)
        if embeds.ndim != 3 or embeds.shape[-1] != size:
            raise ValueError(
                f"{name}_embeds has the shape {tuple(embeds.shape)}; it must be (batch, words, {size}), where {size} "
                "is word_embedding_size."
            )
        shape = embeds.shape[:2]
        mask = embeds.new_ones(shape) if mask is None else mask
        if mask.shape != shape:
            raise ValueError(f"{name}_mask has the shape {tuple(mask.shape)}; it must be {tuple(shape)}.")
        return embeds.to(self.text_projection.weight.dtype), mask.bool()

    def detect(
        self, points: torch.Tensor | None, object_centers: torch.Tensor | None, object_mask: torch.Tensor | None
    ) -> Detection:
        """Detect objects; annotated ones are used only with `object_tokens="annotated"`."""
        config = self.config
        width = 3 + config.num_point_features
        if points is None:
            raise ValueError("You have to specify points")
        if points.ndim != 3 or points.shape[-1] != width or points.shape[1] == 0:
            raise ValueError(
                f"points has the shape {tuple(points.shape)}; it must be (batch, points, {width}): x, y, z and "
                f"num_point_features = {config.num_point_features} features."
            )
        if config.object_tokens == "predicted":
            return self.detector(points)
        if object_centers is None or object_mask is None:
            raise ValueError(
                "You have to specify object_centers and object_mask: object_tokens is 'annotated', so the visual "
                "tokens are those of annotated objects."
            )
        shape = (*object_centers.shape[:2], 3)
        if object_centers.shape != shape or object_mask.shape != shape[:2] or len(points) != shape[0]:
            raise ValueError(
                f"object_centers has the shape {tuple(object_centers.shape)} and object_mask "
                f"{tuple(object_mask.shape)}; they must be (batch, objects, 3) and (batch, objects)."
            )
        return self.detector(points, object_centers, object_mask)

    def project_objects(self, features: torch.Tensor) -> torch.Tensor:
        if self.object_norm is not None:
            features = self.object_norm(features.mT).mT
        return nn.functional.gelu(self.object_projection(features))

    def fusion_layers(self, texts: SQA3DTexts, object_mask: torch.Tensor) -> list[Callable]:
        """Return the layers of the visual tokens as functions of these alone."""
        question: tuple[Any, ...] = (texts.question, object_mask, texts.question_mask)
        layers = [(layer, question) for layer in self.question_fusion_layers]
        if texts.situation is not None:
            situation: tuple[Any, ...] = (texts.situation, object_mask, texts.situation_mask)
            layers = [(layer, situation) for layer in self.situation_fusion_layers] + layers
        return [
            partial(lambda layer, args, objects: layer(objects, *args), layer, arguments)
            for layer, arguments in layers
        ]

    def pool(
        self, texts: SQA3DTexts, objects: torch.Tensor | None, object_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Return the pooled situation, question and objects, side by side, and the weights of the objects. Without a
        situation, the others are added and normalised.
        """
        question, _ = self.question_pooler(texts.question, texts.question_mask)
        if texts.situation is None:
            pooled, weights = self.object_pooler(objects, object_mask)
            return self.pooled_norm(question + pooled), weights
        situation, _ = self.situation_pooler(texts.situation, texts.situation_mask)
        if objects is None or object_mask is None:
            return torch.cat([situation, question], dim=-1), None
        pooled, weights = self.object_pooler(objects, object_mask)
        return torch.cat([situation, question, pooled], dim=-1), weights

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor | None = None,
        situation_embeds: torch.Tensor | None = None,
        situation_mask: torch.Tensor | None = None,
        question_embeds: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        situation_ids: torch.Tensor | None = None,
        question_ids: torch.Tensor | None = None,
        object_centers: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SQA3DModelOutput:
        situation, question = (situation_embeds, situation_mask, situation_ids), (question_embeds, question_mask)
        texts = self.encode_texts(situation, (*question, question_ids))
        objects: Any = None
        if self.config.use_points:
            detection = self.detect(points, object_centers, object_mask)
            object_mask, objects = detection.proposal_mask, self.project_objects(detection.proposal_features)
            for layer in self.fusion_layers(texts, object_mask):
                objects = layer(objects)
        pooled, _ = self.pool(texts, objects, object_mask)
        return SQA3DModelOutput(last_hidden_state=objects, pooler_output=pooled, object_mask=object_mask)


__all__ = ["SQA3DModel", "SQA3DModelOutput", "SQA3DTexts", "init_sqa3d_weights"]
