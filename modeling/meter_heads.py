# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Heads of a METER: the classifier of the pooled text and image, and embeddings of images and of texts alone.

Source: github.com/zdou0830/METER (`meter/modules`) for the classifier; "Learning Transferable Visual Models From
Natural Language Supervision" (CLIP, ICML 2021) for the contrastive loss.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .configuration_meter_with_llm_block import MeterWithLLMBlockConfig


# CLIP's, the logarithm of 1 / 0.07.
LOGIT_SCALE = 2.6592


@dataclass
class ImageTextRetrievalOutput(ModelOutput):
    """
    Outputs of a model that compares images and texts.

    Args:
        loss (`torch.Tensor`, *optional*): the loss, if `labels` are given.
        match_logits (`torch.Tensor` of shape `(batch, 2)`): whether image and text match; class 1 = match.
        scores (`torch.Tensor` of shape `(batch,)`): the scores by which pairs are ranked; greater is better.
        logits_per_image (`torch.Tensor` of shape `(images, batch)`, *optional*): the scaled cosines of the embeddings
            of images and texts, if `config.contrastive_loss_weight` is not 0.
        hidden_states (`tuple[torch.Tensor]`, *optional*): see [`MeterWithLLMBlockModel`].
        attentions (`tuple[torch.Tensor]`, *optional*): see [`MeterWithLLMBlockModel`].
    """

    loss: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MeterClassificationHead(nn.Module):
    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__()
        width = 2 * config.hidden_size
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5)
        self.out_proj = nn.Linear(width, cast(int, config.num_labels))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(nn.functional.gelu(self.layer_norm(self.dense(pooled))))


def embed_first_token(projection: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """Return embeddings of length 1, of the first token."""
    return nn.functional.normalize(projection(tokens[:, 0]), dim=-1)


def contrastive_loss(logits_per_image: torch.Tensor, is_match: torch.Tensor) -> torch.Tensor:
    r"""
    Return the contrastive loss of CLIP, summed over the matches: the mean of the cross entropy of a match among all
    texts for its image, and among all images for its text.

    Args:
        logits_per_image (`torch.Tensor` of shape `(images, texts)`): the similarities; equally many texts in a row
            stand for each image.
        is_match (`torch.Tensor` of shape `(texts,)`): 1 for texts that match their image, 0 for others.
    """
    logits = logits_per_image.float()
    texts = torch.arange(logits.shape[1], device=logits.device)
    images = texts // (logits.shape[1] // logits.shape[0])
    both = logits.log_softmax(dim=1) + logits.log_softmax(dim=0)
    return -(both[images, texts] * is_match).sum() / 2


__all__ = [
    "LOGIT_SCALE",
    "ImageTextRetrievalOutput",
    "MeterClassificationHead",
    "contrastive_loss",
    "embed_first_token",
]
