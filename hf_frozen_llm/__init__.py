# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Frozen language model layers in vision encoders, as transformers models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import auto
from .modeling.configuration_forecast_mae_with_llm_block import ForecastMAEWithLLMBlockConfig
from .modeling.configuration_llm_block import LLMBlockConfig
from .modeling.configuration_meter_with_llm_block import MeterWithLLMBlockConfig
from .modeling.configuration_mmtransformer_with_llm_block import MMTransformerWithLLMBlockConfig
from .modeling.configuration_point_bert_with_llm_block import PointBertWithLLMBlockConfig
from .modeling.configuration_sqa3d_with_llm_block import SQA3DWithLLMBlockConfig
from .modeling.configuration_vectornet_with_llm_block import VectorNetWithLLMBlockConfig
from .modeling.configuration_videomae_with_llm_block import VideoMAEWithLLMBlockConfig
from .modeling.configuration_vision_with_llm_block import VisionWithLLMBlockConfig
from .modeling.configuration_vit_with_llm_block import ViTWithLLMBlockConfig
from .modeling.modeling_forecast_mae_with_llm_block import (
    ForecastMAEWithLLMBlockForMotionForecasting,
    ForecastMAEWithLLMBlockModel,
)
from .modeling.modeling_llm_block import LLMBlock
from .modeling.modeling_meter_with_llm_block import (
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
)
from .modeling.modeling_mmtransformer_with_llm_block import (
    MMTransformerWithLLMBlockForMotionForecasting,
    MMTransformerWithLLMBlockModel,
)
from .modeling.modeling_point_bert_with_llm_block import (
    PointBertWithLLMBlockForPointCloudClassification,
    PointBertWithLLMBlockModel,
)
from .modeling.modeling_sqa3d_with_llm_block import (
    SQA3DQuestionAnsweringOutput,
    SQA3DWithLLMBlockForQuestionAnswering,
    SQA3DWithLLMBlockModel,
)
from .modeling.modeling_vectornet_with_llm_block import (
    VectorNetWithLLMBlockForMotionForecasting,
    VectorNetWithLLMBlockModel,
)
from .modeling.modeling_videomae_with_llm_block import (
    VideoMAEWithLLMBlockForVideoClassification,
    VideoMAEWithLLMBlockModel,
)
from .modeling.modeling_vision_with_llm_block import (
    VisionWithLLMBlockBackbone,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
)
from .modeling.modeling_vit_with_llm_block import ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel
from .modeling.motion_forecasting import MotionForecastingOutput
from .modeling.processing_meter_with_llm_block import MeterImageProcessor, MeterProcessor
from .modeling.processing_motion_forecasting import MotionProcessor
from .modeling.processing_point_bert_with_llm_block import PointCloudProcessor
from .modeling.processing_sqa3d_with_llm_block import SQA3DProcessor
from .version import __version__


if TYPE_CHECKING:
    from .commands.ablate import ablate
    from .commands.analyze import analyze
    from .commands.check import check
    from .commands.plot import plot
    from .commands.predict import predict
    from .commands.robustness import evaluate_suites
    from .commands.suggest import suggest
    from .commands.train import train
    from .conversion import convert_released_checkpoint
    from .hub.push import push
    from .training.evaluate import evaluate


# Imported on first use: the models themselves need neither datasets nor peft.
COMMANDS = {
    "ablate": ".commands.ablate",
    "analyze": ".commands.analyze",
    "check": ".commands.check",
    "convert_released_checkpoint": ".conversion",
    "evaluate": ".training.evaluate",
    "evaluate_suites": ".commands.robustness",
    "plot": ".commands.plot",
    "predict": ".commands.predict",
    "push": ".hub.push",
    "suggest": ".commands.suggest",
    "train": ".commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(COMMANDS[name], __name__), name)


__all__ = [
    "ForecastMAEWithLLMBlockConfig",
    "ForecastMAEWithLLMBlockForMotionForecasting",
    "ForecastMAEWithLLMBlockModel",
    "LLMBlock",
    "LLMBlockConfig",
    "MMTransformerWithLLMBlockConfig",
    "MMTransformerWithLLMBlockForMotionForecasting",
    "MMTransformerWithLLMBlockModel",
    "MeterImageProcessor",
    "MeterProcessor",
    "MeterWithLLMBlockConfig",
    "MeterWithLLMBlockForImageTextRetrieval",
    "MeterWithLLMBlockForVisualQuestionAnswering",
    "MeterWithLLMBlockModel",
    "MotionForecastingOutput",
    "MotionProcessor",
    "PointBertWithLLMBlockConfig",
    "PointBertWithLLMBlockForPointCloudClassification",
    "PointBertWithLLMBlockModel",
    "PointCloudProcessor",
    "SQA3DProcessor",
    "SQA3DQuestionAnsweringOutput",
    "SQA3DWithLLMBlockConfig",
    "SQA3DWithLLMBlockForQuestionAnswering",
    "SQA3DWithLLMBlockModel",
    "VectorNetWithLLMBlockConfig",
    "VectorNetWithLLMBlockForMotionForecasting",
    "VectorNetWithLLMBlockModel",
    "ViTWithLLMBlockConfig",
    "ViTWithLLMBlockForImageClassification",
    "ViTWithLLMBlockModel",
    "VideoMAEWithLLMBlockConfig",
    "VideoMAEWithLLMBlockForVideoClassification",
    "VideoMAEWithLLMBlockModel",
    "VisionWithLLMBlockBackbone",
    "VisionWithLLMBlockConfig",
    "VisionWithLLMBlockForImageClassification",
    "VisionWithLLMBlockModel",
    "__version__",
    "ablate",
    "analyze",
    "auto",
    "check",
    "convert_released_checkpoint",
    "evaluate",
    "evaluate_suites",
    "plot",
    "predict",
    "push",
    "suggest",
    "train",
]
