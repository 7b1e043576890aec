# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm check`: its findings before a run; it keeps no files."""

import importlib.util
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from tiny_runs import (
    TINY,
    TINY_POINT_BERT,
    TINY_RUN,
    TINY_VIDEOMAE,
    make_images,
    write_image_folder,
    write_npz,
    write_video_folder,
)
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from hf_frozen_llm.commands import check_data
from hf_frozen_llm.commands.check import check
from hf_frozen_llm.tasks.image_classification import ImageClassification


RECIPES = {"image": "image_classification", "video": "video_classification", "points": "point_cloud_classification"}
FOLDER = ["--image_column", "image", "--random_flip", "true"]


@pytest.fixture
def check_images(tmp_path, llm):
    """Check a run on a folder of images, by default one without mistakes."""

    def run(*flags, data=None, tiny=TINY, **options):
        folder = data or write_image_folder(tmp_path / "data")
        where = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "run")]
        block = ["--llm_block.llm_name_or_path", llm]
        return check("image_classification/tiny.yaml", [*tiny, *FOLDER, *block, *where, *flags], **options)

    return run


def facts_of(report):
    return {name: "; ".join(fact for key, fact in report.facts if key == name) for name, _ in report.facts}


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nothing_is_wrong(check_images, tmp_path, capsys):
    report = check_images()
    assert report.errors == [] and report.warnings == []
    facts = facts_of(report)
    assert "16,566 total, 8,790 trainable, 7,776 frozen" in facts["model"]
    assert "layer -1, weights pretrained" in facts["LLM"]
    assert facts["train"] == "18 rows, 6 classes: ant 3, bee 3, cat 3, dog 3, elk 3, fox 3"
    assert facts["test"].startswith("12 rows, 6 classes: ant 2")
    assert facts["shared rows"] == "none; compared by their bytes: all 18 rows of train and all 12 rows of test"
    assert facts["length"].startswith("300 steps of 8 examples (8 on a device), 3 an epoch: 100.0 epochs, 1,800 exam")
    assert "pixel_values (8, 3, 16, 16) float32, -" in facts["batch"] and "labels (8,) int64, 0 to" in facts["batch"]
    assert facts["steps"].count(",") == 2 and "resident set" in facts["memory"]
    assert facts["gradients"].startswith("host ") and "projections " in facts["gradients"]
    assert "loss 1." in facts["evaluation"] and "top1 0." in facts["evaluation"]
    printed = capsys.readouterr().out
    assert all(fact in printed for _, fact in report.facts)
    assert printed.endswith("\nNo errors and no warnings.\n")
    assert files_below(tmp_path / "run") == ["check.png"]
    with Image.open(tmp_path / "run" / "check.png") as image:
        assert image.size == (1248, 624)  # 8 examples in two lines


@pytest.mark.parametrize("task", ["video", "points"])
def test_other_tasks(task, tmp_path, llm):
    if task == "video":
        data, tiny = write_video_folder(tmp_path / "data"), [*TINY_VIDEOMAE, "--mixup_alpha", "0.8"]
    else:
        data, tiny = write_npz(tmp_path / "data.npz", {"train": 24, "test": 12}), TINY_POINT_BERT
    where = ["--dataset_name", data, "--output_dir", str(tmp_path / "run")]
    flags = [*tiny, *where, "--llm_block.llm_name_or_path", llm]
    file = tmp_path / "figures" / "examples.png"
    report = check(f"{RECIPES[task]}/tiny.yaml", flags, output_file=file)
    assert report.errors == [] and report.warnings == []
    facts = facts_of(report)
    assert "6 classes" in facts["train"] and "none; compared" in facts["shared rows"]
    shape = {"video": "pixel_values (8, 4, 3, 16, 16)", "points": "points (8, 32, 3)"}[task]
    assert f"{shape} float32" in facts["batch"]
    with Image.open(file) as image:
        assert len(image.getcolors(1 << 20)) > 10
    assert not (tmp_path / "run").exists()


