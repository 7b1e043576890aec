# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Multi-label problems: any number of labels for each row."""

import csv
import json
import os
import shutil
import subprocess
import sys

import datasets
import hand_metrics
import numpy as np
import pytest
import torch
from tiny_runs import TINY, TINY_POINT_BERT, TINY_VIDEOMAE, make_clouds, make_frames, make_images, write_video
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_frozen_llm import VideoMAEWithLLMBlockConfig, ViTWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.check import check
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.data.augmentation import mix
from hf_frozen_llm.tasks import TASKS, find_task
from hf_frozen_llm.tasks.classification import ClassificationLoss, find_class_names, read_labels
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.tasks.point_cloud_classification.data import to_label_lists
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


NAMES = ["dog", "grass", "indoors"]
MULTI_LABEL = "multi_label_classification"
ALL = ["f1", "f1_micro", "precision", "recall", "exact_match", "map", "auc"]
SHORT = ["--max_steps", "6", "--eval_strategy", "no", "--save_strategy", "no"]
PROBLEM = ["--problem_type", MULTI_LABEL, "--label_smoothing_factor", "0"]


def draw_labels(count, seed=0):
    """Return lists of labels; some are empty."""
    vectors = np.random.default_rng(seed).random((count, len(NAMES))) < [0.5, 0.4, 0.3]
    return [np.flatnonzero(vector).tolist() for vector in vectors]


def with_names(lists):
    return [[NAMES[index] for index in labels] for labels in lists]


FORMS = {
    "classes": (datasets.List(datasets.ClassLabel(names=NAMES)), lambda lists: lists),
    "names": (datasets.List(datasets.Value("string")), with_names),
    "ids": (datasets.List(datasets.Value("int64")), lambda lists: lists),
    "texts": (datasets.Value("string"), lambda lists: ["|".join(names) or "[]" for names in with_names(lists)]),
    "json": (datasets.Value("string"), lambda lists: [json.dumps(names) for names in with_names(lists)]),
}


