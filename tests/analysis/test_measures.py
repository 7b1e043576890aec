# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Measures of tokens on constructed cases whose answers are known."""

import math

import numpy as np
import pytest
import torch
from fast_layer_checks import build_block
from llm_files import write_llm
from tiny_llms import tiny_config, tiny_llm

from hf_frozen_llm.analysis import (
    effective_rank,
    filtering_ratio,
    frequency,
    gradient_coherence,
    linear_cka,
    magnitude,
    min_max,
    token_activations,
    token_similarity,
    update_ratio,
)


@pytest.fixture
def tokens():
    return torch.randn(2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_magnitude_as_the_paper_defines_it(tokens):
    expected = np.zeros((2, 12))
    for i, image in enumerate(tokens.numpy()):
        mean = image.mean(0)  # of all tokens, not of a row or a column of them
        expected[i] = [math.dist(token, mean) for token in image]
    np.testing.assert_allclose(magnitude(tokens), expected)
    assert magnitude(torch.ones(1, 3, 4)).tolist() == [[0, 0, 0]]
    assert magnitude(torch.ones(1, 3, 4, dtype=torch.bfloat16)).dtype == torch.float32
    torch.testing.assert_close(magnitude(tokens + 5), magnitude(tokens))


def test_frequency_as_the_paper_defines_it(tokens):
    expected = np.zeros((2, 12))
    for i, image in enumerate(tokens.numpy()):
        phases = np.zeros((12, 6))
        for t, token in enumerate(image):
            for k in range(6):  # over the channels
                value = sum(token[c] * np.exp(-2j * np.pi * k * c / 6) for c in range(6))
                phases[t, k] = np.arctan2(value.imag, value.real)
        # The phase of a value that is real up to rounding is 0 or ±π.
        phases[:, [0, 3]] = np.where(np.fft.fft(image)[:, [0, 3]].real > 0, 0, np.abs(phases[:, [0, 3]]))
        expected[i] = np.sqrt(((phases - phases.mean(0)) ** 2).sum(1))
    np.testing.assert_allclose(frequency(tokens), expected, rtol=1e-6)
    torch.testing.assert_close(frequency(3 * tokens), frequency(tokens))  # the size of a token does not matter
    shifted = torch.stack([torch.tensor([1.0, 0, 0, 0]).roll(shift) for shift in (0, 0, 0, 1)])
    values = frequency(shifted[None])[0]
    # Phases of the shifted impulse: 0, -π/2, ±π, π/2; those of the others are 0.
    expected_phases = torch.tensor([0, math.pi / 2, math.pi, math.pi / 2]) / 4
    torch.testing.assert_close(values[0], expected_phases.norm())
    torch.testing.assert_close(values[3], 3 * expected_phases.norm())


def test_min_max():
    maps = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
    assert min_max(maps).tolist() == [[0, 1, 0.5], [0, 0, 0], [0, 0, 0]]


def test_filtering_ratio_of_known_amplification():
    before = torch.tensor([[1.0, 3.0, 2.0, 2.0]] * 3)
    is_object = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, math.nan], [0, 0, 0, 0]])
    after = torch.where(is_object == 1, 6 * before, 2 * before)
    after[1, 3] = 1000  # neither object nor background
    ratios = filtering_ratio(before, after, is_object)
    torch.testing.assert_close(ratios[:2], torch.tensor([3.0, 3.0]))
    assert ratios[2].isnan()


def test_update_ratio_is_that_of_the_block(tmp_path):
    block = build_block(str(write_llm(tiny_llm(tiny_config("llama")), tmp_path / "llama")))
    x = torch.randn(1, 9, 24)
    states = token_activations(block, {"hidden_states": x}).states
    ratio = update_ratio(states["input_projection"], states["feed_forward"])
    assert ratio.shape == (1,) and ratio.item() == pytest.approx(block.update_ratio(x), rel=1e-5)


def test_effective_rank():
    orthogonal = torch.linalg.qr(torch.randn(8, 5)).Q
    assert effective_rank(orthogonal[None]).item() == pytest.approx(5, rel=1e-5)
    one = torch.randn(8, 1) @ torch.randn(1, 5)
    assert effective_rank(one[None]).item() == pytest.approx(1, abs=1e-3)
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits.
    assert effective_rank(torch.diag(torch.tensor([2.0, 1, 1]))[None]).item() == pytest.approx(2**1.5)


def test_token_similarity(tokens):
    expected = [
        np.mean([np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a in image for b in image if a is not b])
        for image in (list(image) for image in tokens.numpy())
    ]
    np.testing.assert_allclose(token_similarity(tokens), expected)
    assert token_similarity(torch.ones(1, 4, 3)).item() == pytest.approx(1)
    assert token_similarity(torch.eye(4)[None]).item() == 0


@pytest.mark.parametrize("examples", [9, 200])
def test_cka(examples):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 7, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ rotation + 2) == pytest.approx(1)
    y = torch.randn(examples, 4, generator=generator, dtype=torch.float64) + x[:, :4]
    centred = [t.numpy() - t.numpy().mean(0) for t in (x, y)]
    hsic = [np.trace(a @ a.T @ b @ b.T) for a, b in (centred, centred[:1] * 2, centred[1:] * 2)]
    assert linear_cka(x, y) == pytest.approx(hsic[0] / math.sqrt(hsic[1] * hsic[2]))
    basis = torch.linalg.qr(torch.cat([torch.ones(examples, 1).double(), x], 1)).Q
    assert linear_cka(basis[:, 1:4], basis[:, 4:]) == pytest.approx(0, abs=1e-12)


def test_gradient_coherence():
    weight = torch.nn.Parameter(torch.zeros(3))
    unused = torch.nn.Parameter(torch.zeros(2))
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    directions = torch.tensor([[1.0, 0, 0], [5, 0, 0], [0, 2, 0], [0, 0, 0]])

    def coherence(count):
        return gradient_coherence(lambda index: weight @ directions[index], count, [weight, unused, frozen])

    assert coherence(2) == pytest.approx(1)
    assert coherence(3) == pytest.approx(1 / 3)  # of three pairs, one is parallel and two are orthogonal
    assert coherence(4) == pytest.approx(1 / 3)  # a gradient of zero has no direction
    assert math.isnan(coherence(1))
