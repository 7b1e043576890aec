# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Parts of a training split: `holdout` and slices, of folders of images, parquet files and arrays."""

from pathlib import Path

import pytest
from tiny_runs import TINY, write_image_folder, write_llama, write_npz, write_parquet

from hf_frozen_llm.commands.check import check
from hf_frozen_llm.commands.train import train
from hf_frozen_llm.data.datasets import hold_out
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.evaluate import evaluate
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


RECIPE = "image_classification/tiny.yaml"
SIZES = {"train": 60, "test": 12}


def write_data(kind: str, folder: Path) -> str:
    if kind == "image folder":
        return write_image_folder(folder, SIZES)
    if kind == "npz file":
        return write_npz(folder.with_suffix(".npz"), SIZES)
    write_parquet(folder, SIZES)
    return str(folder / "train-00000-of-00001.parquet" if kind == "parquet file" else folder)


@pytest.mark.parametrize("kind", ["image folder", "parquet folder", "parquet file", "npz file"])
def test_holdout_of_every_format(kind, tmp_path):
    """The held-out rows are random, always the same, and no training rows; an image folder is sorted by class."""
    task = TASKS["point-cloud-classification" if kind == "npz file" else "image-classification"]
    args = task.arguments(dataset_name=write_data(kind, tmp_path / "data"))
    rows = task.read(args, "train").add_column("number", list(range(60)))
    train_rows, held_out = hold_out(rows, 0.2)
    assert len(held_out["label"]) == 12 and len(set(held_out["label"])) > 2
    assert sorted([*train_rows["number"], *held_out["number"]]) == list(range(60))
    assert list(hold_out(rows, 0.2)[1]["number"]) == list(held_out["number"])
    if kind != "npz file":
        slices = [task.read(args, split) for split in ("train[:90%]", "train[90%:]", "train[:30%]+train[40%:]")]
        assert [len(part) for part in slices] == [54, 6, 54]
        assert [*slices[0]["label"], *slices[1]["label"]] == list(rows["label"])


@pytest.fixture
def flags(tmp_path):
    data, llm = write_image_folder(tmp_path / "data", SIZES), write_llama(tmp_path / "llm")
    flags = [*TINY, "--image_column", "image", "--max_steps", "2", "--dataset_name", data]
    return [*flags, "--llm_block.llm_name_or_path", llm, "--output_dir", str(tmp_path / "run")]


def test_a_run_is_evaluated_on_the_held_out_rows(flags, tmp_path):
    flags = [*flags, "--holdout", "0.25", "--eval_split", "null"]
    results = train(RECIPE, flags)
    assert results["num_eval_rows"] == 15 and 0 <= results["metrics"]["eval_top1"] <= 1
    on_test = evaluate(str(tmp_path / "run"), ["--split", "test", "--use_cpu", "true"])
    assert on_test["metrics"]["eval_samples_per_second"] > 0
    for few, sizes in (([], (45, 15)), (["--max_train_samples", "10", "--max_eval_samples", "5"], (10, 5))):
        run = build_run(read_recipe(RECIPE, [*flags, *few, "--output_dir", str(tmp_path / "new")]))
        assert (len(run.train_dataset), len(run.eval_dataset)) == sizes


def test_check(flags, capsys):
    report = check(RECIPE, [*flags, "--holdout", "0.25"])
    assert report.errors == []
    output = capsys.readouterr().out
    assert "train, held out  15 rows, 6 classes" in output and "shared rows" not in output
    assert "45 rows, 6 classes" in output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--holdout", "0"], "holdout is 0.0; it is a share of train_split"),
        (["--holdout", "1.5"], "holdout is 1.5"),
        (["--holdout", "0.1", "--streaming", "true"], "holdout cannot draw rows from a stream"),
        (["--holdout", "0.1", "--dataloader_drop_last", "true"], "dataloader_drop_last would leave out examples"),
    ],
)
def test_refusals(flags, more, message):
    with pytest.raises(ValueError, match=message):
        build_run(read_recipe(RECIPE, [*flags, *more]))
