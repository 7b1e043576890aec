# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The fast path equals the layers' own forward: outputs and all gradients, every class, every attention plan."""

import functools

import pytest
import torch
from fast_layer_checks import ATTENTION_PLANS, FAMILIES, build_block, keep_float64, padding, weights_of
from references import relative_error, transformers_in_full_precision
from torch import nn

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification
from hf_frozen_llm.modeling.fast_llm_layer import choose_attention_plan, folds_output
from hf_frozen_llm.modeling.llm_layer_weights import _LAYER_CLASSES


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 9,
}


@pytest.fixture
def build(llm_folder):
    def make(family="llama", **kwargs):
        return build_block(llm_folder(family)[1], **kwargs)

    return make


def results(block, x, fast, plan=None, **kwargs):
    """Output, and gradients of the tokens and both projections."""
    block.config.fast = fast
    if plan is not None:
        block._choose_attention_plan = lambda *args: plan
    x = x.detach().clone().requires_grad_()
    block.zero_grad()
    out = block(x, **kwargs)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    weights = (block.input_projection.weight, block.output_projection.weight)
    return [out.detach(), x.grad, *(weight.grad.clone() for weight in weights)]


def test_every_class_of_the_fast_path_is_tested(build):
    classes = {type(build(family).llm_layers[0]) for family in FAMILIES}
    names = {f"{c.__module__}.{c.__name__}".removeprefix("transformers.models.") for c in classes}
    assert names == set(_LAYER_CLASSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plan", ATTENTION_PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_outputs_and_gradients(family, plan, dtype, build):
    block = build(family, dtype=dtype)
    weights = weights_of(block)
    if plan == "host_width" and weights.key_norm is not None:
        pytest.skip("norms of the keys need the keys, so this plan is never chosen")
    x = torch.randn(3, 9, 24, dtype=dtype)
    for output_tokens in (slice(0, 1), slice(2, 5), None):
        for mask in (None, padding()):
            kwargs = {"attention_mask": mask, "output_tokens": output_tokens}
            if dtype == torch.float64:
                keep_float64(block)
                with transformers_in_full_precision():
                    fast, plain = results(block, x, True, plan, **kwargs), results(block, x, False, **kwargs)
            else:
                fast, plain = results(block, x, True, plan, **kwargs), results(block, x, False, **kwargs)
            for ours, theirs in zip(fast, plain):
                assert relative_error(ours, theirs) < (1e-10 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("residual", ["none", "outer"])
@pytest.mark.parametrize("plan", ATTENTION_PLANS)
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in ("gemma2", "gemma3_text", "gpt_oss")]
)
def test_feed_forward_folded_with_the_output_projection(family, plan, residual, build):
    """In every family but those with experts or a norm after the feed-forward."""
    block = build(family, dtype=torch.float64, final_norm="none", residual=residual)
    if plan == "host_width" and weights_of(block).key_norm is not None:
        plan = "folded_qkv"
    keep_float64(block)
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    for output_tokens in (slice(0, 1), None):
        kwargs = {"attention_mask": padding(), "output_tokens": output_tokens}
        with transformers_in_full_precision():
            plain = results(block, x, False, **kwargs)
            block._folds_output = lambda *args: True
            block.output_projection.forward = None  # would fail
            fast = results(block, x, True, plan, **kwargs)
            del block._folds_output, block.output_projection.forward
        for ours, theirs in zip(fast, plain):
            assert relative_error(ours, theirs) < 1e-10


@pytest.mark.parametrize("output_tokens", [slice(0, 1), None])
@pytest.mark.parametrize(
    "fields",
    [
        {"layer_index": [0, 1]},
        {"final_norm": "none"},
        {"final_norm": "pretrained"},
        {"residual": "inner"},
        {"residual": "outer"},
        {"residual": "hybrid"},
        {"attention": "causal"},
        {"rotary": True},
        {"trainable": True},
        {"input_scale": 30.0},
        {"input_scale": 30.0, "residual": "hybrid", "final_norm": "none"},
        {"input_scale": "balanced", "residual": "outer_linear"},
        {"input_scale": 0.1, "layer_index": [0, 1]},
    ],
    ids=str,
)
def test_other_settings_of_the_block(fields, output_tokens, build):
    block = build(**fields)
    x, kwargs = torch.randn(3, 9, 24), {"attention_mask": padding(), "output_tokens": output_tokens}
    for ours, theirs in zip(results(block, x, True, **kwargs), results(block, x, False, **kwargs)):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("input_scale", [0.3, 60.0])
@pytest.mark.parametrize("plan", ATTENTION_PLANS)
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2", "qwen3"])
def test_scaled_input(family, plan, input_scale, build):
    block = build(family, dtype=torch.float64, input_scale=input_scale)
    plan = "folded_qkv" if plan == "host_width" and family == "qwen3" else plan
    keep_float64(block)
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    for output_tokens in (slice(0, 1), None):
        with transformers_in_full_precision():
            fast = results(block, x, True, plan, output_tokens=output_tokens)
            plain = results(block, x, False, output_tokens=output_tokens)
        for ours, theirs in zip(fast, plain):
            assert relative_error(ours, theirs) < 1e-10


