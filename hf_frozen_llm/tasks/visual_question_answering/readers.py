# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Questions about images from the files of VQAv2 and SHAPES."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hf_frozen_llm.data.folders import take_slices
from hf_frozen_llm.data.image_texts import Columns, ImageTextArguments, image_files, name_splits


VQA_QUESTIONS, VQA_ANNOTATIONS = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"
SHAPES_IMAGES, SHAPES_QUESTIONS, SHAPES_ANSWERS = "{}.input.npy", "{}.query_str.txt", "{}.output"


def has_files(root: Path, split: str, pattern: str) -> bool:
    return all((root / pattern.format(name)).is_file() for name in name_splits(split))


def read_vqa(args: ImageTextArguments, root: Path, split: str, with_targets: bool) -> tuple[datasets.Dataset, Columns]:
    """
    Read VQAv2: splits are `train2014`, `val2014`, `test2015` and `test-dev2015`, and their sums. The images are those
    of COCO, `<image_folder>/train2014/COCO_train2014_<12 digits>.jpg`; by default in the folder of the questions.

    Raises:
        `ValueError`: if a question has no annotation.
    """
    rows = {name: read_vqa_split(root, name, with_targets) for name in name_splits(split)}
    chosen = take_slices(split, rows)
    images = image_files(args, root, [row.pop("image") for row in chosen])
    return images, {name: [row[name] for row in chosen] for name in chosen[0]}


def read_vqa_split(root: Path, split: str, with_targets: bool) -> list[dict[str, Any]]:
    file = root / VQA_QUESTIONS.format(split)
    questions = json.loads(file.read_text(encoding="utf-8"))["questions"]
    images = split.replace("-dev", "")
    rows = [
        {
            "image": f"{images}/COCO_{images}_{question['image_id']:012}.jpg",
            "question": question["question"],
            "question_id": question["question_id"],
        }
        for question in questions
    ]
    if not with_targets:
        return rows
    annotated = root / VQA_ANNOTATIONS.format(split)
    if not annotated.is_file():
        raise FileNotFoundError(f"{file.name} has no {annotated.name} beside it; `predict` needs none.")
    annotations = {a["question_id"]: a for a in json.loads(annotated.read_text(encoding="utf-8"))["annotations"]}
    if missing := [row["question_id"] for row in rows if row["question_id"] not in annotations]:
        raise ValueError(
            f"{annotated}: {len(missing):,} of {len(rows):,} questions of {file.name} have no annotation, the first "
            f"is question_id {missing[0]}. The files must be of the same split and version."
        )
    for row in rows:
        annotation = annotations[row["question_id"]]
        row["answers"] = [answer["answer"] for answer in annotation["answers"]]
        row["answer"] = annotation["multiple_choice_answer"]
        row |= {name: annotation[name] for name in ("question_type", "answer_type")}
    return rows


def read_shapes(root: Path, split: str) -> tuple[datasets.Dataset, Columns]:
    """Read SHAPES (github.com/jacobandreas/nmn2): splits are `train.small`, `train.med`, `train.large`, `val`, …"""
    rows = take_slices(split, {name: read_shapes_split(root, name) for name in name_splits(split)})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    images = datasets.Dataset.from_dict({"image": [row[0] for row in rows]}, features)
    questions, answers = ([row[column] for row in rows] for column in (1, 2))
    return images, {"question": questions, "answer": answers}


def read_shapes_split(root: Path, split: str) -> list[tuple[dict[str, Any], str, str]]:
    pixels = np.load(root / SHAPES_IMAGES.format(split), allow_pickle=False)
    questions, answers = (
        (root / name.format(split)).read_text(encoding="utf-8").splitlines()
        for name in (SHAPES_QUESTIONS, SHAPES_ANSWERS)
    )
    if not len(pixels) == len(questions) == len(answers):
        raise ValueError(
            f"{root} [{split}]: there are {len(pixels)} images, {len(questions)} questions and {len(answers)} answers."
        )
    words = {"true": "yes", "false": "no"}
    return [
        ({"bytes": encode(image), "path": None}, question, words.get(answer, answer))
        for image, question, answer in zip(pixels, questions, answers)
    ]


def encode(pixels: np.ndarray) -> bytes:
    """Return the PNG file of an image whose channels are blue, green and red."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).save(stream, "png")
    return stream.getvalue()
