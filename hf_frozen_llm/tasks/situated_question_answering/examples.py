# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Training and evaluation examples of questions about scenes, and their augmentation."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_frozen_llm.data.datasets import Example, Row
from hf_frozen_llm.modeling.processing_sqa3d_with_llm_block import SQA3DProcessor
from hf_frozen_llm.tasks.situated_question_answering.scenes import (
    Sample,
    flip,
    make_labels,
    move,
    place_agent,
    pose_of,
    read_scene,
    sample_scene,
    turn,
    without_points,
)


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.situated_question_answering import SceneQuestionArguments


OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(rf"\b({'|'.join(OTHER_SIDE)})\b")
# A mirror changes these words, too, or "right" is no side in them.
UNMIRRORED = re.compile(
    r"clock|\bright (?:now|away|next|in front|before|behind|beside|by|at|above|below|under|here|there|angle)\b|"
    r"\b(?:is|am|are) (?:that|it|this|i|you) right\b|\bleft (?:open|over|alone|behind)\b",
    re.IGNORECASE,
)


def swap_sides(text: str) -> str:
    """Exchange left and right."""
    return SIDE.sub(lambda match: OTHER_SIDE[match[0]], text)


def can_be_mirrored(text: str) -> bool:
    """Return whether exchanging left and right makes a text true of the mirrored scene."""
    return UNMIRRORED.search(text) is None


def draw_augmentation(rng: np.random.Generator) -> tuple[tuple[bool, bool], np.ndarray, np.ndarray]:
    """Draw the published augmentation: flips of x and y, angles about x, y and z up to 5 degrees, offsets to 0.5 m."""
    flips = rng.random(2) > 0.5
    angles = rng.random(3) * np.pi / 18 - np.pi / 36
    return (bool(flips[0]), bool(flips[1])), angles, rng.integers(0, 1001, 3) / 1000 - 0.5


def augment(sample: Sample, flips: tuple[bool, bool], angles: np.ndarray, offset: np.ndarray) -> Sample:
    """Mirror, then rotate about x, y and z, then translate a sample."""
    for axis in (0, 1):
        sample = flip(sample, axis) if flips[axis] else sample
    for axis in range(3):
        sample = turn(sample, axis, angles[axis])
    return move(sample, offset)


