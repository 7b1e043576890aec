# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Derivatives of the fast path beyond one backward: second order, forward mode, `torch.func`, and traced models."""

import io

import pytest
import torch
from fast_layer_checks import ATTENTION_PLANS, FAMILIES, build_block, keep_float64, padding
from references import relative_error, transformers_in_full_precision
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


CASES = [
    (family, plan)
    for family in FAMILIES
    for plan in ATTENTION_PLANS
    if plan != "host_width" or family not in ("qwen3", "gemma3_text")  # norms of the keys need the keys
]
every_case = pytest.mark.parametrize(("family", "plan"), CASES, ids=[f"{f}-{p}" for f, p in CASES])
# Tracing reads every attribute of a model, transformers' deprecated ones too.
traced_test = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROJECTIONS = ("input_projection.weight", "output_projection.weight")


@pytest.fixture
def build(llm_folder):
    """In float64 with eager attention: PyTorch's SDPA has no second derivatives, on the plain path neither."""

    def make(family, plan):
        block = build_block(llm_folder(family)[1], dtype=torch.float64, final_norm="none")
        block.set_attn_implementation("eager")
        keep_float64(block)
        block._choose_attention_plan = lambda *args: plan
        return block

    return make


def assert_same(derivatives, block):
    """`derivatives()` returns the same numbers on both paths, and the fast path is taken."""
    runs = []
    run_fast_layer = block._run_fast_layer
    block._run_fast_layer = lambda *args: runs.append(1) or run_fast_layer(*args)
    with transformers_in_full_precision():
        fast = derivatives()
        assert runs
        block.config.fast = False
        plain = derivatives()
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.shape == theirs.shape and theirs.abs().max() > 0
        assert relative_error(ours, theirs) < 1e-9


def loss_of(block, x, weights, **kwargs):
    """The block with these two projections, to one number."""
    out = functional_call(block, dict(zip(PROJECTIONS, weights)), (x,), {"output_tokens": slice(1, 3), **kwargs})
    return (out.sin() * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def arguments(block):
    return torch.randn(3, 9, 24, dtype=torch.float64), tuple(
        block.get_parameter(name).detach() for name in PROJECTIONS
    )


@every_case
def test_second_derivatives(family, plan, build):
    """A gradient penalty on the tokens, and the product of the weights' Hessian with a vector."""
    block = build(family, plan)
    x, weights = arguments(block)
    vectors = [torch.randn_like(tensor) for tensor in (x, *weights)]

    def derivatives():
        inputs = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
        loss = loss_of(block, inputs[0], inputs[1:], attention_mask=padding())
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        penalty = torch.autograd.grad(first[0].square().sum(), inputs, retain_graph=True)
        products = torch.autograd.grad(sum((g * v).sum() for g, v in zip(first, vectors)), inputs)
        return [*first, *penalty, *products]

    assert_same(derivatives, block)


@every_case
def test_forward_mode(family, plan, build):
    block = build(family, plan)
    x, weights = arguments(block)
    tangents = torch.randn_like(x), tuple(torch.randn_like(weight) for weight in weights)

    def derivatives():
        def gradient(x, weights):
            return grad(lambda x: loss_of(block, x, weights))(x)

        primal, tangent = jvp(lambda x, weights: loss_of(block, x, weights), (x, weights), tangents)
        _, forward_over_reverse = jvp(gradient, (x, weights), tangents)
        return primal, tangent, forward_over_reverse

    assert_same(derivatives, block)


@every_case
def test_vectorised(family, plan, build):
    """Gradients of each example, Jacobians, and an ensemble of stacked projections."""
    if family == "gpt_oss":
        pytest.skip("which tokens an expert gets depends on their values")
    block = build(family, plan)
    x, weights = arguments(block)
    stacked = tuple(torch.stack([weight, 0.5 * weight, weight.flip(0)]) for weight in weights)

    def derivatives():
        of_each_example = vmap(grad(lambda w, x: loss_of(block, x[None], w)), (None, 0))(weights, x)
        jacobian = jacrev(lambda w: block_output(block, x, (w, weights[1])))(weights[0])
        ensemble = vmap(lambda w: block_output(block, x, w))(stacked)
        return *of_each_example, jacobian, ensemble

    assert_same(derivatives, block)


def block_output(block, x, weights):
    return functional_call(block, dict(zip(PROJECTIONS, weights)), (x,), {"output_tokens": slice(0, 1)})[:, 0, :3]


def test_hessian(build):
    block = build("llama", "host_width")
    x, weights = arguments(block)
    x = x[:1, :3]
    assert_same(lambda: [hessian(lambda x: loss_of(block, x, weights))(x)], block)


def test_stacked_modules(build):
    blocks = [build("llama", "host_width") for _ in range(3)]
    for i, block in enumerate(blocks):
        block.input_projection.weight.data.mul_(1 + i)
    x = arguments(blocks[0])[0]
    parameters, buffers = stack_module_state(blocks)
    expected = torch.stack([block(x, output_tokens=slice(0, 1)) for block in blocks])
    actual = vmap(
        lambda p, b: functional_call(blocks[0], (p, b), (x,), {"output_tokens": slice(0, 1)})
    )(parameters, buffers)  # fmt: skip
    assert relative_error(actual, expected) < 1e-9


class OneToken(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x, output_tokens=slice(0, 1))


def save_and_load(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@traced_test
@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("plan", ATTENTION_PLANS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_traced(family, plan, no_grad, build):
    """Also of another batch than the example, and with gradients, whether or not the trace had some."""
    block = build(family, plan)
    with torch.set_grad_enabled(not no_grad):
        traced = save_and_load(torch.jit.trace(OneToken(block), torch.randn(2, 9, 24).double()))
    x = torch.randn(3, 9, 24).double()

    def outputs(called):
        tokens = x.clone().requires_grad_()
        out = called(tokens)
        return out, *torch.autograd.grad(out.sin().sum(), tokens)

    actual = outputs(traced)
    block.config.fast = False
    with transformers_in_full_precision():
        for ours, theirs in zip(actual, outputs(OneToken(block))):
            assert relative_error(ours, theirs) < 1e-9


@traced_test
def test_traced_model(llm_folder):
    config = ViTWithLLMBlockConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, image_size=8, patch_size=4,
        llm_block=LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], layer_index=1),
    )  # fmt: skip
    model = ViTWithLLMBlockForImageClassification(config).eval()
    traced = save_and_load(torch.jit.trace(model, torch.randn(2, 3, 8, 8), strict=False))
    pixels = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(traced(pixels)["logits"], model(pixels).logits)
