# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Recall of retrieval as an `evaluate` metric. Also loads by path: `evaluate.load("…/retrieval_recall.py")`."""

import datasets
import evaluate
import numpy as np


class RetrievalRecall(evaluate.Metric):
    """
    Share of the queries with a match among the k best candidates, and the median rank of the best match.

    `predictions` are ranks, see [`rank_of_best_match`]: one number for each query, so that galleries of any size can
    be ranked in parts. `compute(predictions=…, k=(1, 5, 10))` returns `recall@1`, …, and `median_rank`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the queries with a match among the k best candidates; median rank of the best one.",
            citation="",
            inputs_description="predictions: the rank of each query's best match, from 1.",
            features=datasets.Features({"predictions": datasets.Value("int64")}),
        )

    def _compute(self, predictions, k=(1, 5, 10)) -> dict[str, float]:
        ranks = np.asarray(predictions)
        recalls = {f"recall@{depth}": float((ranks <= depth).mean()) for depth in k}
        return {**recalls, "median_rank": float(np.median(ranks))}


def rank_of_best_match(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """
    Return the rank of each query's best match among all candidates, from 1; of equal scores the first one is better.

    Args:
        scores (`numpy.ndarray` of shape `(queries, candidates)`):
            The greater, the better. Queries are independent: they may be ranked in parts.
        matches (`numpy.ndarray` of shape `(queries, candidates)`):
            Whether a candidate is right.

    Raises:
        `ValueError`: if a query has no match, or a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN; the model has diverged.")
    if not matches.any(axis=1).all():
        raise ValueError(f"Query {int((~matches.any(axis=1)).argmax())} has no match among the candidates.")
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(matches, order, axis=1).argmax(axis=1) + 1
