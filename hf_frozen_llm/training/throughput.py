# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""How many examples a second a training reads, and how long its steps wait for them."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Totals(NamedTuple):
    """
    What a process has counted.

    Args:
        examples (`int`, *optional*, defaults to 0): examples that all processes together have trained on.
        seconds (`float`, *optional*, defaults to 0.0): time of the steps.
        waited (`float`, *optional*, defaults to 0.0): the part of it in which the process waited for data.
    """

    examples: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def since(self, earlier: "Totals") -> "Totals":
        seconds, waited = self.seconds - earlier.seconds, self.waited - earlier.waited
        return Totals(self.examples - earlier.examples, seconds, waited)


class Throughput(TrainerCallback, ExportableState):
    """
    Time the steps of a training, and in them the wait for data. A step begins when its first batch is asked for, and
    ends with the optimizer's step: logging, evaluation and saving lie between the steps. A resumed run goes on where
    its checkpoint ended.

    Args:
        trainer ([`TaskTrainer`]): the trainer of the run.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.totals = Totals()
        self.logged = Totals()
        self.of_processes: list[Totals] = []  # at the last checkpoint
        self.began = 0.0
        self.result: dict[str, float] | None = None  # of the whole training, at its end

    def begin_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches of a step that begins now. The time until each of them is there is waiting."""
        self.began = time.monotonic()
        return self._wait_for(batches)

    def _wait_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.totals = self.totals._replace(waited=self.totals.waited + time.monotonic() - asked)
            if batch is None:
                return
            yield batch

    def count_examples(self, step: int) -> int:
        """
        Return how many examples of the data set all processes have trained on up to a step; those that are repeated to
        fill a last batch count once.
        """
        args, dataset = self.trainer.args, self.trainer.train_dataset
        batch_size = args.train_batch_size * args.world_size
        if not hasattr(dataset, "__len__"):
            return step * args.gradient_accumulation_steps * batch_size
        num_batches = len(self.trainer.callback_handler.train_dataloader)
        epochs, steps = divmod(step, math.ceil(num_batches / args.gradient_accumulation_steps))
        batches = steps * args.gradient_accumulation_steps
        return epochs * min(num_batches * batch_size, len(dataset)) + min(batches * batch_size, len(dataset))

    def describe(self, totals: Totals) -> dict[str, float]:
        """
        Return what is logged; all processes must call this. The share is that of the process that waits longest, as
        the others wait for it.
        """
        if totals.seconds == 0:
            return {}
        share = max(gather_object([totals.waited / totals.seconds]))
        rate = totals.examples / totals.seconds
        return {"examples_per_second": float(f"{rate:.4g}"), "data_wait_share": round(share, 4)}

    def describe_since_log(self) -> dict[str, float]:
        """Return the same for the steps since this was called last."""
        described = self.describe(self.totals.since(self.logged))
        self.logged = self.totals
        return described

    def gather_totals(self) -> None:
        """Collect the totals of all processes, before a checkpoint is written."""
        self.of_processes = gather_object([self.totals])

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"totals": [list(totals) for totals in self.of_processes]}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get("Throughput", {}).get("attributes", {}).get("totals", [])
        self.totals = Totals(*stored[args.process_index]) if args.process_index < len(stored) else Totals()
        self.logged = self.totals

    def on_step_end(self, args, state, control, **kwargs):
        examples = self.count_examples(state.global_step) - self.count_examples(state.global_step - 1)
        seconds = self.totals.seconds + time.monotonic() - self.began
        self.totals = self.totals._replace(examples=self.totals.examples + examples, seconds=seconds)

    def on_train_end(self, args, state, control, **kwargs):
        described = self.describe(self.totals)
        if described:
            self.result = {"examples": self.totals.examples, "step_seconds": self.totals.seconds, **described}
