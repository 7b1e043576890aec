# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Whoever looks at the block's output by a hook sees all tokens; nothing else switches the fast path off."""

import functools

import pytest
import torch
from model_cases import CASES
from vision_cases import VIDEOMAE


@pytest.fixture(params=["vit", "vision", "videomae"])
def build(request, block):
    """Builds a classifier on the CLS token; the same weights at every call."""
    fields = {"use_mean_pooling": False} if request.param == "videomae" else {}
    return lambda **block_fields: (
        CASES[request.param].build(block(**block_fields), **fields).eval(),
        CASES[request.param].inputs(2),
    )


def count_tokens(model, inputs, **kwargs):
    """How many tokens of an example the block computes."""
    counts = []
    count = functools.partial(lambda counts, module, args, out: counts.append(out.shape[1]), counts)
    handle = model.llm_block.output_projection.register_forward_hook(count)
    model(**inputs, **kwargs)
    handle.remove()
    return counts[0]


def grad_cam(model, inputs):
    """Activations and gradients of the block as Grad-CAM takes them, and the map of each token."""
    seen = {}

    def keep(module, args, out):
        seen["activations"] = out.detach()
        out.register_hook(lambda gradient: seen.__setitem__("gradients", gradient))

    handle = model.llm_block.register_forward_hook(keep)
    model(**inputs).logits[:, 1].sum().backward()
    handle.remove()
    weights = seen["gradients"].mean(dim=1, keepdim=True)
    return seen["activations"], seen["gradients"], (weights * seen["activations"]).sum(-1).relu()


def test_grad_cam(build):
    model, inputs = build()
    plain, _ = build(fast=False)
    num_tokens = count_tokens(plain, inputs)
    assert num_tokens > 1 and count_tokens(model, inputs) == 1
    for ours, theirs in zip(grad_cam(model, inputs), grad_cam(plain, inputs)):
        assert ours.shape[:2] == theirs.shape[:2] == (2, num_tokens)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert count_tokens(model, inputs) == 1


def test_full_backward_hook(build):
    model, inputs = build()
    plain, _ = build(fast=False)
    gradients = []
    for called in (model, plain):
        called.llm_block.register_full_backward_hook(
            lambda module, grad_inputs, grad_outputs: gradients.append(grad_outputs[0])
        )
        called(**inputs).logits[:, 1].sum().backward()
    assert gradients[0].shape[1] == count_tokens(plain, inputs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hook", [[].append, functools.partial(print, end="")])
def test_hooks_of_any_callable(hook, build):
    model, inputs = build()
    model.llm_block.register_full_backward_pre_hook(hook)
    assert count_tokens(model, inputs) > 1


def test_same_logits_with_a_hook(build):
    model, inputs = build()
    with torch.no_grad():
        expected = model(**inputs).logits
        model.llm_block.register_forward_hook(lambda *args: None)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_hooks_that_leave_the_fast_path_on(build):
    """Those before the block, as training's for its update ratio, and those by which transformers records outputs."""
    model, inputs = build()
    seen = []
    model.llm_block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    assert count_tokens(model, inputs) == 1 and seen[0] > 1
    if isinstance(model, CASES["vit"].model_class | CASES["videomae"].model_class):
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert states[-1].shape[1] == seen[0]
        assert model.llm_block._forward_hooks
    assert count_tokens(model, inputs) == 1


def test_videomae_classifier_on_the_first_token(block):
    model = VIDEOMAE.build(block(), use_mean_pooling=False)
    inputs, seen = VIDEOMAE.inputs(2), []
    with torch.no_grad():
        actual = model(**inputs).logits
        model.llm_block.register_forward_hook(lambda module, args, out: seen.append(out))
        model(**inputs)
        first = model.classifier(model.videomae.layernorm(seen[0])[:, 0])
    torch.testing.assert_close(actual, first, rtol=1e-4, atol=1e-5)
    assert (model.classifier(model.videomae.layernorm(seen[0])[:, 1]) - first).abs().max() > 1e-3
