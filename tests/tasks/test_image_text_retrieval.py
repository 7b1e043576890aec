# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Retrieval: readers, pairs and losses, galleries, and runs from training to search."""

import json

import datasets
import numpy as np
import pytest
import torch
from meter_cases import METER_RETRIEVAL
from tiny_runs import TINY_METER, write_color_images, write_karpathy, write_llama, write_table
from torch.nn import functional as F
from transformers import TrainingArguments
from transformers.utils import ModelOutput

from hf_frozen_llm import MeterWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.image_text_retrieval.pairs import RetrievalLoss


TASK = TASKS["image-text-retrieval"]
WORDS = ("cat", "dot", "rat", "a tree", "sea")


def read(dataset, split="train", with_targets=True, **keys):
    return TASK.read(TASK.arguments(dataset_name=str(dataset), **keys), split, with_targets)


def make_task(**keys):
    return TASK(
        TASK.arguments(dataset_name="data", **keys),
        METER_RETRIEVAL.processor(),
        MeterWithLLMBlockConfig(**METER_RETRIEVAL.fields),
    )


@pytest.fixture
def rows(tmp_path):
    """Seven images; the second has three captions, the others have one or two."""
    images = write_color_images(tmp_path, copies=2)[:7]
    captions = [
        [f"{WORDS[(number + k) % 5]} {'a ' * number}{k}" for k in range(1 + number % 3)] for number in range(7)
    ]
    rows = [{"image": file, "captions": texts} for (file, _), texts in zip(images, captions)]
    write_table(tmp_path / "train.jsonl", rows)
    return read(tmp_path)


# Readers: one schema


def test_rows_of_one_image_are_merged(tmp_path, caplog):
    images = write_color_images(tmp_path)
    pairs = [{"image": file, "caption": text} for text in ("a cat", "a dog", "a cat") for file, _ in images[:2]]
    write_table(tmp_path / "train.csv", pairs)
    rows = read(tmp_path)
    assert rows["captions"][:] == [["a cat", "a dog"]] * 2
    assert "2 captions belong to several images, the first is 'a cat'" in caplog.text
    assert len(read(tmp_path, with_targets=False)) == 6
    # The same bytes, in a column of images
    write_table(tmp_path / "lists.jsonl", [{"image": images[0][0], "captions": [str(n)]} for n in range(3)])
    (tmp_path / "parquet").mkdir()
    encoded = [{"bytes": (tmp_path / images[n][0]).read_bytes(), "path": None} for n in (0, 1, 0)]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_dict({"image": encoded, "captions": [["x"], ["y"], ["z"]]}, features).to_parquet(
        tmp_path / "parquet" / "train-00000-of-00001.parquet"
    )
    assert read(tmp_path / "parquet")["captions"][:] == [["x", "z"], ["y"]]
    assert "1 rows have an image of an earlier row; their captions are merged" in caplog.text


def test_karpathy_splits(tmp_path):
    file = write_karpathy(tmp_path, {"train": 6, "restval": 2, "test": 4})
    rows = read(file, "train+restval")
    assert len(rows) == 6 and rows[0]["captions"] == ["a red picture 0", "0 is red"]  # two images are in both
    assert rows[0]["image"]["path"] == str(tmp_path / "images" / "red0.png")
    with pytest.raises(ValueError, match=r"Unknown split 'val'\. The file has restval, test, train"):
        read(file, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": []}, "row 1: the image has no caption, or an empty one"),
        ({"captions": ["a", " "]}, "row 1: the image has no caption, or an empty one"),
        ({"captions": 3}, "row 1: the captions are no list: 3 is no list of texts"),
        ({"image": "no.png"}, "1 of 4 images do not exist"),
    ],
)
def test_bad_rows(change, message, tmp_path):
    rows = [{"image": file, "captions": [color]} for file, color in write_color_images(tmp_path)]
    rows[1] |= change
    write_table(tmp_path / "train.jsonl", rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path)


def test_empty_captions_of_a_column(tmp_path):
    rows = [{"image": file, "caption": ""} for file, _ in write_color_images(tmp_path)]
    rows[0]["caption"] = "a cat"
    write_table(tmp_path / "train.csv", rows)
    with pytest.raises(ValueError, match=r"row 1: the caption is empty \(3 of 4 are\)\. Remove these rows"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore:.*texts have more than max_length")
def test_unreadable_images_name_their_row(rows, tmp_path):
    (tmp_path / "green0.png").write_text("no image")
    task = make_task(num_false_texts=1)
    for training in (True, False):
        dataset = task.dataset(rows, "train", training=training)
        with pytest.raises(ValueError, match=r"data \[train\], row 2 \(.*\.png\): the image cannot be decoded"):
            [dataset[number] for number in range(len(dataset))]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"captions_column": "texts"}, "has neither a column 'texts' nor 'caption'"),
        ({"num_false_texts": 0}, "num_false_texts is 0; it must be at least 1"),
        ({"texts": ["a", ""]}, "give at least one text, and none that is empty"),
        ({"texts": []}, "give at least one text"),
    ],
)
def test_bad_keys(keys, message, rows, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **keys)


