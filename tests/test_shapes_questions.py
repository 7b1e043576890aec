# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The questions of examples/shapes_questions.py, read by the task: new ones, with true answers."""

import sys

import numpy as np
import pytest
import shapes_questions
from paths import shared_dir
from shapes_questions import answer, find_things, list_questions, parse

from hf_frozen_llm.tasks import TASKS


TASK = TASKS["visual-question-answering"]


def read(folder, split):
    return TASK.read(TASK.arguments(dataset_name=str(folder)), split)


@pytest.mark.parametrize(
    ("question", "parsed"),
    [
        ("is a red shape green", ("red shape", [], "green shape")),
        ("is a square a circle", ("square", [], "circle")),
        ("is a circle left of a red shape", ("circle", ["left of"], "red shape")),
        ("is a triangle above right of a square", ("triangle", ["above", "right of"], "square")),
    ],
)
def test_questions_are_parsed(question, parsed):
    assert parse(question) == parsed


def test_answers_follow_the_cells():
    """A green square over a red circle, beside a blue triangle."""
    image = np.zeros((30, 30, 3), np.uint8)
    image[2:8, 2:8, 1] = 255
    image[13:17, 12 - 10 : 18 - 10, 2] = 255
    image[12, 3:7, 2] = image[17, 3:7, 2] = 255
    for row, width in ((3, 1), (5, 2), (7, 3)):
        image[10 + row - 1 : 10 + row + 1, 15 - width : 15 + width, 0] = 255
    things = find_things(image)
    assert things == {(0, 0): ("green", "square"), (1, 0): ("red", "circle"), (1, 1): ("blue", "triangle")}
    expected = {
        "is a square above a circle": True,
        "is a circle above a square": False,
        "is a green shape a square": True,
        "is a red shape green": False,
        "is a triangle right of a red shape": True,
        "is a triangle right of a square": False,
        "is a square above left of a blue shape": True,
        "is a square above right of a blue shape": False,
    }
    assert {question: answer(question, things) for question in expected} == expected


def test_new_questions(tmp_path, monkeypatch, capsys):
    shapes, folder = shared_dir() / "data" / "shapes_vqa", tmp_path / "shapes"
    command = ["shapes_questions", str(shapes), str(folder), "--number", "300", "--num_tests", "50"]
    monkeypatch.setattr(sys, "argv", command)
    shapes_questions.main()
    assert "The program gives all 2,688 published answers" in capsys.readouterr().out
    rows = read(folder, "train.new")
    assert len(rows) == 300 and set(rows["answer"]) == {"yes", "no"}
    held_out = {question for split in ("val", "test") for question in read(shapes, split)["question"]}
    asked = set(rows["question"])
    assert not asked & held_out and len(asked) > 100
    tests = read(folder, "test.new")
    assert len(tests) == 50 and not set(tests["question"]) & held_out
    images = [np.load(folder / f"{split}.input.npy") for split in ("train.new", "test.new")]
    assert not {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}
    # The words of the held-out questions are learned.
    assert {word for text in held_out for word in text.split()} <= {word for text in asked for word in text.split()}
    for split in ("val", "test"):
        old, new = read(shapes, split), read(folder, split)
        assert old["question"][:] == new["question"][:] and old["answer"][:] == new["answer"][:]
    with pytest.raises(SystemExit, match="exists already; give a new folder"):
        shapes_questions.main()
    monkeypatch.setattr(sys, "argv", ["shapes_questions", str(tmp_path), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"holds no train\.small\.input\.npy"):
        shapes_questions.main()


def test_other_answers_are_refused(tmp_path):
    image = np.zeros((1, 30, 30, 3), np.uint8)
    image[0, 2:8, 2:8, 2] = 255
    for split in ("train.small", "val", "test"):
        np.save(tmp_path / f"{split}.input.npy", image)
        (tmp_path / f"{split}.query_str.txt").write_text("is a red shape red\n")
        (tmp_path / f"{split}.output").write_text("false\n" if split == "val" else "true\n")
    with pytest.raises(ValueError, match=r"\[val\], row 0: 'is a red shape red' is not answered as published"):
        shapes_questions.make_questions(tmp_path, tmp_path / "new", 10, 10, 0)
    assert not (tmp_path / "new").exists()


def test_all_forms_of_questions():
    none, one, two = list_questions({"is a circle above a square"})
    assert [len(none), len(one), len(two)] == [54, 143, 576]
    assert "is a red shape green" in none and "is a circle a red shape" in none
    assert "is a circle left of above a red shape" in two
