# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The metrics of classifiers as one `evaluate` metric, by path: `evaluate.load("…/classification_scores.py")`."""

import datasets
import evaluate
import numpy as np

from hf_frozen_llm.metrics.classification import check_installed, check_names, score_single_label


class ClassificationScores(evaluate.Metric):
    """
    Metrics of a classifier that gives each row one label, by scikit-learn (the extra `metrics`).

    `compute(predictions=…, references=…, names=("accuracy", "f1"))` returns `{"accuracy": …, "f1": …}`. `names` are
    those of the recipe key `metrics`, without `auc`, which needs probabilities; by default all of them.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, balanced accuracy, and precision, recall and F1 as means over the classes.",
            citation="",
            inputs_description="predictions: the predicted labels; references: the labels.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions, references, names=("accuracy", "balanced_accuracy", "precision", "recall", "f1")
    ) -> dict[str, float]:
        check_installed()
        check_names(names, is_multi_label=False)
        if "auc" in names:
            raise ValueError("names has 'auc', which needs probabilities: `hf-frozen-llm evaluate --metrics auc`.")
        return score_single_label(names, np.asarray(references), np.asarray(predictions), None)
