# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Answers about scenes: the published rules, run on their own cases, and hand-made ones."""

import json
import math

import numpy as np
import pytest
from paths import shared_dir

from hf_frozen_llm.metrics import LocalizationAccuracy, SituatedAnswerAccuracy
from hf_frozen_llm.metrics.situated_answers import classify_question, clean_answer, heading, match_answer


@pytest.fixture(scope="module")
def oracle():
    return json.loads((shared_dir() / "fixtures" / "sqa3d" / "metric_oracle.json").read_text())


def test_answers_are_cleaned_as_published(oracle):
    assert len(oracle["clean"]) > 40
    for case in oracle["clean"]:
        assert clean_answer(case["input"]) == case["clean"], case


def test_answers_match_as_published(oracle):
    for case in oracle["match"]:
        expected = bool(case["em"]), bool(case["em_refined"])
        assert match_answer(case["prediction"], case["answers"]) == expected, case


def test_questions_have_the_published_types(oracle):
    for case in oracle["question_type"]:
        assert classify_question(case["question"]) == case["first_word_sqa3d_clipbert"], case
        assert classify_question(case["question"], "nine_classes") == case["situation3d"], case
    with pytest.raises(ValueError, match="rule is 'prefix'; it must be one of"):
        classify_question("Is it?", "prefix")


def test_accuracy_by_type():
    rows = [("Are we there?", ["yes"]), ("Is it red?", ["no"]), ("What is it?", ["chair"])]
    scores = SituatedAnswerAccuracy().compute(
        predictions=[["yes", "no"], ["yes", "no"], ["office chair", "table"]],
        references=[{"question": question, "answers": answers} for question, answers in rows],
    )
    assert scores["em@1"] == pytest.approx(1 / 3) and scores["em@10"] == pytest.approx(2 / 3)
    assert scores["refined"] == pytest.approx(2 / 3)
    assert {row["type"]: (row["questions"], row["accuracy"]) for row in scores["first_word"]} == {
        "others": (1, 1.0),
        "is": (1, 0.0),
        "what": (1, 0.0),
    }
    assert {row["type"]: (row["questions"], row["accuracy"]) for row in scores["nine_classes"]} == {
        "is": (2, 0.5),
        "what": (1, 0.0),
    }


def pose(x, y, degrees, sign=1, z=0.0):
    half = math.radians(degrees) / 2
    return [x, y, z, 0.0, 0.0, sign * math.sin(half), sign * math.cos(half)]


def test_headings_ignore_the_sign_of_a_quaternion():
    for degrees in (-170, -90, 0, 45, 179):
        for sign in (1, -1):
            angle = heading(np.array(pose(0, 0, degrees, sign)[3:]))
            assert math.degrees(angle) == pytest.approx(degrees)


def test_localization_takes_the_best_candidate():
    scores = LocalizationAccuracy().compute(
        predictions=[
            [pose(0.3, 0, 20, z=9.0), pose(5, 0, 1)],
            [pose(0.8, 0, -175, -1)],
            [pose(1, 0, 90), pose(0, 1, 31), pose(2, 2, -31)],
        ],
        references=[pose(0, 0, 0), pose(0, 0, 175), pose(0, 0, 0)],
    )
    assert scores["acc@0.5m"] == pytest.approx(1 / 3) and scores["acc@1.0m"] == pytest.approx(2 / 3)
    assert scores["acc@15deg"] == pytest.approx(2 / 3) and scores["acc@30deg"] == pytest.approx(2 / 3)
