# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The rooms of examples/furniture_rooms.py, read by the task: their answers are true, seen from the agent's pose."""

import sys
from collections import Counter, defaultdict

import furniture_rooms
import numpy as np
import pytest

from hf_frozen_llm import SQA3DProcessor
from hf_frozen_llm.metrics.situated_answers import classify_question
from hf_frozen_llm.tasks.situated_question_answering import SceneQuestionArguments, SituatedQuestionAnswering
from hf_frozen_llm.tasks.situated_question_answering.scenes import place_agent, read_scene, sample_scene


NAMES = {number: name for name, number, _ in furniture_rooms.KINDS.values()}
SIDES = {"in front of me": 0, "on my left": 1, "behind me": 2, "on my right": 3}


@pytest.fixture(scope="module")
def furniture(tmp_path_factory):
    """Two models of each kind in each split: boxes of points, y up."""
    rng = np.random.default_rng(0)
    kinds = [*furniture_rooms.KINDS, "appliance"]
    label = np.repeat(np.arange(len(kinds)), 4)
    points = rng.uniform(0, 1, (len(label), 1024, 3)) * rng.uniform(20, 90, (len(label), 1, 3))
    file = tmp_path_factory.mktemp("furniture") / "furniture_points.npz"
    split = np.array(["train", "train", "test", "test"] * len(kinds))
    np.savez(file, points=points.astype(np.float16), label=label, split=split, classes=np.array(kinds))
    return file


@pytest.fixture(scope="module")
def rooms(furniture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "rooms"
    furniture_rooms.make_rooms(furniture, folder, {"train": 12, "val": 3, "test": 3}, seed=0)
    return folder


def sides_of(folder, row):
    """The side of each object, seen along the agent's own -x."""
    scene = read_scene(folder, row["scene_id"])
    sample = place_agent(sample_scene(scene, SQA3DProcessor(1), np.arange(1), ""), scene, np.array(row["pose"]))
    ahead, left = -sample.rotation[:2, 0], -sample.rotation[:2, 1]
    found = []
    for box in scene.boxes:
        way = box[:2] - sample.position[:2]
        angle = np.degrees(np.arctan2(way @ left, way @ ahead)) % 360
        found.append((NAMES[int(box[6])], int((angle + 45) % 360 // 90)))
    return found


def test_answers_are_true(rooms):
    args = SceneQuestionArguments(str(rooms))
    rows = [row for split in ("train", "val", "test") for row in SituatedQuestionAnswering.read(args, split)]
    checked = Counter()
    for row in rows:
        objects = sides_of(args.find_scene_folder(), row)
        question, (answer,) = row["question"], row["answers"]
        front = row["situation"].rstrip(".").split()[-1]
        assert (front, 0) in objects
        name = next((n for n in NAMES.values() if n in question), None)
        side = next((s for text, s in SIDES.items() if text in question), None)
        of_name = [s for n, s in objects if n == name]
        on_side = [n for n, s in objects if s == side]
        kind = classify_question(question)
        if kind == "how":
            assert answer == furniture_rooms.NUMBERS[len(on_side)]
        elif kind in ("is", "others") and not question.startswith("If"):
            assert answer == ("yes" if side in of_name else "no")
        elif kind == "can":
            assert answer == {0: "yes", 2: "no"}[of_name[0]]
        elif kind == "which":
            assert answer == {1: "left", 2: "around", 3: "right"}[of_name[0]]
        elif question.startswith("If"):
            assert [answer] == [n for n, s in objects if s == (1 if "left" in question else 3)]
        elif "color" in question:
            assert answer in furniture_rooms.COLORS and len(on_side) == 1
        else:
            assert [answer] == on_side
        checked[kind] += 1
    assert set(checked) == {"what", "is", "how", "can", "which", "others"} and min(checked.values()) >= 5


def test_questions_alone_tell_little(rooms):
    args = SceneQuestionArguments(str(rooms))
    answers = defaultdict(Counter)
    for row in SituatedQuestionAnswering.read(args, "train"):
        answers[classify_question(row["question"])][row["answers"][0]] += 1
    for kind in ("is", "can", "which"):
        total = sum(answers[kind].values())
        assert max(answers[kind].values()) <= 0.6 * total, answers[kind]


def test_same_seed_same_rooms(furniture, rooms, tmp_path):
    furniture_rooms.make_rooms(furniture, tmp_path / "again", {"train": 12, "val": 3, "test": 3}, seed=0)
    for file in sorted(path for path in rooms.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / file.relative_to(rooms)).read_bytes() == file.read_bytes(), file


def test_command(furniture, tmp_path, monkeypatch, capsys):
    command = ["furniture_rooms.py", str(furniture), str(tmp_path / "rooms"), "--rooms", "1", "1", "1"]
    monkeypatch.setattr(sys, "argv", command)
    furniture_rooms.main()
    assert "questions in train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists already"):
        furniture_rooms.main()
    monkeypatch.setattr(sys, "argv", [command[0], str(tmp_path / "none.npz"), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"there is no .*none\.npz"):
        furniture_rooms.main()
