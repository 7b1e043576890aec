# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The contract of the LLM block, for every family of language models and both attention implementations."""

import copy
import functools

import pytest
import torch
from llm_block_checks import TOKENS, assert_near, build_block, dtype_of, tokens
from tiny_llms import EAGER_ONLY, FAMILIES, NO_ORACLE, NO_SDPA_ORACLE, decoder_stack, tiny_config
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_frozen_llm import LLMBlock, LLMBlockConfig


CASES = [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if a == "eager" or f not in EAGER_ONLY]
every_case = pytest.mark.parametrize(("family", "attention"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
every_family = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.fixture(scope="module")
def block_of(llm_folder):
    """`block_of(family, attn_implementation, **fields)` -> a block that tests share and must not change."""

    @functools.cache
    def make(family, attn_implementation, **fields):
        return build_block(llm_folder(family)[1], attn_implementation, **fields).to(dtype_of(family))

    return make


@every_case
def test_equivariant_and_not_causal(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family)
    assert block.llm_layers[0].__class__.__module__.startswith("transformers.")
    with torch.no_grad():
        out = block(x)
        assert out.shape == x.shape and out.dtype == x.dtype
        assert out.std() > 1e-3
        order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
        assert_near(block(x[:, order]), out[:, order])
        changed = x.clone()
        changed[:, -1] += 1
        assert (block(changed)[:, 0] - out[:, 0]).abs().max() > 1e-3 * out.abs().max()


@every_case
def test_padding_changes_nothing(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 6:] = 0
    mask[1, 2] = 0
    other = x.clone()
    other[mask == 0] = 7 * torch.randn_like(other[mask == 0])
    with torch.no_grad():
        out = block(x, attention_mask=mask)
        assert torch.isfinite(out).all()
        assert_near(block(other, attention_mask=mask)[mask == 1], out[mask == 1])
        assert_near(out[:1, :6], block(x[:1, :6]))
        kept = [i for i in range(TOKENS) if i != 2]
        assert_near(out[1:, kept], block(x[1:, kept]))
        assert (out[:1, :6] - block(x)[:1, :6]).abs().max() > 1e-3 * out.abs().max()
        # a mask of ones is no mask
        assert_near(block(x, attention_mask=torch.ones_like(mask)), block(x))


@every_case
def test_no_leak_across_the_batch(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family).requires_grad_()
    out = block(x)
    (gradient,) = torch.autograd.grad(out[0].square().sum(), x)
    assert (gradient[0].abs().amax(-1) > 0).all() and gradient[1].abs().max() == 0
    assert_near(block(x[:1]), out[:1])


@every_case
def test_causal(family, attention, block_of):
    block, x = block_of(family, attention, attention="causal"), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 3] = 0
    first, last = x.clone(), x.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    with torch.no_grad():
        out = block(x)
        assert_near(block(last)[:, :-1], out[:, :-1])
        assert (block(first)[:, -1] - out[:, -1]).abs().max() > 1e-3 * out.abs().max()
        assert_near(block(x[:, :4]), out[:, :4])
        # the last token attends to all tokens, causal or not
        assert_near(block_of(family, attention)(x)[:, -1], out[:, -1])
        padded = block(x, attention_mask=mask)
        kept = [i for i in range(TOKENS) if i != 3]
        assert_near(padded[:, kept], block(x[:, kept]))
        # padding on the left: its rows see nothing at all
        mask[:, :4] = 0
        padded = block(x, attention_mask=mask)
        assert torch.isfinite(padded).all()
        assert_near(padded[:, 4:], block(x[:, 4:]))


@every_case
def test_training_mode_changes_nothing(family, attention, block_of):
    block, x = copy.deepcopy(block_of(family, attention)), tokens(family)
    with torch.no_grad():
        out = block(x)
        block.train()
        assert torch.equal(block(x), out)
        assert torch.equal(block(x), out)


@every_case
def test_own_whole_model_as_oracle(family, attention, llm_folder):
    if family in NO_ORACLE or (attention == "sdpa" and family in NO_SDPA_ORACLE):
        pytest.skip("the family's whole model adds alibi or chunks around its layers, or stays causal")
    llm, folder = llm_folder(family)
    width = llm.config.hidden_size
    block = build_block(folder, attention, hidden_size=width, final_norm="none").to(dtype_of(family))
    for projection in (block.input_projection, block.output_projection):
        projection.weight.data = torch.eye(width, dtype=dtype_of(family))
    llm = copy.deepcopy(llm).to(dtype_of(family))
    llm.set_attn_implementation(attention)
    x = tokens(family, width=width)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 6:] = 0
    with torch.no_grad():
        for attention_mask in (None, mask):
            expected = oracle(llm, x, attention_mask)
            keep = torch.ones_like(mask, dtype=torch.bool) if attention_mask is None else mask.bool()
            assert_near(block(x, attention_mask=attention_mask)[keep], expected[keep])


