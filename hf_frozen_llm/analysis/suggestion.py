# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Which LLM layer to try first: a linear probe, the choice, and its comparison with a sweep that was trained."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


# Of the ridge regression, relative to the mean squared norm of the centred features.
PENALTIES = tuple(10.0**exponent for exponent in range(-6, 2))


def linear_probe(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Return whether a linear classifier is right about each example when it is fitted to all others: a ridge regression
    of the classes with an intercept. Of several penalties, that with the smallest squared error of all left-out
    examples is used.

    Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter"
    (Technometrics 1979): the left-out residual is `e / (1 - h)`, with h from the diagonal of the hat matrix.

    Args:
        features (`numpy.ndarray` of shape `(examples, channels)`): the features.
        labels (`numpy.ndarray` of shape `(examples,)`): classes, integers from 0, at least two of them.

    Returns:
        `numpy.ndarray` of shape `(examples,)`: booleans.

    Raises:
        `ValueError`: for a single class.
    """
    count = len(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError("All examples have the same label, and a probe needs two classes or more.")
    targets = (labels[:, None] == np.unique(labels)).astype(float)
    centred = features.astype(float) - features.mean(0, dtype=float)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values = values.clip(min=0)
    centred_targets = targets - targets.mean(0)
    projected, best = vectors.T @ centred_targets, np.inf
    for penalty in PENALTIES:
        shrunk = values / (values + penalty * max(values.mean(), np.finfo(float).tiny))
        hat = (vectors**2) @ shrunk + 1 / count
        residuals = (centred_targets - vectors @ (shrunk[:, None] * projected)) / (1 - hat)[:, None]
        if (error := np.square(residuals).sum()) < best:
            best, predictions = error, targets - residuals
    return predictions.argmax(1) == targets.argmax(1)


def choose_candidate(is_correct: np.ndarray, similarity: np.ndarray) -> int:
    """
    Return which of several candidates to try first: of those that the probe cannot tell from its best one (by one
    standard error of the paired difference), that whose tokens are most similar to the host's.

    Args:
        is_correct (`numpy.ndarray` of shape `(candidates, examples)`): the results of [`linear_probe`].
        similarity (`numpy.ndarray` of shape `(candidates,)`): the linear CKA.
    """
    lost = is_correct[is_correct.mean(1).argmax()].astype(float) - is_correct
    # A single lost example is one standard error, up to rounding.
    is_as_good = lost.mean(1) <= (1 + 1e-9) * lost.std(1, ddof=1) / np.sqrt(lost.shape[1])
    return int(np.where(is_as_good, similarity, -np.inf).argmax())


@dataclass(frozen=True)
class Recovery:
    """
    A choice compared with the results of a sweep.

    Args:
        rate (`float`): `(chosen - mean) / (best - mean)` of the candidates' mean scores: 1 = the best candidate, 0 =
            no better than a random one, negative = worse; NaN if all are equal.
        rank (`int`): the place of the chosen candidate, from 1.
        chosen (`float`): its mean score over seeds.
        best (`float`): the best mean score.
        mean (`float`): the mean score of all candidates.
        deviation (`float`): standard deviation over seeds, pooled; differences of its size are noise. NaN with one
            seed.
        candidates (`int`): the number of candidates.
    """

    rate: float
    rank: int
    chosen: float
    best: float
    mean: float
    deviation: float
    candidates: int


def recovery_rate(
    sweep: pd.DataFrame,
    layer_index: int,
    num_layers: int,
    input_scale: float | str | None = None,
    metric: str = "eval_top1",
    greater_is_better: bool = True,
) -> Recovery:
    """
    Compare a choice that was made before any training with an `ablate` sweep over the candidates. A sweep of a few
    layers is one draw: with five candidates, a random choice is the best one in a fifth of all cases.

    Args:
        sweep (`pandas.DataFrame`):
            `ablation.csv` of `ablate --over llm_block.layer_index=…`, which may vary `llm_block.input_scale`, too.
            Rows without a layer, such as the plain host, do not count.
        layer_index (`int`):
            The chosen layer.
        num_layers (`int`):
            The number of the language model's layers, for negative indices.
        input_scale (`float` or `"balanced"`, *optional*):
            The chosen input scale, if the sweep varies it.
        metric (`str`, *optional*, defaults to `"eval_top1"`):
            The column of the scores.
        greater_is_better (`bool`, *optional*, defaults to `True`):
            The direction of the metric.

    Returns:
        [`Recovery`]: the comparison.

    Raises:
        `ValueError`: if the sweep lacks these columns or the chosen candidate, or varies something else.
    """
    if missing := [name for name in ("llm_block.layer_index", metric) if name not in sweep]:
        raise ValueError(
            f"The sweep has no column {' and '.join(missing)}: give ablation.csv of `--over llm_block.layer_index=…`."
        )
    runs = sweep[sweep["llm_block.layer_index"].notna()]
    layers = [int(float(index)) % num_layers for index in runs["llm_block.layer_index"]]
    keys, wanted = pd.Series(layers, runs.index).astype(str), str(layer_index % num_layers)
    if "llm_block.input_scale" in runs:
        keys += ", input scale " + runs["llm_block.input_scale"].astype(object).fillna(1).map(name_scale)
        wanted += f", input scale {name_scale(1 if input_scale is None else input_scale)}"
    if (several := runs["variant"].groupby(keys).nunique() > 1).any():
        raise ValueError(f"The sweep has several variants of the layer {several.idxmax()}: it varies something else.")
    scores = runs[metric].astype(float).groupby(keys)
    means = scores.mean()
    if wanted not in means:
        raise ValueError(f"The sweep has no run of the layer {wanted}; it has {'; '.join(means.index)}.")
    sign = 1 if greater_is_better else -1
    chosen, best, mean = means[wanted], sign * (sign * means).max(), means.mean()
    degrees = (scores.count() - 1).sum()
    deviation = np.sqrt((scores.var(ddof=1).fillna(0) * (scores.count() - 1)).sum() / degrees) if degrees else np.nan
    rate = (chosen - mean) / (best - mean) if best != mean else np.nan
    rank = 1 + int((sign * means > sign * chosen).sum())
    return Recovery(float(rate), rank, float(chosen), float(best), float(mean), float(deviation), len(means))


def name_scale(scale: float | str) -> str:
    """Return `"balanced"`, or the number of an input scale, as it is compared and printed."""
    return scale.strip("\"'") if isinstance(scale, str) and "balanced" in scale else f"{float(scale):g}"
