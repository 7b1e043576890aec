# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth in hosts of transformers: where it stands, its distribution, and that it changes nothing else."""

import copy

import pytest
import torch
from tiny_hosts import HOSTS, vision_model
from torch import nn
from vision_cases import VIDEOMAE, VIT

from hf_frozen_llm import VisionWithLLMBlockConfig, VisionWithLLMBlockModel
from hf_frozen_llm.modeling.stochastic_depth import StochasticDepthDropout, add_stochastic_depth


WITHOUT_OWN_FIELD = ("vit", "deit", "ijepa", "vit_msn", "vivit", "videomae")
MODELS = {
    "ViT": lambda block=None, **fields: VIT.build(block, **fields),
    "VideoMAE": lambda block=None, **fields: VIDEOMAE.build(block, **fields),
    **{
        name: lambda block=None, name=name, **fields: vision_model(name, block, **fields) for name in WITHOUT_OWN_FIELD
    },
}


def host_of(model):
    return getattr(model, model.base_model_prefix)


def layers_of(model):
    depth = model.config.num_hidden_layers
    return next(m for m in host_of(model).modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


def dropped(module):
    return [m for m in module.modules() if isinstance(m, StochasticDepthDropout)]


@pytest.mark.parametrize("name", MODELS)
def test_rates_rise_linearly_and_branches_are_dropped_whole(name):
    model = MODELS[name](drop_path_rate=0.4)
    rates = [[module.drop_path_rate for module in dropped(layer)] for layer in layers_of(model)]
    depth, num_modules = model.config.num_hidden_layers, len(rates[-1])
    assert rates[0] == []
    for index in range(1, depth):
        assert rates[index] == pytest.approx([0.4 * index / (depth - 1)] * num_modules)
    last = layers_of(model)[-1].train()
    for module in dropped(last):
        module.drop_path_rate = 1 - 1e-12
    tokens = torch.randn(2, 5, model.config.hidden_size)
    assert torch.equal(last(tokens), tokens)  # both branches, and nothing else


@pytest.mark.parametrize("name", MODELS)
def test_rate_zero_and_evaluation_are_bit_equal(name, block):
    plain, dropping = MODELS[name](block()), MODELS[name](block(), drop_path_rate=0.9)
    assert dropped(MODELS[name](block(), drop_path_rate=0.0)) == []
    assert list(plain.state_dict()) == list(dropping.state_dict())
    dropping.load_state_dict(plain.state_dict())
    inputs = {"pixel_values": torch.randn(8, *plain.dummy_inputs["pixel_values"].shape[1:])}
    with torch.no_grad():
        expected = plain(**inputs).logits
        assert torch.equal(dropping(**inputs).logits, expected)
        for module in dropped(dropping):
            module.drop_path_rate = 0.0
        assert torch.equal(dropping.train()(**inputs).logits, plain.train()(**inputs).logits)
        for module in dropped(dropping):
            module.drop_path_rate = 0.9
        assert not torch.equal(dropping(**inputs).logits, expected)


@pytest.mark.parametrize("shape", [(20000, 2, 3), (20000, 4)])
def test_distribution(shape):
    """By the definition in timm: each example is kept with 1 - rate, and scaled by 1 / (1 - rate)."""
    torch.manual_seed(0)
    module, update = StochasticDepthDropout(0.0, 0.3), torch.randn(shape)
    output = module.train()(update).flatten(1)
    kept = output.ne(0).any(1)
    assert torch.equal(output[kept], (update.flatten(1) / 0.7)[kept])
    assert not output[~kept].any()
    # Five standard deviations of a share.
    assert kept.float().mean().item() == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / len(update)) ** 0.5)
    assert torch.equal(module.eval()(update), update)


def test_dropout_of_values_remains():
    torch.manual_seed(0)
    model = VIT.build(None, drop_path_rate=0.5, hidden_dropout_prob=0.2)
    (module,) = dropped(layers_of(model)[-1])
    ones = torch.ones(2000, 5, 24)
    output = module.train()(ones)
    kept = output.flatten(1).ne(0).any(1)
    assert module.p == 0.2
    assert output[kept].ne(0).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert torch.allclose(output.unique(), torch.tensor([0.0, 1 / 0.8 / 0.5]))


def test_copies_compilation_and_files(block, tmp_path):
    model = VIT.build(block(), drop_path_rate=0.5).train()
    inputs = {"pixel_values": torch.randn(8, 3, 8, 8)}

    def run(model):
        torch.manual_seed(3)
        return model(**inputs).logits

    expected = run(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert torch.equal(run(torch.compile(model, backend="eager", fullgraph=True)), expected)
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    assert torch.equal(run(model), expected)
    model.save_pretrained(tmp_path)
    loaded = VIT.model_class.from_pretrained(tmp_path)
    assert loaded.config.drop_path_rate == 0.5
    assert [module.drop_path_rate for module in dropped(loaded)] == [0.25, 0.5]
    assert torch.equal(run(loaded.train()), expected)


@pytest.mark.parametrize("name", ["deit", "dinov2", "swin"])
def test_published_host_takes_the_rate_by_one_name(name, tmp_path):
    HOSTS[name].published().save_pretrained(tmp_path)
    model = VisionWithLLMBlockModel.from_host_pretrained(tmp_path, drop_path_rate=0.25)
    has_own = hasattr(model.config.vision_config, "drop_path_rate")
    assert has_own == (name != "deit")
    assert model.config.drop_path_rate == (0.0 if has_own else 0.25)
    assert getattr(model.config.vision_config, "drop_path_rate", 0.25) == 0.25
    assert bool(dropped(model)) != has_own


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_host_without_dropouts_is_refused(name):
    with pytest.raises(ValueError, match=r"drop_path_rate is 0\.1, but the residual branches of .* Remove drop_path"):
        vision_model(name, None, drop_path_rate=0.1)


def test_rate_of_a_host_with_its_own_is_refused():
    with pytest.raises(ValueError, match=r"drop_path_rate is 0\.1, but a dinov2 has .* set it in vision_config"):
        VisionWithLLMBlockConfig(vision_config=HOSTS["dinov2"].config(), drop_path_rate=0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match="drop_path_rate is"):
        add_stochastic_depth([nn.Linear(1, 1)], rate, "host")
