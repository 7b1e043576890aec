# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
transformers' own testers, out of the source distribution that `python tests/fetch.py` has put into the test cache.

Their modules import parts of transformers' repository that are not distributed; empty stand-ins take their place.
"""

import importlib
import sys
from types import ModuleType

from paths import upstream_tests_dir
from transformers.models.auto import modeling_auto


PACKAGE = "transformers_tests"

# What every configuration accepts, with values other than the defaults. (Only `ConfigTester` reads it.)
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
    return configuration.ConfigTester, modeling.ModelTesterMixin


ConfigTester, ModelTesterMixin = load()

# The testers look classes up here by name, to know what inputs they take and which is a base model.
modeling_auto.MODEL_MAPPING_NAMES["vit_with_llm_block"] = "ViTWithLLMBlockModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["vit_with_llm_block"] = (
    "ViTWithLLMBlockForImageClassification"
)
modeling_auto.MODEL_MAPPING_NAMES["llm_block"] = "LLMBlock"
