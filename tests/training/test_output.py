# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What the commands print: metrics once, the place of the model, progress bars only if they are wanted."""

import json
import os
import re
import subprocess
import sys

import datasets
import pytest
from huggingface_hub import utils as hub
from tiny_runs import TINY, write_parquet
from transformers.utils import logging

import hf_frozen_llm
from hf_frozen_llm.cli import main
from hf_frozen_llm.training.progress import progress_bars


FEW = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--logging_strategy", "no"]


def test_metrics_are_printed_once_and_the_model_is_found(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    main(["train", str(recipe), *TINY, *FEW, "--output_dir", str(folder)])
    printed = capsys.readouterr().out
    assert printed.count("eval_top1") == printed.count("train_runtime") == 1
    metrics = json.loads(printed[printed.index("{\n") : printed.index("\n}") + 2])
    assert metrics == json.loads((folder / "results.json").read_text())["metrics"]
    last = printed.splitlines()[-1]
    place, load, evaluate, predict = re.match(
        r"The model is in (.*)\. Load it: (.*)\. Evaluate it: hf-frozen-llm (.*)\. Predict: hf-frozen-llm (.*) FILE$",
        last,
    ).groups()
    assert place == str(folder)
    assert eval(f"hf_frozen_llm.{load}", {"hf_frozen_llm": hf_frozen_llm}).config.num_labels == 6
    main(evaluate.split())
    printed = capsys.readouterr().out
    assert printed.count("eval_top1") == 1, "by evaluate, too"
    assert predict.split() == ["predict", str(folder)]


def test_evaluations_within_training_are_printed(recipe, tmp_path, capsys):
    flags = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "no"]
    main(["train", str(recipe), *TINY, *flags, "--output_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("'eval_top1'") == 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["step"] for row in results["log_history"] if "eval_top1" in row] == [2, 4, 4]


def test_a_split_to_evaluate_on_is_asked_for(recipe, tmp_path, capsys):
    main(["train", str(recipe), *TINY, *FEW, "--eval_split", "null", "--output_dir", str(tmp_path)])
    assert f"Evaluate it: hf-frozen-llm evaluate {tmp_path} --split SPLIT." in capsys.readouterr().out


@pytest.mark.parametrize("disabled", [True, False])
def test_progress_bars(recipe, tmp_path, disabled):
    """Those of datasets, of weights that are loaded, of steps: none with disable_tqdm."""
    data = write_parquet(tmp_path / "data")
    environment = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    flags = [
        *TINY,
        *FEW,
        "--dataset_name",
        data,
        "--disable_tqdm",
        str(disabled),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    for command in (["train", str(recipe), *flags], ["evaluate", str(tmp_path / "run")]):
        call = [sys.executable, "-m", "hf_frozen_llm", *command]
        done = subprocess.run(call, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        bars = re.findall(r"\d+%\||examples/s|it/s\]", done.stderr + done.stdout)
        assert (bars == []) == disabled, done.stderr


def test_progress_bars_come_back():
    was = (datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled(), logging.is_progress_bar_enabled())
    with progress_bars(True):
        assert datasets.are_progress_bars_disabled() and hub.are_progress_bars_disabled()
        assert not logging.is_progress_bar_enabled()
    now = (datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled(), logging.is_progress_bar_enabled())
    assert now == was
