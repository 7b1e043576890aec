# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Every family of causal language models of the installed transformers: supported and correct, or refused by name."""

import copy
import functools
import re

import pytest
import torch
import transformers
from llm_families import FAMILIES, REASONS, REFUSED_HERE, small_config
from llm_files import write_llm
from paths import REPO
from tiny_llms import decoder_stack, randomize
from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForMultimodalLM

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.modeling.llm_layer_weights import find_layer_weights


WIDTH, TOKENS = 24, 9
TOLERANCE = 2e-5
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def layers_of(family):
    """Return the supported layers of the tiny model, and the error messages of the others."""
    taken, refusals = [], []
    config = small_config(family).get_text_config(decoder=True)
    for index in range(getattr(config, "num_hidden_layers", 1)):
        fields = {"llm_config": small_config(family), "weights": "random", "layer_index": index, "hidden_size": WIDTH}
        try:
            with torch.device("meta"):
                LLMBlock(LLMBlockConfig(**fields))
        except ValueError as error:
            refusals.append(str(error))
        else:
            taken.append(index)
    return taken, refusals


@pytest.fixture(scope="module")
def block_of(tmp_path_factory):
    """`block_of(family)` -> (the whole tiny LLM, a block of all its supported layers, from its checkpoint)."""

    @functools.cache
    def make(family):
        config = small_config(family)
        # A whole multimodal model, if transformers has it: its own checkpoint has the towers, too.
        is_whole = (
            config.get_text_config(decoder=True) is config or type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING
        )
        auto_class = AutoModelForCausalLM if is_whole else AutoModelForMultimodalLM
        torch.manual_seed(0)
        llm = randomize(auto_class.from_config(config, dtype=torch.float32)).eval()
        folder = str(write_llm(llm, tmp_path_factory.mktemp("llm")))
        taken, refusals = layers_of(family)
        assert taken, refusals
        return llm, LLMBlock(LLMBlockConfig(llm_name_or_path=folder, layer_index=taken, hidden_size=WIDTH)).eval()

    return make


def count_in_table(request, family, column):
    request.node.user_properties.append(("family_table", (family, column)))


@pytest.mark.family_table("loads")
@every_family
def test_checkpoint_loads(family, block_of, tmp_path, request):
    if family == "dbrx" and transformers.__version__ == "5.17.0":
        pytest.skip("this transformers cannot read a DbrxConfig again once it is part of another configuration")
    llm, block = block_of(family)
    taken, refusals = layers_of(family)
    for layer, index in zip(block.llm_layers, taken):
        expected = decoder_stack(llm)[0][index].state_dict()
        assert layer.state_dict().keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(layer.state_dict()[name], tensor), name
    assert all(small_config(family).get_text_config(decoder=True).model_type in refusal for refusal in refusals)
    frozen = {name for name, parameter in block.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in block.named_parameters() if "projection" not in name}
    block.save_pretrained(tmp_path)
    again = LLMBlock.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in block.state_dict().items())
    if find_layer_weights(block.llm_layers[-1], block.input_projection) is not None:
        count_in_table(request, family, "fast path")
    if any("experts" in name for name, _ in block.named_parameters()):
        count_in_table(request, family, "experts")


@pytest.mark.family_table("bidirectional")
@every_family
def test_contract(family, block_of):
    block = copy.deepcopy(block_of(family)[1])
    # torch has no float64 grouped_mm, and XGLM no masks in float64
    dtype = (
        torch.float32
        if family == "xglm" or any("experts" in name for name, _ in block.named_parameters())
        else torch.float64
    )
    block = block.to(dtype)
    x = torch.randn(2, TOKENS, WIDTH, dtype=dtype).requires_grad_()
    out = block(x)
    assert out.shape == x.shape and out.std() > 1e-3

    order = torch.randperm(TOKENS)
    assert_near(block(x[:, order]), out[:, order])
    last = x.detach().clone()
    last[:, -1] += 1
    assert (block(last)[:, 0] - out[:, 0]).abs().max() > 1e-3 * out.abs().max()

    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 6:] = 0
    other = x.detach().clone()
    other[:, 6:] = 7 * torch.randn_like(other[:, 6:])
    assert_near(block(other, attention_mask=mask)[:, :6], block(x[:, :6]))

    assert_near(block(x[:1]), out[:1])
    (gradient,) = torch.autograd.grad(out[0].square().sum(), x)
    assert (gradient[0].abs().amax(-1) > 0).all() and gradient[1].abs().max() == 0
    assert torch.equal(block.train()(x), out)


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


@pytest.mark.parametrize("family", REFUSED_HERE)
def test_refused_by_name(family):
    taken, refusals = layers_of(family)
    assert not taken
    assert any(REASONS[family] in refusal for refusal in refusals), refusals
    name = small_config(family).get_text_config(decoder=True).model_type
    assert all(name in refusal or family in refusal for refusal in refusals), refusals


def test_the_table_in_the_docs_is_of_these_families():
    """The table includes all families: run `make family-table` after adding one."""
    page = (REPO / "docs" / "language_models.md").read_text(encoding="utf-8")
    made_with = re.search(r"checks passed, with transformers (\S+) ", page)[1]
    if transformers.__version__ != made_with:
        pytest.skip(f"the table is of transformers {made_with}")
    assert re.findall(r"^\| `([^`]+)` \| \d", page, re.MULTILINE) == FAMILIES
    assert all(f"`{family}`" in page for family in REFUSED_HERE) and "✗" not in page