def oracle(llm, x, attention_mask):
    """Return the output of layer 1 inside the whole LLM, with `x` as its input instead of layer 0's output."""
    layer, seen = decoder_stack(llm)[0][1], []

    def inject(module, args, kwargs):
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": x}

    def capture(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_pre_hook(inject, with_kwargs=True), layer.register_forward_hook(capture)]
    try:
        llm.base_model(
            inputs_embeds=x.new_zeros(*x.shape[:2], llm.get_input_embeddings().weight.shape[1]),
            attention_mask=attention_mask,
            position_ids=torch.zeros(x.shape[:2], dtype=torch.long),
            is_causal=False,
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0]


@every_family
def test_sdpa_equals_eager_and_default(family, block_of):
    x = tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 5:] = 0
    with torch.no_grad():
        eager, default = block_of(family, "eager"), block_of(family, None)
        for attention_mask in (None, mask):
            out = eager(x, attention_mask=attention_mask)
            keep = torch.ones_like(mask, dtype=torch.bool) if attention_mask is None else mask.bool()
            assert_near(default(x, attention_mask=attention_mask)[keep], out[keep])
            if family not in EAGER_ONLY:
                assert_near(block_of(family, "sdpa")(x, attention_mask=attention_mask)[keep], out[keep])


@every_family
def test_switching_attention_of_a_built_block(family, block_of):
    if family in EAGER_ONLY:
        pytest.skip("transformers has eager attention only for this family")
    block, x = copy.deepcopy(block_of(family, "sdpa")), tokens(family)
    block.set_attn_implementation("eager")
    with torch.no_grad():
        assert_near(block(x), block_of(family, "eager")(x))
    assert all(m.config._attn_implementation == "eager" for m in block.llm_layers.modules() if hasattr(m, "config"))


def test_bfloat16_block_runs(llm_folder):
    block = build_block(llm_folder("llama")[1])
    x = tokens("mixtral")
    with torch.no_grad():
        expected = block(x)
        out = block.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("mask", [torch.bool, torch.long, torch.float32, torch.uint8])
def test_mask_dtypes(mask, block_of):
    block, x = block_of("llama", None), tokens("llama")
    keep = torch.ones(2, TOKENS, dtype=torch.bool)
    keep[:, 5:] = False
    with torch.no_grad():
        assert torch.equal(block(x, attention_mask=keep.to(mask)), block(x, attention_mask=keep.long()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_item_of_padding_only_is_finite(attention, block_of):
    block, x = block_of("llama", attention), tokens("llama").requires_grad_()
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1] = 0
    out = block(x, attention_mask=mask)
    assert torch.isfinite(out).all()
    assert_near(out[:1], block(x[:1]))
    out[:1].sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_compiled_in_one_graph(family, block_of):
    block, x = block_of(family, None), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 5:] = 0
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_near(compiled(x), block(x))
        assert_near(compiled(x, attention_mask=mask)[:, :5], block(x, attention_mask=mask)[:, :5])


def test_batch_of_one_and_one_token(block_of):
    for family in ("llama", "gpt2", "gemma2", "mpt", "bloom"):
        block = block_of(family, None)
        x = tokens(family, batch=1, count=1)
        assert block(x).shape == x.shape
        x = tokens(family, batch=3, count=4)
        # a layer's tuple must not be read as a batch
        assert_near(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize("family", ["mistral_window", "gemma3_text", "gpt_oss"])
def test_no_window_reaches_the_attention(family):
    """Flash attention would keep to the window that it is given; SDPA and eager take theirs from the mask."""
    windows = set()

    def spy(module, query, key, value, attention_mask, **kwargs):
        windows.add(kwargs.get("sliding_window"))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    config = LLMBlockConfig(llm_config=tiny_config(family), weights="random", layer_index=[0, 1], hidden_size=16)
    block = LLMBlock(config)
    block.config.llm_config._attn_implementation = "spy"
    block(torch.randn(1, 9, 16))
    assert windows == {None}