# Training


def test_false_texts_are_captions_of_other_images(rows):
    task = make_task(num_false_texts=40)
    dataset = task.dataset(rows, "train", training=True, seed=3)
    captions = [text for texts in rows["captions"] for text in texts]
    assert len(dataset) == len(captions)
    transform, drawn = dataset.transform, set()
    for number in range(len(dataset)):
        pair = dataset.rows[number]
        own, *false = transform.draw(pair, (0, number))
        assert own == number and captions[own] in rows[pair["image"]]["captions"]
        assert not {captions[n] for n in false} & set(rows[pair["image"]]["captions"])
        assert [own, *false] == transform.draw(pair, (0, number)) != transform.draw(pair, (1, number))
        drawn |= set(false)
    assert drawn == set(range(len(captions)))
    with pytest.raises(ValueError, match="has 1 image; false texts are captions of other images"):
        task.dataset(rows.select([0]), "train", training=True)


@pytest.mark.filterwarnings("ignore:.*texts have more than max_length")
@pytest.mark.parametrize("hard", [False, True])
def test_loss_is_meters(hard, rows):
    """The ranking loss of all groups, and the matching loss of one pair of each: half of them are matches."""
    task = make_task(num_false_texts=3, hard_negatives=hard)
    batch = task.collate(task.dataset(rows, "train", training=True).__getitems__([0, 4, 5, 8, 9]))
    assert batch["pixel_values"].shape[0] == 5 and batch["input_ids"].shape[0] == 20
    assert (batch["labels"] != -100).sum() == 5 and batch["labels"][:, 0].tolist() == [1] * 5
    labels = task.augment(batch, np.random.default_rng(0))["labels"]
    assert (labels == 1).sum() == 2 and (labels == 0).sum() == 3 and (labels != -100).sum() == 5
    assert batch["labels"][:, 0].tolist() == [1] * 5
    model = METER_RETRIEVAL.model_class(task.config).eval()
    labels_of_batch = batch.pop("labels")
    assert labels_of_batch.shape == labels.shape
    with torch.no_grad():
        outputs = model(**batch)
    loss = task.loss(TrainingArguments("x"))(outputs, labels)
    scores, logits = outputs.scores.view(5, 4), outputs.match_logits.view(5, 4, 2)
    chosen = [(i, 0 if labels[i, 0] == 1 else 1 + int(scores[i, 1:].argmax()) if hard else 1) for i in range(5)]
    pairs = torch.stack([logits[i, k] for i, k in chosen])
    match = F.cross_entropy(pairs, torch.tensor([int(k == 0) for _, k in chosen]))
    assert loss.item() == pytest.approx((match + F.cross_entropy(scores, torch.zeros(5).long())).item(), rel=1e-5)
    similarities = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    more = RetrievalLoss(hard, 0.5)({**outputs, "logits_per_image": similarities}, labels) - loss
    own = torch.arange(5)
    contrastive = F.cross_entropy(similarities, 4 * own) + F.cross_entropy(similarities[:, ::4].T, own)
    assert more.item() == pytest.approx(0.25 * contrastive.item(), rel=1e-4)
    halves = RetrievalLoss(hard)(outputs, labels, num_items_in_batch=torch.tensor(10))
    assert halves.item() == pytest.approx(loss.item() / 2, rel=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1"):
        task.loss(TrainingArguments("x", label_smoothing_factor=0.1))


# Galleries


class Scorer:
    """A model with given scores of the images, by their first pixel, and the texts, by their second token."""

    def __init__(self, table):
        self.table, self.largest = table, 0

    def __call__(self, pixel_values, input_ids, attention_mask):
        self.largest = max(self.largest, len(input_ids))
        images = pixel_values[:, 0, 0, 0].long().repeat_interleave(len(input_ids) // len(pixel_values))
        return ModelOutput(scores=self.table[images, input_ids[:, 1]])


def rank_all(table, owners):
    """Ranks by a table of all scores: of images for each caption, and of captions for each image."""
    images = [
        1 + int(np.flatnonzero(np.argsort(-table[:, j], kind="stable") == owners[j])[0]) for j in range(len(owners))
    ]
    texts = [1 + int(np.flatnonzero(owners[np.argsort(-table[i], kind="stable")] == i)[0]) for i in range(len(table))]
    return images, texts


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("has_ties", [False, True])
def test_ranks_are_those_of_the_table_of_all_scores(batch_size, has_ties, rows, monkeypatch):
    task = make_task(pairs_per_batch=8)
    captions = rows["captions"][:]
    owners = np.repeat(np.arange(7), [len(texts) for texts in captions])
    table = torch.randn(7, len(owners), generator=torch.Generator().manual_seed(1))
    table = table.round() if has_ties else table
    model = Scorer(table)
    dataset = task.dataset(rows, "train")

    def encode(texts):
        flat = [text for of_image in captions for text in of_image]
        return [torch.tensor([0, flat.index(text), 2][: 2 + n % 2]) for n, text in enumerate(texts)]

    monkeypatch.setattr(dataset.transform, "encode_texts", encode)
    monkeypatch.setattr(
        dataset.transform, "encode_images", lambda rows, numbers: torch.tensor(numbers)[:, None, None, None]
    )

    def loop(predict, data):
        starts = range(0, len(data), batch_size)
        examples = ([data[n] for n in range(start, min(start + batch_size, len(data)))] for start in starts)
        return [record for part in examples for record in predict(task.collate(part))]

    metrics = task.evaluate(model, dataset, loop)
    images, texts = rank_all(table.numpy(), owners)
    for name, ranks in (("image", images), ("text", texts)):
        for k in (1, 5, 10):
            assert metrics[f"{name}_recall@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert metrics[f"{name}_median_rank"] == np.median(ranks)
    assert metrics["recall@1"] == pytest.approx((metrics["image_recall@1"] + metrics["text_recall@1"]) / 2)
    assert model.largest <= max(8, batch_size)
    losses = []
    for i in range(7):
        others = table[i][owners != i]
        losses.append(np.mean([(torch.cat([s[None], others]).logsumexp(0) - s).item() for s in table[i][owners == i]]))
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_diverged_model_is_refused(rows, monkeypatch):
    task = make_task()
    dataset = task.dataset(rows, "train")
    monkeypatch.setattr(dataset.transform, "encode_texts", lambda texts: [torch.tensor([0, 0, 2])] * len(texts))
    with pytest.raises(ValueError, match="scores are NaN; the model has diverged"):
        task.evaluate(
            Scorer(torch.full((300, 9), torch.nan)),
            dataset,
            lambda predict, data: predict(
                {**task.collate([data[n] for n in range(7)]), "pixel_values": torch.zeros(7, 3, 8, 8)}
            ),
        )


def test_galleries_of_a_size():
    task, rows = make_task(gallery_size=2), range(7)
    with pytest.raises(ValueError, match="gallery_size is 2, which does not divide the 7 images"):
        task.check_evaluation(rows)
    task.check_evaluation(range(6))
    assert task.args.evaluation_changes() == {"gallery_size": 2} and make_task().args.evaluation_changes() == {}


# Runs


def test_from_training_to_search(tmp_path):
    file = write_karpathy(tmp_path, {"train": 8, "test": 4})
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        "task: image-text-retrieval\nmodel_type: meter_with_llm_block\nlearning_rate: 1e-3\nmax_steps: 2\n"
        "num_false_texts: 2\nsave_strategy: 'no'\neval_strategy: steps\neval_steps: 2\n"
        "metric_for_best_model: recall@1\n"
    )
    block = ["--llm_block.llm_name_or_path", write_llama(tmp_path / "llm"), "--llm_block.layer_index", "-1"]
    data = ["--dataset_name", file, "--eval_split", "test", "--gradient_accumulation_steps", "2"]
    main(["train", str(recipe), *TINY_METER, *data, *block, "--output_dir", str(folder)])
    results = json.loads((folder / "results.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MeterWithLLMBlockForImageTextRetrieval"]
    assert results["training_set"]["num_rows"] == 16 and 0 <= results["metrics"]["eval_recall@1"] <= 1

    main(["evaluate", str(folder), "--use_cpu", "--gallery_size", "2"])
    again = json.loads((folder / "eval_results_2.json").read_text())
    assert again["dataset"]["gallery_size"] == 2 and again["metrics"]["eval_text_recall@5"] == 1

    images = str(tmp_path / "images" / "*0.png")
    found = predict(str(folder), images, ["--texts", "a red picture", "--use_cpu"]).records
    scores = [record["predictions"][0]["score"] for record in found]
    assert len(found) == 4 and scores == sorted(scores, reverse=True)
    several = predict(str(folder), images, ["--texts", "[a red picture, 0 is blue]", "--use_cpu"]).records
    assert [record["file"] for record in several] == sorted(record["file"] for record in several)
    assert {p["label"] for p in several[0]["predictions"]} == {"a red picture", "0 is blue"}
    scores = [p["score"] for p in several[0]["predictions"]]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(ValueError, match="texts is not set; say what to look for"):
        predict(str(folder), images, ["--use_cpu"])
    with pytest.raises(ValueError, match="only `predict` uses them"):
        main(["train", str(recipe), "--dataset_name", file, "--texts", "a", "--output_dir", str(tmp_path / "no")])
