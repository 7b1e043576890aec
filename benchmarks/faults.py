# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Count what is left after kills, full disks, saving from several threads, and resuming with other loader processes.

    python benchmarks/faults.py --output benchmarks/results/faults.md

Short forms of these are tests of the suite. Everything is tiny, and runs in forks of this process: a fork is killed at
a random moment, or its files cannot grow beyond a limit, as on a full disk (`RLIMIT_FSIZE`).
"""

import argparse
import collections
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import datasets
import torch
import transformers
from full_disk import full_disk
from hub_server import HubServer
from llm_files import write_llm
from safetensors.torch import load_file
from saved_models import Classifier, build
from tiny_llms import tiny_config, tiny_llm
from tiny_runs import TINY, write_llama, write_parquet

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.cli import main as command_line


SHARDED = {"max_shard_size": "20KB"}
FAILED = 3  # exit code of a fork in which an error was raised


def fork(function, *args, limit=None) -> int:
    """Run a function in a fork whose files cannot grow beyond `limit` bytes; return its process id."""
    process = os.fork()
    if process:
        return process
    code = 0
    try:
        # What a run prints belongs to the fork.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with nullcontext() if limit is None else full_disk(limit):
            function(*args)
    except BaseException:
        code = FAILED
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def is_equal(model, other) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def make_models(folder: Path) -> dict[str, Classifier]:
    llm = write_llm(tiny_llm(tiny_config("llama")), folder / "llm")
    models = {name: build(llm, seed=seed) for seed, name in enumerate(("old", "new"))}
    for name, model in models.items():
        model.config.id2label = dict.fromkeys(range(3), name)
    return models


def find_model(folder: Path, models: dict[str, Classifier]) -> str:
    """Return which of the models a folder holds; "BROKEN" if it is another, or if loading fails without a reason."""
    try:
        loaded = Classifier.from_pretrained(folder)
    except OSError as error:
        return "says that the save was interrupted" if "was interrupted" in str(error) else f"BROKEN: {error}"
    except Exception as error:
        return f"BROKEN: {error!r}"
    label = loaded.config.id2label[0]
    return label if is_equal(loaded, models[label]) else "BROKEN: a mixture"


def kill_saving(folder: Path, tries: int, rng: random.Random) -> collections.Counter:
    """Kill a process that saves two models into one folder in turn, in one file and in shards."""
    models = make_models(folder)
    output = folder / "model"
    start = time.perf_counter()
    models["old"].save_pretrained(output, **SHARDED)
    duration = time.perf_counter() - start
    counts: collections.Counter = collections.Counter()

    def save_for_ever():
        turn = 0
        while True:
            models["new" if turn % 2 else "old"].save_pretrained(output, **(SHARDED if turn % 3 else {}))
            turn += 1

    for _ in range(tries):
        process = fork(save_for_ever)
        time.sleep(rng.uniform(0, 4 * duration))
        os.kill(process, signal.SIGKILL)
        wait(process)
        found = find_model(output, models)
        counts[found] += 1
        models["old"].save_pretrained(output)
        if find_model(output, models) != "old" or any(path.name.startswith(".") for path in output.iterdir()):
            counts["BROKEN: the next save does not clean up"] += 1
    return counts


def fill_disk_while_saving(folder: Path, tries: int) -> collections.Counter:
    """Save over an older model when files cannot grow beyond a limit, from nothing to the size of the largest."""
    models = make_models(folder)
    output = folder / "model"
    models["new"].save_pretrained(output)
    largest = max(path.stat().st_size for path in output.iterdir())
    counts: collections.Counter = collections.Counter()
    for number in range(tries):
        models["old"].save_pretrained(output)
        limit = largest * (number + 1) // (tries + 1)
        code = wait(fork(models["new"].save_pretrained, output, limit=limit))
        found = find_model(output, models)
        counts[f"error, {found} model" if code == FAILED and found == "old" else f"BROKEN: {code}, {found}"] += 1
        if any(path.name.startswith(".") for path in output.iterdir()):
            counts["BROKEN: files are left behind"] += 1
    return counts


def save_from_threads(folder: Path, tries: int) -> collections.Counter:
    """Save one model from four threads at once: with and without its layer, two of them into the same folder."""
    model = make_models(folder)["old"]
    counts: collections.Counter = collections.Counter()
    for number in range(tries):
        # A folder of that name is Trainer's, which leaves the layer out.
        outputs = [folder / f"{number}" / name for name in ("first", "checkpoint-1", "second")]
        with ThreadPoolExecutor(4) as pool:
            saves = [pool.submit(model.save_pretrained, output) for output in (*outputs, outputs[0])]
        counts.update(f"BROKEN: {save.exception()!r}" for save in saves if save.exception() is not None)
        for output in outputs:
            found = find_model(output, {"old": model})
            counts[f"{found} model" if found == "old" else found] += 1
        sizes = [sum(p.stat().st_size for p in output.glob("*.safetensors")) for output in outputs]
        if not sizes[1] < sizes[0] == sizes[2]:
            counts["BROKEN: a full folder without the layer, or a light one with it"] += 1
    return counts


class Runs:
    """Tiny training runs: eight steps, a checkpoint at every second one."""

    def __init__(self, folder: Path):
        self.folder = folder
        data, llm = write_parquet(folder / "data"), write_llama(folder / "llm")
        self.flags = ["train", "image_classification/tiny.yaml", *TINY, "--dataset_name", data]
        self.flags += ["--llm_block.llm_name_or_path", llm, "--image_column", "image", "--label_column", "label"]
        self.flags += ["--max_steps", "8", "--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps"]
        self.flags += [
            "--save_steps",
            "2",
            "--save_total_limit",
            "2",
            "--train_split",
            "train",
            "--eval_split",
            "test",
        ]
        start = time.perf_counter()
        if wait(fork(self.run, folder / "whole")) != 0:
            raise RuntimeError("The uninterrupted run failed.")
        self.duration = time.perf_counter() - start

    def run(self, output: Path, *flags: str) -> None:
        command_line([*self.flags, "--output_dir", str(output), *flags])

    def compare(self, output: Path) -> str:
        """Return whether a finished run is the uninterrupted one, bit for bit, with its results."""
        files = ("model.safetensors", "results.json")
        if not all((output / name).is_file() for name in files):
            return "BROKEN: no model or no results"
        ours, whole = (load_file(run / files[0]) for run in (output, self.folder / "whole"))
        mine, theirs = (json.loads((run / files[1]).read_text())["metrics"] for run in (output, self.folder / "whole"))
        names = ("eval_loss", "eval_top1", "train_loss")
        same = all(torch.equal(tensor, ours[name]) for name, tensor in whole.items())
        return "same" if same and all(mine[n] == theirs[n] for n in names) else "BROKEN: another result"


def kill_training(folder: Path, tries: int, rng: random.Random) -> collections.Counter:
    """Kill a run up to three times at random moments, resume it, and compare it with the uninterrupted one."""
    runs = Runs(folder)
    counts: collections.Counter = collections.Counter()
    for number in range(tries):
        output = folder / f"killed-{number}"
        kills = 0
        for _ in range(3):
            process = fork(runs.run, output, "--resume", "true")
            time.sleep(rng.uniform(0, runs.duration))
            os.kill(process, signal.SIGKILL)
            kills += wait(process) == -signal.SIGKILL
        code = wait(fork(runs.run, output, "--resume", "true"))
        counts[f"{runs.compare(output)} result" if code == 0 else f"BROKEN: resuming ends with {code}"] += 1
        counts["kills"] += kills
    return counts


def change_workers(folder: Path, rng: random.Random) -> collections.Counter:
    """Kill a run with loader processes of one kind, and resume it with another kind."""
    runs = Runs(folder)
    kinds = [("fork", 0, False), ("fork", 1, True), ("fork", 2, False), ("spawn", 1, True)]
    counts: collections.Counter = collections.Counter()

    def run(output: Path, kind: tuple[str, int, bool]) -> None:
        method, number, stay = kind
        multiprocessing.set_start_method(method, force=True)
        workers = ["--dataloader_num_workers", str(number), "--dataloader_persistent_workers", str(stay)]
        runs.run(output, "--resume", "true", *workers)

    for first, second in itertools.permutations(kinds, 2):
        output = folder / f"workers-{kinds.index(first)}-{kinds.index(second)}"
        process = fork(run, output, first)
        time.sleep(rng.uniform(0, 2 * runs.duration))
        os.kill(process, signal.SIGKILL)
        wait(process)
        code = wait(fork(run, output, second))
        counts[f"{runs.compare(output)} result" if code == 0 else f"BROKEN: resuming ends with {code}"] += 1
    return counts


def fill_disk_while_training(folder: Path, tries: int) -> collections.Counter:
    """Train when files cannot grow beyond a limit, then resume with room."""
    runs = Runs(folder)
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    counts: collections.Counter = collections.Counter()
    for number in range(tries):
        output = folder / f"full-{number}"
        code = wait(fork(runs.run, output, limit=largest * (number + 1) // (tries + 1)))
        if code == 0:
            counts["BROKEN: no error"] += 1
        code = wait(fork(runs.run, output, "--resume", "true"))
        resumed = runs.compare(output) if code == 0 else f"BROKEN: resuming ends with {code}"
        counts[f"error, then resumed to the {resumed} result" if resumed == "same" else resumed] += 1
    return counts


def fill_disk_while_downloading(folder: Path, tries: int) -> collections.Counter:
    """Load a layer from a Hub whose cache cannot grow beyond a limit, then with room."""
    llm = write_llm(tiny_llm(tiny_config("llama")), folder / "llm")
    whole = LLMBlock(LLMBlockConfig(llm_name_or_path=str(llm), hidden_size=24))
    largest = sum(p.numel() * p.element_size() for p in whole.llm_layers.parameters())
    counts: collections.Counter = collections.Counter()

    def load():
        block = LLMBlock(LLMBlockConfig(llm_name_or_path="someone/llm", hidden_size=24))
        assert block.config.fingerprint == whole.config.fingerprint

    for number in range(tries):
        with HubServer() as hub, hub.active(folder / f"home-{number}"):
            hub.add("someone/llm", llm)
            full = wait(fork(load, limit=largest * (number + 1) // (tries + 1)))
            after = wait(fork(load))
            outcomes = {0: "the layer", FAILED: "error"}
            counts[f"{outcomes[full]}, then {outcomes[after]}" if after == 0 else "BROKEN: not loaded afterwards"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="Tries of what takes seconds; of the rest five times.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file for the table.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for library in (transformers.logging, transformers.utils.logging):
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    rng = random.Random(args.seed)
    experiments = {
        "killed while saving": lambda folder: kill_saving(folder, 5 * args.tries, rng),
        "disk full while saving": lambda folder: fill_disk_while_saving(folder, 5 * args.tries),
        "four threads save": lambda folder: save_from_threads(folder, 5 * args.tries),
        "disk full while downloading a layer": lambda folder: fill_disk_while_downloading(folder, args.tries),
        "run killed and resumed": lambda folder: kill_training(folder, args.tries, rng),
        "run killed, resumed with other loader processes": lambda folder: change_workers(folder, rng),
        "disk full while training, resumed": lambda folder: fill_disk_while_training(folder, args.tries),
    }
    command = f"python benchmarks/faults.py --tries {args.tries} --seed {args.seed}"
    lines = ["# What faults leave behind", "", f"`{command}`", "", "| fault | found afterwards |", "|---|---|"]
    is_broken = False
    for name, experiment in experiments.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = experiment(Path(folder))
        is_broken |= any("BROKEN" in outcome for outcome in counts)
        lines.append(f"| {name} | {'; '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))} |")
        print(lines[-1], flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    raise SystemExit(1 if is_broken else 0)


if __name__ == "__main__":
    main()
