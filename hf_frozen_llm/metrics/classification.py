# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classifiers that recipes name, by scikit-learn (the extra `metrics`), imported where it is used."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from hf_frozen_llm.metrics.metric import Metric


# From this probability on, a multi-label classifier gives a label.
THRESHOLD = 0.5

SINGLE_LABEL_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", is_share=True),
        Metric("balanced_accuracy", "balanced accuracy", is_share=True),
        Metric("precision", "macro precision", is_share=True),
        Metric("recall", "macro recall", is_share=True),
        Metric("f1", "macro F1", is_share=True),
        Metric("auc", "AUC", is_share=True),
    )
}
MULTI_LABEL_METRICS = {
    metric.name: metric
    for metric in (
        Metric("f1", "macro F1", is_share=True),
        Metric("f1_micro", "micro F1", is_share=True),
        Metric("precision", "macro precision", is_share=True),
        Metric("recall", "macro recall", is_share=True),
        Metric("exact_match", "exact match", is_share=True),
        Metric("map", "mAP", is_share=True),
        Metric("auc", "macro AUC", is_share=True),
    )
}


def check_names(names: Sequence[str], is_multi_label: bool) -> None:
    """Refuse names of metrics that do not exist, or are those of the other kind of problem."""
    known, others = SINGLE_LABEL_METRICS, MULTI_LABEL_METRICS
    kind, other_kind = "one label for each row", "several labels for a row (multi_label_classification)"
    if is_multi_label:
        known, others, kind, other_kind = others, known, other_kind, kind
    for name in names:
        if name in known:
            continue
        if name in others:
            raise ValueError(
                f"metrics names {name!r}, which is for data with {other_kind}; this data has {kind}. Its metrics are "
                f"{', '.join(known)}."
            )
        nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
        raise ValueError(
            f"metrics names {name!r}, which there is not; the nearest is {nearest!r}. The metrics are "
            f"{', '.join(known)}."
        )
    if len(set(names)) != len(names):
        raise ValueError(f"metrics holds a name twice: {list(names)}.")


def check_installed() -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("metrics and multi-label problems need scikit-learn: pip install 'hf_frozen_llm[metrics]'")


def check_defined(names: Sequence[str], counts: Mapping[str, int], num_rows: int, is_multi_label: bool) -> None:
    """
    Refuse rows for which a metric is not defined.

    Args:
        names (`Sequence[str]`): names of metrics.
        counts (`Mapping[str, int]`): how many of the rows have each label.
        num_rows (`int`): the number of rows.
        is_multi_label (`bool`): whether a row may have any number of labels.
    """
    absent = [label for label, count in counts.items() if count == 0]
    in_all = [label for label, count in counts.items() if count == num_rows]
    for name, faults in (("auc", [*absent, *(in_all if is_multi_label else [])]), ("map", absent)):
        if name in names and faults:
            needs = "rows of every class" if not is_multi_label else "rows with every label"
            needs += ", and rows without it" if is_multi_label and name == "auc" else ""
            lacking = ", ".join(faults[:5]) + (", …" if len(faults) > 5 else "")
            raise ValueError(
                f"metrics names {name!r}, which needs {needs}; the {num_rows:,} rows that are evaluated do not give "
                f"it for {lacking}. Evaluate on more rows (max_eval_samples, another split), or remove {name!r}."
            )


