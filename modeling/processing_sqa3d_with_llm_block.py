# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes, situations and questions as inputs of an SQA3D model."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .answers import rank_answers
from .code_files import SavedWithCode


UNKNOWN_WORD = "unk"
MEAN_COLOR = (109.8, 97.2, 83.8)
COLOR_RANGE = 256.0


def split_words(text: str) -> list[str]:
    """Return the words of a text as the published code has them: case is kept, "?" and "." are words."""
    return text.replace("?", " ?").replace(".", " .").split()


class SQA3DProcessor(SavedWithCode, FeatureExtractionMixin):
    r"""
    Prepares scenes, situations and questions as the inputs of an SQA3D model, and names its answers.

    A scene is an array `(points, 6)` of x, y, z in metres, z up, and red, green, blue from 0 to 255; `(points, 9)`
    with normals. Colours are normalised once. The height of a point is its z less the 0.99th percentile of all z, as
    in the published code.

    Args:
        num_points (`int`, *optional*, defaults to 40000):
            Number of points that the model gets, drawn without replacement; with, from smaller scenes.
        use_color (`bool`, *optional*, defaults to `True`): whether the model gets colours.
        use_normals (`bool`, *optional*, defaults to `False`): whether the model gets normals.
        use_height (`bool`, *optional*, defaults to `True`): whether the model gets heights.
        words (`list[str]`, *optional*):
            The words that the model knows. The first one is `"unk"`, which stands for all others.
        word_vectors (`np.ndarray` of shape `(words, size)`, *optional*):
            The vectors of the words, for a model that does not hold them; it is then given vectors, not numbers. They
            are saved as the base64 code of float32.
        answers (`list[str]`, *optional*): the answers of the model, in the order of its classes.
        answer_scores (`list[float]`, *optional*):
            The target of each answer in training, from 0 to 1; by default 1.
        max_length (`int`, *optional*, defaults to 100): words after these are left out.
        problem_type (`str`, *optional*):
            That of the model: with `"single_label_classification"`, the scores of all answers sum to 1.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_frozen_llm import SQA3DProcessor

    >>> processor = SQA3DProcessor(num_points=1000, words=["unk", "What", "is", "behind", "me", "?"])
    >>> scene = np.random.default_rng(0).uniform(0, 255, (5000, 6))
    >>> inputs = processor(scene, "I face the door.", "What is behind me?")
    >>> inputs["points"].shape, inputs["question_ids"].tolist()
    (torch.Size([1, 1000, 7]), [[1, 2, 3, 4, 5]])
    ```"""

    model_input_names = ["points", "situation_ids", "situation_mask", "question_ids", "question_mask"]

    def __init__(
        self,
        num_points: int = 40000,
        use_color: bool = True,
        use_normals: bool = False,
        use_height: bool = True,
        words: Sequence[str] | None = None,
        word_vectors: np.ndarray | str | None = None,
        answers: Sequence[str] | None = None,
        answer_scores: Sequence[float] | None = None,
        max_length: int = 100,
        problem_type: str | None = None,
        **kwargs: Any,
    ):
        for name, value in (("num_points", num_points), ("max_length", max_length)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self.num_points, self.max_length, self.problem_type = num_points, max_length, problem_type
        self.use_color, self.use_normals, self.use_height = use_color, use_normals, use_height
        self.words = [UNKNOWN_WORD] if words is None else list(words)
        if self.words[:1] != [UNKNOWN_WORD] or len(set(self.words)) < len(self.words):
            raise ValueError(f"words must begin with {UNKNOWN_WORD!r}, and hold each word once.")
        if word_vectors is not None and not isinstance(word_vectors, str):
            word_vectors = base64.b64encode(np.ascontiguousarray(word_vectors, dtype="<f4").tobytes()).decode()
        self.word_vectors = word_vectors
        self.answers = None if answers is None else list(answers)
        self.answer_scores = None if answer_scores is None else list(answer_scores)
        if self.answers is not None and len(set(self.answers)) < len(self.answers):
            raise ValueError("answers holds an answer twice.")
        if self.answer_scores is not None and len(self.answer_scores) != len(self.answers or ()):
            raise ValueError(
                f"answer_scores holds {len(self.answer_scores)} scores of {len(self.answers or ())} answers."
            )
        super().__init__(**kwargs)

    @property
    def num_point_features(self) -> int:
        """The features of a point besides x, y and z."""
        return 3 * self.use_color + 3 * self.use_normals + self.use_height

    def vectors(self) -> np.ndarray | None:
        """Return the vectors of the words, `(words, size)`, if the processor holds them."""
        if self.word_vectors is None:
            return None
        return np.frombuffer(base64.b64decode(self.word_vectors), dtype="<f4").reshape(len(self.words), -1)

    def __call__(
        self,
        scenes: Any | None = None,
        situations: str | Sequence[str] | None = None,
        questions: str | Sequence[str] | None = None,
        seed: int = 0,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        r"""
        Prepare scenes, texts, or both.

        Args:
            scenes (`np.ndarray` or a list of these, *optional*): one scene or several, with any numbers of points.
            situations (`str` or `list[str]`, *optional*): the situation of each scene.
            questions (`str` or `list[str]`, *optional*): the question about each scene.
            seed (`int`, *optional*, defaults to 0): seed of the choice of points.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: `points` of shape `(batch, num_points, 3 + features)`; of the texts `situation_ids` and
                `question_ids`, or `situation_embeds` and `question_embeds` if the processor holds vectors, with their
                masks: 1 = word.

        Raises:
            `ValueError`: for a scene without points, with numbers that are not finite or too few columns, or for an
                empty question.
        """
        features: dict[str, Any] = {}
        if scenes is not None:
            is_one = not isinstance(scenes, (list, tuple)) and np.ndim(scenes) == 2
            clouds = []
            for index, scene in enumerate([scenes] if is_one else scenes):
                cloud = self.prepare_points(scene, f"scene {index}")
                clouds.append(cloud[self.choose_points(len(cloud), np.random.default_rng((seed, index)))])
            features["points"] = torch.from_numpy(np.stack(clouds))
        for name, texts in (("situation", situations), ("question", questions)):
            if texts is not None:
                texts = [texts] if isinstance(texts, str) else list(texts)
                features |= self.collate_words(name, [self.find_words(text) for text in texts])
        if questions is not None and not features["question_mask"].any(dim=1).all():
            raise ValueError("A question is empty.")
        if not features:
            raise ValueError("Give scenes, situations and questions, or some of them.")
        return BatchFeature(features, tensor_type="pt").convert_to_tensors(return_tensors)

    def prepare_points(self, scene: Any, location: str = "scene", num_normalizations: int = 1) -> np.ndarray:
        """
        Check a scene and return all of its points with their features, float32. Only to repeat published runs are
        colours normalised several times (`num_normalizations`).
        """
        points = np.asarray(scene, dtype=np.float32)
        width = 9 if self.use_normals else 6 if self.use_color else 3
        if points.ndim != 2 or points.shape[1] < width:
            raise ValueError(
                f"{location} has the shape {points.shape}; it must be (points, {width}): x, y, z"
                f"{', red, green, blue from 0 to 255' if width > 3 else ''}{', normals' if width > 6 else ''}."
            )
        points = points[:, :width]
        if len(points) == 0:
            raise ValueError(f"{location} is empty: it has no points.")
        if not np.isfinite(points).all():
            row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise ValueError(f"{location}: point {row} is {points[row].tolist()}; all numbers must be finite.")
        parts = [points[:, :3]]
        if self.use_color:
            colors = points[:, 3:6]
            for _ in range(num_normalizations):
                colors = ((colors - np.array(MEAN_COLOR)) / COLOR_RANGE).astype(np.float32)
            parts.append(colors)
        if self.use_normals:
            parts.append(points[:, 6:9])
        if self.use_height:
            parts.append(points[:, 2:3] - np.percentile(points[:, 2], 0.99))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def choose_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of `num_points` of `count` points: each at most once, if there are enough."""
        return rng.choice(count, self.num_points, replace=count < self.num_points)

    def find_words(self, text: str) -> list[int]:
        """Return the numbers of the words of a text."""
        numbers = {word: number for number, word in enumerate(self.words)}
        return [numbers.get(word, 0) for word in split_words(text)[: self.max_length]]

    def collate_words(self, name: str, texts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the inputs `<name>_ids` or `<name>_embeds`, and `<name>_mask`, of numbers of words."""
        ids = torch.zeros(len(texts), max(1, *map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
            mask[row, : len(text)] = 1
        vectors = self.vectors()
        if vectors is None:
            return {f"{name}_ids": ids, f"{name}_mask": mask}
        embeds = torch.from_numpy(vectors[ids.numpy()] * mask[..., None].numpy().astype(np.float32))
        return {f"{name}_embeds": embeds, f"{name}_mask": mask}

    def post_process_answers(self, logits: torch.Tensor, top_k: int = 10) -> list[list[dict[str, Any]]]:
        r"""
        Name the best answers of each question.

        Args:
            logits (`torch.Tensor` of shape `(batch, answers)`): outputs of the model.
            top_k (`int`, *optional*, defaults to 10): how many answers.

        Returns:
            `list[list[dict]]`: for each question `answer` and `score`, between 0 and 1, the best first.
        """
        return rank_answers(self.answers, logits, top_k, self.problem_type)


__all__ = ["SQA3DProcessor", "split_words"]
