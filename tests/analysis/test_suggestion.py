# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The linear probe, the choice of a layer, and its comparison with a sweep."""

import io

import numpy as np
import pandas as pd
import pytest

from hf_frozen_llm.analysis import choose_candidate, linear_probe, recovery_rate
from hf_frozen_llm.analysis.suggestion import PENALTIES


def naive_probe(features, labels):
    """Fit a ridge regression without each example, for every penalty."""
    targets, outcomes = np.eye(labels.max() + 1)[labels], []
    centred = features - features.mean(0)
    scale = np.square(centred).sum() / len(features)
    for penalty in PENALTIES:
        predictions = np.empty_like(targets)
        for left_out in range(len(labels)):
            kept = np.arange(len(labels)) != left_out
            x, y = features[kept], targets[kept]
            # The intercept is not penalised.
            slope = np.linalg.solve(
                (x - x.mean(0)).T @ (x - x.mean(0)) + penalty * scale * np.eye(x.shape[1]),
                (x - x.mean(0)).T @ (y - y.mean(0)),
            )
            predictions[left_out] = y.mean(0) + (features[left_out] - x.mean(0)) @ slope
        outcomes.append((np.square(predictions - targets).sum(), predictions))
    return min(outcomes, key=lambda outcome: outcome[0])[1].argmax(1) == labels


@pytest.mark.parametrize("channels", [3, 30])
def test_probe_equals_fits_without_each_example(channels):
    rng = np.random.default_rng(channels)
    labels = np.arange(24) % 3
    features = rng.normal(size=(24, channels)) + 5
    features[:, 0] += 0.8 * labels
    found = linear_probe(features, labels)
    assert np.array_equal(found, naive_probe(features, labels)) and 0 < found.mean() < 1


def test_probe_of_known_features():
    labels = np.arange(40) % 4
    assert linear_probe(np.eye(4)[labels] * 1e-3, labels).all()
    assert linear_probe(np.zeros((40, 2)), labels).mean() == 0  # the left-out class is always rarer than the others
    with pytest.raises(ValueError, match="All examples have the same label"):
        linear_probe(np.eye(4), np.zeros(4, int))


def test_choice():
    is_correct = np.zeros((3, 100), bool)
    is_correct[0, :90] = is_correct[1, 1:90] = is_correct[2, :70] = True
    # The second one loses one image, within one standard error of 1; the third one loses twenty.
    assert choose_candidate(is_correct, np.array([0.2, 0.6, 0.9])) == 1
    assert choose_candidate(is_correct, np.array([0.7, 0.6, 0.9])) == 0


SWEEP = """variant,llm_block,llm_block.layer_index,seed,eval_top1
plain,null,,0,0.9
a,,0,0,0.50
a,,0,1,0.54
b,,15,0,0.60
b,,15,1,0.64
c,,-1,0,0.56
c,,-1,1,0.60
"""


def test_recovery_rate():
    sweep = pd.read_csv(io.StringIO(SWEEP))
    found = recovery_rate(sweep, 29, 30)
    assert (found.rank, found.candidates) == (2, 3)
    assert (found.chosen, found.best, found.mean) == pytest.approx((0.58, 0.62, 0.52 / 3 + 0.62 / 3 + 0.58 / 3))
    assert found.rate == pytest.approx((0.58 - found.mean) / (0.62 - found.mean))
    assert found.deviation == pytest.approx(0.04 / 2**0.5)
    assert recovery_rate(sweep, 15, 30).rate == 1 and recovery_rate(sweep, 0, 30).rate < 0
    errors = recovery_rate(sweep, 0, 30, greater_is_better=False)
    assert errors.rate == errors.rank == 1


def test_recovery_of_an_input_scale():
    sweep = pd.read_csv(io.StringIO(SWEEP))
    sweep["llm_block.input_scale"] = [None, None, None, "balanced", "balanced", "2.0", "2.0"]
    assert recovery_rate(sweep, 15, 30, "balanced").rank == 1
    assert recovery_rate(sweep, -1, 30, 2).rank == 2 and recovery_rate(sweep, 0, 30).rank == 3
    with pytest.raises(ValueError, match=r"no run of the layer 15, input scale 1; it has 0, input scale 1; 15, input"):
        recovery_rate(sweep, 15, 30)


def test_sweeps_that_cannot_be_compared():
    sweep = pd.read_csv(io.StringIO(SWEEP))
    with pytest.raises(ValueError, match="The sweep has no run of the layer 7; it has 0; 15; 29"):
        recovery_rate(sweep, 7, 30)
    with pytest.raises(ValueError, match=r"has no column llm_block.layer_index: give ablation.csv of `--over llm_bl"):
        recovery_rate(sweep.drop(columns="llm_block.layer_index"), 0, 30)
    sweep.loc[3, "variant"] = "random weights"
    with pytest.raises(ValueError, match="several variants of the layer 15: it varies something else"):
        recovery_rate(sweep, 15, 30)
    one_seed = pd.read_csv(io.StringIO(SWEEP)).query("seed == 0")
    assert np.isnan(recovery_rate(one_seed, 0, 30).deviation)
