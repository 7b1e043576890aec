# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Two machines, here two launches of torchrun on loopback: one of them is lost, and the run is resumed."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from paths import REPO
from safetensors.torch import load_file
from tiny_runs import TINY


FOUR = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--eval_strategy", "no"]
FLAGS = [*TINY, *FOUR, "--per_device_train_batch_size", "4", "--ddp_backend", "gloo"]
SECONDS = 900


@contextmanager
def started(log: Path, *command: str, **variables: str) -> Iterator[subprocess.Popen]:
    """Run a command; none of its processes outlives the test: torchrun's have sessions of their own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def train_on_two_nodes(recipe, output_dir: Path, program: list[str], *flags: str, **variables: str) -> list[int]:
    """Return the exit codes of the two launches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        nodes = []
        for rank in ("0", "1"):
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", rank]
            launcher += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
            command = [*launcher, *program, "train", str(recipe), *FLAGS, *flags, "--output_dir", str(output_dir)]
            log = output_dir.parent / f"{output_dir.name}-{len(program)}-{rank}.log"
            nodes.append(stack.enter_context(started(log, *command, **variables)))
        return [node.wait(SECONDS) for node in nodes]


def read(output_dir: Path):
    return json.loads((output_dir / "results.json").read_text())


@pytest.mark.slow
def test_lost_machine(recipe, tmp_path):
    """The process of the second machine is killed in the third step; resumed, the run is the uninterrupted one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "hf_frozen_llm", "train", str(recipe), *FLAGS, "--output_dir", str(whole)]
    with started(tmp_path / "whole.log", *command) as process:
        assert process.wait(SECONDS) == 0, (tmp_path / "whole.log").read_text()

    killed = [str(REPO / "tests" / "killed_run.py"), str(parts), "3", "hf_frozen_llm"]
    codes = train_on_two_nodes(recipe, parts, killed, KILLED_RANK="1")
    assert 0 not in codes, "the first machine must not go on alone"
    assert [path.name for path in parts.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (parts / "results.json").exists()

    codes = train_on_two_nodes(recipe, parts, ["-m", "hf_frozen_llm"], "--resume")
    assert codes == [0, 0]
    weights, same = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    one, other = read(whole), read(parts)
    assert other["resumed_from_checkpoint"] == "checkpoint-2" and other["num_processes"] == 2
    assert one["throughput"]["examples"] == other["throughput"]["examples"] == 32
    losses = [[entry["loss"] for entry in results["log_history"] if "loss" in entry] for results in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
