# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The controls, which replace the frozen, pretrained layer to isolate its effect."""

import json
from pathlib import Path

import pytest
import references
import torch
from model_cases import CONTROLS
from torch.nn import functional as F
from transformers import AutoModelForImageClassification
from vision_cases import VIT

from hf_frozen_llm import LLMBlock, LLMBlockConfig


@pytest.mark.parametrize("input_scale", [1.0, 7])
@pytest.mark.parametrize("residual", ["none", "inner", "outer", "hybrid", "outer_linear"])
@pytest.mark.parametrize("name", ["MLP", "projections", "identity"])
def test_formula(name, residual, input_scale, block):
    config = block(hidden_size=24, residual=residual, input_scale=input_scale, **CONTROLS[name])
    block, x, skip = LLMBlock(config), torch.randn(2, 5, 24), None
    if residual == "outer_linear":
        torch.nn.init.normal_(block.skip_projection.bias)
        skip = block.skip_projection
    layers = {
        "MLP": [lambda h: F.layer_norm(F.gelu(h), (32,), block.mlp_norm.weight, block.mlp_norm.bias)],
        "projections": [],
        "identity": [lambda h: h * (h.square().mean(-1, keepdim=True) + block.final_norm.variance_epsilon).rsqrt()],
    }
    weights = block.input_projection.weight, block.output_projection.weight
    with torch.no_grad():
        expected = references.block(x, *weights, layers[name], None, residual, input_scale, skip)
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(block(x, output_tokens=slice(0, 1)), expected[:, :1])


@pytest.mark.parametrize("name", ["MLP", "projections", "identity"])
def test_only_the_configuration_of_the_llm_is_read(name, llm_folder, tmp_path):
    """The control has the same width, and needs no weights."""
    config = json.loads(Path(llm_folder("llama")[1], "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=str(tmp_path), hidden_size=24, **CONTROLS[name]))
    assert block.bytes_read == 0
    assert block.input_projection.weight.shape == (config["hidden_size"], 24)
    norm = {"final_norm.weight"} if name == "identity" else set()
    assert {key for key in block.state_dict() if key.startswith(("llm_layers", "final_norm"))} == norm
    assert all((block.state_dict()[key] == 1).all() for key in norm)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_identity_has_the_type_of_the_model(family, block):
    block = LLMBlock(block(family, hidden_size=24, kind="identity", layer_dtype="bfloat16"))
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
    assert block(torch.randn(1, 2, 24)).dtype == torch.float32


@pytest.mark.parametrize("final_norm", ["unit", "pretrained"])
def test_shuffled_layer(final_norm, block):
    """The same entries of each tensor in another order, which the seed decides."""
    read = LLMBlock(block(hidden_size=24, final_norm=final_norm)).state_dict()
    torch.manual_seed(1)
    shuffled = LLMBlock(block(hidden_size=24, weights="shuffled", final_norm=final_norm))
    for name, tensor in shuffled.state_dict().items():
        if name.startswith(("llm_layers.", "final_norm.")):
            assert torch.equal(tensor.flatten().sort()[0], read[name].flatten().sort()[0])
            assert torch.equal(tensor, read[name]) == (name == "final_norm.weight" and final_norm == "unit")
    assert shuffled.config.fingerprint is None and not shuffled.is_reloadable()
    torch.manual_seed(1)
    again = LLMBlock(block(hidden_size=24, weights="shuffled", final_norm=final_norm)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in shuffled.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_random_layer_depends_on_the_seed(family, block):
    states, config = [], block(family, hidden_size=24, weights="random")
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        state = LLMBlock(config).state_dict()
        states.append({name: t for name, t in state.items() if name.startswith("llm_layers.") and t.std() > 0})
    assert states[0]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[2][name]) and not torch.equal(tensor, states[1][name])


def test_linear_skip_cannot_be_changed_while_loading(block, tmp_path):
    """Its weights would be lost, or new."""
    VIT.build(block(residual="outer_linear")).save_pretrained(tmp_path / "linear")
    VIT.build(block(residual="outer")).save_pretrained(tmp_path / "outer")
    for folder, residual in (("linear", "outer"), ("outer", "outer_linear")):
        with pytest.raises(ValueError, match=rf"llm_block\.residual of .* cannot be changed to '{residual}'"):
            AutoModelForImageClassification.from_pretrained(tmp_path / folder, llm_block={"residual": residual})


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="kind='mlp' has no LLM layer, so weights, trainable cannot be set"):
        LLMBlockConfig(kind="mlp", weights="random", trainable=True)
    with pytest.raises(ValueError, match="kind='projections' has no LLM layer, so attention, rotary cannot be set"):
        LLMBlockConfig(kind="projections", attention="causal", rotary=True)
    with pytest.raises(ValueError, match="kind='identity' is the block without its layers, with final_norm='unit'"):
        LLMBlockConfig(kind="identity", final_norm="none")
    with pytest.raises(ValueError, match="kind"):
        LLMBlockConfig(kind="vgg")


@pytest.mark.parametrize("kind", ["projections", "llm"])
def test_kind_cannot_be_changed_while_loading(kind, block, tmp_path):
    VIT.build(block(**CONTROLS["MLP"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"llm_block\.kind of .* is 'mlp' and cannot be changed to '{kind}'"):
        AutoModelForImageClassification.from_pretrained(tmp_path, llm_block={"kind": kind})
