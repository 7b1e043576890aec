# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Layers of every kind of model: a block takes them and runs right, or refuses them by name."""

import pytest
import torch
from llm_block_checks import TOKENS, WIDTH, assert_holds_layer, assert_near, build_block, tokens
from llm_files import write_llm
from tiny_llms import MAY_BE_REFUSED, NO_SELF_ATTENTION, NOT_DECODERS, tiny_config, tiny_llm
from transformers import CONFIG_MAPPING

from hf_frozen_llm import LLMBlock, LLMBlockConfig


def assert_order_does_not_matter(block):
    x = tokens("mixtral")
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_near(block(x[:, order]), block(x)[:, order])


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text", "gpt_neo", "olmo3"])
def test_layers_of_every_kind_in_one_llm(family, llm_folder):
    # sliding and full attention, dense and mixture, local and global layers of one LLM
    llm, folder = llm_folder(family)
    for index in range(3):
        block = build_block(folder, layer_index=index).eval()
        assert_holds_layer(block, llm, index=index)
        assert_order_does_not_matter(block)


@pytest.mark.parametrize("family", list(NO_SELF_ATTENTION))
def test_layer_without_self_attention_is_refused(family, tmp_path):
    config = tiny_config(family)
    folder = write_llm(tiny_llm(config), tmp_path / "llm")
    index = NO_SELF_ATTENTION[family][2]
    with pytest.raises(ValueError, match=rf"(?s){index}.*self-attention|self-attention.*{index}") as error:
        LLMBlock(LLMBlockConfig(llm_name_or_path=str(folder), layer_index=index, hidden_size=WIDTH))
    assert config.model_type in str(error.value)


@pytest.mark.parametrize("family", ["jamba", "qwen3_next", "lfm2"])
def test_attention_layer_of_a_mixed_llm(family, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path / "llm")
    block = build_block(str(folder), layer_index=2)
    assert_holds_layer(block, llm, index=2)
    assert_order_does_not_matter(block)


@pytest.mark.parametrize("family", list(NOT_DECODERS))
def test_model_that_is_no_decoder_is_refused(family, tmp_path):
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder") as error:
        LLMBlock(LLMBlockConfig(llm_name_or_path=str(tmp_path), hidden_size=WIDTH))
    assert config.model_type in str(error.value)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", list(MAY_BE_REFUSED))
def test_unusual_family_runs_right_or_is_refused_by_name(family, attention, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path / "llm")
    try:
        block = build_block(str(folder), attention=attention)
    except ValueError as refusal:
        if llm.config.model_type not in str(refusal):
            raise
        return
    assert_holds_layer(block, llm)
    x = tokens("mixtral")
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 6:] = 0
    last = x.clone()
    last[:, -1] += 1
    with torch.no_grad():
        out = block(x)
        assert_near(block(x, attention_mask=mask)[:, :6], block(x[:, :6]))
        if attention == "causal":
            assert_near(block(last)[:, :-1], out[:, :-1])
        else:
            order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
            assert_near(block(x[:, order]), out[:, order])
            assert (block(last)[:, 0] - out[:, 0]).abs().max() > 1e-3 * out.abs().max()
        block.train()
        assert torch.equal(block(x), out)


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}),
        ("deepseek_v32", {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}),
    ],
)
def test_layer_that_depends_on_the_order_is_refused(model_type, keys):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    llm_config = CONFIG_MAPPING[model_type](**sizes, **keys)
    with pytest.raises(ValueError, match=rf"{model_type}.*order"):
        LLMBlock(LLMBlockConfig(llm_config=llm_config, weights="random", hidden_size=16))


def test_rotary_of_a_falcon_with_alibi_is_refused():
    with pytest.raises(ValueError, match="rotary=True"):
        LLMBlock(LLMBlockConfig(llm_config=tiny_config("falcon_alibi"), weights="random", rotary=True, hidden_size=16))


def test_random_layer_without_a_known_initialisation_is_refused():
    """Its activation has parameters that only the constructor sets."""
    with pytest.raises(ValueError, match=r"apertus.*alpha_p"):
        LLMBlock(LLMBlockConfig(llm_config=tiny_config("apertus"), weights="random", hidden_size=16))


def test_family_with_rotary_positions_of_its_own_kind_is_refused_by_name():
    if "deepseek_v4" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no deepseek_v4")
    config = LLMBlockConfig(llm_config=CONFIG_MAPPING["deepseek_v4"](), weights="random", hidden_size=16)
    with torch.device("meta"), pytest.raises(ValueError, match=r"of deepseek_v4 .* cannot run without"):
        LLMBlock(config)
