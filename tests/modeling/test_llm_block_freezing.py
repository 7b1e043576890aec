# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The layers of a block stay frozen and equal to the LLM's, alone and inside any module, saved and trained."""

import copy
import shutil

import pytest
import torch
from llm_block_checks import WIDTH, assert_frozen, assert_holds_layer, build_block, dtype_of, layer_names, tokens
from tiny_llms import FAMILIES, tiny_config
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_frozen_llm import LLMBlock, LLMBlockConfig


every_family = pytest.mark.parametrize("family", list(FAMILIES))


@every_family
def test_weights_frozen_and_equal(family, llm_folder, tmp_path):
    llm, folder = llm_folder(family)
    block = build_block(folder)
    assert_holds_layer(block, llm)
    assert_frozen(block)
    assert_frozen(block.train())
    block.save_pretrained(tmp_path)
    again, info = LLMBlock.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_holds_layer(again, llm)
    assert_frozen(again)
    x = tokens(family).float()
    with torch.no_grad():
        assert torch.equal(again(x), block.eval()(x))


@every_family
def test_gradients_and_optimizer_steps(family, llm_folder):
    llm, folder = llm_folder(family)
    block = build_block(folder).to(dtype_of(family)).train()
    before = {n: t.clone() for n, t in block.state_dict().items()}
    x = tokens(family).requires_grad_()
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
    assert (x.grad.abs().sum(-1) > 0).all()
    for name, parameter in block.named_parameters():
        if name in layer_names(block):
            assert parameter.grad is None
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad.abs().max() > 0
            assert not torch.equal(parameter, before[name]), name
    assert_holds_layer(block, llm)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gptj", "mixtral"])
@pytest.mark.parametrize("final_norm", ["unit", "pretrained", "none"])
def test_freeze_survives(family, final_norm, llm_folder):
    block = build_block(llm_folder(family)[1], final_norm=final_norm)
    assert_frozen(block)
    for change in (
        lambda b: b.train(),
        lambda b: b.eval(),
        lambda b: b.to(torch.bfloat16),
        lambda b: b.float(),
        copy.deepcopy,
        lambda b: copy.deepcopy(b).train(),
        lambda b: b.requires_grad_(True).train(),
    ):
        block = change(block)
        assert_frozen(block)
    assert all(p.requires_grad for n, p in block.named_parameters() if "projection" in n)


class Foreign(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.inner = nn.ModuleDict({"reader": block})
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.inner["reader"](self.stem(x)).mean(1))


class ForeignConfig(PreTrainedConfig):
    model_type = "foreign_with_block"
    sub_configs = {"block": LLMBlockConfig}
    block: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.block, dict):
            self.block = LLMBlockConfig(**self.block)
        super().__post_init__(**kwargs)


class ForeignModel(PreTrainedModel):
    config_class = ForeignConfig

    def __init__(self, config):
        super().__init__(config)
        self.stem = nn.Linear(8, WIDTH)
        self.reader = LLMBlock(config.block)
        self.head = nn.Linear(WIDTH, 3)
        self.post_init()

    def forward(self, x):
        return self.head(self.reader(self.stem(x)).mean(1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_inside_a_foreign_module(family, llm_folder):
    llm, folder = llm_folder(family)
    model = Foreign(build_block(folder))
    assert_frozen(model)
    for change in (lambda m: m.train(), copy.deepcopy, lambda m: m.double(), lambda m: m.requires_grad_(True).train()):
        model = change(model)
        assert_frozen(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model(torch.randn(2, 5, 8).double()).square().sum().backward()
    optimizer.step()
    assert_holds_layer(model.inner["reader"], llm)
    state = model.state_dict()
    other = Foreign(build_block(folder)).double()
    other.load_state_dict(state)
    assert_frozen(other)


@pytest.mark.parametrize("save_weights", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_inside_a_foreign_pretrained_model(family, save_weights, llm_folder, tmp_path):
    llm, folder = llm_folder(family)
    folder = shutil.copytree(folder, tmp_path / "llm")
    config = LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1, hidden_size=WIDTH, save_weights=save_weights)
    model = ForeignModel(ForeignConfig(block=config)).eval()
    assert_holds_layer(model.reader, llm)
    assert_frozen(model)
    model.save_pretrained(tmp_path / "model")
    if save_weights:
        shutil.rmtree(folder)
    again, info = ForeignModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_holds_layer(again.reader, llm)
    assert_frozen(again)
    assert_frozen(again.train())
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


def test_several_layers_and_negative_indices(llm_folder):
    llm, folder = llm_folder("llama")
    block = build_block(folder, layer_index=[2, 0])
    assert len(block.llm_layers) == 2
    assert_holds_layer(block, llm, index=2, position=0)
    assert_holds_layer(block, llm, index=0, position=1)
    assert_frozen(block)
    assert_holds_layer(build_block(folder, layer_index=-1), llm, index=2)
    assert_holds_layer(build_block(folder, layer_index=[-2, -1]), llm, index=1)
    one = build_block(folder, layer_index=1)
    assert sorted(k for k in one.state_dict() if "llm_layers" in k)[0].startswith("llm_layers.0.")


def test_block_has_no_host_to_freeze():
    block = LLMBlock(LLMBlockConfig(llm_config=tiny_config("llama"), weights="random", hidden_size=16))
    with pytest.raises(TypeError, match="no host"):
        block.freeze_host()
