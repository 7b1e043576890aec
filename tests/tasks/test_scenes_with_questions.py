# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes and questions as the published code prepares them, its augmentation, and bad files."""

import json
import shutil

import numpy as np
import pytest
from paths import shared_dir
from safetensors import safe_open
from tiny_scenes import write_scenes

from hf_frozen_llm import SQA3DProcessor, SQA3DWithLLMBlockConfig
from hf_frozen_llm.modeling.configuration_sqa3d_with_llm_block import SCANNET_MEAN_SIZES
from hf_frozen_llm.tasks.situated_question_answering import SceneQuestionArguments, SituatedQuestionAnswering
from hf_frozen_llm.tasks.situated_question_answering.examples import (
    SceneQuestionTransform,
    augment,
    can_be_mirrored,
    draw_augmentation,
    swap_sides,
)
from hf_frozen_llm.tasks.situated_question_answering.readers import (
    count_answers,
    list_answers,
    read_questions,
    read_word_vectors,
)
from hf_frozen_llm.tasks.situated_question_answering.scenes import (
    OBJECTS,
    make_labels,
    place_agent,
    pose_of,
    read_scene,
    sample_scene,
    to_matrix,
    to_quaternion,
)


PUBLISHED = {
    "points": "point_clouds",
    "object_centers": "center_label",
    "object_mask": "box_label_mask",
    "object_classes": "sem_cls_label",
    "object_size_residuals": "size_residual_label",
    "vote_labels": "vote_label",
    "vote_mask": "vote_label_mask",
    "situation_labels": "auxiliary_task",
}
ITEMS = ["plain", "upsampled", "rare_answer", "no_alignment", "flip_none", "flip_x", "flip_y", "flip_both"]


@pytest.fixture(scope="module")
def folder():
    return shared_dir() / "fixtures" / "sqa3d"