def test_hosts_and_lora(check_images, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(tmp_path / "dinov2")
    ViTModel(ViTConfig(**sizes, intermediate_size=32)).save_pretrained(tmp_path / "vit")
    colours = ["--image_mean", "[0, 0, 0]", "--image_std", "[1, 1, 1]"]
    base = ["--host.hidden_size", "16"]
    recipe = tmp_path / "recipe.yaml"
    for host, model_type in (("dinov2", "vision_with_llm_block"), ("vit", "vit_with_llm_block")):
        recipe.write_text(f"dataset_name: {write_image_folder(tmp_path / 'data')}\neval_split: test\n")
        flags = ["--model_type", model_type, "--host.name_or_path", str(tmp_path / host), *TINY_RUN, *colours]
        report = check(recipe, [*flags, "--output_dir", str(tmp_path / "run"), "--max_steps", "4"])
        assert report.errors == [], host
        assert facts_of(report)["LLM"] == "none, the plain host"
    report = check_images("--lora.r", "2", "--freeze_host", "true", *base)
    assert report.errors == []
    assert "LLM block " in facts_of(report)["gradients"] and "host" not in facts_of(report)["gradients"]
    llm_block = ["--llm_block.kind", "mlp"]
    assert facts_of(check_images(*llm_block))["LLM"] == "none, in its place: mlp"


def test_all_problems_at_once(check_images, tmp_path, capsys):
    data = Path(write_image_folder(tmp_path / "data"))
    shutil.rmtree(data / "test" / "fox")
    shutil.copy(data / "train" / "bee" / "1.png", data / "test" / "bee" / "other.png")
    (data / "train" / "cat" / "bad.png").write_bytes(b"no image")
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "run" / "results.json").write_text("{}")
    before = files_below(tmp_path / "run")
    flags = ["--warmup_steps", "400", "--per_device_train_batch_size", "32", "--eval_steps", "600"]
    report = check_images(*flags, data=data, output_file=tmp_path / "check.png")
    assert len(report.errors) == 2
    assert report.errors[0].startswith(f"output_dir {tmp_path / 'run'} holds the checkpoints of an earlier run.")
    assert report.errors[1].startswith("train: 1 of 19 rows cannot be read:\n")
    assert f"({data / 'train' / 'cat' / 'bad.png'}): the image cannot be decoded" in report.errors[1]
    assert [warning.partition(":")[0] for warning in report.warnings] == [
        f"output_dir {tmp_path / 'run'} holds the results of an earlier run, which would be replaced.",
        "test has no row of the class fox.",
        "1 row of test is in train as well. The first",
        "A step reads 32 examples, and train has 19 rows. Lower per_device_train_batch_size or "
        "gradient_accumulation_steps.",
        "warmup_steps is 400, and the run ends after 300 steps.",
        "eval_steps is 600, and the run ends after 300 steps",
    ]
    # The steps continue with the readable rows.
    assert "losses " in facts_of(report)["steps"]
    printed = capsys.readouterr().out
    assert "\nErrors\n  1. output_dir" in printed and "\nWarnings\n  1. output_dir" in printed
    assert printed.endswith("\n2 errors and 6 warnings.\n")
    assert files_below(tmp_path / "run") == before


def test_warm_up_in_epochs_and_a_metric_of_the_average(check_images, tmp_path):
    flags = ["--warmup_epochs", "200", "--ema_decay", "0.9", "--metric_for_best_model", "ema_top1"]
    report = check_images("--warmup_steps", "0", *flags, output_file=tmp_path / "check.png")
    assert report.errors == []
    assert "warmup_epochs is 200, 600 steps, and the run ends after 300 steps." in report.warnings


def test_data_and_model_and_folder_are_looked_at_even_if_each_is_wrong(check_images, tmp_path):
    (tmp_path / "file").write_text("text")
    flags = ["--llm_block.layer_index", "9", "--eval_split", "dev", "--output_dir", str(tmp_path / "file" / "run")]
    report = check_images(*flags)
    assert len(report.errors) == 3
    assert report.errors[0].startswith("model: layer_index 9 is out of range")
    assert report.errors[1].startswith("eval_split: ") and "Unknown split" in report.errors[1]
    where = f"output_dir is {str(tmp_path / 'file' / 'run')!r}, but {tmp_path / 'file'}"
    assert report.errors[2] == f"{where} is a file. Choose another one."
    assert facts_of(report)["run"] == "not started, because of the errors below"
    assert facts_of(report)["train"].startswith("18 rows")