def write_rows(folder, form="classes", sizes=(60, 30)):
    feature, change = FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    for seed, (split, count) in enumerate(zip(("train", "test"), sizes)):
        columns = {"image": make_images(count, seed)[0], "label": change(draw_labels(count, seed))}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def read(file):
    return json.loads(file.read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def multi_label_run(recipe, labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi_label") / "run"
    flags = ["--dataset_name", labelled, *PROBLEM, "--metrics", f"[{', '.join(ALL)}]", "--max_steps", "20"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "5", "--load_best_model_at_end", "true"]
    flags += ["--metric_for_best_model", "map", "--output_dir", str(folder)]
    main(["train", str(recipe), *TINY, *flags])
    return folder


@pytest.fixture(scope="module")
def answers(multi_label_run, labelled):
    """True labels as zeros and ones, and the logits of the saved model outside this package's evaluation."""
    model = AutoModelForImageClassification.from_pretrained(multi_label_run).eval()
    processor = AutoImageProcessor.from_pretrained(multi_label_run, backend="pil")
    rows = datasets.load_dataset(labelled, split="test")
    with torch.no_grad():
        logits = model(**processor(rows["image"][:], return_tensors="pt")).logits
    return np.array([[index in labels for index in range(len(NAMES))] for labels in rows["label"]]), logits


def test_values_are_those_of_the_definitions(multi_label_run, answers):
    truth, logits = answers
    scores = logits.sigmoid().numpy()
    guess = scores >= 0.5
    metrics = read(multi_label_run / "results.json")["metrics"]
    columns = range(len(NAMES))
    expected = {
        "loss": F.binary_cross_entropy_with_logits(logits, torch.tensor(truth).float()).item(),
        "f1": np.mean([hand_metrics.f1(truth[:, i], guess[:, i]) for i in columns]),
        "f1_micro": hand_metrics.f1(truth.ravel(), guess.ravel()),
        "precision": np.mean([hand_metrics.precision(truth[:, i], guess[:, i]) for i in columns]),
        "recall": np.mean([hand_metrics.recall(truth[:, i], guess[:, i]) for i in columns]),
        "exact_match": (truth == guess).all(1).mean(),
        "map": np.mean([hand_metrics.average_precision(truth[:, i], scores[:, i]) for i in columns]),
        "auc": np.mean([hand_metrics.auc(truth[:, i], scores[:, i]) for i in columns]),
    }
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    assert not {"eval_top1", "eval_top5"} & set(metrics)


def test_the_best_model_is_kept(multi_label_run):
    results = read(multi_label_run / "results.json")
    scores = [row["eval_map"] for row in results["log_history"] if "eval_map" in row]
    assert len(scores) == 5 and results["metrics"]["eval_map"] == max(scores[:4])


def test_tables(multi_label_run, answers):
    truth, logits = answers
    scores = logits.sigmoid().numpy()
    table = read(multi_label_run / "results.json")["classes"]
    for index, row in enumerate(table):
        assert row["label"] == NAMES[index] and row["rows"] == truth[:, index].sum()
        assert row["auc"] == pytest.approx(hand_metrics.auc(truth[:, index], scores[:, index]))
        expected = hand_metrics.average_precision(truth[:, index], scores[:, index])
        assert row["average_precision"] == pytest.approx(expected)
    with open(multi_label_run / "confusion_matrix.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        hits, wrong, missed = hand_metrics.count_hits(truth[:, index], scores[:, index] >= 0.5)
        assert row["label"] == NAMES[index] and int(row["true positives"]) == hits
        assert (int(row["false positives"]), int(row["false negatives"])) == (wrong, missed)
        assert int(row["true negatives"]) == len(truth) - hits - wrong - missed
    assert (multi_label_run / "confusion_matrix.png").is_file()


def test_the_saved_model_is_one_of_transformers(multi_label_run, labelled):
    """The configuration says so: `pipeline` gives each label a probability of its own, and `labels` a loss."""
    assert read(multi_label_run / "config.json")["problem_type"] == MULTI_LABEL
    image = datasets.load_dataset(labelled, split="test")[0]["image"]
    model = AutoModelForImageClassification.from_pretrained(multi_label_run).eval()
    processor = AutoImageProcessor.from_pretrained(multi_label_run, backend="pil")
    found = pipeline("image-classification", model=model, image_processor=processor)(image)
    with torch.no_grad():
        inputs = processor(image, return_tensors="pt")
        outputs = model(**inputs, labels=torch.tensor([[1.0, 0.0, 1.0]]))
    scores = dict(zip(NAMES, outputs.logits[0].sigmoid().tolist()))
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(scores, abs=1e-6)
    expected = ClassificationLoss(0.0, None, True)(outputs, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(outputs.loss, expected)


def test_evaluate_takes_the_problem_from_the_model(multi_label_run, labelled, tmp_path):
    trained = read(multi_label_run / "results.json")
    main(["evaluate", str(multi_label_run)])
    evaluated = read(multi_label_run / "eval_results.json")
    assert evaluated["classes"] == trained["classes"]
    assert all(evaluated["metrics"][f"eval_{name}"] == trained["metrics"][f"eval_{name}"] for name in ALL)
    other = write_rows(tmp_path / "texts", "texts")
    main(["evaluate", str(multi_label_run), "--dataset_name", other, "--split", "test", "--use_cpu", "true"])
    evaluated = read(multi_label_run / "eval_results.json")
    assert evaluated["metrics"]["eval_f1"] == trained["metrics"]["eval_f1"], "the default metric"
    assert "eval_map" not in evaluated["metrics"]
    with pytest.raises(ValueError, match="does not use --problem_type; it uses the saved model"):
        main(["evaluate", str(multi_label_run), "--problem_type", MULTI_LABEL])
    with pytest.raises(ValueError, match=r"metrics names 'accuracy', which is for data with one label for each row"):
        main(["evaluate", str(multi_label_run), "--metrics", "[accuracy]"])


def test_predict_prints_all_labels(multi_label_run, answers, capsys, tmp_path):
    _, logits = answers
    flags = ["--split", "test", "--use_cpu", "true", "--disable_tqdm", "true"]
    records = predict(multi_label_run.as_posix(), overrides=flags).records
    scores = logits.sigmoid().numpy()
    for record, row in zip(records, scores):
        wanted = [(NAMES[index], row[index]) for index in np.argsort(-row) if row[index] >= 0.5]
        assert [answer["label"] for answer in record["predictions"]] == [name for name, _ in wanted]
        assert [a["score"] for a in record["predictions"]] == pytest.approx([s for _, s in wanted], abs=1e-6)
    capsys.readouterr()
    main(["predict", str(multi_label_run), *flags])
    lines = capsys.readouterr().out.splitlines()
    for line, record in zip(lines, records):
        assert [name for name in NAMES if name in line] == sorted(a["label"] for a in record["predictions"])
        assert line.endswith("no label") == (record["predictions"] == [])


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_labels(recipe, multi_label_run, tmp_path, form):
    """Every form of the same labels trains the same model."""
    data = write_rows(tmp_path / "data", form)
    main(
        ["train", str(recipe), *TINY, "--dataset_name", data, *PROBLEM, *SHORT, "--output_dir", str(tmp_path / "run")]
    )
    results = read(tmp_path / "run" / "results.json")
    assert list(results["config"]["label2id"]) == (NAMES if form != "ids" else ["0", "1", "2"])
    data = write_rows(tmp_path / "same")
    main(
        [
            "train",
            str(recipe),
            *TINY,
            "--dataset_name",
            data,
            *PROBLEM,
            *SHORT,
            "--output_dir",
            str(tmp_path / "other"),
        ]
    )
    other = read(tmp_path / "other" / "results.json")
    assert {
        n: v for n, v in results["metrics"].items() if "eval_" in n and "per_second" not in n and "time" not in n
    } == {n: v for n, v in other["metrics"].items() if "eval_" in n and "per_second" not in n and "time" not in n}


@pytest.mark.parametrize("metadata", ["csv", "jsonl"])
def test_folders_with_metadata(recipe, tmp_path, metadata):
    for seed, (split, count) in enumerate((("train", 20), ("test", 12))):
        folder, lists = tmp_path / "data" / split, with_names(draw_labels(count, seed))
        folder.mkdir(parents=True)
        for index, image in enumerate(make_images(count, seed)[0]):
            image.save(folder / f"{index}.png")
        rows = [{"file_name": f"{index}.png", "label": names} for index, names in enumerate(lists)]
        if metadata == "jsonl":
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            lines = [f"{row['file_name']},{'|'.join(row['label']) or '[]'}" for row in rows]
            (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    flags = ["--dataset_name", str(tmp_path / "data"), *PROBLEM, *SHORT, "--output_dir", str(tmp_path / "run")]
    main(["train", str(recipe), *TINY, *flags])
    results = read(tmp_path / "run" / "results.json")
    assert list(results["config"]["label2id"]) == NAMES
    expected = [sum(index in labels for labels in draw_labels(12, 1)) for index in range(3)]
    assert [row["rows"] for row in results["classes"]] == expected


def test_videos_of_a_list(llm, tmp_path):
    """A CSV list, several views, Mixup and CutMix."""
    lists = [*with_names(draw_labels(12)), ["dog"], ["grass", "indoors"]]
    for number in range(len(lists)):
        write_video(tmp_path / "videos" / f"{number}.mkv", make_frames(8, number))
    lines = [f"{number}.mkv,{'|'.join(names) or '[]'}" for number, names in enumerate(lists)]
    for split in ("train", "test"):
        (tmp_path / "videos" / f"{split}.csv").write_text("\n".join(lines))
    flags = ["--dataset_name", str(tmp_path / "videos"), "--llm_block.llm_name_or_path", llm, *TINY_VIDEOMAE, *PROBLEM]
    flags += ["--train_split", "train.csv", "--eval_split", "test.csv", "--num_segments", "2", "--max_steps", "2"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--mixup_alpha", "0.8", "--cutmix_alpha", "1"]
    main(["train", "video_classification/tiny.yaml", *flags, "--output_dir", str(tmp_path / "run")])
    results = read(tmp_path / "run" / "results.json")
    assert list(results["config"]["label2id"]) == NAMES
    assert [row["rows"] for row in results["classes"]] == [sum(name in names for names in lists) for name in NAMES]


@pytest.mark.parametrize("form", ["vectors", "texts"])
def test_clouds(llm, tmp_path, form):
    """An array of zeros and ones, or texts; several votes."""
    points, lists = make_clouds(36)[0], draw_labels(36)
    vectors = np.array([[int(index in labels) for index in range(3)] for labels in lists])
    labels = vectors if form == "vectors" else np.array(["|".join(names) or "[]" for names in with_names(lists)])
    names = {"classes": np.array(NAMES)} if form == "vectors" else {}
    np.savez(tmp_path / "c.npz", points=points, label=labels, split=np.array(["train"] * 24 + ["test"] * 12), **names)
    flags = [
        "--dataset_name",
        str(tmp_path / "c.npz"),
        "--llm_block.llm_name_or_path",
        llm,
        *TINY_POINT_BERT,
        *PROBLEM,
    ]
    flags += ["--num_votes", "2", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    main(["train", "point_cloud_classification/tiny.yaml", *flags, "--output_dir", str(tmp_path / "run")])
    results = read(tmp_path / "run" / "results.json")
    assert [row["rows"] for row in results["classes"]] == vectors[24:].sum(0).tolist()
    assert list(results["config"]["label2id"]) == NAMES
    main(["evaluate", str(tmp_path / "run"), "--num_votes", "1"])


def test_views_are_averaged_as_probabilities():
    config = VideoMAEWithLLMBlockConfig(num_labels=3, problem_type=MULTI_LABEL, image_size=16, patch_size=8)
    task_class = find_task(config.model_type)
    processor = task_class.build_processor(task_class.arguments("x"), {}, config)
    task = task_class(task_class.arguments("x", problem_type=MULTI_LABEL), processor, config)
    logits = 4 * torch.randn(5, 7, 3)
    torch.testing.assert_close(task.average(logits).sigmoid(), logits.sigmoid().mean(0))
    assert task.average(torch.full((2, 1, 3), 90.0)).isfinite().all()


def test_mixed_labels():
    clips, labels = torch.rand(2, 2, 3, 4, 4), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mixed, shares = mix(clips, labels, 3, 1.0, 0.0, np.random.default_rng(0))
    kept = float(np.random.default_rng(0).beta(1.0, 1.0))
    torch.testing.assert_close(shares, kept * labels + (1 - kept) * labels.flip(0))
    torch.testing.assert_close(mixed, kept * clips + (1 - kept) * clips.flip(0))


@pytest.mark.parametrize("num_items", [None, 24])
def test_loss(num_items):
    """The weights are those of the rows that have a label."""
    logits, labels = torch.randn(4, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    weights = torch.tensor([1.0, 3.0, 0.5])
    by_hand = -(weights * labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).sum()
    loss = ClassificationLoss(0.0, weights, True)({"logits": logits}, labels, num_items)
    torch.testing.assert_close(loss, by_hand / (num_items or 12))


def test_balanced_weights(recipe, labelled, tmp_path):
    """The rows with a label weigh as much as those without it."""
    flags = [*TINY, "--dataset_name", labelled, *PROBLEM, "--class_weights", "balanced", "--output_dir", str(tmp_path)]
    weights = build_run(read_recipe(recipe, flags)).task.class_weights
    counts = [sum(index in labels for labels in draw_labels(60)) for index in range(3)]
    torch.testing.assert_close(weights, torch.tensor([(60 - count) / count for count in counts]))


def test_two_processes(multi_label_run, tmp_path):
    """Each row counts once, whichever process evaluates it."""
    options = ["--output_file", str(tmp_path / "two.json"), "--use_cpu", "true", "--ddp_backend", "gloo"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "hf_frozen_llm", "evaluate", str(multi_label_run), *options]
    subprocess.run(
        [*command, "--per_device_eval_batch_size", "4"],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one, two = read(multi_label_run / "results.json"), read(tmp_path / "two.json")
    for name in ALL:
        assert two["metrics"][f"eval_{name}"] == pytest.approx(one["metrics"][f"eval_{name}"])
    assert two["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], rel=1e-5)
    assert (tmp_path / "two_confusion_matrix.csv").is_file()


def test_streams(multi_label_run, labelled):
    """A stream has the same metrics."""
    main(["evaluate", str(multi_label_run), "--dataset_name", labelled, "--split", "test", "--use_cpu", "true"])
    whole = read(multi_label_run / "eval_results.json")["metrics"]
    flags = ["--streaming", "true", "--class_names", str(NAMES).replace("'", "")]
    main(
        ["evaluate", str(multi_label_run), "--dataset_name", labelled, "--split", "test", "--use_cpu", "true", *flags]
    )
    streamed = read(multi_label_run / "eval_results.json")["metrics"]
    assert streamed["eval_f1"] == whole["eval_f1"]
    assert streamed["eval_loss"] == pytest.approx(whole["eval_loss"])


def test_check(recipe, labelled, tmp_path):
    flags = [*TINY, "--dataset_name", labelled, *PROBLEM, "--output_dir", str(tmp_path), "--metrics", "[auc, map]"]
    report = check(str(recipe), [*flags, "--per_device_eval_batch_size", "1"], output_file=tmp_path / "batch.svg")
    assert report.errors == []
    facts = dict(report.facts)
    counts = [sum(index in labels for labels in draw_labels(60)) for index in range(3)]
    assert any(f"dog {counts[0]}, grass {counts[1]}, indoors {counts[2]}" in fact for _, fact in report.facts)
    assert "f1 " in facts["evaluation"]
    assert (tmp_path / "batch.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--metrics", "[balanced_accuracy]"],
            r"'balanced_accuracy', which is for data with one label for each row; t",
        ),
        (["--metrics", "[mpa]"], r"'mpa', which there is not; the nearest is 'map'"),
        (
            ["--label_smoothing_factor", "0.1"],
            r"label_smoothing_factor is 0\.1, but the loss of a multi-label problem",
        ),
        (["--metric_for_best_model", "top1"], r"'top1', which is not computed\. It must be one of loss, f1\."),
        (["--metric_for_best_model", "map"], r"'map', which is not computed\. Add 'map' to metrics"),
        (
            ["--metrics", "[auc]", "--max_eval_samples", "1"],
            "'auc', which needs rows with every label, and rows without it; the 1 rows",
        ),
        (["--metrics", "[map]", "--max_eval_samples", "1"], "'map', which needs rows with every label; the 1 rows"),
        (["--class_weights", "balanced", "--max_train_samples", "1"], "'balanced', but .* has no rows to compare for"),
        (["--class_names", "[dog, grass]"], "class_names holds 2 names, but column 'label' has 3 classes"),
    ],
)
def test_mistakes_are_refused(recipe, labelled, tmp_path, flags, message):
    flags = [*TINY, "--dataset_name", labelled, *PROBLEM, "--output_dir", str(tmp_path), *flags]
    with pytest.raises(ValueError, match=message):
        build_run(read_recipe(recipe, flags)).trainer()


def test_other_columns_are_refused(recipe, finished_run, labelled, data, tmp_path):
    flags = [*TINY, "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"but column 'label' holds one label for each row \(ClassLabel"):
        build_run(read_recipe(recipe, [*flags, *PROBLEM]))
    with pytest.raises(ValueError, match="or problem_type to 'multi_label_classification' for lists of labels"):
        build_run(read_recipe(recipe, [*flags, "--dataset_name", labelled]))
    with pytest.raises(ValueError, match="holds lists of labels, but the model gives each row one label"):
        main(["evaluate", str(finished_run), "--dataset_name", labelled, "--split", "test"])
    folder = tmp_path / "pictures" / "train" / "cat"
    folder.mkdir(parents=True)
    shutil.copy(next(iter(finished_run.glob("*.json"))), folder.parent)
    make_images(1)[0][0].save(folder / "0.png")
    with pytest.raises(ValueError, match=r"a column of lists \(for files of a folder: of its metadata\.jsonl\)"):
        build_run(read_recipe(recipe, [*flags, *PROBLEM, "--dataset_name", str(tmp_path / "pictures")]))


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["b", "a"], ["b", "a"]),
        ([], []),
        ("a|b c", ["a", "b c"]),
        ('["a|b"]', ["a|b"]),
        ("[]", []),
        (b"a|b", ["a", "b"]),
        ([3, 1], [3, 1]),
    ],
)
def test_labels_of_a_row(value, labels):
    assert read_labels(value) == labels


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"the labels of a row are None; they must be a list, \[\] for a row without labels"),
        ("", r"must be a list, \[\] for"),
        (3, "are 3; they must be a list"),
        (["a", None], "must be a list"),
        ([0, 1, 1], "hold one twice. Of vectors of zeros and ones, store the places"),
        ("a|a", "hold one twice"),
        ('["a"', "delimiter"),
    ],
)
def test_labels_of_a_row_that_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_labels(value)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.array([[0, 2], [1, 0]]), None, r"zeros and ones, not int64 of the shape \(2, 2\)"),
        (np.array([0, 2]), None, r"zeros and ones, not int64 of the shape \(2,\)"),
        (np.array([[0, 1], [1, 0]]), ["a"], "the labels have 2 columns, and there are 1 names of classes"),
    ],
)
def test_labels_of_clouds_that_are_refused(labels, names, message):
    with pytest.raises(ValueError, match=message):
        to_label_lists(labels, names)


