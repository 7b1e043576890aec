# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Metrics, class weights and confusion matrices of data with one label for each row."""

import csv
import json
from dataclasses import replace

import datasets
import hand_metrics
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import CLASSES, TINY, TINY_POINT_BERT, TINY_VIDEOMAE, make_images, write_npz, write_video_folder
from torch.nn import functional as F
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_frozen_llm import ViTWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.check import check
from hf_frozen_llm.metrics import classification
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.tasks.classification import ClassificationLoss
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


ALL = "[accuracy, balanced_accuracy, precision, recall, f1, auc]"
SHORT = ["--max_steps", "6", "--eval_strategy", "no", "--save_strategy", "no"]


def read(file):
    return json.loads(file.read_text(), parse_constant=pytest.fail)


def write_rows(folder, labels, names, test_labels=None):
    """Write images as parquet; their classes need not have the same number of rows."""
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for seed, (split, values) in enumerate((("train", labels), ("test", test_labels or labels))):
        images = make_images(len(values), seed)[0]
        rows = datasets.Dataset.from_dict({"image": images, "label": values}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def measured_run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "run"
    main(["train", str(recipe), *TINY, *SHORT, "--metrics", ALL, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def answers(measured_run, data):
    """The true labels, and the probabilities by the saved model outside this package's evaluation."""
    model = AutoModelForImageClassification.from_pretrained(measured_run).eval()
    processor = AutoImageProcessor.from_pretrained(measured_run, backend="pil")
    rows = datasets.load_dataset(data, split="test")
    with torch.no_grad():
        logits = model(**processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")).logits
    return np.array(rows["label"][:]), logits.double().softmax(-1).numpy()


def test_values_are_those_of_the_definitions(measured_run, answers):
    labels, scores = answers
    guesses = scores.argmax(1)
    metrics = read(measured_run / "results.json")["metrics"]
    in_use = sorted({*labels.tolist(), *guesses.tolist()})
    pairs = [(labels == index, guesses == index) for index in in_use]
    expected = {
        "accuracy": (labels == guesses).mean(),
        "balanced_accuracy": np.mean([hand_metrics.recall(*pair) for pair in pairs if pair[0].any()]),
        "precision": np.mean([hand_metrics.precision(*pair) for pair in pairs]),
        "recall": np.mean([hand_metrics.recall(*pair) for pair in pairs]),
        "f1": np.mean([hand_metrics.f1(*pair) for pair in pairs]),
        "auc": np.mean([hand_metrics.auc(labels == index, scores[:, index]) for index in range(len(CLASSES))]),
    }
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    assert metrics["eval_accuracy"] == metrics["eval_top1"] and "eval_top5" in metrics


def test_table_of_the_classes(measured_run, answers):
    labels, scores = answers
    guesses = scores.argmax(1)
    table = read(measured_run / "results.json")["classes"]
    assert [row["label"] for row in table] == CLASSES
    for index, row in enumerate(table):
        truth, guess = labels == index, guesses == index
        assert row["rows"] == truth.sum()
        assert row["recall"] == pytest.approx(hand_metrics.recall(truth, guess))
        expected = pytest.approx(hand_metrics.precision(truth, guess)) if guess.any() else None
        assert row["precision"] == expected, "null where no row is predicted so"
        assert row["f1"] == pytest.approx(hand_metrics.f1(truth, guess))


def test_confusion_matrix(measured_run, answers):
    labels, scores = answers
    with open(measured_run / "confusion_matrix.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["true \\ predicted", *CLASSES] and [row[0] for row in rows] == CLASSES
    counts = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(counts, (labels, scores.argmax(1)), 1)
    assert np.array_equal(np.array([row[1:] for row in rows], int), counts)
    assert Image.open(measured_run / "confusion_matrix.png").size[0] > 300


def test_default_metrics_are_unchanged(measured_run, recipe, tmp_path):
    """Digit for digit, beside other metrics or alone; and no table or file comes with them."""
    main(["train", str(recipe), *TINY, *SHORT, "--output_dir", str(tmp_path)])
    plain, measured = (read(folder / "results.json") for folder in (tmp_path, measured_run))
    names = {name for name in plain["metrics"] if name.startswith("eval_") and "_per_" not in name} - {"eval_runtime"}
    assert names == {"eval_loss", "eval_top1", "eval_top5"}
    assert all(plain["metrics"][name] == measured["metrics"][name] for name in names)
    assert "classes" not in plain and not list(tmp_path.glob("confusion*"))


def test_evaluate_takes_metrics(measured_run, tmp_path):
    """By default those of the training; its tables and figures lie beside its results, and are kept with them."""
    trained = read(measured_run / "results.json")
    main(["evaluate", str(measured_run)])
    evaluated = read(measured_run / "eval_results.json")
    assert evaluated["classes"] == trained["classes"] and evaluated["settings"]["metrics"] == ALL[1:-1].split(", ")
    for name in ALL[1:-1].split(", "):
        assert evaluated["metrics"][f"eval_{name}"] == trained["metrics"][f"eval_{name}"]
    matrix = (measured_run / "eval_results_confusion_matrix.csv").read_text()
    assert matrix == (measured_run / "confusion_matrix.csv").read_text()
    main(["evaluate", str(measured_run), "--metrics", "[f1]", "--split", "train"])
    assert "eval_auc" not in read(measured_run / "eval_results.json")["metrics"]
    assert (measured_run / "eval_results_1_confusion_matrix.csv").read_text() == matrix
    assert (measured_run / "eval_results_1_confusion_matrix.png").is_file()
    assert (measured_run / "eval_results_confusion_matrix.csv").read_text() != matrix
    output = tmp_path / "predictions.jsonl"
    main(["predict", str(measured_run), "--split", "test", "--use_cpu", "true", "--output", str(output)])
    assert len(output.read_text().splitlines()) == 30


def test_two_classes_and_their_auc(recipe, tmp_path):
    """The area is that of the second class; the default metrics have no top 5."""
    data = write_rows(tmp_path / "data", [0, 1, 1] * 8, ["no", "yes"])
    flags = ["--dataset_name", data, "--metrics", "[auc, f1]", *SHORT]
    main(["train", str(recipe), *TINY, *flags, "--output_dir", str(tmp_path / "run")])
    metrics = read(tmp_path / "run" / "results.json")["metrics"]
    assert "eval_top5" not in metrics and "eval_top1" in metrics
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run", backend="pil")
    rows = datasets.load_dataset(data, split="test")
    with torch.no_grad():
        logits = model(**processor(rows["image"][:], return_tensors="pt")).logits
    truth = np.array(rows["label"][:]) == 1
    assert metrics["eval_auc"] == pytest.approx(hand_metrics.auc(truth, (logits[:, 1] - logits[:, 0]).numpy()))


@pytest.mark.parametrize("metric", ["f1", "eval_auc"])
def test_the_best_model_by_a_metric(recipe, tmp_path, metric):
    flags = ["--metrics", "[f1, auc]", "--load_best_model_at_end", "true", "--metric_for_best_model", metric]
    flags += ["--save_strategy", "epoch", "--output_dir", str(tmp_path)]
    main(["train", str(recipe), *TINY, *flags])
    results, key = read(tmp_path / "results.json"), f"eval_{metric.removeprefix('eval_')}"
    scores = [row[key] for row in results["log_history"] if key in row]
    assert len(scores) == 4 and results["metrics"][key] == max(scores[:3])
    assert all(not isinstance(value, (list, dict)) for row in results["log_history"] for value in row.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--metrics", "[f1, acuracy]"],
            r"'acuracy', which there is not; the nearest is 'accuracy'\. The metrics are",
        ),
        (["--metrics", "[map]"], r"'map', which is for data with several labels for a row \(multi_label_class"),
        (["--metrics", "[f1, f1]"], "metrics holds a name twice"),
        (
            ["--metrics", "[auc]", "--max_eval_samples", "3"],
            r"'auc', which needs rows of every class; the 3 rows that are evaluated do not give it for .*max_eval_sam",
        ),
        (
            ["--metric_for_best_model", "f1"],
            r"metric_for_best_model is 'f1', which is not computed\. Add 'f1' to metr",
        ),
        (
            ["--metric_for_best_model", "eval_top3"],
            r"'top3', which is not computed\. It must be one of loss, top1, top5",
        ),
        (["--class_weights", "[1, 2]"], "class_weights holds 2 numbers, but there are 6 classes"),
        (["--class_weights", "{ant: 2, wolf: 3}"], "class_weights names wolf, which is none of the classes: ant, bee"),
        (
            ["--class_weights", "[1, 2, -1, 1, 1, 1]"],
            r"class_weights holds -1\.0; a weight must be finite, and not neg",
        ),
        (["--class_weights", "{ant: .nan}"], "class_weights holds nan; a weight must be finite"),
        (["--class_weights", "{ant: .inf}"], "class_weights holds inf; a weight must be finite"),
        (["--class_weights", "even"], "`class_weights` must be 'balanced' or list.* or dict.* or null, got 'even'"),
        (
            ["--class_weights", "balanced", "--streaming", "true", "--max_steps", "2"],
            "rows of a stream cannot be coun",
        ),
        (
            ["--class_weights", "balanced", "--max_train_samples", "4"],
            "class_weights is 'balanced', but .* has no rows",
        ),
    ],
)
def test_mistakes_are_refused_before_training(recipe, tmp_path, flags, message):
    flags = [*TINY, "--output_dir", str(tmp_path), *flags]
    with pytest.raises(ValueError, match=message):
        build_run(read_recipe(recipe, flags))
    assert not list(tmp_path.iterdir())


def test_auc_of_one_class_is_refused_by_evaluate(measured_run):
    with pytest.raises(ValueError, match="'auc', which needs rows of every class; the 2 rows that are evaluated"):
        main(["evaluate", str(measured_run), "--max_eval_samples", "2"])


def test_scikit_learn_is_asked_for(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(classification.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need scikit-learn: pip install 'hf_frozen_llm\[metrics\]'"):
        main(["train", str(recipe), *TINY, "--metrics", "[f1]", "--output_dir", str(tmp_path)])


def test_check_does_not_need_all_classes_in_its_batch(recipe, tmp_path):
    flags = [*TINY, "--metrics", "[auc]", "--per_device_eval_batch_size", "2", "--output_dir", str(tmp_path)]
    assert check(str(recipe), flags, check_rows=2).errors == [], "nor in the rows that it reads"
    report = check(str(recipe), [*flags, "--metrics", "[auc]", "--max_eval_samples", "2"])
    assert any("'auc', which needs rows of every class" in error for error in report.errors)


# Class weights


def test_balanced_weights_are_those_of_scikit_learn(recipe, tmp_path):
    labels = [0] * 12 + [1] * 3 + [2] * 9
    data = write_rows(tmp_path / "data", labels, ["ant", "bee", "cat"])
    flags = [*TINY, "--dataset_name", data, "--class_weights", "balanced", "--output_dir", str(tmp_path / "run")]
    task = build_run(read_recipe(recipe, flags)).task
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    torch.testing.assert_close(task.class_weights, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("given", "weights"),
    [({"bee": 3.0}, [1.0, 3.0, 1.0]), ([2.0, 0.0, 1.0], [2.0, 0.0, 1.0])],
)
def test_given_weights(given, weights):
    config = ViTWithLLMBlockConfig(id2label={0: "ant", 1: "bee", 2: "cat"}, label2id={"ant": 0, "bee": 1, "cat": 2})
    args = ImageDataArguments("x", class_weights=given)
    task = find_task("vit_with_llm_block")(args, None, config)
    assert task.find_class_weights(None, "train") == weights


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_loss(smoothing):
    """A sum over the examples, each with the weight of its labels' shares, divided by their number."""
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([1.0, 4.0, 0.5])
    loss = ClassificationLoss(smoothing, weights)
    shares = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
    by_hand = -(weights * shares * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(loss({"logits": logits}, labels), by_hand / 5)
    torch.testing.assert_close(loss({"logits": logits}, labels, num_items_in_batch=10), by_hand / 10)
    mixed = torch.rand(5, 3).softmax(-1)
    by_hand = -(weights * ((1 - smoothing) * mixed + smoothing / 3) * logits.log_softmax(-1)).sum() / 5
    torch.testing.assert_close(loss({"logits": logits}, mixed), by_hand)


def test_weights_change_training_alone(recipe, tmp_path):
    """The first logged losses differ by the weights; the loss of the evaluation has none."""
    flags = [*TINY, *SHORT, "--learning_rate", "0", "--logging_steps", "1", "--label_smoothing_factor", "0"]
    flags += ["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "null"]
    losses, evaluated = [], []
    for name, weights in (("plain", "null"), ("twice", "[2, 2, 2, 2, 2, 2]")):
        main(["train", str(recipe), *flags, "--class_weights", weights, "--output_dir", str(tmp_path / name)])
        results = read(tmp_path / name / "results.json")
        losses.append([row["loss"] for row in results["log_history"] if "loss" in row])
        evaluated.append(results["metrics"]["eval_loss"])
    assert np.array(losses[1]) == pytest.approx(2 * np.array(losses[0]), rel=1e-4)
    assert evaluated[0] == evaluated[1]


# Other tasks


@pytest.mark.parametrize(
    ("task", "write", "own_flags"),
    [
        ("video", write_video_folder, [*TINY_VIDEOMAE, "--num_segments", "2"]),
        ("point_cloud", write_npz, [*TINY_POINT_BERT, "--num_votes", "3"]),
    ],
)
def test_views_and_votes(task, write, own_flags, llm, tmp_path):
    data = write(tmp_path / "data.npz", {"train": 24, "test": 12})
    flags = ["--dataset_name", data, "--llm_block.llm_name_or_path", llm, *own_flags]
    flags += ["--metrics", "[f1, auc]", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    main(["train", f"{task}_classification/tiny.yaml", *flags, "--output_dir", str(tmp_path / "run")])
    results = read(tmp_path / "run" / "results.json")
    assert 0 <= results["metrics"]["eval_auc"] <= 1 and len(results["classes"]) == 6


def test_perfect_and_worst_scores():
    """By hand: the order of the scores alone counts for the area; sure answers do not become ties."""
    config = ViTWithLLMBlockConfig(num_labels=2)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x", metrics=["auc", "f1"]), None, config)
    logits = torch.tensor([[0.0, 18.0], [0.0, 20.0], [0.0, 19.0], [0.0, -3.0]])
    batch = {"row": torch.arange(4), "pixel_values": logits, "labels": torch.tensor([0, 1, 1, 0])}
    metrics = task.metrics(task.predict(lambda pixel_values: {"logits": pixel_values}, batch), None)
    assert metrics["auc"] == 1.0 and metrics["top1"] == 0.75
    assert metrics["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    task.args = replace(task.args, metrics=None)
    assert set(task.metrics(task.predict(lambda pixel_values: {"logits": pixel_values}, batch), None)) == {
        "loss",
        "top1",
    }
