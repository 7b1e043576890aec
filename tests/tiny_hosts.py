# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny vision encoders of many kinds with random weights, norms and biases too, written as published checkpoints."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tiny_llms import randomize
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING,
)

from hf_frozen_llm import VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
}
# DINOv2 sizes its feed-forward by a ratio.
RATIO = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
# Heads of a width that rotary positions over two axes can split.
ROTARY = {**SIZES, "hidden_size": 32}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
VIDEO = {**SIZES, "num_frames": 4}


@dataclass
class Host:
    """
    A host of the tests.

    Args:
        model_type (`str`): of its configuration.
        fields (`dict[str, Any]`): its configuration's sizes.
        pooling (`str`): the pooling of transformers' own classifier.
        checkpoint_type (`str`, *optional*): model type of the published checkpoints, if these contain more (CLIP).
        num_tokens (`int`): number of its last tokens.
        own_classifier (`str`): of transformers: the "same" function as ours, "another" one, or "none".
    """

    model_type: str
    fields: dict[str, Any]
    pooling: str
    num_tokens: int
    checkpoint_type: str | None = None
    own_classifier: str = "same"

    def config(self, **fields):
        return AutoConfig.for_model(self.model_type, **{**self.fields, "num_labels": 3, **fields})

    def checkpoint_config(self, **fields):
        """Return the published checkpoint's configuration: the host's, or that of an image-text model."""
        if self.checkpoint_type is None:
            return self.config(**fields)
        text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        return AutoConfig.for_model(
            self.checkpoint_type,
            vision_config=self.config(**fields).to_dict(),
            text_config={**text, "vocab_size": 99},
            projection_dim=16,
            num_labels=3,
        )

    def base_model(self, **fields) -> PreTrainedModel:
        """Build the plain host by AutoModel."""
        torch.manual_seed(1)
        return randomize(AutoModel.from_config(self.config(**fields)), seed=1).eval()

    def published(self, with_head: bool = True, **fields) -> PreTrainedModel:
        """Build the published model: with transformers' own classifier, or the base model."""
        config = self.checkpoint_config(**fields)
        torch.manual_seed(1)
        if not with_head:
            return randomize(AutoModel.from_config(config), seed=1).eval()
        for mapping in (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING):
            if type(config) in mapping:
                model_class = mapping[type(config)]
                break
        model_class = model_class[0] if isinstance(model_class, tuple) else model_class
        return randomize(model_class(config), seed=1).eval()

    def pixels(self, batch: int = 2, seed: int = 4) -> torch.Tensor:
        frames = [self.fields["num_frames"]] if "num_frames" in self.fields else []
        size = self.fields["image_size"]
        return torch.randn(batch, *frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


HOSTS = {
    "vit": Host("vit", SIZES, "cls", 17),
    "deit": Host("deit", SIZES, "cls", 18),
    "dinov2": Host("dinov2", RATIO, "cls_mean", 17),
    "dinov2_with_registers": Host("dinov2_with_registers", {**RATIO, "num_register_tokens": 3}, "cls_mean", 20),
    "dinov3_vit": Host("dinov3_vit", {**ROTARY, "num_register_tokens": 3}, "cls", 20, own_classifier="none"),
    "beit": Host("beit", {**SIZES, "use_relative_position_bias": True}, "mean", 17),
    "beit_cls": Host("beit", {**SIZES, "use_mean_pooling": False, "use_relative_position_bias": True}, "cls", 17),
    "swin": Host("swin", SWIN, "mean", 16),
    "siglip": Host("siglip_vision_model", SIZES, "mean", 16, checkpoint_type="siglip"),
    "clip": Host("clip_vision_model", SIZES, "mean", 17, checkpoint_type="clip", own_classifier="another"),
    "ijepa": Host("ijepa", SIZES, "mean", 16),
    "data2vec_vision": Host("data2vec-vision", {**SIZES, "use_mean_pooling": False}, "cls", 17),
    "data2vec_vision_mean": Host("data2vec-vision", SIZES, "mean", 17),
    "vit_msn": Host("vit_msn", SIZES, "cls", 17),
    "vivit": Host("vivit", {**VIDEO, "tubelet_size": [2, 4, 4]}, "cls", 33),
    "videomae": Host(
        "videomae", {**VIDEO, "tubelet_size": 2, "use_mean_pooling": False}, "mean", 32, own_classifier="another"
    ),
}


def vision_model(name, llm_block, model_class=VisionWithLLMBlockForImageClassification, **kwargs):
    """Build a model of the generic class on a host of the tests, the same at every call."""
    host = HOSTS[name]
    config = VisionWithLLMBlockConfig(
        vision_config=host.config(), llm_block=llm_block, **{"pooling": host.pooling, "num_labels": 3, **kwargs}
    )
    torch.manual_seed(3)
    model = model_class(config)
    if llm_block is not None:
        torch.nn.init.normal_(model.llm_block.output_projection.weight, std=0.3)
    return model.eval()


def plain_host(model):
    """Return transformers' own model with the weights of our model's host."""
    plain = AutoModel.from_config(copy.deepcopy(model.config.vision_config), **model._host.kwargs)
    plain.load_state_dict(model.host.state_dict())
    return plain.eval()
