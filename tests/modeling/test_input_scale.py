# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The factor of the layer's input: its formula, the balanced factor, and what saving and loading make of it."""

import json

import pytest
import references
import torch
from llm_block_checks import dtype_of
from references import relative_error
from tiny_llms import FAMILIES
from transformers import AutoModelForImageClassification
from vision_cases import VIT

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockForImageClassification


WIDTH = 24


@pytest.fixture
def build(llm_folder):
    def make(family="llama", dtype=torch.float32, **fields):
        fields = {"llm_name_or_path": llm_folder(family)[1], "layer_index": 1, "hidden_size": WIDTH, **fields}
        torch.manual_seed(0)
        return LLMBlock(LLMBlockConfig(**fields)).to(dtype)

    return make


def llama_layer(layer):
    """The layer of the whole language model as a function, by the formulas."""
    weights, attention = dict(layer.named_parameters()), layer.self_attn
    heads = (attention.config.num_attention_heads, attention.config.num_key_value_heads)
    eps = layer.input_layernorm.variance_epsilon
    return lambda x: references.llama_layer(x, weights, *heads, eps)


def standard_tokens(width=32):
    """The tokens that the balanced factor is defined by, as the layer reads them at the factor 1."""
    return 0.02 * WIDTH**0.5 * torch.randn(1, 64, width, generator=torch.Generator().manual_seed(0))


def ratio_at(block, factor, tokens):
    with torch.no_grad():
        layer_input = factor * tokens
        output = block._caller.call(0, block.llm_layers[0].eval(), layer_input, None)
        return ((output - layer_input).norm() / layer_input.norm()).item()


@pytest.mark.parametrize("residual", ["none", "hybrid", "outer_linear"])
def test_formula(residual, build, llm_folder):
    block, x = build(residual=residual, input_scale=5), torch.randn(2, 7, WIDTH)
    layer = llama_layer(llm_folder("llama")[0].model.layers[1])
    weights = block.input_projection.weight, block.output_projection.weight
    for block_is_fast in (True, False):
        block.config.fast = block_is_fast
        with torch.no_grad():
            norm, skip = block.final_norm, block.skip_projection
            expected = references.block(x, *weights, [layer], norm, residual, 5.0, skip)
            torch.testing.assert_close(block(x), expected)
            torch.testing.assert_close(block(x, output_tokens=slice(0, 1)), expected[:, :1])


def test_real_width(build):
    """A ViT-S with a layer of SmolLM2-135M's sizes."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    llm_config = {"model_type": "llama", "num_hidden_layers": 2, "initializer_range": 1 / 24, **sizes}
    config = LLMBlockConfig(llm_config=llm_config, weights="random", hidden_size=384, input_scale="balanced")
    torch.manual_seed(0)
    block = LLMBlock(config)
    assert 1 < block.config.input_scale < 20
    x = torch.randn(2, 197, 384)
    assert abs(block.update_ratio(x) - 1) < 0.1
    with torch.no_grad():
        fast = block(x, output_tokens=slice(0, 1))
        block.config.fast = False
        assert relative_error(fast, block(x, output_tokens=slice(0, 1))) < 1e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_balanced(family, llm_folder):
    """For every family: the largest factor at which the layer changes its input by the input's norm."""
    tokens = standard_tokens()
    fields = {"llm_name_or_path": llm_folder(family)[1], "hidden_size": WIDTH, "layer_index": 1}
    plain = LLMBlock(LLMBlockConfig(**fields)).float()
    factors = [10 ** (exponent / 4) for exponent in range(20, -13, -1)]
    ratios = [ratio_at(plain, factor, tokens) for factor in factors]
    crossing = next((i for i, ratio in enumerate(ratios) if ratio >= 1), None)
    config = LLMBlockConfig(input_scale="balanced", **fields)
    if crossing is None:
        with pytest.raises(ValueError, match=r"cannot be found for layer 1 of .* its update is never as large as"):
            LLMBlock(config)
        return
    block = LLMBlock(config)
    assert block.config.input_scale == config.input_scale, "the configuration that is saved"
    assert factors[crossing] <= block.config.input_scale <= factors[crossing - 1]
    assert abs(ratio_at(plain, block.config.input_scale, tokens) - 1) < 1e-4
    assert dtype_of(family) != torch.float32 or torch.equal(
        plain.llm_layers.state_dict().popitem()[1], block.llm_layers.state_dict().popitem()[1]
    )


def test_most_families_have_a_balanced_factor(llm_folder):
    found = []
    for family in ("llama", "opt", "gpt2", "gemma2", "qwen3", "olmo2", "phi", "bloom", "falcon", "mpt", "granite"):
        name = llm_folder(family)[1]
        block = LLMBlock(LLMBlockConfig(llm_name_or_path=name, hidden_size=WIDTH, input_scale="balanced"))
        found.append(block.config.input_scale)
    assert all(0.01 < factor < 1000 for factor in found) and len(set(found)) == len(found)


