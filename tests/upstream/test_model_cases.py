# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and configuration tests on the models of model_cases.py, with one LLM layer."""

import unittest

import pytest
from model_cases import POINT_BERT, VIDEOMAE, VIT
from upstream_suite import LLM_CONFIG, NO_CONVERSION, NOT_COMPOSITE, ImageModelSuite, ModelCaseSuite, with_reason


class ViTWithLLMBlockSuite(ModelCaseSuite):
    case = VIT
    all_model_classes = (VIT.base_class, VIT.model_class)
    fields = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@pytest.mark.host_table("upstream tests", host="vit_class")
class ViTWithLLMBlockPretrainedTest(ViTWithLLMBlockSuite, unittest.TestCase):
    """The layer comes from an LLM checkpoint."""


@pytest.mark.host_table("upstream tests", host="vit_class")
class ViTWithLLMBlockRandomTest(ViTWithLLMBlockSuite, unittest.TestCase):
    """The layer is initialised, as for the random control."""

    _is_composite = True
    llm = {"llm_name_or_path": None, "llm_config": {"model_type": "llama", **LLM_CONFIG}, "weights": "random"}
    contradicts_the_design = {
        **ViTWithLLMBlockSuite.contradicts_the_design,
        **with_reason(
            "empties a saved file and expects the weights to be initialised; here an incomplete folder is an error",
            "test_model_weights_reload_no_missing_tied_weights",
        ),
    }
    skipped = {**ImageModelSuite.skipped, **contradicts_the_design, **NOT_COMPOSITE}


class VideoMAEWithLLMBlockTest(ModelCaseSuite, unittest.TestCase):
    case = VIDEOMAE
    all_model_classes = (VIDEOMAE.base_class, VIDEOMAE.model_class)
    skipped = {**ModelCaseSuite.skipped, **NO_CONVERSION}


class PointBertWithLLMBlockTest(ModelCaseSuite, unittest.TestCase):
    case = POINT_BERT
    all_model_classes = (POINT_BERT.base_class, POINT_BERT.model_class)
    fields = {"drop_path_rate": 0.1, "classifier_dropout": 0.5}
    skipped = {**ModelCaseSuite.skipped, **NO_CONVERSION}
