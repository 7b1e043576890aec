# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The checks of the splits: labels, unreadable rows, rows that two splits share, steps."""

import hashlib
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset
from transformers import TrainingArguments

from hf_frozen_llm.commands.predict import ReadableRows
from hf_frozen_llm.commands.report import Report, count, name_some
from hf_frozen_llm.data.datasets import Example, HFDataset, take_samples
from hf_frozen_llm.tasks import Task
from hf_frozen_llm.training.optimizer import Schedule
from hf_frozen_llm.training.run import Settings


# Compare rows of a split until this many bytes of it have been read, unless all rows are requested.
COMPARED_BYTES = 256_000_000
# A row costs time even if it is small.
ROW_BYTES = 4_000
HASHED_ROWS = 64
SHOWN_CLASSES = 12


@dataclass
class Split:
    """
    Rows of a split.

    Args:
        name (`str`): its name.
        rows (`datasets.Dataset` or `datasets.IterableDataset`): the rows that the run uses.
        max_samples (`int`, *optional*): the largest number of rows that the run uses.
        readable (`datasets.Dataset` or `datasets.IterableDataset`, *optional*): the rows that could be read, for the
            steps; all rows of a stream, `None` if no row could be read.
    """

    name: str
    rows: HFDataset
    max_samples: int | None
    readable: HFDataset | None = None


def check_labels(task: Task, split: Split, report: Report) -> None:
    """Count the rows of a split, and of each class in it; name classes that it lacks."""
    if task.args.streaming:
        report.say(split.name, "a stream: its rows and classes, and rows in both splits, cannot be counted")
        return
    fact = count(len(split.rows), "row")
    try:
        counts = task.label_counts(split.rows)
        report.say(split.name, fact + describe_counts(counts))
    except ValueError as error:
        report.say(split.name, fact)
        raise error
    if lacking := [name for name, number in counts.items() if number == 0]:
        classes = "the class" if len(lacking) == 1 else f"{len(lacking)} classes:"
        report.warnings.append(f"{split.name} has no row of {classes} {name_some(lacking)}.")


