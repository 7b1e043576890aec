# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes of ScanNet in the files that LEO distributes."""

import numpy as np
import pytest
import torch
from tiny_scenes import write_scenes

from hf_frozen_llm import SQA3DProcessor
from hf_frozen_llm.tasks.situated_question_answering import SceneQuestionArguments, SituatedQuestionAnswering
from hf_frozen_llm.tasks.situated_question_answering.leo_scenes import load_arrays
from hf_frozen_llm.tasks.situated_question_answering.readers import read_questions
from hf_frozen_llm.tasks.situated_question_answering.scenes import (
    make_labels,
    place_agent,
    pose_of,
    read_scene,
    sample_scene,
)


TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.fixture
def folders(tmp_path):
    """The same scenes as ScanQA prepares them, turned by 90 degrees, and as LEO distributes them."""
    write_scenes(tmp_path, {"train": 8})
    scanqa, leo = tmp_path / "scannet", tmp_path / "leo"
    (leo / "scan_data" / "pcd_with_global_alignment").mkdir(parents=True)
    for scene_id in ("scene0000_00", "scene0004_00"):
        arrays = {
            name: np.load(scanqa / "scannet_data" / f"{scene_id}_{name}.npy")
            for name in ("vert", "aligned_vert", "sem_label", "ins_label", "aligned_bbox")
        }
        for name in ("aligned_vert", "aligned_bbox"):
            arrays[name][:, :3] = arrays[name][:, :3] @ TURN.T
        arrays["aligned_bbox"][:, 3:5] = arrays["aligned_bbox"][:, [4, 3]]
        for name in ("aligned_vert", "aligned_bbox"):
            np.save(scanqa / "scannet_data" / f"{scene_id}_{name}.npy", arrays[name])
        numbers = " ".join(map(str, np.block([[TURN, np.zeros((3, 1))], [np.zeros((1, 3)), 1]]).flat))
        (scanqa / "scans" / scene_id / f"{scene_id}.txt").write_text(f"axisAlignment = {numbers}\n")
        labels = arrays["sem_label"].astype(np.int64), arrays["ins_label"].astype(np.float64) - 1
        labels[1][labels[1] == 2] = -100  # the floor has no object
        points = arrays["aligned_vert"]
        file = leo / "scan_data" / "pcd_with_global_alignment" / f"{scene_id}.pth"
        torch.save((points[:, :3].astype(np.float64), points[:, 3:6].astype(np.uint8), *labels), file)
    torch.save(dict.fromkeys(("scene0000_00", "scene0004_00"), TURN), leo / "axisAlignment.pth")
    return scanqa, leo


def test_scenes_equal_those_of_scanqa(folders, tmp_path):
    row = read_questions(tmp_path, "train")[1]
    processor, samples = SQA3DProcessor(120), []
    for folder in folders:
        scene = read_scene(folder, row["scene_id"])
        sample = sample_scene(scene, processor, np.arange(120), row["scene_id"])
        samples.append(place_agent(sample, scene, np.array(row["pose"])))
    (ours, leo), mean_sizes = samples, np.ones((18, 3))
    np.testing.assert_allclose(ours.points, leo.points, atol=1e-5)
    np.testing.assert_allclose(pose_of(ours), pose_of(leo), atol=1e-5)
    expected, found = make_labels(ours, mean_sizes), make_labels(leo, mean_sizes)
    for name in ("object_mask", "object_classes", "vote_mask"):
        np.testing.assert_array_equal(expected[name], found[name], name)
    np.testing.assert_allclose(expected["vote_labels"], found["vote_labels"], atol=1e-5)
    # The boxes are those of the points, which do not reach the borders of the annotated ones.
    assert np.abs(expected["object_centers"] - found["object_centers"]).max() < 0.1


def test_questions_of_a_folder_of_leo(folders, tmp_path, caplog):
    _, leo = folders
    args = SceneQuestionArguments(str(tmp_path), scene_folder=str(leo))
    assert len(SituatedQuestionAnswering.read(args, "train")) == 8 and not caplog.text
    torch.save({"scene0000_00": np.eye(4)}, leo / "axisAlignment.pth")
    SituatedQuestionAnswering.read(args, "train")
    assert "1 of 2 scenes, such as scene0004_00, have no axisAlignment" in caplog.text
    (leo / "axisAlignment.pth").unlink()
    SituatedQuestionAnswering.read(args, "train")
    assert "2 of 2 scenes, such as scene0000_00, have no axisAlignment" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"neither a folder scannet_data nor scan_data.pcd_with_global_align"):
        SituatedQuestionAnswering.read(SceneQuestionArguments(str(tmp_path), scene_folder=str(tmp_path)), "train")


def test_bad_files(folders):
    _, leo = folders
    file = leo / "scan_data" / "pcd_with_global_alignment" / "scene0000_00.pth"
    content = load_arrays(file)
    cases = [
        (content[:3], r"scene0000_00\.pth holds 3; it must hold four arrays"),
        ({"points": content[0]}, r"scene0000_00\.pth holds dict; it must hold four arrays"),
        ((content[0][:5], *content[1:]), r"have \[5, 120, 120, 120\] rows"),
        ([part[:0] for part in content], "is empty: the scene has no points"),
        (([print], *content[1:]), r"scene0000_00\.pth cannot be read as arrays"),
    ]
    for bad, message in cases:
        torch.save(bad, file)
        with pytest.raises(ValueError, match=message):
            read_scene(leo, "scene0000_00")
    torch.save({"scene0000_00": np.eye(2)}, leo / "axisAlignment.pth")
    with pytest.raises(ValueError, match=r"axisAlignment\.pth does not hold a matrix of each scene"):
        read_scene(leo, "scene0004_00")


def test_normals_are_not_there(folders):
    scene = read_scene(folders[1], "scene0000_00")
    with pytest.raises(ValueError, match=r"has the shape \(120, 6\); it must be \(points, 9\)"):
        sample_scene(scene, SQA3DProcessor(8, use_normals=True), np.arange(8), "scene0000_00")
