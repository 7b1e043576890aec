# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What belongs to each task: the module that makes tensors of its data, its settings, and its models."""

from types import ModuleType

from hf_frozen_llm import (
    PointBertWithLLMBlockForPointCloudClassification,
    VideoMAEWithLLMBlockForVideoClassification,
    VisionWithLLMBlockForImageClassification,
    ViTWithLLMBlockForImageClassification,
)
from hf_frozen_llm.data import images, points, videos
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.training.arguments import (
    MODEL_TYPES,
    DataArguments,
    ImageDataArguments,
    PointDataArguments,
    VideoDataArguments,
)


# All of them have `load_split`, `build_processor`, `build_preparer`, `build_batches` and `collate`.
DATA_MODULES: dict[str, ModuleType] = {
    "image-classification": images,
    "video-classification": videos,
    "point-cloud-classification": points,
}
DATA_ARGUMENTS: dict[str, type[DataArguments]] = {
    "image-classification": ImageDataArguments,
    "video-classification": VideoDataArguments,
    "point-cloud-classification": PointDataArguments,
}
# by model type
MODELS: dict[str, type[PreTrainedModelWithLLMBlock]] = {
    "vit_with_llm_block": ViTWithLLMBlockForImageClassification,
    "vision_with_llm_block": VisionWithLLMBlockForImageClassification,
    "videomae_with_llm_block": VideoMAEWithLLMBlockForVideoClassification,
    "point_bert_with_llm_block": PointBertWithLLMBlockForPointCloudClassification,
}


def find_task(model_type: str) -> str:
    """The task of a model type of this package."""
    for task, model_types in MODEL_TYPES.items():
        if model_type in model_types:
            return task
    known = ", ".join(model_type for model_types in MODEL_TYPES.values() for model_type in model_types)
    raise ValueError(f"A {model_type} is no model of this package, which has {known}.")
