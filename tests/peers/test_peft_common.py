# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""peft's own tests of adapters on a ViT with an LLM block: `make peers` fetches them."""

import importlib
import inspect
import sys
from types import ModuleType

import peft
import pytest
from llm_files import write_llm
from paths import PEFT_TESTS
from tiny_llms import tiny_config, tiny_llm
from vision_cases import VIT

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockForImageClassification


def load_tests():
    """Import peft's tester as a package of its own; it needs diffusers only for the name of a class."""
    if not PEFT_TESTS.is_dir():
        raise FileNotFoundError(f"no folder {PEFT_TESTS}: `make peers` fetches and runs these tests")
    sys.modules.setdefault("diffusers", ModuleType("diffusers")).__dict__.setdefault("StableDiffusionPipeline", object)
    package = ModuleType("peft_tests")
    package.__path__ = [str(PEFT_TESTS)]
    sys.modules["peft_tests"] = package
    names = ("testing_common", "testing_utils")
    common, utils = (importlib.import_module(f"peft_tests.{name}") for name in names)
    return common.PeftCommonTester, utils.set_init_weights_false


PeftCommonTester, set_init_weights_false = load_tests()
# The layers of the host have other names.
IN_LAYER = ["self_attn.q_proj", "self_attn.v_proj", "up_proj"]
TRAINED_BESIDE = ["classifier", "input_projection", "output_projection"]
CONFIGS = {
    "LoRA": (peft.LoraConfig, {"target_modules": IN_LAYER}),
    "LoRA beside a trained head": (
        peft.LoraConfig,
        {"target_modules": IN_LAYER, "modules_to_save": TRAINED_BESIDE},
    ),
    "LoRA of layer and host": (peft.LoraConfig, {"target_modules": ["q_proj", "v_proj"]}),
    "DoRA": (peft.LoraConfig, {"target_modules": IN_LAYER, "use_dora": True}),
    "IA3": (peft.IA3Config, {"target_modules": IN_LAYER, "feedforward_modules": ["up_proj"]}),
    "LoHa": (peft.LoHaConfig, {"r": 4, "target_modules": IN_LAYER}),
    "LoKr": (peft.LoKrConfig, {"r": 4, "target_modules": IN_LAYER}),
    "OFT": (peft.OFTConfig, {"oft_block_size": 4, "target_modules": IN_LAYER}),
}
NOT_OF_THIS_MODEL = (
    "_test_training_layer_indexing",  # of models with one stack of layers
    "_test_prepare_for_training",
    "_test_generate",
    "_test_generate_pos_args",
    "_test_generate_half_prec",
    "_test_generate_with_mixed_adapter_batches_and_beam_search",
    "_test_training_prompt_learning_tasks",
    "_test_passing_input_embeds_works",
    "_test_mixed_adapter_batches",
    "_test_disable_adapter",  # generates text if a model of peft can
)


def find_tests():
    """Return the tests of any model: those that take a model and the configuration of an adapter."""
    given = ["self", "model_id", "config_cls", "config_kwargs"]
    for name, function in inspect.getmembers(PeftCommonTester, inspect.isfunction):
        parameters = inspect.signature(function).parameters
        needed = [n for n, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
        if name.startswith("_test_") and needed == given and name not in NOT_OF_THIS_MODEL:
            yield name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    # Combined adapters have rank 20, so that no projection may be narrower.
    llm = write_llm(tiny_llm(tiny_config("llama", hidden_size=64)), folder / "llm")
    VIT.build(LLMBlockConfig(llm_name_or_path=str(llm))).save_pretrained(folder / "model")
    return str(folder / "model")


# peft uses names that transformers has changed.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
class TestViTWithLLMBlock(PeftCommonTester):
    transformers_class = ViTWithLLMBlockForImageClassification

    def prepare_inputs_for_testing(self):
        return {name: tensor.to(self.torch_device) for name, tensor in VIT.inputs(3).items()}

    @pytest.mark.parametrize("name", list(find_tests()))
    @pytest.mark.parametrize("config", CONFIGS)
    def test_adapter(self, config, name, folder):
        config_class, fields = CONFIGS[config]
        if "weighted" in name and "modules_to_save" in fields:
            pytest.skip("peft combines no adapters that train whole modules")
        if "gradient_checkpointing" in name and "modules_to_save" in fields:
            pytest.skip("the test expects gradients of adapters alone")
        # As in peft's own suites: adapters that begin as the identity would not show in the outputs.
        getattr(self, name)(folder, config_class, set_init_weights_false(config_class, fields))
