# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The state of a run that Trainer does not keep in its checkpoints: its time, and the losses that it has added up. Also
the progress bars of other libraries, which `disable_tqdm` turns off.
"""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub import utils as hub
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging


@contextmanager
def progress_bars(disabled: bool | None) -> Iterator[None]:
    """Show no progress bars of datasets, huggingface_hub and transformers if they are disabled."""
    libraries = (  # transformers switches those of huggingface_hub, too
        (logging.is_progress_bar_enabled(), logging.enable_progress_bar, logging.disable_progress_bar),
        (not hub.are_progress_bars_disabled(), hub.enable_progress_bars, hub.disable_progress_bars),
        (not are_progress_bars_disabled(), enable_progress_bars, disable_progress_bars),
    )
    for _, _, disable in libraries if disabled else ():
        disable()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # environment variables have priority
            for was_shown, enable, disable in libraries if disabled else ():
                enable() if was_shown else disable()


class RunProgress(TrainerCallback, ExportableState):
    """
    Make the results of a resumed run those of the whole run: its time, its `train_loss`, its evaluations. Also set
    the epoch of the training data.

    Args:
        trainer ([`TaskTrainer`]): the trainer of the run.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.earlier_seconds = 0.0
        self.started = time.monotonic()
        self.first_step = 0
        self.losses: list[float] = []  # sum of the losses since the last log, of each process
        self.saves_at_epoch_end = False

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        total_loss = getattr(self.trainer, "_total_loss_scalar", 0.0)
        attributes = {
            "earlier_seconds": self.seconds(),
            "total_loss": total_loss if math.isfinite(total_loss) else None,
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses],
            "last_logged_step": getattr(self.trainer, "_globalstep_last_logged", 0),
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get("RunProgress", {}).get("attributes", {})
        self.earlier_seconds = stored.get("earlier_seconds", 0.0)
        self.started = time.monotonic()
        self.first_step = state.global_step
        if self.first_step > 0 and "total_loss" in stored:
            total_loss, losses = stored["total_loss"], stored["losses"]
            loss = losses[args.process_index] if args.process_index < len(losses) else 0.0
            self.trainer._total_loss_scalar = math.nan if total_loss is None else total_loss
            self.trainer._tr_loss += math.nan if loss is None else loss
            self.trainer._globalstep_last_logged = stored["last_logged_step"]
            self.trainer._initial_global_step = 0  # `train_loss` is the mean over all steps
        if self.first_step >= state.max_steps:
            control.should_training_stop = True

    def on_epoch_begin(self, args, state, control, **kwargs):
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        # A run that resumes from the last step of an epoch does not repeat the end of the epoch.
        ends_epoch = state.epoch == int(state.epoch) or control.should_training_stop
        if control.should_save and ends_epoch and "epoch" in (args.eval_strategy, args.logging_strategy):
            control.should_save = False
            self.saves_at_epoch_end = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step == self.first_step:  # resumed at the last step: all of this is in the checkpoint
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.saves_at_epoch_end:
            control.should_save = True
            self.saves_at_epoch_end = False
