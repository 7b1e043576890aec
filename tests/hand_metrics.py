# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classifiers by their definitions, slowly: the values that tests compare with."""

import numpy as np


def count_hits(truth, guess):
    """Return true positives, false positives and false negatives of one class."""
    truth, guess = np.asarray(truth, bool), np.asarray(guess, bool)
    return (truth & guess).sum(), (~truth & guess).sum(), (truth & ~guess).sum()


def precision(truth, guess):
    hits, wrong, _ = count_hits(truth, guess)
    return hits / (hits + wrong) if hits + wrong else 0.0


def recall(truth, guess):
    hits, _, missed = count_hits(truth, guess)
    return hits / (hits + missed) if hits + missed else 0.0


def f1(truth, guess):
    hits, wrong, missed = count_hits(truth, guess)
    return 2 * hits / (2 * hits + wrong + missed) if hits + wrong + missed else 0.0


def auc(truth, scores):
    """Return the share of the pairs of a row with the label and one without where the first has the greater score."""
    scores, truth = np.asarray(scores), np.asarray(truth, bool)
    differences = scores[truth][:, None] - scores[~truth][None]
    return ((differences > 0) + 0.5 * (differences == 0)).mean()


def average_precision(truth, scores):
    """Return the mean over the rows with the label of the precision among the rows with at least their score."""
    scores, truth = np.asarray(scores), np.asarray(truth, bool)
    return float(np.mean([truth[scores >= score].mean() for score in scores[truth]]))