def test_balanced_does_not_depend_on_type_attention_threads_or_random_state(build):
    expected = build(input_scale="balanced").config.input_scale
    assert build(input_scale="balanced", layer_dtype="float64").config.input_scale == pytest.approx(expected, rel=1e-5)
    assert build(input_scale="balanced", layer_dtype="bfloat16").config.input_scale == pytest.approx(
        expected, rel=0.01
    )
    assert build(input_scale="balanced", layer_index=[1, 0]).config.input_scale == expected, "by the first layer"
    assert build(input_scale="balanced", layer_index=[0, 1]).config.input_scale != expected
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert build(input_scale="balanced").config.input_scale == pytest.approx(expected, rel=1e-5)
    finally:
        torch.set_num_threads(threads)
    before = torch.get_rng_state()
    block = build(input_scale=1.0)
    torch.set_rng_state(before)
    block.config.input_scale = "balanced"
    block.complete_from_weights()
    assert torch.equal(torch.get_rng_state(), before)


def test_random_layer_is_balanced_for_its_seed(build):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    llm_config = {"model_type": "llama", "initializer_range": 0.3, **sizes}
    factors = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        config = LLMBlockConfig(llm_config=llm_config, weights="random", hidden_size=WIDTH, input_scale="balanced")
        factors.append(LLMBlock(config).config.input_scale)
    assert factors[0] == factors[1] != factors[2]


@pytest.mark.parametrize("fields", [{}, {"trainable": True, "weights": "random"}])
def test_update_ratio(fields, llm_folder):
    """Its formula; it leaves dropout, modes and the random state alone."""
    name = llm_folder("opt", dropout=0.5, init_std=0.3)[1]
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=name, hidden_size=WIDTH, input_scale=3.0, **fields)).train()
    x = torch.randn(2, 5, WIDTH, requires_grad=True)
    modes = [module.training for module in block.modules()]
    before = torch.get_rng_state()
    ratio = block.update_ratio(x)
    assert torch.equal(torch.get_rng_state(), before) and modes == [module.training for module in block.modules()]
    assert ratio == pytest.approx(ratio_at(block, 3.0, x @ block.input_projection.weight.mT), rel=1e-5)
    with pytest.raises(ValueError, match=r"the LLM block takes \(batch, tokens, 24\)"):
        block.update_ratio(torch.randn(2, 5, 7))


@pytest.mark.parametrize("layer_dtype", [None, "bfloat16"])
def test_update_ratio_of_tokens_in_another_type(layer_dtype, build):
    block, x = build(layer_dtype=layer_dtype), torch.randn(1, 5, WIDTH)
    assert block.update_ratio(x.bfloat16()) == pytest.approx(block.update_ratio(x), rel=0.02)
    assert block.update_ratio(x) == pytest.approx(build().update_ratio(x), rel=0.02)


def test_update_ratio_needs_a_layer(build):
    for kind in ("mlp", "projections", "identity"):
        with pytest.raises(ValueError, match=rf"update_ratio needs an LLM layer, and kind='{kind}' has none"):
            build(kind=kind).update_ratio(torch.randn(1, 2, WIDTH))


@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), True, "large", None])
def test_bad_scales_are_refused(value):
    with pytest.raises(ValueError, match="input_scale"):
        LLMBlockConfig(input_scale=value)


@pytest.mark.parametrize("kind", ["mlp", "projections", "identity"])
def test_balanced_needs_a_layer(kind):
    with pytest.raises(ValueError, match=rf"input_scale='balanced' needs an LLM layer, and kind='{kind}' has none"):
        LLMBlockConfig(kind=kind, input_scale="balanced")


@pytest.mark.parametrize("save_weights", [True, False])
def test_the_number_is_saved(save_weights, block, tmp_path):
    model = VIT.build(block(input_scale="balanced", save_weights=save_weights))
    number = model.config.llm_block.input_scale
    assert isinstance(number, float) and number != 1
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["llm_block"]["input_scale"] == number
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config.llm_block.input_scale == number
    torch.testing.assert_close(VIT.output_of(again), VIT.output_of(model))


def test_a_published_host_gets_the_number_when_it_is_loaded(block, tmp_path):
    """`from_pretrained` builds on the meta device: the number is found once the weights are there."""
    model = VIT.build(None)
    model.save_pretrained(tmp_path)
    loaded = ViTWithLLMBlockForImageClassification.from_host_pretrained(
        tmp_path, llm_block=block(input_scale="balanced")
    )
    number = LLMBlock(block(input_scale="balanced", hidden_size=loaded.config.hidden_size)).config.input_scale
    assert loaded.config.llm_block.input_scale == loaded.llm_block.config.input_scale == number


def test_a_folder_without_its_number(block, tmp_path):
    model = VIT.build(block(input_scale="balanced"))
    number = model.config.llm_block.input_scale
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["llm_block"]["input_scale"] = "balanced"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"input_scale of .* is 'balanced': its config\.json lacks the number"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, llm_block={"input_scale": number})
    torch.testing.assert_close(VIT.output_of(again), VIT.output_of(model))


def test_built_on_the_meta_device(build, block):
    """Shapes and FLOPs need no number; numbers do."""
    with torch.device("meta"):
        model = LLMBlock(block(input_scale="balanced", hidden_size=WIDTH))
        assert model(torch.randn(1, 2, WIDTH)).shape == (1, 2, WIDTH)
    assert model.config.input_scale == "balanced"
    model.load_state_dict(build().state_dict(), assign=True)
    x = torch.randn(1, 2, WIDTH)
    with pytest.raises(ValueError, match=r"still 'balanced'.* Call llm_block\.complete_from_weights\(\)"):
        model(x)
    model.complete_from_weights()
    torch.testing.assert_close(model(x), build(input_scale="balanced")(x))
