# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs with presets of augmentation: resumed, on two processes, with several labels for each image."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY, make_split

from hf_frozen_llm.cli import main
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.resume import RECIPE_FILE
from hf_frozen_llm.training.run import build_run


DEIT = ["--augmentation", "deit", "--mixup_off_epoch", "1", "--label_smoothing_factor", "0.1"]
EPOCHS = ["--num_train_epochs", "2", "--max_steps", "-1", "--save_steps", "3", "--eval_strategy", "no"]


def read(output_dir):
    return json.loads((Path(output_dir) / "results.json").read_text())


def run(recipe, output_dir, *flags):
    main(["train", str(recipe), *TINY, "--output_dir", str(output_dir), *flags])
    return read(output_dir)


@pytest.fixture(scope="module")
def deit_run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deit") / "run"
    run(recipe, folder, *DEIT, *EPOCHS)
    return folder


@pytest.mark.parametrize("step", [3, 9])
def test_resumed_run_draws_the_same(deit_run, recipe, tmp_path, step):
    """From the middle of the first epoch, and of the second, in which batches are no longer mixed."""
    shutil.copytree(deit_run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run(recipe, tmp_path, *DEIT, *EPOCHS, "--resume")
    weights, same = (load_file(folder / "model.safetensors") for folder in (deit_run, tmp_path))
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_settings_are_resolved_and_kept(deit_run, recipe, tmp_path):
    """Results and checkpoints hold the values of the preset; evaluation reads them."""
    for settings in (read(deit_run)["recipe"], json.loads((deit_run / "checkpoint-3" / RECIPE_FILE).read_text())):
        kept = {name: settings[name] for name in ("augmentation", "rand_augment_ops", "mixup_alpha", "random_flip")}
        assert kept == {"augmentation": "deit", "rand_augment_ops": 2, "mixup_alpha": 0.8, "random_flip": True}
    shutil.copytree(deit_run / "checkpoint-3", tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"was trained with random_erasing 0\.25, the recipe now says 0\.5"):
        run(recipe, tmp_path, *DEIT, *EPOCHS, "--resume", "--random_erasing", "0.5")
    main(["evaluate", str(deit_run)])


def test_two_processes(recipe, tmp_path):
    """Each draws its own augmentation, and reads its share of the repeated examples."""
    command = [
        "train",
        str(recipe),
        *TINY,
        "--output_dir",
        str(tmp_path),
        "--augmentation",
        "deit",
        "--max_steps",
        "2",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = [
        "--ddp_backend",
        "gloo",
        "--per_device_train_batch_size",
        "6",
        "--logging_steps",
        "1",
        "--save_steps",
        "1",
    ]
    subprocess.run(
        [*launcher, "-m", "hf_frozen_llm", *command, *flags],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    results = read(tmp_path)
    assert results["num_processes"] == 2
    assert all(math.isfinite(entry["loss"]) for entry in results["log_history"] if "loss" in entry)
    whole = load_file(tmp_path / "model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-2")
    (tmp_path / "results.json").unlink()
    subprocess.run(
        [*launcher, "-m", "hf_frozen_llm", *command, *flags, "--resume", "true"],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    same = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(whole[name], same[name]) for name in whole)


def test_several_labels(recipe, tmp_path):
    """Mixed shares of all labels, with the binary loss of the problem."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        images = list(make_split(12)["image"])
        table = {"image": images, "label": [[["cat"], ["cat", "dog"], []][index % 3] for index in range(12)]}
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "data" / f"{split}.parquet")
    flags = ["--dataset_name", str(tmp_path / "data"), "--problem_type", "multi_label_classification"]
    flags += [
        "--label_smoothing_factor",
        "0",
        "--augmentation",
        "deit3",
        "--max_steps",
        "2",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
    ]
    results = run(recipe, tmp_path / "run", *flags)
    assert list(results["config"]["label2id"]) == ["cat", "dog"] and results["metrics"]["train_loss"] > 0


def test_binary_loss_reaches_the_run(recipe, tmp_path):
    flags = [*TINY, "--output_dir", str(tmp_path), "--augmentation", "deit3"]
    one, other = (
        build_run(read_recipe(recipe, [*flags, *more])) for more in ([], ["--training_loss", "cross_entropy"])
    )
    assert one.task.loss(one.args).is_binary and not other.task.loss(other.args).is_binary
