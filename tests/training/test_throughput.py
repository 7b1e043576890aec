# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Examples a second, and the share of the time in which a training waits for them."""

import json
import os
import subprocess
import sys

from tiny_runs import TINY

from hf_frozen_llm.data.datasets import TransformedDataset
from hf_frozen_llm.training import throughput
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


class Clock:
    """A clock that only `sleep` moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowDataset(TransformedDataset):
    """An example takes three seconds."""

    clock: Clock

    def __getitems__(self, indices):
        self.clock.sleep(3 * len(indices))
        return super().__getitems__(indices)


def test_steps_are_timed_with_accumulation(recipe, tmp_path, monkeypatch):
    """A step has two batches of eight, an epoch 60 rows; evaluation is no part of a step."""
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    flags = ["--gradient_accumulation_steps", "2", "--num_train_epochs", "2", "--logging_steps", "1"]
    flags += ["--save_strategy", "no", "--output_dir", str(tmp_path)]
    run = build_run(read_recipe(recipe, [*TINY, *flags]))
    run.model.register_forward_hook(lambda *args: clock.sleep(1))
    run.train_dataset = SlowDataset(run.train_dataset.rows, run.train_dataset.transform, numbered=False)
    run.train_dataset.clock = clock
    trainer = run.trainer()
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 8
    # The loader reads one batch ahead, and there are no others to read at the end of an epoch, whose step has 12 rows.
    for entry, rows, read in zip(logs, [16, 16, 16, 12] * 2, [24, 16, 16, 4] * 2):
        assert entry["examples_per_second"] == float(f"{rows / (3 * read + 2):.4g}")
        assert entry["data_wait_share"] == round(3 * read / (3 * read + 2), 4)
    assert trainer.throughput.result == {
        "examples": 120,
        "step_seconds": 2 * (60 * 3 + 8),
        "examples_per_second": float(f"{60 / 188:.4g}"),
        "data_wait_share": round(180 / 188, 4),
    }


def test_nothing_is_known_before_a_step(recipe, tmp_path):
    trainer = build_run(read_recipe(recipe, [*TINY, "--output_dir", str(tmp_path)])).trainer()
    trainer.log({"loss": 1.0})
    assert "examples_per_second" not in trainer.state.log_history[0] and trainer.throughput.result is None


def test_stream_has_full_batches(recipe, tmp_path):
    flags = ["--streaming", "true", "--max_steps", "3", "--eval_strategy", "no", "--save_strategy", "no"]
    trainer = build_run(read_recipe(recipe, [*TINY, *flags, "--output_dir", str(tmp_path)])).trainer()
    trainer.train()
    assert trainer.throughput.result["examples"] == 24


def test_two_processes(recipe, tmp_path):
    """Rows are counted over both processes, the wait is that of the slower one."""
    script = tmp_path / "slow_second_process.py"
    script.write_text(
        "import os, sys, time\n"
        "from hf_frozen_llm.cli import main\n"
        "from hf_frozen_llm.data.datasets import TransformedDataset\n"
        "read = TransformedDataset.read_rows\n"
        "def read_slowly(self, indices):\n"
        "    time.sleep(3 if os.environ['RANK'] == '1' else 0)\n"
        "    return read(self, indices)\n"
        "TransformedDataset.read_rows = read_slowly\n"
        "main(sys.argv[1:])\n"
    )
    flags = ["--num_train_epochs", "1", "--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", "2"]
    flags += ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--ddp_backend", "gloo"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(script), "train", str(recipe), *TINY, *flags, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = results["throughput"]
    # 60 rows; each process reads four batches of eight, the last of which is filled with the first rows again.
    assert found["examples"] == 60
    assert found["examples_per_second"] == float(f"{60 / found['step_seconds']:.4g}")
    assert found["data_wait_share"] > 0.5
    assert all(entry["data_wait_share"] > 0.2 for entry in results["log_history"] if "loss" in entry)
