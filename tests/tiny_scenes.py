# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny scenes with questions, in the files of SQA3D and of ScanQA's scenes, and tiny sizes of their model."""

import json
from pathlib import Path

import numpy as np
from tiny_runs import TINY_RUN


# A PointNet++ of four small levels; the rest as in the recipes.
TINY_SQA3D = [
    *("--host.num_samples", "[32, 16, 12, 8]"),
    *("--host.num_neighbors", "[4, 4, 4, 4]"),
    *("--host.radii", "[0.5, 1.0, 1.5, 2.0]"),
    *("--host.point_channels", "[[8, 8], [8, 8], [8, 8], [8, 8]]"),
    *("--host.propagation_channels", "[[8, 8], [8, 8]]"),
    *("--host.num_proposals", "6"),
    *("--host.proposal_size", "8"),
    *("--host.word_embedding_size", "8"),
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.pooler_hidden_size", "16"),
    *("--host.pooler_output_size", "16"),
    *("--num_points", "64"),
    *TINY_RUN,
]
QUESTIONS = [
    ("What is on my left?", "bed"),
    ("Is the chair behind me?", "no"),
    ("How many chairs are there?", "one"),
    ("Can I see the bed?", "yes"),
    ("Which side is the chair on?", "right"),
    ("Are there two beds?", "no"),
]


def write_scene(folder: Path, scene_id: str, seed: int, num_points: int = 120) -> None:
    """Write a floor with a bed and a chair."""
    rng = np.random.default_rng(seed)
    centers = np.array([[-1.0, 0.5, 0.3], [1.0, -0.5, 0.4], [0.0, 0.0, 0.0]]) + rng.uniform(-0.1, 0.1, (3, 3))
    sizes = np.array([[1.8, 1.2, 0.6], [0.6, 0.6, 0.8], [4.0, 3.0, 0.01]])
    of_object = np.arange(num_points) % 3
    xyz = centers[of_object] + sizes[of_object] * rng.uniform(-0.5, 0.5, (num_points, 3))
    points = np.concatenate([xyz, rng.integers(0, 256, (num_points, 3)), rng.normal(size=(num_points, 3))], axis=1)
    boxes = np.column_stack([centers[:2], sizes[:2], [4, 5], [0, 1]])
    arrays = {
        "vert": points.astype(np.float32),
        "aligned_vert": points.astype(np.float32),
        "sem_label": np.array([4, 5, 2], np.uint32)[of_object],
        "ins_label": np.array([1, 2, 3], np.uint32)[of_object],
        "bbox": boxes,
        "aligned_bbox": boxes,
    }
    (folder / "scannet_data").mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / "scannet_data" / f"{scene_id}_{name}.npy", array)
    text = folder / "scans" / scene_id / f"{scene_id}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("axisAlignment = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n")


def write_scenes(folder: Path, splits: dict[str, int]) -> str:
    """Write so many questions of each split, in SQA3D's published files."""
    root = folder / "sqa_task" / "balanced"
    root.mkdir(parents=True)
    number = 0
    for split, count in splits.items():
        questions, annotations = [], []
        for index in range(count):
            text, answer = QUESTIONS[index % len(QUESTIONS)]
            scene_id = f"scene{number:04}_00"
            if index % 4 == 0:
                write_scene(folder / "scannet", scene_id, number)
            else:
                scene_id = questions[-1]["scene_id"]
            number += 1
            common = {"scene_id": scene_id, "question_id": number}
            questions.append({**common, "situation": "I face the bed.", "question": text})
            annotation = {**common, "answers": [{"answer": answer}], "position": {"x": 0.2, "y": 0, "z": 0}}
            annotations.append({**annotation, "rotation": {"_x": 0, "_y": 0, "_z": 0.6, "_w": 0.8}})
        contents = {"questions": ("questions", questions), "sqa_annotations": ("annotations", annotations)}
        for name, (key, entries) in contents.items():
            (root / f"v1_balanced_{name}_{split}_scannetv2.json").write_text(json.dumps({key: entries}))
    return str(folder)
