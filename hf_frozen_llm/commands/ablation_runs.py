# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The runs of an ablation: refuse results of other settings, run some side by side, read the results."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hf_frozen_llm.flops import count_flops
from hf_frozen_llm.training.recipe import flatten_groups
from hf_frozen_llm.training.results import RESULTS_FILE, read_results, write_json


# Keys that do not change the results of a run.
RESULT_INDEPENDENT_KEYS = {"output_dir", "resume", "resume_changes"}


@dataclass
class PlannedRun:
    """
    A run of an ablation.

    Args:
        variant (`str`): the name of its variant.
        fields (`dict[str, str]`): the fields that it overrides.
        value (`dict[str, str]`): the tuned ones of these fields.
        seed (`int`): its seed.
        command (`list[str]`): the arguments of `hf-frozen-llm`.
        folder (`Path`): its `output_dir`.
        settings (`dict[str, Any]`): its resolved settings, as [`Settings.to_dict`] returns them.
    """

    variant: str
    fields: dict[str, str]
    value: dict[str, str]
    seed: int
    command: list[str]
    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{name_variant(self.variant, self.value)}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def is_finished(self) -> bool:
        return self.results_file.is_file()

    @property
    def results_file(self) -> Path:
        return self.folder / RESULTS_FILE


def name_fields(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in fields.items())


def name_variant(variant: str, value: Mapping[str, str]) -> str:
    return ", ".join([variant, *([name_fields(value)] if value else [])])


def refuse_other_settings(run: PlannedRun) -> None:
    """Refuse a folder that holds results, or the checkpoints of an interrupted run, of other settings."""
    if run.is_finished:
        earlier = read_results(run.results_file)["recipe"]
    elif any(run.folder.glob("checkpoint-*")) and (run.folder / "command.json").is_file():
        earlier = json.loads((run.folder / "command.json").read_text(encoding="utf-8"))["settings"]
    else:
        return
    before, now = flatten_groups(earlier), flatten_groups(json.loads(json.dumps(run.settings)))
    names = sorted((before.keys() | now.keys()) - RESULT_INDEPENDENT_KEYS)
    if changes := [name for name in names if before.get(name) != now.get(name)]:
        described = "; ".join(f"{name} was {before.get(name)!r}, and is {now.get(name)!r} now" for name in changes)
        raise ValueError(f"{run.folder} holds results of other settings: {described}. Choose another output_dir.")


def run_all(runs: Sequence[PlannedRun], max_parallel: int, title: str, report: Callable[[PlannedRun], str]) -> None:
    """
    Train the runs that have not finished, each in a process of its own.

    Args:
        runs (`Sequence[PlannedRun]`): the runs.
        max_parallel (`int`): the number of processes at a time.
        title (`str`): precedes the number of a run in the output.
        report (`Callable`): gets each run when it has ended, and returns a description of its result.
    """
    environments = slot_environments(max_parallel, os.environ, find_gpus(), count_cores())
    waiting = list(enumerate(runs, 1))
    processes: dict[int, tuple[int, PlannedRun, subprocess.Popen]] = {}

    def end(number: int, run: PlannedRun) -> None:
        print(f"[{title}{number}/{len(runs)}] {run.name}: {report(run)}", flush=True)

    try:
        while waiting or processes:
            for slot in [slot for slot in range(max_parallel) if slot not in processes]:
                while waiting and slot not in processes:
                    number, run = waiting.pop(0)
                    if run.is_finished:
                        end(number, run)
                    else:
                        print(f"[{title}{number}/{len(runs)}] {run.name}", flush=True)
                        processes[slot] = (number, run, start(run, environments[slot]))
            for slot, (number, run, process) in list(processes.items()):
                if process.poll() is not None:
                    del processes[slot]
                    end(number, run)
            if processes:
                time.sleep(0.05)
    finally:
        stop([process for *_, process in processes.values()])


def start(run: PlannedRun, environment: Mapping[str, str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "command.json", {"command": run.command, "settings": run.settings})
    # A run without a complete checkpoint starts from the beginning.
    command = [sys.executable, "-m", "hf_frozen_llm", *run.command, "--resume", "true"]
    with open(run.log, "a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=dict(environment))


def stop(processes: Sequence[subprocess.Popen], seconds: float = 10) -> None:
    """End processes: ask them, and kill those that have not ended after some seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def slot_environments(
    max_parallel: int, environment: Mapping[str, str], gpus: Sequence[str], cores: int
) -> list[dict[str, str]]:
    """Return the environment of each slot: an equal share of the cores and, if there are several GPUs, one of them."""
    if max_parallel == 1:
        return [dict(environment)]
    shared = {"OMP_NUM_THREADS": str(max(1, cores // max_parallel)), **environment}
    if len(gpus) < 2:
        return [shared] * max_parallel
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(max_parallel)]


def find_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(torch.cuda.device_count())] if visible is None else visible.split(",")


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cells(run: PlannedRun) -> dict[str, Any]:
    """Return the cells of a finished run in `ablation.csv`."""
    results = read_results(run.results_file)
    recipe = results["recipe"]
    batch_size = recipe.get("per_device_train_batch_size", 8)
    forward, step = count_flops_of(json.dumps([results["config"], batch_size, recipe["freeze_host"], recipe["lora"]]))
    return {
        **read_scores(results),
        **{f"{name}_parameters": count for name, count in results["parameters"].items()},
        "forward_mflop": forward / 1e6,
        "step_mflop": step / 1e6,
        "train_seconds": results["train_time_seconds"],
        "device": results["device"],
        "dataset_name": recipe["dataset_name"],
        "llm_name_or_path": (recipe["llm_block"] or {}).get("llm_name_or_path"),
        "steps": results["log_history"][-1]["step"],
        "num_eval_rows": results.get("num_eval_rows"),
    }


@cache
def count_flops_of(settings: str) -> tuple[float, float]:
    """Return the operations of a model and its training, given as JSON; once for all seeds, as it may take long."""
    fields, *others = json.loads(settings)
    return count_flops(AutoConfig.for_model(fields.pop("model_type"), **fields), *others)


def read_scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the evaluation, without its times, and the training loss."""
    metrics = results["metrics"]
    scores = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    times = ("_runtime", "_per_second", "_time")
    kept = {name: value for name, value in scores.items() if not name.endswith(times)}
    # In strict JSON, NaN is null.
    numbers = {**kept, "train_loss": metrics["train_loss"]}
    return {name: math.nan if value is None else value for name, value in numbers.items()}
