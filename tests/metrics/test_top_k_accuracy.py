# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_frozen_llm.metrics import TopKAccuracy, top_k_accuracy


PREDICTIONS = [[3, 1, 0, 2, 4], [0, 5, 1, 2, 3], [2, 1, 0, 3, 5], [5, 4, 3, 2, 1]]
REFERENCES = [3, 3, 1, 0]  # first; fifth; second; not at all


def test_top_k_accuracy_by_hand():
    metric = TopKAccuracy(keep_in_memory=True)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == {"top1": 1 / 4, "top5": 3 / 4}
    scores = metric.compute(predictions=np.array(PREDICTIONS), references=np.array(REFERENCES), k=(1, 2, 3))
    assert scores == {"top1": 1 / 4, "top2": 2 / 4, "top3": 2 / 4}


def test_fewer_classes_than_k():
    metric = TopKAccuracy(keep_in_memory=True)
    assert metric.compute(predictions=[[0, 1], [0, 1]], references=[1, 0]) == {"top1": 0.5, "top5": 1.0}


def test_batches_add_up():
    metric = TopKAccuracy(keep_in_memory=True)
    for prediction, reference in zip(PREDICTIONS, REFERENCES):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert metric.compute() == {"top1": 1 / 4, "top5": 3 / 4}


def test_loads_by_path_without_network():
    metric = evaluate.load(str(Path(top_k_accuracy.__file__)))
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES)["top5"] == pytest.approx(3 / 4)
