# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Search in large galleries: candidates by embeddings, compared by the whole model."""

import builtins
import sys
import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from meter_cases import METER_EMBEDDINGS, METER_RETRIEVAL
from PIL import Image
from tiny_runs import TINY_METER, write_karpathy
from transformers.utils import ModelOutput

from hf_frozen_llm import MeterWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.metrics import RetrievalRecall
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.image_text_retrieval import search
from hf_frozen_llm.tasks.image_text_retrieval.galleries import list_captions
from hf_frozen_llm.tasks.image_text_retrieval.search import PackedTexts, find_nearest, rank_by_similarity


TASK = TASKS["image-text-retrieval"]


class Embedder:
    """A model with given embeddings of images and texts, and a given function of their numbers as its score."""

    device = torch.device("cpu")

    def __init__(self, images, texts, scores):
        self.images, self.texts, self.scores = torch.from_numpy(images), torch.from_numpy(texts), scores
        self.pairs = self.largest = 0

    def get_image_features(self, pixel_values):
        return ModelOutput(pooler_output=self.images[pixel_values[:, 0, 0, 0].long()])

    def get_text_features(self, input_ids, attention_mask):
        self.largest = max(self.largest, len(input_ids))
        return ModelOutput(pooler_output=self.texts[input_ids[:, 0]])

    def __call__(self, pixel_values, input_ids, attention_mask):
        self.largest, self.pairs = max(self.largest, len(input_ids)), self.pairs + len(input_ids)
        images = pixel_values[:, 0, 0, 0].long().repeat_interleave(len(input_ids) // len(pixel_values))
        return ModelOutput(scores=self.scores(images, input_ids[:, 0]))


def make_embeddings(count, width=8, seed=0, noise=0.0, copies=1):
    """Embeddings of length 1; some of them several times."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count // copies, width)).repeat(copies, axis=0)
    values += noise * rng.standard_normal(values.shape)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def make_gallery(captions_of, **keys):
    """A task, and a gallery whose images hold their number, and whose captions are their number."""
    config = MeterWithLLMBlockConfig(**METER_EMBEDDINGS.fields)
    task = TASK(TASK.arguments(dataset_name="data", **keys), METER_EMBEDDINGS.processor(), config)
    numbers = iter(range(sum(captions_of)))
    captions = [[str(next(numbers)) for _ in range(count)] for count in captions_of]
    encoded = [{"bytes": b"", "path": None}] * len(captions)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "captions": datasets.List(datasets.Value("string"))}
    )
    dataset = task.dataset(datasets.Dataset.from_dict({"image": encoded, "captions": captions}, features), "train")
    dataset.transform.encode_images = lambda rows, numbers: torch.tensor(numbers)[:, None, None, None].float()
    dataset.transform.encode_texts = lambda texts: [torch.tensor([int(text), 2]) for text in texts]
    return task, dataset


def make_loop(task, batch_size):
    def loop(predict, data):
        starts = range(0, len(data), batch_size)
        examples = ([data[n] for n in range(start, min(start + batch_size, len(data)))] for start in starts)
        return [record for part in examples for record in predict(task.collate(part))]

    return loop


# Nearest items


@pytest.mark.parametrize("at_a_time", [1, 7, 2**24])
@pytest.mark.parametrize("count", [1, 4, 30, 99])
def test_nearest_is_the_stable_order_of_all(count, at_a_time, monkeypatch):
    """Also with copies, and with more candidates than items. The similarities of these numbers are exact."""
    monkeypatch.setattr(search, "MAX_SIMILARITIES", at_a_time)
    queries, gallery = ((8 * e).round() / 8 for e in (make_embeddings(5, seed=1), make_embeddings(30, copies=3)))
    order = np.argsort(-(torch.from_numpy(queries) @ torch.from_numpy(gallery).T).numpy(), axis=1, kind="stable")
    assert np.array_equal(find_nearest(queries, gallery, count), order[:, :count])
    starts = np.array([0, 3, 29, 10, 4])
    ends = starts + [1, 4, 1, 2, 26]
    ranks = [1 + min(np.flatnonzero(np.isin(row, range(a, b)))) for row, a, b in zip(order, starts, ends)]
    assert rank_by_similarity(queries, gallery, starts, ends).tolist() == ranks


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    queries, gallery = make_embeddings(20, seed=1), make_embeddings(300)
    assert np.array_equal(find_nearest(queries, gallery, 10, "faiss"), find_nearest(queries, gallery, 10))


def test_without_faiss(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    queries = make_embeddings(2)
    with pytest.raises(ImportError, match=r"candidate_search is faiss.*pip install 'hf_frozen_llm\[retrieval\]'"):
        find_nearest(queries, queries, 1, "faiss")
    assert find_nearest(queries, queries, 1).tolist() == [[0], [1]], "not imported unless it is named"


def test_packed_texts():
    texts = [torch.tensor([0, 9, 2]), torch.tensor([0, 2]), torch.tensor([0, 50264, 5, 2])]
    packed = PackedTexts(iter(texts))
    assert len(packed) == 3 and packed.tokens.nbytes == 4 * 9
    for actual, expected in ((packed[:], texts), (packed[1:9], texts[1:]), (list(packed), texts)):
        assert [ids.tolist() for ids in actual] == [ids.tolist() for ids in expected]
    assert packed[0].dtype == torch.long


# Evaluation


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("has_ties", [False, True])
def test_all_as_candidates_are_the_exhaustive_ranking(has_ties, backend):
    """With embeddings that have nothing to do with the scores of the whole model, and images and captions twice."""
    if backend == "faiss":
        pytest.importorskip("faiss")
    captions_of = [1, 2, 3, 1, 2, 3, 2]
    table = torch.randn(7, 14, generator=torch.Generator().manual_seed(1))
    table = table.round() if has_ties else table
    table[3], table[:, 9] = table[2], table[:, 4]
    model = Embedder(make_embeddings(7), make_embeddings(14, seed=3, copies=2), lambda i, t: table[i, t])
    task, dataset = make_gallery(captions_of, pairs_per_batch=8)
    expected = task.evaluate(model, dataset, make_loop(task, 3))
    task, dataset = make_gallery(captions_of, pairs_per_batch=8, candidates=14, candidate_search=backend)
    actual = task.evaluate(model, dataset, make_loop(task, 3))
    assert actual.pop("image_recall@14") == actual.pop("text_recall@14") == 1
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-6), name
    assert model.largest <= 8


@pytest.mark.parametrize("count", [1, 3, 6])
def test_candidates_come_first_and_the_others_in_the_order_of_similarity(count):
    captions_of, rng = [2] * 9, np.random.default_rng(0)
    images, texts = make_embeddings(9), make_embeddings(18, seed=3, copies=2)
    table = torch.from_numpy(rng.standard_normal((9, 18)).astype(np.float32))
    task, dataset = make_gallery(captions_of, candidates=count)
    owners = list_captions(dataset.rows)[1]
    model = Embedder(images, texts, lambda i, t: table[i, t])
    metrics = task.evaluate(model, dataset, make_loop(task, 4))
    similar = images @ texts.T

    def rank(similar, scores, is_own):
        order = np.argsort(-similar, kind="stable")
        first = np.sort(order[:count])
        first = first[np.argsort(-scores[first], kind="stable")]
        return 1 + int(is_own[[*first, *order[count:]]].argmax())

    ranks = {
        "text": [rank(similar[i], table[i].numpy(), owners == i) for i in range(9)],
        "image": [rank(similar[:, c], table[:, c].numpy(), np.arange(9) == owners[c]) for c in range(18)],
    }
    for direction, of_direction in ranks.items():
        found = RetrievalRecall(keep_in_memory=True).compute(predictions=of_direction, k=(1, 5, 10, count))
        for name, value in found.items():
            assert metrics[f"{direction}_{name}"] == pytest.approx(value), f"{direction}_{name}"
    assert model.pairs <= 9 * count + 18 * count + 18


def test_a_large_gallery_in_bounded_memory():
    """
    Of 5,000 images and captions the whole model compares a thousandth. Here it is their inner product, of which the
    embeddings know half of the numbers.
    """
    count, items = 10, 5000
    texts = make_embeddings(items, width=32)
    images = make_embeddings(items, width=32, noise=0.3)
    whole_images, whole_texts = torch.from_numpy(images), torch.from_numpy(texts)
    model = Embedder(images[:, :16], texts[:, :16], lambda i, t: (whole_images[i] * whole_texts[t]).sum(1))
    task, dataset = make_gallery([1] * items, candidates=count, pairs_per_batch=64)
    tracemalloc.start()
    metrics = task.evaluate(model, dataset, make_loop(task, 256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.pairs <= (2 * count + 1) * items and model.largest <= 64
    assert peak < 64 * 2**20, "a table of all scores has 100 MB"
    by_embeddings = RetrievalRecall(keep_in_memory=True).compute(
        predictions=rank_by_similarity(images[:, :16], texts[:, :16], np.arange(items), np.arange(items) + 1)
    )
    assert metrics["text_recall@10"] == pytest.approx(by_embeddings["recall@10"])
    assert metrics["text_recall@1"] > by_embeddings["recall@1"] + 0.02, "the whole model knows better"


def test_a_diverged_model_is_refused():
    embeddings = make_embeddings(4)
    task, dataset = make_gallery([1] * 4, candidates=2)
    for model, message in (
        (
            Embedder(np.full_like(embeddings, np.nan), embeddings, None),
            "Embeddings are not finite; the model has diverged",
        ),
        (
            Embedder(embeddings, embeddings, lambda i, t: torch.full(i.shape, torch.nan)),
            "scores are NaN; the model has diverged",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            task.evaluate(model, dataset, make_loop(task, 2))


def test_bad_keys():
    for keys, message in (
        ({"candidates": 0}, "candidates is 0; it must be at least 1"),
        ({"candidate_search": "annoy"}, "candidate_search is 'annoy'; it must be one of torch, faiss"),
    ):
        with pytest.raises(ValueError, match=message):
            TASK.arguments(dataset_name="data", **keys)
    task = TASK(
        TASK.arguments(dataset_name="data", candidates=3),
        METER_RETRIEVAL.processor(),
        MeterWithLLMBlockConfig(**METER_RETRIEVAL.fields),
    )
    with pytest.raises(ValueError, match=r"candidates is 3, but the model has no embeddings.*contrastive_loss_weight"):
        task.check_evaluation(range(4))


# Runs


def test_from_training_to_search(tmp_path):
    file = write_karpathy(tmp_path, {"train": 8, "test": 4})
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        "task: image-text-retrieval\nmodel_type: meter_with_llm_block\nlearning_rate: 1e-3\nmax_steps: 2\n"
        "num_false_texts: 2\nsave_strategy: 'no'\neval_strategy: steps\neval_steps: 2\ncandidates: 2\n"
    )
    flags = ["--dataset_name", file, "--eval_split", "test", "--host.contrastive_loss_weight", "0.5"]
    main(["train", str(recipe), *TINY_METER, *flags, "--output_dir", str(folder)])
    images = tmp_path / "images"
    (images / "broken.png").write_bytes(b"no image")
    found = predict(
        str(folder),
        str(images),
        ["--texts", "a red picture", "--candidates", "2", "--use_cpu"],
        plot=tmp_path / "found.png",
    )
    assert Image.open(tmp_path / "found.png").width == 750, "two images side by side"
    scores = [record["predictions"][0]["score"] for record in found.records]
    assert len(found.records) == 2 and scores == sorted(scores, reverse=True) and len(found.failures) == 1
    everything = predict(str(folder), str(images), ["--texts", "a red picture", "--candidates", "99", "--use_cpu"])
    exhaustive = predict(str(folder), str(images), ["--texts", "a red picture", "--candidates", "null", "--use_cpu"])
    assert [r["file"] for r in everything.records] == [r["file"] for r in exhaustive.records]

    (tmp_path / "texts.txt").write_text("a red picture\n\n0 is blue\nsnow\n")
    texts = ["--texts", str(tmp_path / "texts.txt"), "--use_cpu"]
    few = predict(str(folder), str(images), [*texts, "--candidates", "2"])
    every = predict(str(folder), str(images), [*texts, "--candidates", "null"])
    assert len(few.records) == len(every.records) and len(few.failures) == len(every.failures) == 1
    for record, complete in zip(few.records, every.records):
        assert len(record["predictions"]) == 2 and len(complete["predictions"]) == 3
        scores = {answer["label"]: answer["score"] for answer in complete["predictions"]}
        assert all(answer["score"] == pytest.approx(scores[answer["label"]]) for answer in record["predictions"])
