# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model, configuration and backbone tests on the generic class with hosts of three kinds."""

import inspect
import json
import unittest

import pytest
import transformers
from packaging.version import Version
from tiny_hosts import HOSTS
from transformers import Dinov2Model
from upstream_suite import (
    BackboneTesterMixin,
    ConfigTester,
    ImageModelSuite,
    ModelTesterMixin,
    tiny_llm,
    with_reason,
)

from hf_frozen_llm import (
    LLMBlockConfig,
    VisionWithLLMBlockBackbone,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
)


# With the block no more layers than transformers allows its tests, and no parameter that a training step does not use.
TINIER = {
    "dinov2": {"num_hidden_layers": 1, "use_mask_token": False},
    "swin": {"depths": [1, 1]},
    "clip": {"num_hidden_layers": 1},
    "siglip": {"num_hidden_layers": 1, "vision_use_head": False},
    "dinov3_vit": {"num_hidden_layers": 1},
}


NO_ATTENTION_MASK = with_reason(
    "the host takes no attention mask",
    " ".join(
        name
        for name in dir(ModelTesterMixin)
        if name.startswith("test_eager_matches_sdpa_inference_") and "no_attn_mask" not in name
    ),
)


NO_INITIALISATION = with_reason(
    "of foreign classes transformers initialises no module without parameters, which CLIP and SigLIP rely on",
    "test_can_init_all_missing_weights",
)


IS_OLD = Version(transformers.__version__) < Version("5.23")
OLD_SELECTION = with_reason(
    "returns the selected hidden states alone; ours are those of newer versions, None in the place of the others",
    "test_can_capture_specific_layers_hidden_states" if IS_OLD else "",
)
HAS_OLD_DINOV2 = "attention_mask" not in inspect.signature(Dinov2Model.forward).parameters
OLD_DINOV2 = with_reason(
    "of newer versions' DINOv2",
    "test_model_get_set_embeddings test_can_load_from_already_mapped_keys test_reverse_loading_mapping",
)


