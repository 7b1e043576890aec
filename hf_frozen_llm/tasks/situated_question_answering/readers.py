# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Questions about scenes from the files of SQA3D and ScanQA, and their answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_frozen_llm.data.datasets import Row
from hf_frozen_llm.data.folders import take_slices
from hf_frozen_llm.data.image_texts import name_splits
from hf_frozen_llm.modeling.processing_sqa3d_with_llm_block import UNKNOWN_WORD


SPLITS = ("train", "val", "test")
# Folders below the data set in which the published archives and training code keep the files.
FOLDERS = ("", "sqa_task/balanced", "balanced", "qa", "sqa_task")
PUBLISHED = "v1_balanced_questions_{}_scannetv2.json", "v1_balanced_sqa_annotations_{}_scannetv2.json"
CONVERTED = ("SQA_{}.json", "SQA_balanced_{}.json")
SCANQA = "ScanQA_v1.0_{}.json"
COUNTER, ANSWERS = "answer_counter.json", "answer_dict.json"
UNKNOWN_ANSWER = "unknown"
# Target of an answer by how often it occurs.
SCORES = {1: 0.3, 2: 0.6, 3: 0.9}


def find_file(root: Path, name: str) -> Path | None:
    return next((root / folder / name for folder in FOLDERS if (root / folder / name).is_file()), None)


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def read_questions(root: Path, split: str, with_targets: bool = True) -> list[Row]:
    """
    Read the questions of a split, or of an instruction such as `train[:90%]+val`: with their `scene_id`, `situation`,
    `question`, `question_id`, `answers`, and `pose` (position, and quaternion x, y, z, w) if it is known.
    """
    rows = {}
    for name in name_splits(split):
        found = read_split(root, name, with_targets)
        if found is None:
            there = [name for name in SPLITS if read_split(root, name, False) is not None]
            raise ValueError(
                f"{root} [{split}] could not be loaded: Unknown split {name!r}. "
                f"{'The splits are ' + ', '.join(there) if there else 'There are no questions'} in the files "
                f"{PUBLISHED[0].format('<split>')}, {CONVERTED[0].format('<split>')} or {SCANQA.format('<split>')}."
            )
        rows[name] = found
    return take_slices(split, rows)


def read_split(root: Path, split: str, with_targets: bool) -> list[Row] | None:
    """Return the rows of a split; `None` if there is no file of it."""
    questions = find_file(root, PUBLISHED[0].format(split))
    if questions is not None:
        return read_published(questions, split, with_targets, read_known_answers(root))
    for name in (*CONVERTED, SCANQA):
        file = find_file(root, name.format(split))
        if file is not None:
            return read_rows(file, with_targets)
    return None


def read_known_answers(root: Path) -> set[str] | None:
    """Return the answers of `answer_dict.json`, if it is there."""
    file = find_file(root, ANSWERS)
    return None if file is None else set(read_json(file)[0])