@pytest.fixture(scope="module")
def official(folder):
    with safe_open(folder / "official_sqa3d_dataset.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])


def sample_of(folder, row, processor, choices, num_normalizations=1):
    scene = read_scene(folder / "sample_sqa3d" / "scannet", row["scene_id"])
    sample = sample_scene(scene, processor, choices, row["scene_id"], num_normalizations)
    return place_agent(sample, scene, np.array(row["pose"]))


@pytest.mark.parametrize("name", ITEMS)
def test_items_equal_the_published_ones(name, folder, official):
    tensors, config = official
    item = config["items"][name]
    row = read_questions(folder / "sample_sqa3d", "train")[item["index"]]
    assert row["question_id"] == item["question_id"]
    sample = sample_of(folder, row, SQA3DProcessor(item["num_points"]), tensors[f"{name}.choices"])
    if item["augment"]:
        draws = np.array([value for _, value in item["draws"]])
        flips = bool(draws[0] > 0.5), bool(draws[1] > 0.5)
        sample = augment(sample, flips, draws[2:5] * np.pi / 18 - np.pi / 36, draws[5:])
    ours = {
        "points": sample.points,
        "situation_labels": pose_of(sample),
        **make_labels(sample, np.array(SCANNET_MEAN_SIZES)),
    }
    for part, released in PUBLISHED.items():
        np.testing.assert_allclose(ours[part], tensors[f"{name}.{released}"], rtol=0, atol=1e-6, err_msg=part)
    assert (tensors[f"{name}.size_class_label"] == ours["object_classes"]).all()
    answers, scores = list_answers(count_answers(folder / "sample_sqa3d", []))
    assert answers == config["answer_candidates"]
    processor = SQA3DProcessor(answers=answers, answer_scores=scores)
    args = SceneQuestionArguments(dataset_name="none")
    transform = SceneQuestionTransform(args, processor, SQA3DWithLLMBlockConfig(), None, False, 0)
    np.testing.assert_allclose(transform.make_targets(row["answers"]), tensors[f"{name}.answer_cat_scores"])


@pytest.mark.parametrize("name", ITEMS)
def test_words_equal_the_published_ones(name, folder, official):
    item = official[1]["items"][name]
    row = read_questions(folder / "sample_sqa3d", "train")[item["index"]]
    for text in ("situation", "question"):
        # A double space is a word in the published code, one that no vocabulary has.
        tokens = [token for token in item[f"{text}_tokens"] if token.strip()]
        assert SQA3DProcessor(words=["unk", *sorted(set(tokens))]).find_words(row[text]) == [
            sorted(set(tokens)).index(token) + 1 for token in tokens
        ]


def test_objects_are_the_published_ones(official):
    assert {int(number): label for number, label in official[1]["nyu40id2class"].items()} == OBJECTS
    np.testing.assert_allclose(official[0]["mean_size_arr"], SCANNET_MEAN_SIZES, atol=1e-7)


def test_colours_are_normalised_once_unless_the_error_is_repeated(folder, official):
    row = read_questions(folder / "sample_sqa3d", "train")[0]
    count = len(read_scene(folder / "sample_sqa3d" / "scannet", row["scene_id"]).points)
    bug = official[1]["colour_bug"]
    for number, name in enumerate(("first", "second", "third"), start=1):
        points = sample_of(folder, row, SQA3DProcessor(count), np.arange(count), number).points
        np.testing.assert_allclose(points[:, 3:6].std(axis=0), bug[f"{name}_read_std"], rtol=0.05)
    for repeats in (False, True):
        args = SceneQuestionArguments(
            dataset_name=str(folder / "sample_sqa3d"), repeat_color_normalization=repeats, num_points=50
        )
        transform = SceneQuestionTransform(
            args, SQA3DProcessor(50), SQA3DWithLLMBlockConfig(), args.find_scene_folder(), False, 0
        )
        _, second = transform([row, row], [(0, 0), (0, 0)])
        assert (second["points"][:, 3:6].std(dim=0).max() < 0.01) == repeats
        assert args.evaluation_changes() == ({"repeat_color_normalization": True} if repeats else {})


def test_the_files_of_the_converter_are_the_same(folder, tmp_path):
    published = read_questions(folder / "sample_sqa3d", "train+val+test")
    shutil.copytree(folder / "sample_sqa3d" / "qa", tmp_path / "qa")
    assert read_questions(tmp_path, "train+val+test") == published
    assert len(read_questions(tmp_path, "train[:50%]")) == 4
    counted = count_answers(folder / "sample_sqa3d", [])
    shutil.copytree(folder / "sample_sqa3d" / "sqa_task", tmp_path / "copy" / "sqa_task")
    assert count_answers(tmp_path / "copy", []) == counted  # without the published counter
    assert read_questions(tmp_path / "copy", "test")[3]["answers"] == ["unknown"]


def test_quaternions():
    rng = np.random.default_rng(0)
    for quaternion in [*rng.normal(size=(40, 4)), *np.eye(4), -np.eye(4)[2]]:
        again = to_quaternion(to_matrix(quaternion))
        unit = quaternion / np.linalg.norm(quaternion)
        np.testing.assert_allclose(again, unit * np.sign(unit[np.abs(unit).argmax()]), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("I turn left. The right chair", "I turn right. The left chair"),
        ("Left? leftover bright", "Right? leftover bright"),
    ],
)
def test_sides_are_exchanged(text, mirrored):
    assert swap_sides(text) == mirrored and swap_sides(mirrored) == text


@pytest.mark.parametrize(
    "text", ["at my 3 o'clock", "turn clockwise", "it is right behind me", "right in front", "Am I right now in"]
)
def test_texts_that_cannot_be_mirrored(text):
    assert not can_be_mirrored(text) and can_be_mirrored("The bed is to my right.")


