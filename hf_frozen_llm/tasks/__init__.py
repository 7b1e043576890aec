# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The tasks of this package: the only list of them."""

from hf_frozen_llm.modeling.modeling_meter_with_llm_block import MeterWithLLMBlockModel
from hf_frozen_llm.modeling.modeling_sqa3d_with_llm_block import SQA3DWithLLMBlockModel
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks.image_classification import ImageClassification
from hf_frozen_llm.tasks.image_text_retrieval import ImageTextRetrieval
from hf_frozen_llm.tasks.motion_forecasting import MotionForecasting
from hf_frozen_llm.tasks.point_cloud_classification import PointCloudClassification
from hf_frozen_llm.tasks.situated_question_answering import SituatedQuestionAnswering
from hf_frozen_llm.tasks.task import Task
from hf_frozen_llm.tasks.video_classification import VideoClassification
from hf_frozen_llm.tasks.visual_question_answering import VisualQuestionAnswering


# by name; the first one is the default
TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        ImageClassification,
        VideoClassification,
        PointCloudClassification,
        MotionForecasting,
        VisualQuestionAnswering,
        ImageTextRetrieval,
        SituatedQuestionAnswering,
    )
}

# by task and model type; those of the last one can be converted, but are not trained
MODELS: dict[str, dict[str, type[PreTrainedModelWithLLMBlock]]] = {
    **{name: task.models for name, task in TASKS.items()},
    "feature-extraction": {
        "meter_with_llm_block": MeterWithLLMBlockModel,
        "sqa3d_with_llm_block": SQA3DWithLLMBlockModel,
    },
}


def find_task(model_type: str, architecture: str | None = None) -> type[Task]:
    """Return the task of a model type of this package; of a class, where several tasks have models of that type."""
    tasks = [task for task in TASKS.values() if model_type in task.models]
    for task in (*(task for task in tasks if task.models[model_type].__name__ == architecture), *tasks):
        return task
    known = ", ".join(model_type for task in TASKS.values() for model_type in task.models)
    raise ValueError(f"Unknown model type {model_type!r}. This package provides: {known}.")
