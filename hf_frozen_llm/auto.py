# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Register this package's classes with the Auto classes of transformers, and list the models that tasks train."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

# In 5.17, `transformers.AutoImageProcessor` itself needs torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

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
from .modeling.modeling_forecast_mae_with_llm_block import ForecastMAEWithLLMBlockForMotionForecasting
from .modeling.modeling_llm_block import LLMBlock
from .modeling.modeling_meter_with_llm_block import (
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
)
from .modeling.modeling_mmtransformer_with_llm_block import MMTransformerWithLLMBlockForMotionForecasting
from .modeling.modeling_point_bert_with_llm_block import PointBertWithLLMBlockForPointCloudClassification
from .modeling.modeling_sqa3d_with_llm_block import SQA3DWithLLMBlockForQuestionAnswering
from .modeling.modeling_vectornet_with_llm_block import VectorNetWithLLMBlockForMotionForecasting
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
from .modeling.pretrained_model import PreTrainedModelWithLLMBlock
from .modeling.processing_meter_with_llm_block import MeterImageProcessor, MeterProcessor
from .modeling.processing_motion_forecasting import MotionProcessor
from .modeling.processing_point_bert_with_llm_block import PointCloudProcessor
from .modeling.processing_sqa3d_with_llm_block import SQA3DProcessor


# by model type: the class that its task trains
TASK_MODELS: dict[str, type[PreTrainedModelWithLLMBlock]] = {
    "vit_with_llm_block": ViTWithLLMBlockForImageClassification,
    "vision_with_llm_block": VisionWithLLMBlockForImageClassification,
    "videomae_with_llm_block": VideoMAEWithLLMBlockForVideoClassification,
    "point_bert_with_llm_block": PointBertWithLLMBlockForPointCloudClassification,
    "meter_with_llm_block": MeterWithLLMBlockForVisualQuestionAnswering,
    "vectornet_with_llm_block": VectorNetWithLLMBlockForMotionForecasting,
    "mmtransformer_with_llm_block": MMTransformerWithLLMBlockForMotionForecasting,
    "forecast_mae_with_llm_block": ForecastMAEWithLLMBlockForMotionForecasting,
    "sqa3d_with_llm_block": SQA3DWithLLMBlockForQuestionAnswering,
}
# by class name: models that share a model type with one of those
OTHER_MODELS: dict[str, type[PreTrainedModelWithLLMBlock]] = {
    "MeterWithLLMBlockForImageTextRetrieval": MeterWithLLMBlockForImageTextRetrieval,
}

AutoConfig.register("llm_block", LLMBlockConfig, exist_ok=True)
AutoModel.register(LLMBlockConfig, LLMBlock, exist_ok=True)

AutoConfig.register("vit_with_llm_block", ViTWithLLMBlockConfig, exist_ok=True)
AutoModel.register(ViTWithLLMBlockConfig, ViTWithLLMBlockModel, exist_ok=True)
AutoModelForImageClassification.register(ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification, exist_ok=True)

AutoConfig.register("vision_with_llm_block", VisionWithLLMBlockConfig, exist_ok=True)
AutoModel.register(VisionWithLLMBlockConfig, VisionWithLLMBlockModel, exist_ok=True)
AutoModelForImageClassification.register(
    VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification, exist_ok=True
)
AutoBackbone.register(VisionWithLLMBlockConfig, VisionWithLLMBlockBackbone, exist_ok=True)

AutoConfig.register("videomae_with_llm_block", VideoMAEWithLLMBlockConfig, exist_ok=True)
AutoModel.register(VideoMAEWithLLMBlockConfig, VideoMAEWithLLMBlockModel, exist_ok=True)
AutoModelForVideoClassification.register(
    VideoMAEWithLLMBlockConfig, VideoMAEWithLLMBlockForVideoClassification, exist_ok=True
)

# transformers has no Auto class for point clouds.
AutoConfig.register("point_bert_with_llm_block", PointBertWithLLMBlockConfig, exist_ok=True)
AutoModel.register(PointBertWithLLMBlockConfig, PointBertWithLLMBlockForPointCloudClassification, exist_ok=True)
AutoFeatureExtractor.register(PointBertWithLLMBlockConfig, PointCloudProcessor, exist_ok=True)

# transformers has no Auto class for retrieval.
AutoConfig.register("meter_with_llm_block", MeterWithLLMBlockConfig, exist_ok=True)
AutoModel.register(MeterWithLLMBlockConfig, MeterWithLLMBlockModel, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(
    MeterWithLLMBlockConfig, MeterWithLLMBlockForVisualQuestionAnswering, exist_ok=True
)
AutoImageProcessor.register(
    MeterWithLLMBlockConfig, image_processor_classes={"pil": MeterImageProcessor}, exist_ok=True
)
AutoProcessor.register(MeterWithLLMBlockConfig, MeterProcessor, exist_ok=True)

# Nor one for motion forecasting.
AutoConfig.register("vectornet_with_llm_block", VectorNetWithLLMBlockConfig, exist_ok=True)
AutoModel.register(VectorNetWithLLMBlockConfig, VectorNetWithLLMBlockForMotionForecasting, exist_ok=True)
AutoFeatureExtractor.register(VectorNetWithLLMBlockConfig, MotionProcessor, exist_ok=True)

AutoConfig.register("mmtransformer_with_llm_block", MMTransformerWithLLMBlockConfig, exist_ok=True)
AutoModel.register(MMTransformerWithLLMBlockConfig, MMTransformerWithLLMBlockForMotionForecasting, exist_ok=True)
AutoFeatureExtractor.register(MMTransformerWithLLMBlockConfig, MotionProcessor, exist_ok=True)

AutoConfig.register("forecast_mae_with_llm_block", ForecastMAEWithLLMBlockConfig, exist_ok=True)
AutoModel.register(ForecastMAEWithLLMBlockConfig, ForecastMAEWithLLMBlockForMotionForecasting, exist_ok=True)
AutoFeatureExtractor.register(ForecastMAEWithLLMBlockConfig, MotionProcessor, exist_ok=True)

# Nor one for questions about scenes.
AutoConfig.register("sqa3d_with_llm_block", SQA3DWithLLMBlockConfig, exist_ok=True)
AutoModel.register(SQA3DWithLLMBlockConfig, SQA3DWithLLMBlockForQuestionAnswering, exist_ok=True)
AutoFeatureExtractor.register(SQA3DWithLLMBlockConfig, SQA3DProcessor, exist_ok=True)
