# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The inverse norms of projected tokens equal the float64 formula: real widths, any rank and conditioning."""

import functools

import pytest
import torch
from fast_layer_checks import build_block
from references import relative_error

from hf_frozen_llm.modeling.fast_llm_layer import LayerPlan, _attend_to_host_tokens, inverse_norm
from hf_frozen_llm.modeling.llm_layer_weights import find_layer_weights


# (D, d): ViT-B and SmolLM2-135M, ViT-L and GPT-2, ViT-S and LLaMA-7B
WIDTHS = [(576, 768), (768, 1024), (4096, 384)]
SPECTRA = {
    "flat": lambda rank: torch.ones(rank),
    "one dominates": lambda rank: torch.cat([torch.tensor([16.7]), torch.ones(rank - 1)]),
    "condition 1e3": lambda rank: torch.logspace(0, -3, rank),
    "condition 1e6": lambda rank: torch.logspace(0, -6, rank),
    "half rank": lambda rank: (torch.arange(rank) < rank // 2).float(),
    "one dominates, half rank": lambda rank: torch.cat([torch.tensor([16.7]), (torch.arange(1, rank) < rank // 2)]),
    "rank 1": lambda rank: 5.0 * (torch.arange(rank) < 1),
}


def exact(x, weight, eps):
    return ((x.double() @ weight.double().mT).square().mean(-1) + eps).rsqrt()


@functools.cache
def singular_vectors(widths):
    generator = torch.Generator().manual_seed(0)
    return [torch.linalg.qr(torch.randn(w, min(widths), generator=generator).double())[0] for w in widths]


def projection(widths, spectrum):
    """A weight of these singular values in float32, and its right singular vectors, weakest last."""
    left, right = singular_vectors(widths)
    return ((left * SPECTRA[spectrum](min(widths)).double()) @ right.mT).float(), right


def worst_error(actual, expected):
    """Relative to each token's own value."""
    return ((actual.detach().double() - expected.detach()).abs() / expected.detach()).max().item()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("spectrum", list(SPECTRA))
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_real_widths(widths, spectrum, many):
    weight, _ = projection(widths, spectrum)
    # more than 2d, or as few as an image has
    x = torch.randn(5 if many else 1, 197, widths[1])
    x[-1] *= 60  # an `input_scale`
    x.requires_grad_()
    weight.requires_grad_()
    inverse = inverse_norm(x, weight, 1e-6)
    # A token almost orthogonal to the only direction magnifies the rounding of float32.
    assert worst_error(inverse, exact(x, weight, 1e-6)) < (1e-3 if spectrum == "rank 1" else 1e-5)
    gradients = torch.autograd.grad(inverse.sum(), (x, weight))
    expected = torch.autograd.grad(exact(x, weight, 1e-6).sum(), (x, weight))
    for ours, theirs in zip(gradients, expected):
        assert torch.isfinite(ours).all() and relative_error(ours, theirs) < (1e-2 if spectrum == "rank 1" else 1e-4)


@pytest.mark.parametrize("spectrum", ["condition 1e3", "condition 1e6", "one dominates", "half rank", "rank 1"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_tokens_in_weak_directions(widths, spectrum):
    """No worse than 10 times the error of projecting these tokens in float32."""
    weight, directions = projection(widths, spectrum)
    x = (torch.randn(2, 400, 8).double() @ directions[:, -8:].mT).float()
    eps = 1e-12 if "condition" in spectrum else 1e-6  # without a norm, only the epsilon is more than rounding
    expected = exact(x, weight, eps)
    plain = ((x @ weight.mT).square().mean(-1) + eps).rsqrt()
    actual = inverse_norm(x, weight, eps)
    assert worst_error(actual, expected) < max(10 * worst_error(plain, expected), 1e-5)


@pytest.mark.parametrize("widths", [(576, 768), (576, 384)], ids=str)
def test_columns_that_are_zero_equal_or_small(widths):
    weight = 0.02 * torch.randn(widths)
    weight[:, 3:9] = 0
    weight[:, 20:60] = weight[:, 60:61]
    weight[:, 100:110] *= 1e-12
    x = torch.randn(5, 197, widths[1])
    assert worst_error(inverse_norm(x, weight, 1e-6), exact(x, weight, 1e-6)) < 1e-5
    assert torch.equal(inverse_norm(x, torch.zeros_like(weight), 1e-4), torch.full((5, 197), 1e-4).rsqrt())


@pytest.mark.parametrize("widths", [(16, 6), (6, 6), (3, 6)], ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_derivatives(widths, batch):
    x, weight = torch.randn(batch, 3, widths[1]).double(), torch.randn(widths).double()
    torch.testing.assert_close(inverse_norm(x, weight, 1e-6), exact(x, weight, 1e-6), rtol=1e-11, atol=0)
    x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: inverse_norm(x, w, 1e-6), (x, weight), check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(lambda x, w: inverse_norm(x, w, 1e-6), (x, weight), check_fwd_over_rev=True)


@pytest.mark.parametrize("batch", [1, 5])
def test_same_value_without_derivatives(batch):
    x, weight = torch.randn(batch, 5, 6), torch.randn(16, 6, requires_grad=True)
    expected = inverse_norm(x, weight, 1e-6)
    with torch.no_grad():
        assert torch.equal(inverse_norm(x, weight, 1e-6), expected)
        _, tangent = torch.func.jvp(lambda x: inverse_norm(x, weight, 1e-6), (x,), (x,))
        _, exact_tangent = torch.func.jvp(lambda x: exact(x, weight, 1e-6), (x.double(),), (x.double(),))
    assert relative_error(tangent, exact_tangent) < 1e-5


@pytest.mark.parametrize("plan", ["host_width", "folded_qkv", "folded_kv"])
def test_arithmetic_in_the_hosts_width_ignores_autocast(plan, llm_folder):
    block = build_block(llm_folder("llama")[1])
    weights = find_layer_weights(block.llm_layers[0], block.input_projection)
    plan = LayerPlan(slice(0, 1), weights, plan)
    x, weight = torch.randn(3, 9, 24), block.input_projection.weight
    expected = _attend_to_host_tokens(plan, x, x[:, :1] @ weight.mT, None, None, weight)
    with torch.autocast("cpu", torch.bfloat16):
        actual = _attend_to_host_tokens(plan, x, (x[:, :1].double() @ weight.double().mT).float(), None, None, weight)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