@pytest.mark.parametrize("split", ["train", "test"])
def test_none_of_a_split_can_be_read(split, check_images, tmp_path):
    data = Path(write_image_folder(tmp_path / "data"))
    for file in (data / split).glob("*/*"):
        file.write_bytes(b"no image")
    report = check_images(data=data)
    number = {"train": 18, "test": 12}[split]
    (error,) = report.errors
    assert error.startswith(f"{split}: {number} of {number} rows cannot be read. The first:\n")
    assert error.count("\n") == 5
    assert ("losses" in facts_of(report).get("steps", "")) == (split == "test")
    assert "evaluation" not in facts_of(report)


def test_labels_that_the_model_does_not_know(check_images, tmp_path):
    images, labels = make_images(12)
    for split, values in (("train", labels), ("test", [*labels[:-2], -1, 9])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({"image": images, "label": values}, features=features)
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    report = check_images(data=tmp_path / "data")
    assert report.errors[0] == "test: 'label' is not one of the 6 classes in 2 of 12 rows: -1, 9."
    assert "row 10: 'label' is -1, which is not one of the 6 classes" in report.errors[1]
    assert len(report.errors) == 2
    assert facts_of(report)["train"] == "12 rows, 6 classes: " + ", ".join(f"{index} 2" for index in range(6))
    assert report.warnings == ["12 rows of test are in train as well. The first: row 0 is row 0 there."]


def test_classes_of_the_evaluation_alone(check_images, tmp_path):
    data = Path(write_image_folder(tmp_path / "data"))
    shutil.copytree(data / "test" / "fox", data / "test" / "gnu")
    report = check_images(data=data)
    assert any("gnu" in problem for problem in [*report.errors, *report.warnings])


def test_rows_that_are_read_and_compared(check_images, monkeypatch):
    monkeypatch.setattr(check_data, "COMPARED_BYTES", 20_000)
    monkeypatch.setattr(check_data, "HASHED_ROWS", 4)
    facts = facts_of(check_images(check_rows=5))
    assert facts[""].startswith("8 of 18 rows read")  # a step reads 8
    assert "8 of 18 rows of train and 8 of 12 rows of test" in facts["shared rows"]
    facts = facts_of(check_images(check_rows=18))
    assert "18 of 18 rows read" in facts[""] and "all 18 rows of train" in facts["shared rows"]


def test_streams(check_images):
    report = check_images("--streaming", "true", "--max_steps", "4", "--save_steps", "2", "--eval_steps", "2")
    assert report.errors == [] and report.warnings == []
    facts = facts_of(report)
    assert "cannot be counted" in facts["train"] and "the first 12 rows read" in facts[""]
    assert "shared rows" not in facts and "losses" in facts["steps"]
    report = check_images("--streaming", "true", "--max_steps", "-1")
    assert report.errors == ["recipe: streaming needs max_steps: the length of a stream is not known."]
    assert "not started" in facts_of(report)["run"]


def test_losses_that_are_not_finite(check_images):
    report = check_images("--learning_rate", "1e38", "--lr_scheduler_type", "constant")
    assert report.errors[0].startswith("steps: the losses are ") and "nan, and must be finite" in report.errors[0]
    assert report.errors[1:] == [
        "steps: the gradients of host, projections, head are not finite.",
        "evaluation: the loss is nan; it must be finite.",
    ]


def test_inputs_that_are_not_finite(tmp_path, llm, check_images, monkeypatch):
    def augment(self, batch, rng):
        return {**batch, "pixel_values": batch["pixel_values"] / 0}

    monkeypatch.setattr(ImageClassification, "augment", augment)
    report = check_images()
    assert "batch: pixel_values holds numbers that are not finite (NaN or infinity)." in report.errors


def test_batches_larger_than_the_data(check_images):
    report = check_images(
        "--per_device_train_batch_size",
        "32",
        "--dataloader_drop_last",
        "true",
        "--eval_split",
        "null",
        "--eval_strategy",
        "no",
    )
    assert len(report.errors) == 1
    assert "A batch has 32 examples on all processes, and train only 18 rows" in report.errors[0]
    assert "There is no eval_split: nothing is evaluated." in report.warnings


def test_disk_that_is_too_small(check_images, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    report = check_images()
    assert len(report.errors) == 1
    assert (
        "2 checkpoints (105.5 kB each) and the model (66.3 kB) need about 277.2 kB, and 200.0 kB are fr"
        in report.errors[0]
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    report = check_images("--save_steps", "100", "--save_total_limit", "null")
    assert report.errors == []
    assert report.warnings == [
        "save_total_limit is not set: 3 checkpoints need about 316.4 kB, and 300.0 kB are free."
    ]


def test_estimates_are_the_sizes_of_what_a_run_saves(finished_run, recipe, tmp_path):
    report = check(recipe, [*TINY, "--output_dir", str(tmp_path / "run"), "--save_total_limit", "1"])
    fact = facts_of(report)["output_dir"]
    estimated = [1000 * float(fact.split(name)[1].split(" kB")[0]) for name in ("checkpoints (", "model (")]
    checkpoint = [
        *(finished_run / "checkpoint-24").glob("*.safetensors"),
        finished_run / "checkpoint-24" / "optimizer.pt",
    ]
    saved = [sum(file.stat().st_size for file in checkpoint), (finished_run / "model.safetensors").stat().st_size]
    # Files hold names as well, which count in so small ones alone.
    assert all(0 < size - estimate < 40_000 for size, estimate in zip(saved, estimated))


def test_resume(finished_run, recipe, tmp_path):
    shutil.copytree(finished_run / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    flags = [*TINY, "--output_dir", str(tmp_path / "run"), "--save_total_limit", "1"]
    before = files_below(tmp_path / "run")
    report = check(recipe, [*flags, "--resume", "true"], output_file=tmp_path / "check.png")
    assert report.errors == []
    assert facts_of(report)["resume"] == f"resumes from {tmp_path / 'run' / 'checkpoint-10'}"
    report = check(recipe, [*flags, "--resume", "true", "--learning_rate", "0.5"], output_file=tmp_path / "check.png")
    assert len(report.errors) == 1 and "learning_rate 0.001, the recipe now says 0.5" in report.errors[0]
    assert files_below(tmp_path / "run") == before


def test_without_matplotlib(check_images, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec

    def find_other(name, *args):
        return None if name == "matplotlib" else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)
    report = check_images()
    assert report.errors == []
    assert facts_of(report)["figure"] == "not drawn: it needs matplotlib, pip install 'hf_frozen_llm[plot]'"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], r"unknown key `learning_rat`; the nearest valid key is `learning_rate`"),
        (["--num_points", "64"], r"`num_points` is a key of the task point-cloud-classification"),
        (["--learning_rate", "fast"], r"`learning_rate` must be float, got 'fast'"),
        (["--dataset_name", ""], r"dataset_name is not set"),
    ],
)
def test_recipes_that_are_refused(check_images, flags, message):
    with pytest.raises(ValueError, match=message):
        check_images(*flags)
    with pytest.raises(ValueError, match="check_rows is 0; it must be at least 1"):
        check_images(check_rows=0)


