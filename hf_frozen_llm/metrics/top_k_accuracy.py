# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Top-k accuracy as an `evaluate` metric. Also loads by path: `evaluate.load("…/top_k_accuracy.py")`."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """
    Share of the examples whose label is among the k classes with the highest scores.

    `predictions` are the indices of those classes, best first: k numbers an example instead of a score for every
    class. `compute(predictions=…, references=…, k=(1, 5))` returns `{"top1": …, "top5": …}`. With fewer than k classes
    given, all of them count.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the examples whose label is among the k classes with the highest scores.",
            citation="",
            inputs_description="predictions: indices of the best classes, best first; references: the labels.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, k=(1, 5)) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {f"top{depth}": float(hits[:, :depth].any(axis=1).mean()) for depth in k}