def score_single_label(
    names: Sequence[str], labels: np.ndarray, predictions: np.ndarray, scores: np.ndarray | None
) -> dict[str, float]:
    """
    Return metrics of a classifier that gives each row one label.

    Args:
        names (`Sequence[str]`): keys of `SINGLE_LABEL_METRICS`.
        labels (`numpy.ndarray` of shape `(rows,)`): the true labels.
        predictions (`numpy.ndarray` of shape `(rows,)`): the predicted labels.
        scores (`numpy.ndarray` of shape `(rows, classes)`, *optional*): the probabilities, for `auc`: with two classes
            that of the second, with more the mean over the classes of each one against the others.
    """
    from sklearn import metrics

    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}

    def compute_auc() -> float:
        assert scores is not None
        if scores.shape[1] == 2:
            return metrics.roc_auc_score(labels, scores[:, 1])
        return metrics.roc_auc_score(labels, scores, multi_class="ovr", labels=range(scores.shape[1]))

    functions = {
        "accuracy": lambda: metrics.accuracy_score(labels, predictions),
        "balanced_accuracy": lambda: metrics.balanced_accuracy_score(labels, predictions),
        "precision": lambda: metrics.precision_score(labels, predictions, **macro),
        "recall": lambda: metrics.recall_score(labels, predictions, **macro),
        "f1": lambda: metrics.f1_score(labels, predictions, **macro),
        "auc": compute_auc,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of predicted classes without rows
        return {name: float(functions[name]()) for name in names}


def score_multi_label(names: Sequence[str], targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """
    Return metrics of a classifier that gives each row any number of labels: those with a score of at least 0.5.

    Args:
        names (`Sequence[str]`): keys of `MULTI_LABEL_METRICS`.
        targets (`numpy.ndarray` of shape `(rows, classes)`): 1 for each true label, 0 for the others.
        scores (`numpy.ndarray` of shape `(rows, classes)`): the probabilities.
    """
    from sklearn import metrics

    predictions = (scores >= THRESHOLD).astype(int)
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
    functions = {
        "f1": lambda: metrics.f1_score(targets, predictions, **macro),
        "f1_micro": lambda: metrics.f1_score(targets, predictions, average="micro", zero_division=0),
        "precision": lambda: metrics.precision_score(targets, predictions, **macro),
        "recall": lambda: metrics.recall_score(targets, predictions, **macro),
        "exact_match": lambda: metrics.accuracy_score(targets, predictions),
        "map": lambda: metrics.average_precision_score(targets, scores, average="macro"),
        "auc": lambda: metrics.roc_auc_score(targets, scores, average="macro"),
    }
    return {name: float(functions[name]()) for name in names}


def tabulate_single_label(classes: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """
    Return two tables, each a list of rows: `classes`, with the number of rows, precision, recall and F1 of each class
    (NaN where undefined), and `confusion_matrix`, with a row for each true class.
    """
    from sklearn import metrics

    order = range(len(classes))
    counts = metrics.confusion_matrix(labels, predictions, labels=order).tolist()
    return {
        "classes": tabulate_classes(classes, labels, predictions),
        "confusion_matrix": [
            {"true \\ predicted": label, **dict(zip(classes, row))} for label, row in zip(classes, counts)
        ],
    }


def tabulate_multi_label(
    names: Sequence[str], classes: Sequence[str], targets: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """
    Return two tables, each a list of rows: `classes`, as [`tabulate_single_label`] does, with `auc` and `map` of each
    class if they are among `names`, and `confusion_matrix`, with the four counts of each class.
    """
    from sklearn import metrics

    predictions = (scores >= THRESHOLD).astype(int)
    table = tabulate_classes(classes, targets, predictions)
    for name, function in (("auc", metrics.roc_auc_score), ("map", metrics.average_precision_score)):
        if name in names:
            for row, value in zip(table, function(targets, scores, average=None).tolist()):
                row["average_precision" if name == "map" else name] = value
    counts = metrics.multilabel_confusion_matrix(targets, predictions).reshape(-1, 4).tolist()
    columns = ("true negatives", "false positives", "false negatives", "true positives")
    return {
        "classes": table,
        "confusion_matrix": [{"label": label, **dict(zip(columns, row))} for label, row in zip(classes, counts)],
    }


def tabulate_classes(classes: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> list[dict[str, Any]]:
    from sklearn import metrics

    values = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(len(classes)), average=None, zero_division=np.nan
    )
    precision, recall, f1, rows = (part.tolist() for part in values)
    return [
        {"label": label, "rows": count, "precision": p, "recall": r, "f1": f}
        for label, count, p, r, f in zip(classes, rows, precision, recall, f1)
    ]