def test_a_training_run_after_a_check_is_the_same(check_images, tmp_path, llm):
    """A check leaves no files that a run would use."""
    data = write_image_folder(tmp_path / "data")
    flags = [*TINY, *FOLDER, "--llm_block.llm_name_or_path", llm, "--dataset_name", data, "--max_steps", "2"]
    command = ["train", "image_classification/tiny.yaml", *flags]
    from hf_frozen_llm.cli import main

    main([*command, "--output_dir", str(tmp_path / "first")])
    check_images("--max_steps", "2")
    main([*command, "--output_dir", str(tmp_path / "run")])
    losses = [
        json.loads((tmp_path / name / "results.json").read_text())["metrics"]["eval_loss"] for name in ("first", "run")
    ]
    assert losses[0] == losses[1]


def test_command(call, tmp_path, llm, monkeypatch):
    data = write_image_folder(tmp_path / "data")
    (Path(data) / "train" / "ant" / "bad.png").write_bytes(b"no image")
    flags = [*TINY, *FOLDER, "--llm_block.llm_name_or_path", llm, "--dataset_name", data, "--check_rows", "30"]
    command = ["check", "image_classification/tiny.yaml", *flags, "--output_dir", "run"]
    monkeypatch.chdir(tmp_path)
    code, output, errors = call(*command, "--output_file", "examples.png")
    assert code == 1
    assert "Traceback" not in errors
    assert output.endswith("1 error and no warnings.\n")
    assert (tmp_path / "examples.png").is_file() and not (tmp_path / "run").exists()
    (Path(data) / "train" / "ant" / "bad.png").unlink()
    code, _, errors = call(*command)
    assert code == 0, errors
