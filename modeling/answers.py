# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Answers by their logits."""

from collections.abc import Sequence
from typing import Any

import torch


def score_answers(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the probability of each answer; they sum to 1 if the model was trained to give one answer."""
    logits = logits.float()
    return logits.softmax(dim=-1) if problem_type == "single_label_classification" else logits.sigmoid()


def rank_answers(
    answers: Sequence[str] | None, logits: torch.Tensor, top_k: int, problem_type: str | None = None
) -> list[list[dict[str, Any]]]:
    """Return `answer` and `score`, between 0 and 1, of the best `top_k` answers of each row of logits."""
    if answers is None or logits.shape[-1] != len(answers):
        known = "none" if answers is None else len(answers)
        raise ValueError(f"The logits are of {logits.shape[-1]} answers; the processor's answers are {known}.")
    best = score_answers(logits, problem_type).topk(min(top_k, len(answers)))
    return [
        [{"answer": answers[index], "score": score} for score, index in zip(scores, indices)]
        for scores, indices in zip(best.values.tolist(), best.indices.tolist())
    ]


__all__ = ["rank_answers", "score_answers"]
