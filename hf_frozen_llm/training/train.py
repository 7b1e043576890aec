# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm train`: train the model of a recipe with the Trainer of transformers."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import (
    collect_versions,
    describe_device,
    failing_run,
    find_git_revision,
    write_json,
)
from hf_frozen_llm.training.run import Run, build_run


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Train the model of a recipe, save it in `output_dir`, and write `results.json` there at the end.

    Args:
        recipe_path (`str` or `Path`):
            The YAML file.
        overrides (`Sequence[str]`, *optional*):
            Flags such as `["--learning_rate", "1e-3", "--llm_block.layer_index", "30"]`.

    Returns:
        `dict[str, Any]`: the content of `results.json`.

    Raises:
        `ValueError`: for unknown keys, values of another type, settings that contradict each other, data that does not
            fit, or a checkpoint of another run.
    """
    run = build_run(read_recipe(recipe_path, overrides))
    progress = RunProgress(run.train_dataset)
    trainer = run.trainer([progress])
    if trainer.is_world_process_zero():
        print(describe_model(run.model), flush=True)
    with failing_run():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
        seconds = progress.seconds()
        parameters = count_parameters(run.model)
        if run.lora is not None:
            run.lora.merge_and_unload()
        trainer.save_model()  # before the evaluation, which may cast the model (bf16_full_eval)
        metrics = {**result.metrics, **(trainer.evaluate() if run.eval_dataset is not None else {})}

    results = {
        "metrics": metrics,
        "parameters": parameters,
        "recipe": run.settings.to_dict(),
        "config": json.loads(run.model.config.to_json_string(use_diff=False)),
        "versions": collect_versions(),
        "seed": run.args.seed,
        "git_revision": find_git_revision(),
        "device": describe_device(run.args.device),
        "num_processes": run.args.world_size,
        "num_eval_rows": count_eval_rows(run),
        "train_time_seconds": seconds,
        "resumed_from_checkpoint": None if run.checkpoint is None else run.checkpoint.name,
        "log_history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        write_json(Path(str(run.args.output_dir), "results.json"), results)
        print(json.dumps(metrics, indent=2), flush=True)
    return results


class RunProgress(TrainerCallback, ExportableState):
    """Set the epoch of the training data, and add up the time of all sessions of a resumed run."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.earlier_seconds = 0.0
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"earlier_seconds": self.seconds()}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get("RunProgress", {})
        self.earlier_seconds = stored.get("attributes", {}).get("earlier_seconds", 0.0)
        self.started = time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


def count_eval_rows(run: Run) -> int | None:
    """Return the rows that the run was evaluated on; `None` without evaluation, or for a stream."""
    return None if run.eval_dataset is None or run.task.args.streaming else len(run.eval_dataset.rows)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def describe_model(model: PreTrainedModel) -> str:
    numbers = ", ".join(f"{count:,} {name}" for name, count in count_parameters(model).items())
    block = model.config.llm_block
    if block is None or block.kind != "llm":
        instead = "no LLM block" if block is None else f"instead of the LLM layer: {block.kind}"
        return f"{type(model).__name__}: parameters: {numbers}; {instead}"
    return (
        f"{type(model).__name__}: parameters: {numbers}; LLM: {block.llm_name_or_path}, layer {block.layer_index}, "
        f"weights {block.weights}, fingerprint {block.fingerprint}"
    )
