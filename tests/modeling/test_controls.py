# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The controls, which replace the frozen, pretrained layer to isolate its effect."""

import json
from pathlib import Path

import pytest
import torch
from model_cases import CONTROLS, VIT
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from hf_frozen_llm import LLMBlock, LLMBlockConfig


@pytest.mark.parametrize("residual", ["none", "inner", "outer", "hybrid"])
@pytest.mark.parametrize("name", ["MLP", "projections"])
def test_formula(name, residual, block):
    block, x = LLMBlock(block(hidden_size=24, residual=residual, **CONTROLS[name])), torch.randn(2, 5, 24)
    with torch.no_grad():
        h = inner = x @ block.input_projection.weight.mT
        if name == "MLP":
            inner = F.layer_norm(F.gelu(h), (32,), block.mlp_norm.weight, block.mlp_norm.bias)
        expected = (inner + h if residual in ("inner", "hybrid") else inner) @ block.output_projection.weight.mT
        expected = expected + x if residual in ("outer", "hybrid") else expected
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(block(x, output_tokens=slice(0, 1)), expected[:, :1])


@pytest.mark.parametrize("name", ["MLP", "projections"])
def test_only_the_configuration_of_the_llm_is_read(name, llm_folder, tmp_path):
    """The control has the same width, and needs no weights."""
    config = json.loads(Path(llm_folder("llama")[1], "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=str(tmp_path), hidden_size=24, **CONTROLS[name]))
    assert block.bytes_read == 0
    assert block.input_projection.weight.shape == (config["hidden_size"], 24)
    assert not [key for key in block.state_dict() if key.startswith(("llm_layers", "final_norm"))]


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="kind='mlp' has no LLM layer, so weights, trainable cannot be set"):
        LLMBlockConfig(kind="mlp", weights="random", trainable=True)
    with pytest.raises(ValueError, match="kind='projections' has no LLM layer, so attention, rotary cannot be set"):
        LLMBlockConfig(kind="projections", attention="causal", rotary=True)
    with pytest.raises(ValueError, match="kind"):
        LLMBlockConfig(kind="vgg")


@pytest.mark.parametrize("kind", ["projections", "llm"])
def test_kind_cannot_be_changed_while_loading(kind, block, tmp_path):
    VIT.build(block(**CONTROLS["MLP"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"llm_block\.kind of .* is 'mlp' and cannot be changed to '{kind}'"):
        AutoModelForImageClassification.from_pretrained(tmp_path, llm_block={"kind": kind})
