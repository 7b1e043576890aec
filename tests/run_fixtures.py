# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of tests that train, evaluate or predict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tiny_runs import TINY, write_llama, write_parquet

from hf_frozen_llm.cli import main


RECIPE = """\
dataset_name: {data}
eval_split: test
llm_block:
  llm_name_or_path: {llm}
random_crop_scale: [0.3, 1]
random_flip: true
host:
  hidden_dropout_prob: 0.1
num_train_epochs: 3
learning_rate: 1e-3
weight_decay: 0.05
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {{min_lr: 1e-5}}
warmup_steps: 0.1
label_smoothing_factor: 0.1
eval_strategy: epoch
save_strategy: steps
save_steps: 5
logging_steps: 5
"""


@pytest.fixture(autouse=True, scope="session")
def quiet_and_fast_datasets():
    datasets.disable_progress_bars()
    # Seconds that datasets waits at the end of each pass over a shuffled stream.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line as a process does; return its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-frozen-llm", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, data, llm):
    """A recipe that uses everything: augmentation, dropout, schedule, evaluation, checkpoints."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.format(data=data, llm=llm))
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, recipe):
    """The recipe's run, not interrupted: 24 steps, checkpoints at 5, 10, 15, 20 and 24."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    main(["train", str(recipe), *TINY, "--output_dir", str(output_dir)])
    return output_dir


@pytest.fixture
def assert_same_on_two_processes(tmp_path):
    """Evaluate a trained model as torchrun does on two devices; the metrics are those of the end of its training."""

    def assert_same(folder: Path) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        options = ["--output_file", str(tmp_path / "two.json"), "--use_cpu", "true", "--ddp_backend", "gloo"]
        options += ["--per_device_eval_batch_size", "5"]
        process = subprocess.run(
            [*launcher, "-m", "hf_frozen_llm", "evaluate", str(folder), *options],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stderr
        one, two = (json.loads(f.read_text())["metrics"] for f in (folder / "results.json", tmp_path / "two.json"))
        assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
        for name in ("eval_top1", "eval_top5"):
            assert two[name] == one[name]

    return assert_same
