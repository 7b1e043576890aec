# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""SQA3DProcessor: points, words, answers, bad scenes, saving."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from hf_frozen_llm import SQA3DProcessor


WORDS = ["unk", "Is", "it", "?", "red"]


def scene(count=50, columns=9, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, columns))


def test_points():
    points = scene()
    inputs = SQA3DProcessor(30, use_normals=True)([points, scene(20)])["points"]
    assert inputs.shape == (2, 30, 10) and inputs.dtype == torch.float32
    (row,) = np.flatnonzero(np.isclose(points[:, 0], inputs[0, 0, 0].item(), atol=1e-4))
    np.testing.assert_allclose(inputs[0, 0, 3:6], (points[row, 3:6] - [109.8, 97.2, 83.8]) / 256, atol=1e-5)
    np.testing.assert_allclose(inputs[0, 0, 6:9], points[row, 6:9], rtol=1e-5)
    assert inputs[0, 0, 9].item() == pytest.approx(points[row, 2] - np.percentile(points[:, 2], 0.99), abs=1e-4)
    assert len({tuple(point) for point in inputs[0].tolist()}) == 30
    assert len({tuple(point) for point in inputs[1].tolist()}) <= 20  # some are drawn twice
    again, other = (SQA3DProcessor(30, use_normals=True)([points], seed=seed)["points"][0] for seed in (0, 1))
    assert torch.equal(again, inputs[0]) and not torch.equal(other, again)
    plain = SQA3DProcessor(30, use_color=False, use_height=False)
    assert plain(scene(columns=3))["points"].shape == (1, 30, 3) and plain.num_point_features == 0


def test_words():
    processor = SQA3DProcessor(words=WORDS)
    inputs = processor(situations=["it is red.", ""], questions="Is it red?")
    assert inputs["situation_ids"].tolist() == [[2, 0, 4, 0], [0, 0, 0, 0]]
    assert inputs["situation_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert inputs["question_ids"].tolist() == [[1, 2, 4, 3]]
    assert SQA3DProcessor(words=WORDS, max_length=2)(questions="Is it red?")["question_ids"].tolist() == [[1, 2]]


def test_word_vectors():
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    inputs = SQA3DProcessor(words=WORDS, word_vectors=vectors)(questions=["Is it blue?", "red"])
    assert "question_ids" not in inputs
    np.testing.assert_array_equal(inputs["question_embeds"][0], vectors[[1, 2, 0, 3]])
    np.testing.assert_array_equal(inputs["question_embeds"][1], [vectors[4], *np.zeros((3, 3))])


def test_answers():
    processor = SQA3DProcessor(answers=["bed", "no", "yes"], answer_scores=[0.3, 1, 1])
    (answers,) = processor.post_process_answers(torch.tensor([[0.0, -1.0, 2.0]]), top_k=2)
    assert [answer["answer"] for answer in answers] == ["yes", "bed"] and answers[1]["score"] == 0.5
    with pytest.raises(ValueError, match="The logits are of 2 answers; the processor's answers are 3"):
        processor.post_process_answers(torch.zeros(1, 2))


@pytest.mark.parametrize("auto", [AutoFeatureExtractor, AutoProcessor, SQA3DProcessor])
def test_saving(auto, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    processor = SQA3DProcessor(
        30, use_normals=True, words=WORDS, word_vectors=vectors, answers=["a"], answer_scores=[0.6], max_length=7
    )
    processor.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is SQA3DProcessor and again.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(again.vectors(), vectors)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"words": ["the"]}, "words must begin with 'unk'"),
        ({"words": ["unk", "the", "the"]}, "hold each word once"),
        ({"answers": ["a", "a"]}, "holds an answer twice"),
        ({"answers": ["a"], "answer_scores": [1.0, 1.0]}, "2 scores of 1 answers"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SQA3DProcessor(**fields)


def test_bad_inputs():
    processor = SQA3DProcessor(4, words=WORDS)
    with pytest.raises(ValueError, match="scene 0 is empty: it has no points"):
        processor(np.zeros((0, 6)))
    with pytest.raises(ValueError, match=r"scene 0 has the shape \(5, 3\); it must be \(points, 6\): x, y, z, red"):
        processor(np.zeros((5, 3)))
    bad = scene()
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"scene 1: point 7 is .* must be finite"):
        processor([scene(), bad])
    with pytest.raises(ValueError, match="A question is empty"):
        processor(questions=["Is it?", " "])
    with pytest.raises(ValueError, match="Give scenes, situations and questions"):
        processor()
