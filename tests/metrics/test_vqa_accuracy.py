# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VQA accuracy, the normalisation of answers and METER's list of them: the numbers of their own code."""

import copy
import json
from pathlib import Path

import evaluate
import pytest
from paths import shared_dir

from hf_frozen_llm.metrics import VQAAccuracy, vqa_accuracy
from hf_frozen_llm.metrics.answers import list_answers, normalize_answer, score_answer, soft_scores


def load(name):
    return json.loads((shared_dir() / "fixtures" / "meter" / name).read_text(encoding="utf-8"))


def inputs_of(official):
    annotations = {row["question_id"]: row for row in official["annotations"]["annotations"]}
    rows = [annotations[result["question_id"]] for result in official["results"]]
    references = [
        {
            **{name: row[name] for name in ("question_type", "answer_type")},
            "answers": [a["answer"] for a in row["answers"]],
        }
        for row in rows
    ]
    return {"predictions": [result["answer"] for result in official["results"]], "references": references}


def test_equals_the_official_evaluator():
    official = load("vqa_accuracy_official.json")
    expected, inputs = official["expected"], inputs_of(official)
    scores = VQAAccuracy(keep_in_memory=True).compute(**copy.deepcopy(inputs))
    assert abs(100 * scores["accuracy"] - expected["overall_unrounded"]) < 1e-9
    assert round(100 * scores["accuracy"], 2) == expected["overall"]
    for name, table in (("perQuestionType", "question_types"), ("perAnswerType", "answer_types")):
        assert {row["type"]: round(100 * row["accuracy"], 2) for row in scores[table]} == expected[name]
        assert sum(row["questions"] for row in scores[table]) == len(official["results"]) == 63
    for result, answer, row in zip(official["results"], inputs["predictions"], inputs["references"]):
        question = str(result["question_id"])
        score = 100 * score_answer(answer, row["answers"])
        assert abs(score - expected["perQuestion_unrounded"][question]) < 1e-9, official["notes"][question]
        assert round(score, 2) == expected["perQuestion"][question]
    assert VQAAccuracy(keep_in_memory=True).compute(**inputs) == scores, "the inputs are not changed"


def test_batches_add_up_and_the_metric_loads_by_path():
    inputs = inputs_of(load("vqa_accuracy_official.json"))
    metric = evaluate.load(str(Path(vqa_accuracy.__file__)))
    for answer, reference in zip(*inputs.values()):
        metric.add_batch(predictions=[answer], references=[reference])
    assert metric.compute() == VQAAccuracy(keep_in_memory=True).compute(**inputs)


def test_normalisation():
    cases = load("vqa_normalisation_official.json")["cases"]
    assert len(cases) == 300
    for text, (official, of_meter) in cases.items():
        assert normalize_answer(text) == official == of_meter
    for text, normal in load("vqa_accuracy_official.json")["normalised"].items():
        assert normalize_answer(text.strip()) == normal
    assert normalize_answer("a.b" * 40) == "ab" * 32 + "a.b" * 8


def test_answer_list_and_targets():
    official = load("vqa_answer_list_official.json")
    expected = official["expected"]
    splits = {name: official[f"{name}_annotations"]["annotations"] for name in ("train", "val")}
    answers = list_answers(row["multiple_choice_answer"] for rows in splits.values() for row in rows)
    assert answers == expected["answer_list"]
    ids = {answer: index for index, answer in enumerate(answers)}
    for name, rows in splits.items():
        targets = {row["question_id"]: soft_scores([a["answer"] for a in row["answers"]], ids) for row in rows}
        kept = {str(k): {answers[i]: score for i, score in v.items()} for k, v in targets.items() if v}
        assert kept == expected["targets"][name] and 0 < len(kept) < len(rows)
    assert list_answers(["Yes", "no", "yes."], min_count=2) == ["yes"]


def test_too_few_answers():
    assert score_answer("red", ["red"] * 4) == 1
    with pytest.raises(
        ValueError, match="The question has 1 answers; VQA accuracy compares the answers of at least 4"
    ):
        score_answer("red", ["red"])