@pytest.mark.parametrize("flips", ["with_text", "none", "published"])
def test_left_stays_left_under_flips(flips, tmp_path):
    """In a mirrored scene, what the text calls left is on the left of the agent, which faces its own -x."""
    args = SceneQuestionArguments(write_scenes(tmp_path / "data", {"train": 4}), flips=flips, num_points=120)
    row = read_questions(args.root(), "train")[0]
    row["situation"] = "The bed is on my left ."
    scene = read_scene(args.find_scene_folder(), row["scene_id"])
    bed = scene.boxes[0, :3]

    def side(center, pose):
        matrix = to_matrix(pose[3:].astype(float))
        ahead, up = -matrix[:, 0], np.array([0, 0, 1.0])
        return "left" if np.cross(up, ahead) @ (center - pose[:3]) > 0 else "right"

    words = ["unk", "left", "right"]
    processor = SQA3DProcessor(120, words=words, answers=["bed", "no"])
    transform = SceneQuestionTransform(
        args, processor, SQA3DWithLLMBlockConfig(), args.find_scene_folder(), training=True, seed=0
    )
    original = side(
        bed, pose_of(place_agent(sample_scene(scene, processor, np.arange(5), ""), scene, np.array(row["pose"])))
    )
    is_true, sides = [], set()
    for epoch in range(24):
        (example,) = transform([row], [(epoch, 0)])
        said = next(words[number] for number in example["situation"] if number)
        now = side(example["object_centers"][0].numpy(), example["situation_labels"].numpy())
        is_true.append((now == original) == (said == "left"))
        sides.add(now)
    assert len(sides) == (1 if flips == "none" else 2)
    assert all(is_true) == (flips != "published")


def test_draws_are_in_the_published_ranges():
    rng = np.random.default_rng(0)
    flips, angles, offsets = zip(*(draw_augmentation(rng) for _ in range(2000)))
    assert np.mean(flips, axis=0) == pytest.approx([0.5, 0.5], abs=0.05)
    assert np.degrees(np.abs(angles)).max() <= 5 and np.degrees(np.abs(angles)).max() > 4.9
    assert np.min(offsets) == -0.5 and np.max(offsets) == 0.5


def test_questions_of_other_scenes_are_counted(tmp_path, caplog):
    args = SceneQuestionArguments(write_scenes(tmp_path, {"train": 12}))
    for file in (tmp_path / "scannet" / "scannet_data").glob("scene0004_00_*"):
        file.unlink()
    (tmp_path / "scannet" / "scans" / "scene0000_00" / "scene0000_00.txt").write_text("colorHeight = 968\n")
    rows = SituatedQuestionAnswering.read(args, "train")
    assert len(rows) == 8 and rows.column_names[-1] == "question_id"
    assert "4 of 12 questions are left out: their 1 scenes, such as scene0004_00, are not in" in caplog.text
    assert "1 of 2 scenes, such as scene0000_00, have no axisAlignment" in caplog.text
    shutil.rmtree(tmp_path / "scannet" / "scannet_data")
    with pytest.raises(FileNotFoundError, match="which has neither a folder scannet_data nor scan_data"):
        SituatedQuestionAnswering.read(args, "train")
    (tmp_path / "scannet" / "scannet_data").mkdir()
    with pytest.raises(ValueError, match="none of the 12 questions is about one of the 0 scenes"):
        SituatedQuestionAnswering.read(args, "train")


def test_bad_files(tmp_path):
    root = tmp_path / "sqa_task" / "balanced"
    write_scenes(tmp_path, {"train": 4})
    with pytest.raises(ValueError, match=r"Unknown split 'test'\. The splits are train in the files"):
        read_questions(tmp_path, "test")
    questions, annotations = (root / f"v1_balanced_{n}_train_scannetv2.json" for n in ("questions", "sqa_annotations"))
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({"annotations": content["annotations"][:2]}))
    with pytest.raises(ValueError, match=r"2 of 4 questions of .* have no annotation, the first is question_id 3"):
        read_questions(tmp_path, "train")
    content["annotations"][1]["rotation"] = dict.fromkeys(("_x", "_y", "_z", "_w"), 0)
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="question_id 2: the pose is"):
        read_questions(tmp_path, "train")
    annotations.unlink()
    with pytest.raises(FileNotFoundError, match="has no v1_balanced_sqa_annotations_train"):
        read_questions(tmp_path, "train")
    assert "answers" not in read_questions(tmp_path, "train", with_targets=False)[0]
    questions.write_text('{"questions": [{"question": "What?", "image_id": 3}]}')
    with pytest.raises(ValueError, match=r"an entry has no 'scene_id'; it has question, image_id\. Is it a file of"):
        read_questions(tmp_path, "train")
    questions.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_questions(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="zenodo"):
        SceneQuestionArguments("nowhere/at-all").root()