def describe_counts(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    if len(counts) <= SHOWN_CLASSES:
        return f", {len(counts)} classes: {', '.join(f'{name} {number:,}' for name, number in counts.items())}"
    fewest, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    return (
        f", {len(counts):,} classes of {counts[fewest]:,} rows ({fewest}) to {counts[most]:,} ({most}), "
        f"{sum(counts.values()) / len(counts):,.1f} on average"
    )


def check_readable(task: Task, split: Split, check_rows: int, num_workers: int, report: Report) -> None:
    """Read a sample of a split as an evaluation does; the first rows of a stream."""
    dataset = task.dataset(split.rows, split.name)
    dataset.transform = ReadableRows(dataset.transform)
    start = time.monotonic()
    if task.args.streaming:
        errors = [example.get("error") for example in itertools.islice(dataset, check_rows)]
        which = f"the first {count(len(errors), 'row')}"
        split.readable = split.rows
    else:
        total = len(split.rows)
        number = min(check_rows, total)
        chosen = np.sort(np.random.default_rng(0).choice(total, number, replace=False)).tolist()
        errors = list(DataLoader(Subset(dataset, chosen), num_workers=num_workers, collate_fn=find_error))
        which = f"{number:,} of {count(total, 'row')}"
        readable = [row for row, error in zip(chosen, errors) if error is None]
        split.readable = split.rows.select(readable) if readable else None
    milliseconds = 1000 * (time.monotonic() - start) / max(1, len(errors))
    causes = [error for error in errors if error is not None]
    report.say("", f"{which} read, {milliseconds:,.1f} ms each: {len(causes) or 'none'} of them unreadable")
    if causes:
        some = "\n     ".join(causes[:5])
        verb = "cannot be read. The first:" if len(causes) > 5 else "cannot be read:"
        report.errors.append(f"{split.name}: {len(causes)} of {count(len(errors), 'row')} {verb}\n     {some}")


def find_error(examples: list[Example]) -> str | None:
    return examples[0].get("error")


def check_shared_rows(settings: Settings, train: Split, evaluation: Split, check_rows: int, report: Report) -> None:
    """Compare the content of two splits: their encoded images, videos or arrays, without labels."""
    args = settings.data_args
    digests, compared = [], []
    for split in (train, evaluation):
        rows = take_samples(args, settings.task.read(args, split.name, with_targets=False), split.max_samples)
        digests.append(hash_rows(rows, math.inf if check_rows >= len(rows) else COMPARED_BYTES))
        number = len(digests[-1])
        share = "all" if number == len(rows) else f"{number:,} of"
        compared.append(f"{share} {count(len(rows), 'row')} of {split.name}")
    row_of = {digest: row for row, digest in digests[0].items()}
    shared = {row: row_of[digest] for row, digest in digests[1].items() if digest in row_of}
    report.say("shared rows", f"{len(shared) or 'none'}; compared by their bytes: {' and '.join(compared)}")
    if shared:
        row = min(shared)
        report.warnings.append(
            f"{count(len(shared), 'row')} of {evaluation.name} {'is' if len(shared) == 1 else 'are'} in {train.name} "
            f"as well. The first: row {row} is row {shared[row]} there."
        )


def hash_rows(rows: HFDataset, max_bytes: float) -> dict[int, bytes]:
    """Return the hash of each row's content, for random rows until this many bytes have been read."""
    digests: dict[int, bytes] = {}
    order = np.random.default_rng(0).permutation(len(rows)) if max_bytes < math.inf else np.arange(len(rows))
    total = 0
    for start in range(0, len(rows), HASHED_ROWS):
        if total >= max_bytes:
            break
        chosen = np.sort(order[start : start + HASHED_ROWS]).tolist()
        columns = rows[chosen]
        for row, values in zip(chosen, zip(*columns.values())):
            content = b"".join(map(read_bytes, values))
            total += max(ROW_BYTES, len(content))
            digests[row] = hashlib.blake2b(content, digest_size=16).digest()
    return digests


def read_bytes(value: Any) -> bytes:
    """Return the value of a column; for a file, its content."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value["bytes"]
    if isinstance(value, dict) and value.get("path") is not None and Path(value["path"]).is_file():
        return Path(value["path"]).read_bytes()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def check_length(
    args: TrainingArguments, warmup_epochs: float | None, train: Split, report: Report
) -> tuple[int, int]:
    """Count steps, epochs and examples; return the steps, and the checkpoints if all of them are kept."""
    accumulated, num_rows = args.gradient_accumulation_steps, len(train.rows)
    a_batch = args.train_batch_size * args.world_size
    a_step = a_batch * accumulated
    batches = num_rows // a_batch if args.dataloader_drop_last else math.ceil(num_rows / a_batch)
    an_epoch = max(1, math.ceil(batches / accumulated))
    seen = batches * a_batch if args.dataloader_drop_last else num_rows
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    factors = [f"{args.train_batch_size} on a device"]
    if args.world_size > 1:
        factors.append(f"{args.world_size} devices")
    if accumulated > 1:
        factors.append(f"{accumulated} accumulated batches")
    report.say(
        "length",
        f"{count(steps, 'step')} of {count(a_step, 'example')} ({' × '.join(factors)}), {an_epoch:,} an epoch: "
        f"{steps / an_epoch:,.1f} epochs, {count(round(steps / an_epoch * seen), 'example')}",
    )
    if batches == 0:
        raise ValueError(
            f"A batch has {a_batch:,} examples on all processes, and {train.name} only {count(num_rows, 'row')}: "
            "dataloader_drop_last leaves out all. Lower per_device_train_batch_size."
        )
    if a_step > num_rows:
        report.warnings.append(
            f"A step reads {a_step:,} examples, and {train.name} has {count(num_rows, 'row')}. Lower "
            "per_device_train_batch_size or gradient_accumulation_steps."
        )
    warmup = Schedule(warmup_epochs).num_warmup_steps(args, steps, an_epoch)
    if warmup >= steps:
        given = f"warmup_steps is {warmup:,}"
        if warmup_epochs is not None:
            given = f"warmup_epochs is {warmup_epochs:g}, {count(warmup, 'step')}"
        report.warnings.append(f"{given}, and the run ends after {count(steps, 'step')}.")
    for name, strategy, missing in (
        ("eval_steps", args.eval_strategy, "evaluated"),
        ("save_steps", args.save_strategy, "saved to resume from"),
    ):
        every = getattr(args, name) or args.logging_steps
        if strategy == "steps" and every > steps:
            report.warnings.append(
                f"{name} is {every:g}, and the run ends after {count(steps, 'step')}: nothing is {missing} before."
            )
    if args.save_total_limit is not None or args.save_strategy not in ("steps", "epoch"):
        return steps, 0
    interval = an_epoch if args.save_strategy == "epoch" else args.save_steps
    return steps, int(steps // (interval if interval >= 1 else max(1, interval * steps)))