def test_no_label_at_all():
    rows = datasets.Dataset.from_dict({"label": [[], []]}, datasets.Features({"label": FORMS["names"][0]}))
    with pytest.raises(ValueError, match="no row has a label in column 'label'"):
        find_class_names(ImageDataArguments("x", problem_type=MULTI_LABEL), rows)


def test_unknown_labels_name_the_row():
    args = ImageDataArguments("x", problem_type=MULTI_LABEL)
    config = ViTWithLLMBlockConfig(label2id={"a": 0}, id2label={0: "a"}, problem_type=MULTI_LABEL)
    task = find_task("vit_with_llm_block")(args, None, config)
    rows = datasets.Dataset.from_dict({"label": [["a"], ["a", "b"]]})
    transform = task.example_transform(rows, "test", False, 0)
    with pytest.raises(ValueError, match=r"x \[test\], row 1: 'label' is 'b', which is not one of the 1 classes"):
        transform.find_label(rows[1], (1,))
    with pytest.raises(ValueError, match="'label' is not one of the 1 classes in 1 of 2 rows: 'b'"):
        task.label_counts(rows)
    transform.args = ImageDataArguments("x")
    with pytest.raises(ValueError, match=r"row 0: 'label' is \['a'\], which is not one of the 1 classes"):
        transform.find_label(rows[0], (0,))


def test_metric_of_an_ablation():
    classifications = [task for name, task in TASKS.items() if name.endswith("-classification")]
    assert len(classifications) == 3
    for task in classifications:
        assert task.find_main_metric({"problem_type": MULTI_LABEL}).name == "f1"
        assert task.find_main_metric({"problem_type": None}).name == "top1"
