# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VQA accuracy as an `evaluate` metric. Also loads by path: `evaluate.load("…/vqa_accuracy.py")`."""

from typing import Any

import datasets
import evaluate

from hf_frozen_llm.metrics.answers import score_answer


class VQAAccuracy(evaluate.Metric):
    """
    The accuracy of VQAv2's official evaluator, from 0 to 1, overall and by type.

    `compute(predictions=…, references=…)` returns `accuracy`, and two tables of `type`, `questions` and `accuracy`:
    `question_types` and `answer_types`, in the order of first occurrence. `predictions` are answers; `references` are
    dictionaries of the annotators' `answers`, the `question_type` and the `answer_type`.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        reference = {"answers": datasets.Sequence(text), "question_type": text, "answer_type": text}
        return evaluate.MetricInfo(
            description="Accuracy of answers to questions about images, by VQAv2's official evaluator.",
            citation="",
            inputs_description="predictions: answers; references: the annotators' answers, and the question's types.",
            features=datasets.Features({"predictions": text, "references": reference}),
        )

    def _compute(self, predictions, references) -> dict[str, Any]:
        scores = [score_answer(answer, row["answers"]) for answer, row in zip(predictions, references, strict=True)]
        return {
            "accuracy": sum(scores) / len(scores),
            "question_types": tabulate([row["question_type"] for row in references], scores),
            "answer_types": tabulate([row["answer_type"] for row in references], scores),
        }


def tabulate(types: list[str], scores: list[float]) -> list[dict[str, Any]]:
    by_type: dict[str, list[float]] = {}
    for name, score in zip(types, scores):
        by_type.setdefault(name, []).append(score)
    return [{"type": name, "questions": len(of), "accuracy": sum(of) / len(of)} for name, of in by_type.items()]
