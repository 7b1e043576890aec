# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Facts about the training data, for the results of a run and the model card."""

from typing import Any

from transformers import TrainerCallback

from hf_frozen_llm.data.datasets import find_local
from hf_frozen_llm.training.run import Run


class TrainingSetFacts(TrainerCallback):
    """
    Collect what only the training knows of its data: whether it is on the Hub, its rows, and the rows of each label.

    Args:
        run ([`Run`]): the run.
    """

    def __init__(self, run: Run):
        self.run = run
        self.facts: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        data_args, dataset = self.run.settings.data_args, self.run.train_dataset
        self.facts = {
            "dataset_id": data_args.dataset_name if find_local(data_args) is None else None,
            "split": data_args.train_split,
            "num_rows": None if data_args.streaming else len(dataset.rows),
            "labels": {},
        }
        if not data_args.streaming:
            try:
                self.facts["labels"] = self.run.task.label_counts(dataset.rows)
            except ValueError:  # an unknown label, which is an error when its row is drawn
                pass
