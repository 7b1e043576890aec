# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The controls: what stands in the place of a frozen, pretrained layer to tell what it is that helps."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


HOST = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
CONTROLS = {
    "pretrained, frozen": {},
    "random, frozen": {"weights": "random"},
    "random, trained": {"weights": "random", "trainable": True},
    "pretrained, trained": {"trainable": True},
    "MLP": {"kind": "mlp"},
    "projections": {"kind": "projections"},
}
every_control = pytest.mark.parametrize("name", list(CONTROLS))


@pytest.fixture
def build(llm_folder):
    def make(name, **fields):
        block = LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], layer_index=1, **CONTROLS[name], **fields)
        torch.manual_seed(0)
        return ViTWithLLMBlockForImageClassification(ViTWithLLMBlockConfig(**HOST, llm_block=block))

    return make


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@every_control
def test_one_switch_says_what_is_trained(name, build):
    model = build(name).train()
    model(images(), labels=torch.tensor([1, 2])).loss.backward()
    block = model.llm_block
    trained = {n.partition(".")[0] for n, p in block.named_parameters() if p.requires_grad}
    expected = {"input_projection", "output_projection"}
    expected |= {"llm_layers"} if block.config.trainable else {"mlp_norm"} if name == "MLP" else set()
    assert trained == expected
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@every_control
def test_save_and_load(name, build, tmp_path):
    model = build(name).eval()
    with torch.no_grad():
        for parameter in model.llm_block.parameters():
            parameter.add_(0.01) if parameter.requires_grad else None
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(images()).logits, model(images()).logits, rtol=1e-5, atol=1e-6)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    stored = json.loads((tmp_path / "config.json").read_text())["llm_block"]
    assert stored["save_weights"] and (stored["fingerprint"] is None) == (name != "pretrained, frozen")


@pytest.mark.parametrize("residual", ["none", "inner", "outer", "hybrid"])
@pytest.mark.parametrize("name", ["MLP", "projections"])
def test_formula(name, residual, build):
    block, x = build(name, residual=residual).llm_block, torch.randn(2, 5, 24)
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
    """The control is of the same width, and needs no weights."""
    config = json.loads(Path(llm_folder("llama")[1], "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=str(tmp_path), hidden_size=24, **CONTROLS[name]))
    assert block.bytes_read == 0
    assert block.input_projection.weight.shape == (config["hidden_size"], 24)
    assert not [key for key in block.state_dict() if key.startswith(("llm_layers", "final_norm"))]


@pytest.mark.parametrize("name", ["MLP", "projections"])
def test_hidden_states_of_a_control(name, build):
    with torch.no_grad():
        assert len(build(name)(images(), output_hidden_states=True).hidden_states) == 4


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="kind='mlp' has no LLM layer, so weights, trainable cannot be set"):
        LLMBlockConfig(kind="mlp", weights="random", trainable=True)
    with pytest.raises(ValueError, match="kind='projections' has no LLM layer, so attention, rotary cannot be set"):
        LLMBlockConfig(kind="projections", attention="causal", rotary=True)
    with pytest.raises(ValueError, match="kind"):
        LLMBlockConfig(kind="vgg")


@pytest.mark.parametrize("kind", ["projections", "llm"])
def test_kind_cannot_be_changed_while_loading(kind, build, tmp_path):
    build("MLP").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"llm_block\.kind of .* is 'mlp' and cannot be changed to '{kind}'"):
        AutoModelForImageClassification.from_pretrained(tmp_path, llm_block={"kind": kind})
