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
ROOMS = {"train": 30, "val": 3, "test": 3}


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
    furniture_rooms.make_rooms(furniture, folder, ROOMS, num_questions=3, seed=0)
    return folder


def sides_of(folder, row):
    """The name, the side and the colour of each object, seen along the agent's own -x."""
    scene = read_scene(folder, row["scene_id"])
    sample = place_agent(sample_scene(scene, SQA3DProcessor(1), np.arange(1), ""), scene, np.array(row["pose"]))
    ahead, left = -sample.rotation[:2, 0], -sample.rotation[:2, 1]
    found = []
    for box in scene.boxes:
        way = box[:2] - sample.position[:2]
        angle = np.degrees(np.arctan2(way @ left, way @ ahead)) % 360
        paint = np.median(scene.points[scene.instances == box[7] + 1, 3:6], axis=0)
        color = min(furniture_rooms.COLORS, key=lambda name: np.abs(paint - furniture_rooms.COLORS[name]).sum())
        found.append((NAMES[int(box[6])], int((angle + 45) % 360 // 90), color))
    return found


def test_answers_are_true(rooms):
    args = SceneQuestionArguments(str(rooms))
    rows = [row for split in ("train", "val", "test") for row in SituatedQuestionAnswering.read(args, split)]
    checked = Counter()
    for row in rows:
        objects = sides_of(args.find_scene_folder(), row)
        question, (answer,) = row["question"], row["answers"]
        front = row["situation"].rstrip(".").split()[-1]
        assert (front, 0) in [(n, s) for n, s, _ in objects]
        name = next((n for n in NAMES.values() if n in question), None)
        side = next((s for text, s in SIDES.items() if text in question), None)
        color = next((c for c in furniture_rooms.COLORS if c in question.split("?")[0].split()), None)
        of_name = [s for n, s, _ in objects if n == name]
        on_side = [n for n, s, _ in objects if s == side]
        of_side = [c for _, s, c in objects if s == side]
        colors = [c for n, _, c in objects if n == name]
        kind = classify_question(question)
        if color is not None:
            assert answer == ("yes" if color in colors else "no"), question
            kind = "yes or no of a color"
        elif "What color" in question:
            assert [answer] == (colors if side is None else of_side)
            kind = f"color {'of a side' if side is not None else 'of a thing'}"
        elif "Which color" in question:
            named = front if "facing" in question else row["situation"].split("back to the ")[1].split()[0]
            assert [answer] == [c for n, _, c in objects if n == named]
            kind = "color of a named thing"
        elif kind == "how":
            assert answer == furniture_rooms.NUMBERS[len(of_name) if "in the room" in question else len(on_side)]
        elif "in the room" in question:
            assert answer == ("yes" if of_name else "no")
            kind = "others in the room"
        elif kind in ("is", "others") and not question.startswith("If"):
            assert answer == ("yes" if side in of_name else "no")
        elif kind == "can":
            assert answer == {0: "yes", 2: "no"}[of_name[0]]
        elif kind == "which":
            assert answer == {1: "left", 2: "around", 3: "right"}[of_name[0]]
        elif question.startswith("If"):
            assert [answer] == [n for n, s, _ in objects if s == (1 if "left" in question else 3)]
        else:
            assert [answer] == on_side
        checked[kind] += 1
    of_colors = {"yes or no of a color", "color of a side", "color of a thing", "color of a named thing"}
    assert set(checked) == {"what", "is", "how", "can", "which", "others", "others in the room"} | of_colors
    assert min(checked.values()) >= 2, checked


def test_questions_alone_tell_little(rooms):
    args = SceneQuestionArguments(str(rooms))
    answers = defaultdict(Counter)
    for row in SituatedQuestionAnswering.read(args, "train"):
        answers[classify_question(row["question"])][row["answers"][0]] += 1
    for kind in ("is", "can", "which"):
        total = sum(answers[kind].values())
        assert max(answers[kind].values()) <= 0.6 * total, answers[kind]


def test_same_seed_same_rooms(furniture, rooms, tmp_path):
    furniture_rooms.make_rooms(furniture, tmp_path / "again", ROOMS, num_questions=3, seed=0)
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
