# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and configuration tests on the ViT classes and on LLMBlock, with one LLM layer."""

import unittest

import pytest
import torch
from upstream_suite import (
    COMPOSITE,
    LLM_CONFIG,
    NOT_COMPOSITE,
    ConfigTester,
    ImageModelSuite,
    ModelTesterMixin,
    UpstreamSuite,
    tiny_llm,
    with_reason,
)

from hf_frozen_llm import (
    LLMBlock,
    LLMBlockConfig,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


class ViTWithLLMBlockModelTester:
    def __init__(self, parent: unittest.TestCase, **llm_block):
        self.parent = parent
        self.llm_block = llm_block
        self.batch_size = 3
        self.image_size = 16
        self.patch_size = 8
        self.num_channels = 3
        self.hidden_size = 24
        self.num_attention_heads = 2
        # Upstream counts hidden states and attentions by it, and the block adds one of each.
        self.num_hidden_layers = 2
        self.seq_length = (self.image_size // self.patch_size) ** 2 + 1
        self.is_training = True

    def get_config(self) -> ViTWithLLMBlockConfig:
        return ViTWithLLMBlockConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers - 1,
            num_attention_heads=self.num_attention_heads,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            num_labels=5,
            llm_block=LLMBlockConfig(**self.llm_block),
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixel_values}


class ViTWithLLMBlockSuite(ImageModelSuite):
    all_model_classes = (ViTWithLLMBlockModel, ViTWithLLMBlockForImageClassification)
    llm_block: dict = {}

    def setUp(self):
        super().setUp()
        self.model_tester = ViTWithLLMBlockModelTester(self, **self.llm_block)
        self.config_tester = ConfigTester(
            self,
            config_class=ViTWithLLMBlockConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            hidden_size=24,
            num_attention_heads=2,
        )


@pytest.mark.host_table("upstream tests", host="vit_class")
class ViTWithLLMBlockPretrainedTest(ViTWithLLMBlockSuite, unittest.TestCase):
    """The layer comes out of an LLM checkpoint."""

    skipped = {**ViTWithLLMBlockSuite.skipped, **COMPOSITE}

    def setUp(self):
        self.llm_block = {"llm_name_or_path": tiny_llm().name}
        super().setUp()

    def test_model_weights_reload_no_missing_tied_weights(self):
        """Upstream empties a saved file, so the folder must not say that it holds the LLM layer."""
        self.model_tester.llm_block["save_weights"] = False
        super().test_model_weights_reload_no_missing_tied_weights()


@pytest.mark.host_table("upstream tests", host="vit_class")
class ViTWithLLMBlockRandomTest(ViTWithLLMBlockSuite, unittest.TestCase):
    """The layer is initialised, as for the random control."""

    _is_composite = True
    llm_block = {"llm_config": {"model_type": "llama", **LLM_CONFIG}, "weights": "random"}
    contradicts_the_design = {
        **ViTWithLLMBlockSuite.contradicts_the_design,
        **with_reason(
            "empties a saved file and expects the weights to be initialised; here an incomplete folder is an error",
            "test_model_weights_reload_no_missing_tied_weights",
        ),
    }
    skipped = {**UpstreamSuite.skipped, **contradicts_the_design, **NOT_COMPOSITE}


class LLMBlockModelTester:
    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.save_weights = True
        self.batch_size = 3
        self.seq_length = 7
        self.hidden_size = 24
        self.num_hidden_layers = 1
        self.is_training = True

    def get_config(self) -> LLMBlockConfig:
        return LLMBlockConfig(
            llm_name_or_path=tiny_llm().name, hidden_size=self.hidden_size, save_weights=self.save_weights
        )

    def prepare_config_and_inputs_for_common(self):
        hidden_states = torch.randn(self.batch_size, self.seq_length, self.hidden_size)
        return self.get_config(), {"hidden_states": hidden_states}


class LLMBlockTest(UpstreamSuite, unittest.TestCase):
    all_model_classes = (LLMBlock,)
    contradicts_the_design = {
        **with_reason(
            "LLMBlock.forward returns a tensor, as a layer does, not a ModelOutput",
            """test_attention_outputs test_can_capture_specific_layers_hidden_states test_capture_outputs_decorator
            test_hidden_states_output test_model_outputs_equivalence test_retain_grad_hidden_states_attentions""",
        ),
        **with_reason("LLMBlock has no embeddings", "test_model_get_set_embeddings"),
        **with_reason(
            "saves a config with keys of other models, which LLMBlockConfig refuses",
            " ".join(
                ["test_load_save_without_tied_weights"]
                + [name for name in dir(ModelTesterMixin) if name.startswith("test_eager_matches_sdpa_inference_")]
            ),
        ),
    }
    skipped = {
        **UpstreamSuite.skipped,
        **COMPOSITE,
        **contradicts_the_design,
        **with_reason(
            "transformers converts no names of LLMBlock",
            "test_can_load_from_already_mapped_keys test_reverse_loading_mapping",
        ),
    }

    def setUp(self):
        super().setUp()
        self.model_tester = LLMBlockModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=LLMBlockConfig,
            has_text_modality=False,
            common_properties=["hidden_size"],
            hidden_size=24,
        )

    def test_save_load_keys_to_ignore_on_save(self):
        """The ignored keys are those of a light folder."""
        self.model_tester.save_weights = False
        super().test_save_load_keys_to_ignore_on_save()
