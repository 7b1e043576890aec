# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`dummy_inputs` of every model class: valid inputs of one example, on the default device."""

import inspect

import pytest
import torch
from transformers import Dinov2Config, SwinConfig, VideoMAEConfig

import hf_frozen_llm
from hf_frozen_llm import (
    ForecastMAEWithLLMBlockConfig,
    LLMBlockConfig,
    MeterWithLLMBlockConfig,
    MMTransformerWithLLMBlockConfig,
    PointBertWithLLMBlockConfig,
    SQA3DWithLLMBlockConfig,
    VectorNetWithLLMBlockConfig,
    VideoMAEWithLLMBlockConfig,
    VisionWithLLMBlockConfig,
    ViTWithLLMBlockConfig,
)
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 9,
}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16, "patch_size": 4}
VIDEO = {**SIZES, "image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
METER = {"vision_config": {**SIZES, "image_size": 8, "patch_size": 4}, "text_config": {**SIZES, "vocab_size": 9}}
SQA3D = {
    "num_samples": [9, 6, 4, 3],
    "num_neighbors": [4] * 4,
    "point_channels": [[4], [6], [6], [6]],
    "propagation_channels": [[6], [8]],
    "num_proposals": 5,
    "proposal_size": 6,
    "word_embedding_size": 7,
}
HISTORY = {"history_attention_heads": [1, 2, 3], "history_kernel_sizes": [3, 3, 5]}
# By configuration class, configurations and the shape of the main input that each one means.
CONFIGS = {
    LLMBlockConfig: [({"hidden_size": 24}, (1, 8, 24))],
    ViTWithLLMBlockConfig: [
        ({**SIZES, "image_size": 8, "patch_size": 4}, (1, 3, 8, 8)),
        ({**SIZES, "image_size": [8, 12], "patch_size": 4, "num_channels": 1}, (1, 1, 8, 12)),
    ],
    VisionWithLLMBlockConfig: [
        ({"vision_config": Dinov2Config(**SIZES, image_size=8, patch_size=4)}, (1, 3, 8, 8)),
        ({"vision_config": SwinConfig(**SWIN)}, (1, 3, 16, 16)),
        ({"vision_config": VideoMAEConfig(**VIDEO, use_mean_pooling=False)}, (1, 4, 3, 16, 16)),
    ],
    VideoMAEWithLLMBlockConfig: [(VIDEO, (1, 4, 3, 16, 16))],
    MeterWithLLMBlockConfig: [({**SIZES, **METER}, (1, 3, 8, 8))],
    PointBertWithLLMBlockConfig: [
        ({**SIZES, "num_groups": 8, "group_size": 4}, (1, 1024, 3)),
        ({**SIZES, "num_groups": 8, "group_size": 1030}, (1, 1030, 3)),
    ],
    VectorNetWithLLMBlockConfig: [({"hidden_size": 24, "num_vector_features": 7}, (1, 96, 19, 7))],
    MMTransformerWithLLMBlockConfig: [({**SIZES, "num_history_features": 3}, (1, 32, 19, 3))],
    ForecastMAEWithLLMBlockConfig: [({**SIZES, **HISTORY, "num_history_features": 3}, (1, 48, 50, 3))],
    SQA3DWithLLMBlockConfig: [
        ({**SIZES, **SQA3D, "num_point_features": 1}, (1, 64, 4)),
        ({**SIZES, **SQA3D, "num_point_features": 0}, (1, 64, 3)),
    ],
}
# Inputs of the models that need more than one.
SEVERAL_INPUTS = {
    MMTransformerWithLLMBlockConfig: ["agent_history", "agent_positions", "lanes"],
    ForecastMAEWithLLMBlockConfig: ["agent_history", "agent_poses", "agent_types", "lanes", "lane_poses"],
    MeterWithLLMBlockConfig: ["pixel_values", "input_ids"],
    SQA3DWithLLMBlockConfig: ["points", "situation_embeds", "question_embeds"],
}
MODELS = [
    model
    for model in vars(hf_frozen_llm).values()
    if inspect.isclass(model) and issubclass(model, PreTrainedModelWithLLMBlock)
]
CASES = [
    pytest.param(model, fields, shape, id=f"{model.__name__}-{index}")
    for model in MODELS
    for index, (fields, shape) in enumerate(CONFIGS[model.config_class])
    if not (model.__name__.endswith("Backbone") and shape == (1, 4, 3, 16, 16))  # which takes only images
]


def build(model_class, fields):
    block = {"llm_config": LLAMA, "weights": "random"}
    if model_class.config_class is LLMBlockConfig:
        return model_class(LLMBlockConfig(**fields, **block)).eval()
    return model_class(model_class.config_class(**fields, llm_block=LLMBlockConfig(**block))).eval()


def tensors_of(outputs):
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs.to_tuple()
    return [tensor for output in outputs for tensor in (output if isinstance(output, tuple) else (output,))]


def test_every_model_class_is_tested():
    assert len(MODELS) == 21 and {model.config_class for model in MODELS} == set(CONFIGS)


@pytest.mark.parametrize(("model_class", "fields", "shape"), CASES)
def test_model_runs_on_its_dummy_inputs(model_class, fields, shape):
    model = build(model_class, fields)
    inputs = model.dummy_inputs
    assert list(inputs) == SEVERAL_INPUTS.get(model_class.config_class, [model.main_input_name])
    assert inputs[model.main_input_name].shape == shape
    assert inputs[model.main_input_name].device.type == "cpu"
    with torch.no_grad():
        outputs = tensors_of(model(**inputs))
    assert outputs and all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize(("model_class", "fields", "shape"), CASES)
def test_dummy_inputs_on_the_meta_device(model_class, fields, shape):
    with torch.device("meta"):
        model = build(model_class, fields)
        inputs = model.dummy_inputs
        assert inputs[model.main_input_name].is_meta and inputs[model.main_input_name].shape == shape
        outputs = tensors_of(model(**inputs))
    assert outputs and all(output.is_meta for output in outputs)


@pytest.mark.parametrize(("model_class", "fields", "shape"), CASES)
def test_model_in_bfloat16_runs_on_its_dummy_inputs(model_class, fields, shape):
    model = build(model_class, fields).bfloat16()
    with torch.no_grad():
        model(**model.dummy_inputs)