def test_bad_scenes(tmp_path):
    write_scenes(tmp_path, {"train": 4})
    folder = tmp_path / "scannet"
    scene = read_scene(folder, "scene0000_00")
    boxes = scene.boxes.copy()
    scene.boxes[0, 6] = 1
    with pytest.raises(ValueError, match="a box has the NYU40 number 1, which is no object's"):
        sample_scene(scene, SQA3DProcessor(8), np.arange(8), "scene")
    scene.points[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"scene0000_00: point 3 is \[nan, .*; all numbers must be finite"):
        sample_scene(scene, SQA3DProcessor(8), np.arange(8), "scene0000_00")
    scene.points[3, 0] = 0
    scene.boxes = boxes[:0]
    scene.semantic[:] = 0
    labels = make_labels(sample_scene(scene, SQA3DProcessor(8), np.arange(8), "scene"), np.ones((18, 3)))
    assert not labels["object_mask"].any() and not labels["vote_mask"].any()
    (folder / "scans" / "scene0000_00" / "scene0000_00.txt").write_text("axisAlignment = 1 0 0\n")
    with pytest.raises(ValueError, match="axisAlignment has 3 numbers"):
        read_scene(folder, "scene0000_00")
    np.save(folder / "scannet_data" / "scene0000_00_sem_label.npy", np.zeros(5))
    with pytest.raises(ValueError, match="have different numbers of points"):
        read_scene(folder, "scene0000_00")
    for suffix in ("vert", "aligned_vert", "sem_label", "ins_label"):
        np.save(folder / "scannet_data" / f"scene0000_00_{suffix}.npy", np.zeros((0, 9), np.float32))
    (folder / "scans" / "scene0000_00" / "scene0000_00.txt").unlink()
    with pytest.raises(ValueError, match=r"scene0000_00_vert\.npy is empty: the scene has no points"):
        read_scene(folder, "scene0000_00")
    (folder / "scannet_data" / "scene0000_00_vert.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"scene0000_00_vert\.npy cannot be read"):
        read_scene(folder, "scene0000_00")


def test_scanqa(tmp_path):
    rows = [{"scene_id": "scene0000_00", "question_id": "val-1", "question": "What is it?", "answers": ["bed", "cot"]}]
    (tmp_path / "ScanQA_v1.0_val.json").write_text(json.dumps(rows))
    (row,) = read_questions(tmp_path, "val")
    assert row["situation"] == "" and "pose" not in row and row["answers"] == ["bed", "cot"]
    (tmp_path / "ScanQA_v1.0_val.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(ValueError, match="is no list of questions"):
        read_questions(tmp_path, "val")


def test_word_vectors(tmp_path):
    (tmp_path / "glove.txt").write_text("the 1 2\nunk 3 4\nbed 5 6\n")
    words, vectors = read_word_vectors(tmp_path / "glove.txt", {"bed", "sofa"})
    assert words == ["unk", "bed"] and vectors.tolist() == [[3, 4], [5, 6]]
    (tmp_path / "glove.txt").write_text("the 1 2\n")
    with pytest.raises(ValueError, match="has no vector of 'unk'"):
        read_word_vectors(tmp_path / "glove.txt", {"the"})
    with pytest.raises(FileNotFoundError, match="word_vectors is"):
        read_word_vectors(tmp_path / "none.txt", {"the"})
