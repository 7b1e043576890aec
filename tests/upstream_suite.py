# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
transformers' own testers, from the source distribution that `python tests/fetch.py` downloads into the test cache, and
the code that our suites share.

The testers import modules of transformers' repository that are not distributed; empty modules replace them.
`skipped` of each suite names the tests that do not run, and why; upstream/conftest.py fails a test that is skipped
without being named there, or named there without being skipped.
"""

import functools
import importlib
import os
import sys
import tempfile
from contextlib import ExitStack
from types import ModuleType
from unittest.mock import patch

import torch
import transformers
from model_case import ModelCase
from packaging.version import Version
from paths import upstream_tests_dir
from safetensors.torch import load_file
from tiny_llms import tiny_config
from torch import nn
from transformers import AutoModel, LlamaConfig
from transformers.models.auto import modeling_auto

from hf_frozen_llm import LLMBlockConfig


PACKAGE = "transformers_tests"

# Fields that every configuration accepts, with values other than the defaults. (Only `ConfigTester` reads it.)
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def stub(name: str, **contents: object) -> None:
    parent = name.rpartition(".")[0]
    if parent and f"{PACKAGE}.{parent}" not in sys.modules:
        stub(parent)
    module = ModuleType(f"{PACKAGE}.{name}")
    module.__path__ = []
    module.__dict__.update(contents)
    sys.modules[module.__name__] = module


def load():
    folder = upstream_tests_dir() / "tests"
    if not folder.is_dir():
        raise FileNotFoundError(f"no {folder}: run `python tests/fetch.py` first (`make test` does)")
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    stub("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stub("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stub("utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    modeling = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    backbone = importlib.import_module(f"{PACKAGE}.test_backbone_common")
    return configuration.ConfigTester, modeling.ModelTesterMixin, backbone.BackboneTesterMixin


ConfigTester, ModelTesterMixin, BackboneTesterMixin = load()

# The testers look classes up here by name, to know what inputs they take and which is a base model.
modeling_auto.MODEL_MAPPING_NAMES["vit_with_llm_block"] = "ViTWithLLMBlockModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["vit_with_llm_block"] = (
    "ViTWithLLMBlockForImageClassification"
)
modeling_auto.MODEL_MAPPING_NAMES["vision_with_llm_block"] = "VisionWithLLMBlockModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["vision_with_llm_block"] = (
    "VisionWithLLMBlockForImageClassification"
)
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["vision_with_llm_block"] = "VisionWithLLMBlockBackbone"
modeling_auto.MODEL_MAPPING_NAMES["videomae_with_llm_block"] = "VideoMAEWithLLMBlockModel"
modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["videomae_with_llm_block"] = (
    "VideoMAEWithLLMBlockForVideoClassification"
)
modeling_auto.MODEL_MAPPING_NAMES["point_bert_with_llm_block"] = "PointBertWithLLMBlockModel"
# There is no mapping of point clouds; the labels are those of an image classifier.
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["point_bert_with_llm_block"] = (
    "PointBertWithLLMBlockForPointCloudClassification"
)
modeling_auto.MODEL_MAPPING_NAMES["meter_with_llm_block"] = "MeterWithLLMBlockModel"
modeling_auto.MODEL_MAPPING_NAMES["vectornet_with_llm_block"] = "VectorNetWithLLMBlockModel"
modeling_auto.MODEL_MAPPING_NAMES["mmtransformer_with_llm_block"] = "MMTransformerWithLLMBlockModel"
modeling_auto.MODEL_MAPPING_NAMES["forecast_mae_with_llm_block"] = "ForecastMAEWithLLMBlockModel"
modeling_auto.MODEL_MAPPING_NAMES["sqa3d_with_llm_block"] = "SQA3DWithLLMBlockModel"
modeling_auto.MODEL_MAPPING_NAMES["llm_block"] = "LLMBlock"


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
        test_sdpa_can_compile_dynamic test_sdpa_can_dispatch_on_flash""",
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
    **with_reason("no tensor parallel plan", "test_tp_plan_matches_params"),
    **with_reason(
        "no modules kept in float32",
        """test_keep_in_fp32_modules test_keep_in_fp32_modules_exist
        test_keep_in_fp32_modules_strict_also_hardcode_fp32""",
    ),
    **with_reason("no cache", "test_bc_cache_name_forward"),
    **with_reason(
        "its inputs are token ids, for the class in `_torch_compile_train_cls`", "test_torch_compile_for_training"
    ),
    **with_reason("not a vision tower beside a whole language model", "test_sdpa_can_dispatch_composite_models"),
}
NO_CONVERSION = with_reason(
    "transformers has no conversion for this model type",
    "test_can_load_from_already_mapped_keys test_reverse_loading_mapping",
)
# Tests of models whose configuration holds others; all other tests are for any model, or for those without.
COMPOSITE = {"test_attn_implementation_composite_models", "test_can_set_attention_dynamically_composite_model"}


