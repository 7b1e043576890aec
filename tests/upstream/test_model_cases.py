# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and configuration tests on the models of model_cases.py, with one LLM layer."""

import unittest

import pytest
import torch
from meter_cases import METER_QUESTIONS, METER_RETRIEVAL
from motion_cases import FORECAST_MAE, MMTRANSFORMER, VECTORNET
from upstream_suite import LLM_CONFIG, NO_CONVERSION, ModelCaseSuite, with_reason
from vision_cases import POINT_BERT, VIDEOMAE, VIT


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

    llm = {"llm_name_or_path": None, "llm_config": {"model_type": "llama", **LLM_CONFIG}, "weights": "random"}


class OtherFamilySuite(ViTWithLLMBlockSuite):
    all_model_classes = (VIT.model_class,)
    # Only a base model skips it.
    skipped = {n: why for n, why in ModelCaseSuite.skipped.items() if n != "test_inputs_embeds_matches_input_ids"}


@pytest.mark.slow
class ViTWithQwen3Test(OtherFamilySuite, unittest.TestCase):
    """Two layers, with norms of queries and keys and two key-value heads for four of queries."""

    family = "qwen3"
    llm = {"layer_index": [1, 2]}
    num_llm_layers = 2
    contradicts_the_design = with_reason("two LLM layers beside the host's one", "test_num_layers_is_small")
    skipped = {**OtherFamilySuite.skipped, **contradicts_the_design}


@pytest.mark.slow
class ViTWithGemma3Test(OtherFamilySuite, unittest.TestCase):
    family = "gemma3_text"


@pytest.mark.slow
class ViTWithGPT2Test(OtherFamilySuite, unittest.TestCase):
    family = "gpt2"


class VideoMAEWithLLMBlockTest(ModelCaseSuite, unittest.TestCase):
    case = VIDEOMAE
    all_model_classes = (VIDEOMAE.base_class, VIDEOMAE.model_class)
    skipped = {**ModelCaseSuite.skipped, **NO_CONVERSION}


class PointBertWithLLMBlockTest(ModelCaseSuite, unittest.TestCase):
    case = POINT_BERT
    all_model_classes = (POINT_BERT.base_class, POINT_BERT.model_class)
    fields = {"drop_path_rate": 0.1, "classifier_dropout": 0.5}
    skipped = {**ModelCaseSuite.skipped, **NO_CONVERSION}


class MeterWithLLMBlockTest(ModelCaseSuite, unittest.TestCase):
    case = METER_QUESTIONS
    all_model_classes = (METER_QUESTIONS.base_class, METER_QUESTIONS.model_class, METER_RETRIEVAL.model_class)
    fields = {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "contrastive_loss_weight": 0.5,
        "projection_dim": 8,
    }
    additional_model_inputs = ["input_ids"]
    contradicts_the_design = with_reason(
        "of foreign classes transformers initialises no module without parameters, which CLIP relies on",
        "test_can_init_all_missing_weights",
    )
    skipped = {
        **ModelCaseSuite.skipped,
        **contradicts_the_design,
        **with_reason("CLIP's conversion only changes prefixes", "test_reverse_loading_mapping"),
    }
    del skipped["test_enable_input_require_grads_with_gradient_checkpointing"]  # it has token embeddings

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is METER_QUESTIONS.model_class:
            inputs["labels"] = torch.ones(self.model_tester.batch_size, 5)
        if return_labels and model_class is METER_RETRIEVAL.model_class:
            inputs["labels"] = torch.tensor([[1, 0, 0]])
        return inputs

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        """Upstream counts the layers of the model tester, here those of the fusion."""
        return self.case.fields["vision_config"]["num_hidden_layers"]

    def _text_features_get_expected_num_attentions(self, model_tester=None):
        return self.case.fields["text_config"]["num_hidden_layers"]


class MotionForecastingSuite(ModelCaseSuite):
    skipped = {**ModelCaseSuite.skipped, **NO_CONVERSION}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Upstream knows labels of models in its mappings alone."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        has_loss = return_labels and model_class is self.case.model_class
        return {**inputs, **self.case.targets(self.model_tester.batch_size)} if has_loss else inputs


class VectorNetWithLLMBlockTest(MotionForecastingSuite, unittest.TestCase):
    case = VECTORNET
    all_model_classes = (VECTORNET.base_class, VECTORNET.model_class)
    additional_model_inputs = ("vector_mask", "polyline_mask")


# Their input embedding is a linear layer or a convolution, which this test can use.
WITHOUT_POLYLINES = {
    name: why
    for name, why in MotionForecastingSuite.skipped.items()
    if name != "test_enable_input_require_grads_with_gradient_checkpointing"
}


class MMTransformerWithLLMBlockTest(MotionForecastingSuite, unittest.TestCase):
    case = MMTRANSFORMER
    all_model_classes = (MMTRANSFORMER.base_class, MMTRANSFORMER.model_class)
    additional_model_inputs = ("agent_positions", "lanes", "agent_mask", "lane_mask")
    contradicts_the_design = with_reason(
        "the attentions of agents and of lanes are put together for the output only",
        "test_retain_grad_hidden_states_attentions",
    )
    skipped = {**WITHOUT_POLYLINES, **contradicts_the_design}


class ForecastMAEWithLLMBlockTest(MotionForecastingSuite, unittest.TestCase):
    case = FORECAST_MAE
    all_model_classes = (FORECAST_MAE.base_class, FORECAST_MAE.model_class)
    fields = {"drop_path_rate": 0.1}
    skipped = WITHOUT_POLYLINES
    additional_model_inputs = ("agent_poses", "agent_types", "lanes", "lane_poses", "agent_mask", "lane_mask")
