# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Parameters and checks of the tests that compile, export, adapt, copy, offload or distribute a model."""

import pytest
import torch
from distributed_uses import LABELS, MODELS, pixels_of
from tiny_hosts import HOSTS


EVERY = ["vit_class", *HOSTS]
# Whether the block takes its fast path has nothing to do with the host.
CASES = [*((host, True) for host in EVERY), *((host, False) for host in MODELS)]
every_host = pytest.mark.parametrize(("host", "fast"), CASES)
three_models = pytest.mark.parametrize("host", MODELS)
fast_or_not = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def logits(model, host, batch=2):
    with torch.no_grad():
        return model(pixel_values=pixels_of(host, batch)).logits


def loss_of(model, host, **kwargs):
    return model(pixel_values=pixels_of(host, 2), labels=LABELS[:2], **kwargs).loss


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_function(actual, expected):
    """Of a block that can take its fast path only before, or only after it was changed."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