@functools.cache
def tiny_llm(family: str = "llama") -> tempfile.TemporaryDirectory:
    """A checkpoint whose weights are far from any initialisation, so that a layer not read from it shows."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_llm_")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModel.from_config(LlamaConfig(**LLM_CONFIG) if family == "llama" else tiny_config(family))
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
        self._is_composite = self._testMethodName in COMPOSITE
        if (reason := self.contradicts_the_design.get(self._testMethodName)) is not None:
            self.skipTest(reason)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_weights_reload_no_missing_tied_weights(self):
        """Upstream empties a saved file, so its configuration must not promise the layer, nor count as a promise."""
        self.model_tester.save_weights = False
        with ExitStack() as stack:
            for model_class in self.all_model_classes:
                load = functools.partial(model_class.from_pretrained, ignore_mismatched_sizes=True)
                stack.enter_context(patch.object(model_class, "from_pretrained", load))
            super().test_model_weights_reload_no_missing_tied_weights()

    def test_names_of_skipped_tests_exist(self):
        # Older versions lack some of the tests.
        if Version(transformers.__version__) >= Version("5.24"):
            assert [name for name in self.skipped if not hasattr(self, name)] == []


class ImageModelSuite(UpstreamSuite):
    def test_model_get_set_embeddings(self):
        """A vision model has its own embedding module, not `nn.Embedding`."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            embeddings = nn.Identity()
            assert isinstance(model.get_input_embeddings(), nn.Module)
            model.set_input_embeddings(embeddings)
            assert model.get_input_embeddings() is embeddings
            assert model.get_output_embeddings() is None

    def test_save_load_keys_to_ignore_on_save(self):
        """The ignored keys are those that Trainer's checkpoints omit; resuming needs the others by module names."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = os.path.join(folder, "checkpoint-1")
                model.save_pretrained(checkpoint)
                saved = load_file(os.path.join(checkpoint, "model.safetensors"))
            load_result = model.load_state_dict(saved, strict=False)
            assert set(load_result.missing_keys) == set(model._keys_to_ignore_on_save or ())
            assert load_result.unexpected_keys == []


class ModelCaseTester:
    """Sizes, a configuration and inputs for transformers' tests, of a case whose host has one layer."""

    def __init__(self, parent: "ModelCaseSuite"):
        self.parent = parent
        self.case = parent.case
        self.save_weights = True
        self.batch_size = 3
        self.hidden_size = 24
        self.num_attention_heads = 2
        # Upstream counts hidden states and attentions by it, and the block adds one of each.
        self.num_hidden_layers = 1 + parent.num_llm_layers
        self.expected_num_hidden_layers = 3
        self.seq_length = self.case.num_tokens
        self.is_training = True

    def get_config(self):
        fields = {**self.case.fields, "num_hidden_layers": 1, "num_labels": 5, **self.parent.fields}
        folder = tiny_llm(self.parent.family).name
        llm = {"llm_name_or_path": folder, "save_weights": self.save_weights, **self.parent.llm}
        return self.case.config_class(**fields, llm_block=LLMBlockConfig(**llm))

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.case.inputs(self.batch_size)


class ModelCaseSuite(ImageModelSuite):
    case: ModelCase
    # Fields of the configuration and of the block that the case has otherwise.
    fields: dict = {}
    llm: dict = {}
    family = "llama"
    num_llm_layers = 1

    def setUp(self):
        super().setUp()
        self.model_tester = ModelCaseTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=self.case.config_class,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            hidden_size=24,
            num_attention_heads=2,
        )