class VisionWithLLMBlockModelTester:
    def __init__(self, parent: unittest.TestCase, host: str, **kwargs):
        self.parent = parent
        self.host = HOSTS[host]
        self.kwargs = kwargs
        self.fields = TINIER[host]
        self.batch_size = 3
        # Upstream counts hidden states and attentions by it, and the block adds one of each.
        self.num_hidden_layers = self.host.config(**self.fields).num_hidden_layers + 1
        self.hidden_size = self.host.config(**self.fields).hidden_size
        self.num_attention_heads = 2
        self.seq_length = self.host.num_tokens
        self.save_weights = True
        self.is_training = True

    def get_config(self) -> VisionWithLLMBlockConfig:
        return VisionWithLLMBlockConfig(
            vision_config=self.host.config(**self.fields),
            pooling=self.host.pooling,
            num_labels=5,
            llm_block=LLMBlockConfig(llm_name_or_path=tiny_llm().name, save_weights=self.save_weights),
            **self.kwargs,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": self.host.pixels(self.batch_size)}


class VisionWithLLMBlockSuite(ImageModelSuite):
    all_model_classes = (VisionWithLLMBlockModel, VisionWithLLMBlockForImageClassification)
    host = ""
    contradicts_the_design = {
        **OLD_SELECTION,
        **with_reason(
            "loads a folder of the host alone by from_pretrained, here from_host_pretrained does",
            "test_correct_missing_keys",
        ),
    }
    skipped = {**ImageModelSuite.skipped, **contradicts_the_design}

    def setUp(self):
        super().setUp()
        self.model_tester = VisionWithLLMBlockModelTester(self, self.host)
        self.config_tester = ConfigTester(
            self,
            config_class=VisionWithLLMBlockConfig,
            has_text_modality=False,
            common_properties=[],
            vision_config=json.loads(self.model_tester.get_config().to_json_string())["vision_config"],
        )


@pytest.mark.host_table("upstream tests")
class Dinov2HostTest(VisionWithLLMBlockSuite, unittest.TestCase):
    host = "dinov2"
    contradicts_the_design = {
        **VisionWithLLMBlockSuite.contradicts_the_design,
        **({**NO_ATTENTION_MASK, **OLD_DINOV2} if HAS_OLD_DINOV2 else {}),
    }
    skipped = {**VisionWithLLMBlockSuite.skipped, **contradicts_the_design}


@pytest.mark.host_table("upstream tests")
class SwinHostTest(VisionWithLLMBlockSuite, unittest.TestCase):
    host = "swin"
    contradicts_the_design = {
        **VisionWithLLMBlockSuite.contradicts_the_design,
        **NO_ATTENTION_MASK,
        **with_reason(
            "stages of different widths; transformers' own Swin tests leave these out or override them",
            "test_hidden_states_output test_num_layers_is_small",
        ),
    }
    skipped = {**VisionWithLLMBlockSuite.skipped, **contradicts_the_design}


@pytest.mark.host_table("upstream tests")
class CLIPHostTest(VisionWithLLMBlockSuite, unittest.TestCase):
    host = "clip"
    contradicts_the_design = {
        **VisionWithLLMBlockSuite.contradicts_the_design,
        **NO_ATTENTION_MASK,
        **NO_INITIALISATION,
    }
    skipped = {
        **VisionWithLLMBlockSuite.skipped,
        **contradicts_the_design,
        **with_reason("CLIP's conversion only changes prefixes", "test_reverse_loading_mapping"),
    }
    # CLIP embeds patches by a module that looks like a text model's.
    del skipped["test_enable_input_require_grads_with_gradient_checkpointing"]


class OtherHostSuite(VisionWithLLMBlockSuite):
    all_model_classes = (VisionWithLLMBlockForImageClassification,)
    contradicts_the_design = {**VisionWithLLMBlockSuite.contradicts_the_design, **NO_ATTENTION_MASK}
    skipped = {**VisionWithLLMBlockSuite.skipped, **contradicts_the_design}
    # Only a base model skips the first; both embed patches by a module that looks like a text model's.
    del skipped["test_inputs_embeds_matches_input_ids"]
    del skipped["test_enable_input_require_grads_with_gradient_checkpointing"]


@pytest.mark.slow
@pytest.mark.host_table("upstream tests")
class SiglipHostTest(OtherHostSuite, unittest.TestCase):
    host = "siglip"
    contradicts_the_design = {**OtherHostSuite.contradicts_the_design, **NO_INITIALISATION}
    skipped = {
        **OtherHostSuite.skipped,
        **contradicts_the_design,
        **with_reason("SigLIP's conversion only changes prefixes", "test_reverse_loading_mapping"),
    }


@pytest.mark.slow
@pytest.mark.host_table("upstream tests")
class DINOv3HostTest(OtherHostSuite, unittest.TestCase):
    host = "dinov3_vit"
    contradicts_the_design = {
        **OtherHostSuite.contradicts_the_design,
        **with_reason(
            "has a mask token, which no classifier trains",
            """test_training_gradient_checkpointing test_training_gradient_checkpointing_use_reentrant_false
            test_training_gradient_checkpointing_use_reentrant_true""",
        ),
    }
    skipped = {**OtherHostSuite.skipped, **contradicts_the_design}


class BackboneSuite(BackboneTesterMixin):
    all_model_classes = (VisionWithLLMBlockBackbone,)
    config_class = VisionWithLLMBlockConfig
    host = ""
    skipped = with_reason(
        "expects stages of a configuration without a host", "test_config test_config_save_pretrained"
    )

    def setUp(self):
        if self._testMethodName in self.skipped:
            self.skipTest(self.skipped[self._testMethodName])
        self.model_tester = VisionWithLLMBlockModelTester(self, self.host, out_features=["llm_block"])


@pytest.mark.host_table("upstream tests")
class Dinov2BackboneTest(BackboneSuite, unittest.TestCase):
    host = "dinov2"


@pytest.mark.host_table("upstream tests")
class SwinBackboneTest(BackboneSuite, unittest.TestCase):
    host = "swin"


@pytest.mark.host_table("upstream tests")
class CLIPBackboneTest(BackboneSuite, unittest.TestCase):
    host = "clip"
