# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The package's models at tiny size, one `ModelCase` each. modeling/test_model_contract.py runs on all of them, so a
new model needs an entry here, and separate tests only for its special behaviour.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from meter_cases import METER_EMBEDDINGS, METER_QUESTIONS, METER_RETRIEVAL
from model_case import Model, ModelCase, Tensors
from motion_cases import FORECAST_MAE, MMTRANSFORMER, VECTORNET
from sqa3d_cases import SQA3D
from vision_cases import POINT_BERT, VIDEOMAE, VISION, VISION_ENCODER, VIT


PROJECTIONS = {"llm_block.input_projection.weight", "llm_block.output_projection.weight"}
CONTROLS: dict[str, dict[str, Any]] = {
    "pretrained, frozen": {},
    "random, frozen": {"weights": "random"},
    "random, trained": {"weights": "random", "trainable": True},
    "pretrained, trained": {"trainable": True},
    "MLP": {"kind": "mlp"},
    "projections": {"kind": "projections"},
    "identity": {"kind": "identity"},
    "shuffled, linear skip": {"weights": "shuffled", "residual": "outer_linear"},
    "pretrained, balanced": {"input_scale": "balanced"},
}

CASES = {
    "vit": VIT,
    "vision": VISION,
    "vision_encoder": VISION_ENCODER,
    "videomae": VIDEOMAE,
    "point_bert": POINT_BERT,
    "meter_questions": METER_QUESTIONS,
    "meter_retrieval": METER_RETRIEVAL,
    "meter_embeddings": METER_EMBEDDINGS,
    "vectornet": VECTORNET,
    "mmtransformer": MMTRANSFORMER,
    "forecast_mae": FORECAST_MAE,
    "sqa3d": SQA3D,
}


def cases(
    are_meant: Callable[[ModelCase], Any] = lambda case: True, **marks: pytest.MarkDecorator
) -> pytest.MarkDecorator:
    """Run a test on all cases or on those selected; `marks` are for single cases, by their names."""
    chosen = [pytest.param(c, id=name, marks=marks.get(name, ())) for name, c in CASES.items() if are_meant(c)]
    return pytest.mark.parametrize("case", chosen)


def names_of_layer(model: Model) -> set[str]:
    return {n for n, _ in model.named_parameters() if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))}


def frozen_names(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def assert_same_state(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
