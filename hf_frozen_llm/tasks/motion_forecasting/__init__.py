# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Motion forecasting."""

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.tasks.task import Task


class MotionForecasting(Task):
    name = "motion-forecasting"
    arguments = DataArguments
    models = {name: TASK_MODELS[name] for name in ("vectornet_with_llm_block", "mmtransformer_with_llm_block")}