def test_gradient_of_the_input_projection_in_evaluation(build):
    """Nothing is cached: an attack or a saliency map in `eval()` uses the current weights."""
    block = build().eval()
    x = torch.randn(3, 9, 24)
    for _ in range(2):
        for ours, theirs in zip(
            results(block, x, True, "host_width", output_tokens=slice(0, 1)),
            results(block, x, False, output_tokens=slice(0, 1)),
        ):
            assert relative_error(ours, theirs) < 2e-6
        with torch.no_grad():
            block.input_projection.weight.mul_(1.5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_badly_conditioned_input_projection(family, build):
    """cond(W) = 1e3 and tokens in its weak directions: no worse than 10 times the plain path's own float32 error."""
    block = build(family)
    u, _, v = torch.linalg.svd(torch.randn(32, 24), full_matrices=False)
    weight = u @ torch.diag(torch.logspace(0, -3, 24)) @ v
    with torch.no_grad():
        block.input_projection.weight.copy_(weight)
    x = torch.randn(3, 9, 4) @ v[-4:]
    exact = build(family, dtype=torch.float64)
    exact.load_state_dict(block.state_dict())
    with transformers_in_full_precision():
        expected = results(exact, x.double(), False, output_tokens=slice(0, 1))
    plain = results(block, x, False, output_tokens=slice(0, 1))
    for plan in ("host_width", "folded_qkv"):
        fast = results(block, x, True, plan, output_tokens=slice(0, 1))
        for ours, theirs, reference in zip(fast, plain, expected):
            bound = max(10 * relative_error(theirs.double(), reference), 2e-6)
            assert relative_error(ours.double(), reference) < bound


@pytest.mark.parametrize("plan", ["host_width", "folded_qkv"])
@pytest.mark.parametrize("final_norm", ["unit", "none"])
def test_bfloat16_layer(plan, final_norm, build):
    """A layer in bfloat16 is at most 1.5 times as far from the float32 result as on the plain path."""
    x, kwargs = torch.randn(3, 9, 24), {"output_tokens": slice(0, 1)}
    expected = results(build(final_norm=final_norm), x, False, **kwargs)
    block = build(layer_dtype="bfloat16", final_norm=final_norm)
    block.llm_layers.bfloat16()
    block._folds_output = lambda *args: final_norm == "none"
    if block.final_norm is not None:
        block.final_norm.bfloat16()
    for name in ("input_projection", "output_projection"):
        getattr(block, name).float()
    fast, plain = results(block, x, True, plan, **kwargs), results(block, x, False, **kwargs)
    for ours, theirs, reference in zip(fast, plain, expected):
        assert relative_error(ours, reference) <= 1.5 * relative_error(theirs, reference)


def test_attention_plan_follows_from_the_sizes():
    """At true sizes, without weights: a LLaMA-7B layer behind a ViT-S."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    with torch.device("meta"):
        block = LLMBlock(LLMBlockConfig(llm_config={**LLAMA, **sizes}, weights="random", hidden_size=384))
    weights = weights_of(block)
    choose = functools.partial(choose_attention_plan, weights, num_tokens=197, hidden_size=384)
    assert choose(num_query_tokens=1, batch_size=1) == "host_width"
    assert choose(num_query_tokens=197, batch_size=64) == "folded_qkv"
    # for a single image, folding costs more than it saves
    assert choose(num_query_tokens=197, batch_size=1) == "explicit_kv"
    assert folds_output(weights, block.output_projection, num_query_tokens=64 * 197)
    assert not folds_output(weights, block.output_projection, num_query_tokens=64)


def test_folded_output_is_chosen_where_it_is_cheaper(build):
    """Without a final norm, by the tokens of a batch: more than `24 x 32 / (32 - 24)`, counted only in training."""
    block = build(final_norm="none")
    weights, x = weights_of(block), torch.randn(16, 9, 24)
    for ours, theirs in zip(results(block, x, True), results(block, x, False)):
        assert relative_error(ours, theirs) < 2e-6
    assert block.train()._folds_output(weights, x)
    assert not block._folds_output(weights, x[:2]) and not block.eval()._folds_output(weights, x)
    block.train().output_projection.register_forward_hook(lambda *args: None)
    assert not block._folds_output(weights, x)
    for fields in ({"final_norm": "unit"}, {"final_norm": "none", "residual": "inner"}):
        assert not build(**fields).train()._folds_output(weights, x)


@pytest.mark.parametrize(
    "change", ["other class", "adapted", "user's hook", "offloaded", "off", "trained", "attentions"]
)
def test_what_runs_as_it_is(change, build):
    block = build("falcon" if change == "other class" else "llama")
    layer, calls = block.llm_layers[0], []
    kwargs = {"output_tokens": slice(0, 1)}
    if change == "adapted":
        layer.self_attn.q_proj = nn.utils.parametrizations.weight_norm(layer.self_attn.q_proj)
    elif change == "user's hook":
        layer.register_forward_hook(lambda *args: calls.append(1))
    elif change == "offloaded":
        layer.mlp.up_proj._hf_hook = object()
    elif change == "off":
        block.config.fast = False
    elif change == "trained":
        block.config.trainable = True
    elif change == "attentions":
        kwargs["fast"] = False
    if change in ("other class", "adapted", "user's hook", "offloaded"):
        assert weights_of(block) is None
    block._run_fast_layer = None  # would fail
    assert block(torch.randn(3, 9, 24), **kwargs).shape == (3, 1, 24)
    assert calls == ([1] if change == "user's hook" else [])


def test_a_classifier_reads_one_token():
    """Asking for hidden states or attentions computes everything, and gives the same logits."""
    config = ViTWithLLMBlockConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=8, patch_size=4,
        llm_block=LLMBlockConfig(llm_config=LLAMA, weights="random"),
    )  # fmt: skip
    model = ViTWithLLMBlockForImageClassification(config).eval()
    model.set_attn_implementation("eager")
    num_tokens = []
    model.llm_block.output_projection.register_forward_hook(lambda module, args, out: num_tokens.append(out.shape[1]))
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        logits = model(pixels).logits
        for name in ("output_hidden_states", "output_attentions"):
            out = model(pixels, **{name: True})
            torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-5)
        model.config.output_hidden_states = True
        assert len(model(pixels).hidden_states) == 4
    assert num_tokens == [1, 5, 5, 5]
