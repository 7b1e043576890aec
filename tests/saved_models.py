# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A tiny ViT with a block, for tests of the content of its saved folders."""

import json

import torch
from model_cases import assert_same_state, frozen_names, names_of_layer
from safetensors.torch import load_file
from vision_cases import VIT

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


Classifier = ViTWithLLMBlockForImageClassification


def build(folder, seed=2, cls=Classifier, **fields):
    torch.manual_seed(seed)
    block = LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, **fields})
    return cls(ViTWithLLMBlockConfig(**VIT.fields, llm_block=block)).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(**VIT.inputs(2))[0]


def stored(folder):
    out = {}
    for file in folder.glob("*.safetensors"):
        out.update(load_file(file))
    return out


def stored_block(folder):
    return json.loads((folder / "config.json").read_text())["llm_block"]


def llm_names(names):
    return {n for n in names if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))}


def assert_same(model, other):
    assert_same_state(other.state_dict(), model.state_dict())


def assert_frozen(model):
    assert frozen_names(model) == names_of_layer(model)


def load(folder, cls=Classifier, **kwargs):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model
