# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Recall in both directions: METER's own numbers, and the ranks of the definition."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
from paths import shared_dir

from hf_frozen_llm.metrics import RetrievalRecall, rank_of_best_match, retrieval_recall


CASES = json.loads((shared_dir() / "fixtures" / "meter" / "recall_official.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_equals_meters(case):
    scores, image_of = np.array(case["scores"]), np.array(case["text_to_image"])
    matches = np.arange(len(scores))[:, None] == image_of
    for direction, table, right in (("text", scores, matches), ("image", scores.T, matches.T)):
        ranks = rank_of_best_match(table, right)
        assert ranks.tolist() == case["not_from_meter"][f"{direction}_retrieval_ranks"]
        parts = [rank_of_best_match(*part) for part in zip(np.array_split(table, 3), np.array_split(right, 3))]
        assert np.array_equal(np.concatenate(parts), ranks)
        recalls = RetrievalRecall(keep_in_memory=True).compute(predictions=ranks)
        assert recalls.pop("median_rank") == case["not_from_meter"][f"{direction}_retrieval_median_rank"]
        expected = case["expected"][f"{direction}_retrieval"]
        assert recalls.keys() == expected.keys()
        for name, value in recalls.items():
            # METER's are of float32.
            assert abs(value - expected[name]) < 6e-8 and round(value * len(ranks), 9).is_integer()


def test_equal_scores_keep_their_order():
    scores, matches = np.zeros((2, 4)), np.array([[0, 0, 1, 1], [1, 0, 0, 0]], dtype=bool)
    assert rank_of_best_match(scores, matches).tolist() == [3, 1]


def test_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="Query 1 has no match among the candidates"):
        rank_of_best_match(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="2 scores are NaN"):
        rank_of_best_match(np.full((1, 2), np.nan), np.ones((1, 2), dtype=bool))


def test_loads_by_path_without_network():
    metric = evaluate.load(str(Path(retrieval_recall.__file__)))
    for ranks in ([1, 4], [12]):
        metric.add_batch(predictions=ranks)
    assert metric.compute(k=(1, 10)) == {"recall@1": 1 / 3, "recall@10": 2 / 3, "median_rank": 4.0}
