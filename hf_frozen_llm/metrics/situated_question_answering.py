# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Accuracy of answers to questions about scenes as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_frozen_llm.metrics.situated_answers import (
    QUESTION_RULES,
    classify_question,
    localization_errors,
    match_answer,
)
from hf_frozen_llm.metrics.vqa_accuracy import tabulate


DISTANCES, ANGLES = (0.5, 1.0), (15, 30)


class SituatedAnswerAccuracy(evaluate.Metric):
    """
    Exact match of the best answer and of the ten best ones, and refined match, from 0 to 1; overall and by type.

    `compute(predictions=…, references=…)` returns `em@1`, `em@10`, `refined`, and two tables of `type`, `questions`
    and `accuracy`, of `em@1`: `first_word`, SQA3D's six types, and `nine_classes`, those of the row in the frozen-LLM
    paper, whose "is" and "other" are not comparable with SQA3D's "is" and "others". `predictions` are answers, the
    best one first; `references` are dictionaries of the `question` and its `answers`.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        reference = {"question": text, "answers": datasets.Sequence(text)}
        return evaluate.MetricInfo(
            description="Accuracy of answers to questions about scenes, by SQA3D's rules.",
            citation="",
            inputs_description="predictions: answers, the best one first; references: questions and their answers.",
            features=datasets.Features({"predictions": datasets.Sequence(text), "references": reference}),
        )

    def _compute(self, predictions, references) -> dict[str, Any]:
        pairs = list(zip(predictions, references, strict=True))
        exact = [float(ranked[0] in row["answers"]) for ranked, row in pairs]
        among_ten = [any(answer in row["answers"] for answer in ranked[:10]) for ranked, row in pairs]
        refined = [match_answer(ranked[0], row["answers"])[1] for ranked, row in pairs]
        by_type = {
            rule: tabulate([classify_question(row["question"], rule) for row in references], exact)
            for rule in QUESTION_RULES
        }
        return {
            "em@1": float(np.mean(exact)),
            "em@10": float(np.mean(among_ten)),
            "refined": float(np.mean(refined)),
            **by_type,
        }


class LocalizationAccuracy(evaluate.Metric):
    """
    Share of the situations whose position is found within 0.5 and 1 m, and whose heading within 15 and 30 degrees.

    `compute(predictions=…, references=…)` returns `acc@0.5m`, `acc@1.0m`, `acc@15deg` and `acc@30deg`. `predictions`
    are up to three poses of each situation, of which the best one counts; `references` are the true poses: position,
    and quaternion x, y, z, w.
    """

    def _info(self) -> evaluate.MetricInfo:
        pose = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Share of the situations whose position or heading is found.",
            citation="",
            inputs_description="predictions: up to three poses of each situation; references: the true poses.",
            features=datasets.Features({"predictions": datasets.Sequence(pose), "references": pose}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        errors = np.array(
            [
                localization_errors(np.asarray(candidates), np.asarray(pose))
                for candidates, pose in zip(predictions, references, strict=True)
            ]
        )
        near = {f"acc@{distance}m": float((errors[:, 0] < distance).mean()) for distance in DISTANCES}
        return near | {f"acc@{angle}deg": float((errors[:, 1] < angle).mean()) for angle in ANGLES}