class SceneQuestionTransform:
    """
    Turn rows into examples; see [`ExampleTransform`].

    Args:
        args ([`SceneQuestionArguments`]): the recipe keys.
        processor ([`SQA3DProcessor`]): the processor that is saved with the model.
        config ([`SQA3DWithLLMBlockConfig`]): the model's configuration.
        folder (`Path`, *optional*): the folder of the scenes, unless the model sees none.
        training (`bool`): whether examples are augmented.
        seed (`int`): seed of the choice of points and of the augmentation.
    """

    def __init__(
        self,
        args: "SceneQuestionArguments",
        processor: SQA3DProcessor,
        config: Any,
        folder: Path | None,
        training: bool,
        seed: int,
    ):
        self.args, self.processor, self.folder = args, processor, folder
        self.training, self.seed = training, seed
        self.use_points, self.mean_sizes = config.use_points, np.array(config.mean_sizes)
        self.answer_ids: Mapping[str, int] = {answer: i for i, answer in enumerate(processor.answers or ())}
        self.num_reads: dict[str, int] = {}

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        rngs = [np.random.default_rng((self.seed, *key)) for key in keys]
        if not (self.training and self.use_points and self.args.questions_per_scene > 1):
            return [self.make_examples([row], rng)[0] for row, rng in zip(rows, rngs)]
        of_scenes: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            of_scenes.setdefault(row["scene_id"], []).append(index)
        examples: dict[int, Example] = {}
        for number, indices in enumerate(of_scenes.values()):
            for index, example in zip(indices, self.make_examples([rows[i] for i in indices], rngs[indices[0]])):
                examples[index] = {**example, "scene": number}
        return [examples[index] for index in range(len(rows))]

    def make_examples(self, rows: Sequence[Row], rng: np.random.Generator) -> list[Example]:
        """Return examples of questions about the same scene, which share its points."""
        if self.use_points:
            scene, poses, is_mirrored = self.read_points(rows, rng)
        else:
            scene, is_mirrored = {}, False
            poses = [None if row.get("pose") is None else np.array(row["pose"], dtype=np.float32) for row in rows]
        shared = {name: torch.from_numpy(array) for name, array in scene.items()}
        examples = []
        for row, pose in zip(rows, poses):
            texts, answers = [row["situation"], row["question"]], row.get("answers") or []
            if is_mirrored:
                texts, answers = list(map(swap_sides, texts)), list(map(swap_sides, answers))
            example: Example = dict(shared)
            if pose is not None:
                example["situation_labels"] = torch.from_numpy(pose)
            example["situation"], example["question"] = map(self.processor.find_words, texts)
            if self.args.hide_situation:
                example["situation"] = [0] * len(example["situation"])
            if "answers" in row:
                example["labels"] = self.make_targets(answers)
            examples.append(example)
        return examples

    def make_targets(self, answers: Sequence[str]) -> torch.Tensor:
        """Return the score of each answer of the model: that of its frequency for the right ones."""
        scores, targets = self.processor.answer_scores, torch.zeros(len(self.answer_ids))
        for answer in answers:
            if (number := self.answer_ids.get(answer)) is not None:
                targets[number] = 1.0 if scores is None else scores[number]
        return targets

    def read_points(
        self, rows: Sequence[Row], rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray | None], bool]:
        """Return the points of a scene and the labels of its objects, the agents' poses, and whether left is right."""
        scene_id = rows[0]["scene_id"]
        if self.folder is None:  # a file, without labels
            cloud = self.processor.prepare_points(np.load(scene_id, allow_pickle=False), scene_id)
            return {"points": cloud[self.processor.choose_points(len(cloud), rng)]}, [None] * len(rows), False
        scene = read_scene(self.folder, scene_id)
        num_normalizations = 1
        if self.args.repeat_color_normalization:
            # The published code normalises in its cache: loader processes begin with an empty one in each epoch.
            num_normalizations = self.num_reads[scene_id] = self.num_reads.get(scene_id, 0) + 1
        choices = self.processor.choose_points(len(scene.points), rng)
        sample = sample_scene(scene, self.processor, choices, scene_id, num_normalizations)
        agents = [
            None if row.get("pose") is None else place_agent(without_points(sample), scene, np.array(row["pose"]))
            for row in rows
        ]
        is_mirrored = False
        if self.training and self.args.augment:
            flips, angles, offset = draw_augmentation(rng)
            flips = self.restrict_flips(flips, rows)
            is_mirrored = flips[0] != flips[1] and self.args.flips == "with_text"
            sample = augment(sample, flips, angles, offset)
            agents = [None if agent is None else augment(agent, flips, angles, offset) for agent in agents]
        arrays = {"points": sample.points, **make_labels(sample, self.mean_sizes)}
        return arrays, [None if agent is None else pose_of(agent) for agent in agents], is_mirrored

    def restrict_flips(self, flips: tuple[bool, bool], rows: Sequence[Row]) -> tuple[bool, bool]:
        """Return flips after which the texts can be true: none, or both, which are a rotation, if they cannot."""
        if self.args.flips == "published":
            return flips
        if self.args.flips == "none":
            return False, False
        answers = [answer for row in rows for answer in row.get("answers") or []]
        texts = [row[name] for row in rows for name in ("situation", "question")]
        is_listed = all((a in self.answer_ids) == (swap_sides(a) in self.answer_ids) for a in answers)
        can_be = is_listed and all(map(can_be_mirrored, [*texts, *answers]))
        return flips if can_be else (flips[0], flips[0])
