# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
transformers' own model and configuration tests on every class, with one host layer and one LLM layer.

`skipped` of each class names the tests that do not run, and why; conftest.py fails a test that is skipped without
being named there, or named there without being skipped.
"""

import functools
import os
import tempfile
import unittest

import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaModel
from upstream_suite import ConfigTester, ModelTesterMixin

from hf_frozen_llm import (
    LLMBlock,
    LLMBlockConfig,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


LLM_CONFIG = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def with_reason(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


NEEDS_ANOTHER_MACHINE = {
    **with_reason(
        "needs an accelerator",
        """test_can_load_with_device_context_manager test_can_load_with_global_device_set test_cpu_offload
        test_disk_offload_bin test_disk_offload_safetensors test_flex_attention_with_grads test_model_parallelism
        test_sdpa_can_compile_dynamic test_sdpa_can_dispatch_on_flash test_torch_compile_for_training""",
    ),
    **with_reason(
        "needs Flash Attention and a GPU",
        """test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break
        test_flash_attn_2_can_dispatch_composite_models test_flash_attn_2_fp32_ln test_flash_attn_2_from_config
        test_flash_attn_2_inference_equivalence test_flash_attn_2_inference_equivalence_right_padding
        test_flash_attn_3_can_dispatch_composite_models test_flash_attn_3_from_config
        test_flash_attn_3_inference_equivalence test_flash_attn_3_inference_equivalence_right_padding
        test_flash_attn_4_can_dispatch_composite_models test_flash_attn_4_from_config
        test_flash_attn_4_inference_equivalence test_flash_attn_4_inference_equivalence_right_padding
        test_flash_attn_kernels_inference_equivalence test_flash_attn_kernels_mps_inference_equivalence""",
    ),
    **with_reason("needs the kernels library and an accelerator", "test_kernels_can_load_without_crashing"),
    **with_reason(
        "needs deepspeed",
        """test_resize_embeddings_untied_with_deepspeed test_resize_embeddings_untied_with_deepspeed_multi_gpu
        test_resize_tokens_embeddings_with_deepspeed test_resize_tokens_embeddings_with_deepspeed_multi_gpu""",
    ),
}
OF_OTHER_KINDS_OF_MODEL = {
    **with_reason(
        "no token embeddings",
        """test_enable_input_require_grads_with_gradient_checkpointing test_inputs_embeds
        test_inputs_embeds_matches_input_ids test_resize_embeddings_untied
        test_resize_embeddings_untied_no_reinit_on_post_init test_resize_position_vector_embeddings
        test_resize_tokens_embeddings""",
    ),
    **with_reason(
        "no language modeling head",
        "test_causal_lm_loss_honors_shift_labels test_encoder_decoder_loss_no_double_shift",
    ),
    **with_reason(
        "no rotary positions of the model's own",
        """test_model_rope_scaling_frequencies test_model_rope_scaling_from_config_0_linear
        test_model_rope_scaling_from_config_1_dynamic test_model_rope_scaling_from_config_2_yarn
        test_model_rope_with_partial_rotation test_vision_axial_rope""",
    ),
    **with_reason("no sliding window", "test_sliding_window_mask"),
    **with_reason(
        "no experts in the tester's LLM",
        """test_eager_matches_batched_and_grouped_inference_0_fp16
        test_eager_matches_batched_and_grouped_inference_1_fp32
        test_eager_matches_batched_and_grouped_inference_2_bf16 test_moe_models_record_router_logits
        test_output_router_logits_from_config""",
    ),
    **with_reason("no tensor parallel plan", "test_tied_head_has_a_tp_plan_entry test_tp_plan_matches_params"),
    **with_reason("no modules kept in float32", "test_keep_in_fp32_modules test_keep_in_fp32_modules_exist"),
    **with_reason("not a vision tower beside a whole language model", "test_sdpa_can_dispatch_composite_models"),
}
COMPOSITE = with_reason(
    "the random variant runs it, with `_is_composite`",
    "test_attn_implementation_composite_models test_can_set_attention_dynamically_composite_model",
)
NOT_COMPOSITE = with_reason(
    "the pretrained variant runs it, without `_is_composite`", "test_sdpa_can_dispatch_non_composite_models"
)


@functools.cache
def tiny_llm() -> tempfile.TemporaryDirectory:
    """A LLaMA checkpoint whose weights are far from any initialisation, so that a layer not read from it shows."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_llm_")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaModel(LlamaConfig(**LLM_CONFIG))
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=0.3, std=0.2)
    model.save_pretrained(folder.name)
    return folder


class UpstreamSuite(ModelTesterMixin):
    test_resize_embeddings = False
    # Tests whose expectation contradicts the design; they are skipped here.
    contradicts_the_design: dict[str, str] = {}
    # All tests that are skipped, here or by upstream.
    skipped: dict[str, str] = {**NEEDS_ANOTHER_MACHINE, **OF_OTHER_KINDS_OF_MODEL}

    def setUp(self):
        if (reason := self.contradicts_the_design.get(self._testMethodName)) is not None:
            self.skipTest(reason)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_names_of_skipped_tests_exist(self):
        # Older versions lack some of the tests.
        if Version(transformers.__version__) >= Version("5.23"):
            assert [name for name in self.skipped if not hasattr(self, name)] == []


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


class ViTWithLLMBlockSuite(UpstreamSuite):
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

    def test_model_get_set_embeddings(self):
        """A vision model embeds by a module of its own, not by `nn.Embedding`."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            embeddings = nn.Identity()
            assert isinstance(model.get_input_embeddings(), nn.Module)
            model.set_input_embeddings(embeddings)
            assert model.get_input_embeddings() is embeddings
            assert model.get_output_embeddings() is None

    def test_save_load_keys_to_ignore_on_save(self):
        """The ignored keys are what Trainer's checkpoints leave out; its resume needs the others by module names."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = os.path.join(folder, "checkpoint-1")
                model.save_pretrained(checkpoint)
                saved = load_file(os.path.join(checkpoint, "model.safetensors"))
            load_result = model.load_state_dict(saved, strict=False)
            assert set(load_result.missing_keys) == set(model._keys_to_ignore_on_save or ())
            assert load_result.unexpected_keys == []


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

    def test_model_weights_reload_no_missing_tied_weights(self):
        """Upstream empties a saved file, so the folder must not say that it holds the LLM layer."""
        self.model_tester.save_weights = False
        super().test_model_weights_reload_no_missing_tied_weights()