def read_published(file: Path, split: str, with_targets: bool, known: set[str] | None) -> list[Row]:
    """Read SQA3D's published files; answers that `answer_dict.json` does not list become "unknown"."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise ValueError(f"{file} has no list `questions`; it is not one of SQA3D's files.")
    rows = [
        {name: get(file, question, name) for name in ("scene_id", "situation", "question", "question_id")}
        for question in content["questions"]
    ]
    annotated = file.with_name(PUBLISHED[1].format(split))
    if not annotated.is_file():
        if with_targets:
            raise FileNotFoundError(f"{file.name} has no {annotated.name} beside it; `predict` needs none.")
        return rows
    annotations = {
        get(annotated, entry, "question_id"): entry for entry in read_json(annotated).get("annotations", ())
    }
    if missing := [row["question_id"] for row in rows if row["question_id"] not in annotations]:
        raise ValueError(
            f"{annotated}: {len(missing):,} of {len(rows):,} questions of {file.name} have no annotation, the first "
            f"is question_id {missing[0]}. The files must be of the same split and version."
        )
    for row in rows:
        annotation = annotations[row["question_id"]]
        answers = [answer["answer"] for answer in get(annotated, annotation, "answers")]
        row["answers"] = [a if known is None or a in known else UNKNOWN_ANSWER for a in answers]
        position, rotation = (get(annotated, annotation, name) for name in ("position", "rotation"))
        pose = [*(position[name] for name in "xyz"), *(rotation[name] for name in ("_x", "_y", "_z", "_w"))]
        row["pose"] = check_pose(annotated, row, pose)
    return rows


def read_rows(file: Path, with_targets: bool) -> list[Row]:
    """Read the rows of SQA3D's converter, or those of ScanQA, which have neither a situation nor a pose."""
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{file} is no list of questions; it is not one of the files of SQA3D or ScanQA.")
    rows = []
    for entry in content:
        row = {name: get(file, entry, name) for name in ("scene_id", "question", "question_id")}
        row["situation"] = entry.get("situation", "")
        if with_targets or "answers" in entry:
            row["answers"] = list(get(file, entry, "answers"))
        if "position" in entry:
            row["pose"] = check_pose(file, row, entry["position"])
        rows.append(row)
    return rows


def get(file: Path, entry: Mapping[str, Any], name: str) -> Any:
    if name not in entry:
        raise ValueError(
            f"{file}: an entry has no {name!r}; it has {', '.join(map(str, entry))}. Is it a file of SQA3D or ScanQA?"
        )
    return entry[name]


def check_pose(file: Path, row: Row, pose: Sequence[float]) -> list[float]:
    numbers = np.array(pose, dtype=np.float64)
    if numbers.shape != (7,) or not np.isfinite(numbers).all() or not numbers[3:].any():
        raise ValueError(
            f"{file}, question_id {row['question_id']}: the pose is {list(pose)}; it must be x, y, z and a quaternion "
            "x, y, z, w that is not zero."
        )
    return numbers.tolist()


def read_every_split(root: Path) -> Iterator[Row]:
    for split in SPLITS:
        yield from read_split(root, split, with_targets=False) or ()


def count_answers(root: Path, rows: Sequence[Row]) -> Counter[str]:
    """
    Return how often each answer occurs: in the published `answer_counter.json`, which is of all splits; without it, in
    all splits of SQA3D's published files; of other data in `rows`, those of the training.
    """
    file = find_file(root, COUNTER)
    if file is not None:
        return Counter(read_json(file))
    if find_file(root, ANSWERS) is not None:
        rows = list(read_every_split(root))
    return Counter(answer for row in rows for answer in row.get("answers", ()))


def list_answers(counts: Mapping[str, int], min_count: int = 1) -> tuple[list[str], list[float]]:
    """Return the sorted answers that occur so often, and the target of each."""
    answers = sorted(answer for answer, count in counts.items() if count >= min_count)
    return answers, [SCORES.get(counts[answer], 1.0) for answer in answers]


def read_word_vectors(file: Path, wanted: set[str]) -> tuple[list[str], np.ndarray]:
    """Return the wanted words that a text file of GloVe has, "unk" first, and their vectors."""
    vectors: dict[str, np.ndarray] = {}
    if not file.is_file():
        raise FileNotFoundError(f"word_vectors is {str(file)!r}, but there is no such file.")
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            word, _, numbers = line.rstrip().partition(" ")
            if word in wanted or word == UNKNOWN_WORD:
                vectors[word] = np.array(numbers.split(), dtype=np.float32)
    if UNKNOWN_WORD not in vectors:
        raise ValueError(
            f"{file} has no vector of {UNKNOWN_WORD!r}, which stands for unknown words. Give a text file of GloVe, "
            "such as glove.6B.300d.txt: a word and its numbers on each line."
        )
    words = [UNKNOWN_WORD, *sorted(set(vectors) - {UNKNOWN_WORD})]
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise ValueError(f"{file} has vectors of different sizes.")
    return words, np.stack([vectors[word] for word in words])
