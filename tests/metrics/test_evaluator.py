# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The package's metrics and models in `evaluate`: `evaluate.load(path)` and `evaluate.evaluator`."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from saved_models import build
from sklearn.metrics import f1_score
from tiny_runs import CLASSES, class_fields, make_split, write_llama
from transformers import ViTImageProcessor, pipeline

from hf_frozen_llm.metrics import classification_scores


METRIC = str(Path(classification_scores.__file__))
LABELS = [0, 0, 1, 1, 2, 2]
PREDICTED = [0, 1, 1, 1, 2, 0]


def test_scores_by_path():
    scores = evaluate.load(METRIC).compute(predictions=PREDICTED, references=LABELS)
    assert scores == pytest.approx(
        {
            "accuracy": 4 / 6,
            "balanced_accuracy": 2 / 3,
            "precision": (1 / 2 + 2 / 3 + 1) / 3,
            "recall": (1 / 2 + 1 + 1 / 2) / 3,
            "f1": f1_score(LABELS, PREDICTED, average="macro"),
        }
    )
    assert evaluate.load(METRIC).compute(predictions=PREDICTED, references=LABELS, names=["accuracy"]) == {
        "accuracy": pytest.approx(4 / 6)
    }


@pytest.mark.parametrize(("names", "problem"), [(["acuracy"], "nearest is 'accuracy'"), (["auc"], "probabilities")])
def test_bad_names(names, problem):
    with pytest.raises(ValueError, match=problem):
        evaluate.load(METRIC).compute(predictions=PREDICTED, references=LABELS, names=names)


def test_evaluator(tmp_path):
    """`evaluate.evaluator` takes the folder of a model, and gets the predictions of `pipeline`."""
    model = build(write_llama(tmp_path / "llm"))
    rows = make_split(12).filter(lambda row: row["label"] < 3)
    model.config.update(class_fields({name: index for index, name in enumerate(CLASSES[:3])}))
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    result = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=str(tmp_path / "model"),
        data=rows,
        metric=evaluate.load(METRIC),
        label_mapping=model.config.label2id,
    )
    classifier = pipeline("image-classification", model=str(tmp_path / "model"))
    predicted = [model.config.label2id[best["label"]] for best, *_ in classifier(rows["image"][:])]
    assert result["accuracy"] == np.mean(np.array(predicted) == np.array(rows["label"][:]))
    assert result["f1"] == pytest.approx(f1_score(rows["label"][:], predicted, average="macro", zero_division=0))
    assert result["samples_per_second"] > 0
