# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The models of images, videos and point clouds at tiny size."""

import numpy as np
import torch
from model_case import ModelCase, image, labels, layer_norm, pixels, randn
from tiny_hosts import RATIO, SIZES, VIDEO
from transformers import (
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from hf_frozen_llm import (
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    PointBertWithLLMBlockModel,
    PointCloudProcessor,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    VideoMAEWithLLMBlockModel,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


VIT = ModelCase(
    config_class=ViTWithLLMBlockConfig,
    base_class=ViTWithLLMBlockModel,
    model_class=ViTWithLLMBlockForImageClassification,
    fields={**SIZES, "image_size": 8, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 3, 8, 8)},
    num_tokens=5,
    finish=lambda model, hidden_states: model.classifier(model.vit.layernorm(hidden_states)[:, 0]),
    refused=[
        (pixels(2, 3, 12, 12), ["pixel_values", "12", "8", "image_size", "interpolate_pos_encoding"]),
        (pixels(2, 3, 8, 16), ["pixel_values", "16", "image_size"]),
        (pixels(2, 1, 8, 8), ["pixel_values", "num_channels", "3", "1"]),
        (pixels(2, 4, 8, 8), ["pixel_values", "num_channels", "4"]),
        (pixels(3, 8, 8), ["pixel_values"]),
        ({}, ["pixel_values"]),
    ],
    targets=labels,
    head=("classifier",),
    auto_class=AutoModelForImageClassification,
    plain_class=ViTForImageClassification,
    positions=(-1, 0, 1, 2, 3),
    layers=lambda model, inputs: list(model.vit.layers),
    base_kwargs={"add_pooling_layer": False},
    processor=lambda: ViTImageProcessor(size={"height": 8, "width": 8}),
    sample=image,
    pipeline="image-classification",
)
VISION = ModelCase(
    config_class=VisionWithLLMBlockConfig,
    base_class=VisionWithLLMBlockModel,
    model_class=VisionWithLLMBlockForImageClassification,
    fields={"vision_config": {"model_type": "dinov2", **RATIO, "use_mask_token": False}, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 3, 16, 16)},
    num_tokens=17,
    finish=lambda model, hidden_states: model.classifier(layer_norm(model.host.layernorm, hidden_states)[:, 0]),
    refused=[
        (pixels(3, 16, 16), ["pixel_values"]),
        (pixels(2, 1, 16, 16), ["pixel_values"]),
        ({}, ["pixel_values"]),
    ],
    targets=labels,
    head=("classifier",),
    auto_class=AutoModelForImageClassification,
    processor=lambda: ViTImageProcessor(size={"height": 16, "width": 16}),
    sample=image,
    pipeline="image-classification",
)
# Neither a head nor a loss.
VISION_ENCODER = ModelCase(
    config_class=VisionWithLLMBlockConfig,
    base_class=VisionWithLLMBlockModel,
    model_class=VisionWithLLMBlockModel,
    fields={"vision_config": {"model_type": "ijepa", **SIZES}},
    inputs=VISION.inputs,
    num_tokens=16,
    finish=lambda model, hidden_states: layer_norm(model.host.layernorm, hidden_states),
    refused=VISION.refused,
    output="last_hidden_state",
)
VIDEOMAE = ModelCase(
    config_class=VideoMAEWithLLMBlockConfig,
    base_class=VideoMAEWithLLMBlockModel,
    model_class=VideoMAEWithLLMBlockForVideoClassification,
    fields={**VIDEO, "patch_size": 8, "tubelet_size": 2, "num_hidden_layers": 2, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 4, 3, 16, 16)},
    num_tokens=8,
    finish=lambda model, hidden_states: model.classifier(model.fc_norm(hidden_states.mean(1))),
    refused=[
        (pixels(*shape), [r"\(batch, frames, channels, height, width\) = \(batch, 4, 3, 16, 16\)"])
        for shape in [(2, 3, 4, 16, 16), (2, 4, 1, 16, 16), (2, 8, 3, 16, 16), (2, 4, 3, 32, 32), (4, 3, 16, 16)]
    ]
    + [({}, ["pixel_values"])],
    targets=labels,
    head=("fc_norm", "classifier"),
    auto_class=AutoModelForVideoClassification,
    plain_class=VideoMAEForVideoClassification,
    positions=(-1, 0, 1),
    layers=lambda model, inputs: list(model.videomae.encoder.layer),
    processor=lambda: VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    sample=lambda: [image()] * 4,
)
POINT_BERT = ModelCase(
    config_class=PointBertWithLLMBlockConfig,
    base_class=PointBertWithLLMBlockModel,
    model_class=PointBertWithLLMBlockForPointCloudClassification,
    fields={
        "num_groups": 6,
        "group_size": 4,
        "encoder_hidden_size": 16,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_labels": 3,
        "drop_path_rate": 0.0,
        "classifier_dropout": 0.0,
    },
    inputs=lambda batch: {"points": randn(batch, 32, 3)},
    num_tokens=7,
    finish=lambda model, hidden_states: model.classifier(model.point_bert.layernorm(hidden_states)),
    refused=[
        ({"points": torch.zeros(2, 32, 6)}, [r"\(2, 32, 6\); it must be \(batch, points, 3\)"]),
        ({"points": torch.zeros(32, 3)}, [r"it must be \(batch, points, 3\)"]),
        (
            {"points": torch.zeros(2, 5, 3)},
            ["Point clouds of 5 points cannot be grouped: num_groups is 6 and group_size 4"],
        ),
        ({}, ["points"]),
    ],
    targets=labels,
    head=("classifier",),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: [
        lambda hidden_states, layer=layer: layer(hidden_states, model.point_bert.embeddings(**inputs)[1])
        for layer in model.point_bert.layers
    ],
    processor=lambda: PointCloudProcessor(num_points=32),
    sample=lambda: np.random.default_rng(0).normal(size=(50, 3)),
)
