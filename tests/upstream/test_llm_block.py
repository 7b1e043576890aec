# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and configuration tests on LLMBlock, with one LLM layer."""

import unittest

import torch
from upstream_suite import (
    NO_CONVERSION,
    ConfigTester,
    ModelTesterMixin,
    UpstreamSuite,
    tiny_llm,
    with_reason,
)

from hf_frozen_llm import LLMBlock, LLMBlockConfig


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
        **contradicts_the_design,
        **NO_CONVERSION,
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
