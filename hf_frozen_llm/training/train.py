# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm train`: train the model of a recipe with the Trainer of transformers."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_frozen_llm.training.lock import lock_output_dir
from hf_frozen_llm.training.progress import progress_bars
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import (
    RESULTS_FILE,
    collect_versions,
    count_parameters,
    current_time,
    describe_device,
    digest_weights,
    failing_run,
    find_base_models,
    find_git_revision,
    to_json,
    write_confusion_matrix,
    write_json,
)
from hf_frozen_llm.training.run import Run, build_training_arguments, prepare_run, resolve
from hf_frozen_llm.training.training_set import TrainingSetFacts


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

    A run that has finished is left as it is when it is resumed.

    Raises:
        `FloatingPointError`: at the first loss or gradient that is not finite; good checkpoints and models are kept.
        `OSError`: if `output_dir` cannot be written to, or another run writes into it.
        `ValueError`: for unknown keys, values of another type, settings that contradict each other, data that does not
            fit, or a checkpoint of another run.
    """
    settings = resolve(read_recipe(recipe_path, overrides))
    args = build_training_arguments(settings)
    lock = lock_output_dir(str(args.output_dir)) if args.process_index == 0 else nullcontext()
    with lock, progress_bars(args.disable_tqdm):
        run = prepare_run(settings, args)
        if run.results is None:
            return train_run(run)
    if args.process_index == 0:
        print(f"The run in {args.output_dir} has already finished; it is left as it is.", flush=True)
    return run.results


def train_run(run: Run) -> dict[str, Any]:
    """Train, evaluate and save; return the results, which are written beside the model."""
    training_set = TrainingSetFacts(run)
    trainer = run.trainer([training_set])
    if trainer.is_world_process_zero():
        print(describe_model(run.model), flush=True)
    with failing_run():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
        if result.global_step == 0:
            raise ValueError("There was no batch to train on: the data of this process gave none.")
        seconds = trainer.progress.seconds()
        parameters = count_parameters(run.model)
        if run.lora is not None:
            run.lora.merge_and_unload()
        trainer.save_model()  # before the evaluation, which may cast the model (bf16_full_eval)
        metrics = {**result.metrics, **(trainer.evaluate() if run.eval_dataset is not None else {})}

    folder, is_first = Path(str(run.args.output_dir)), trainer.is_world_process_zero()
    state = trainer.state
    has_best = run.args.load_best_model_at_end and state.best_global_step
    results = {
        "metrics": metrics,
        **{name: table for name, table in trainer.tables.items() if name == "classes"},
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
        "date": current_time(),
        "base_models": find_base_models(run.model.config, run.settings.recipe.host.get("name_or_path")),
        "training_set": training_set.facts,
        "saved_step": state.best_global_step if has_best else state.global_step,
        "weights_digest": digest_weights(folder) if is_first else None,
        "resumed_from_checkpoint": None if run.checkpoint is None else run.checkpoint.name,
        "log_history": state.log_history,
    }
    if is_first:
        write_json(folder / RESULTS_FILE, results)
        write_confusion_matrix(trainer.tables, folder / "confusion_matrix.csv")
        print(to_json(metrics, indent=2), flush=True)
        print(describe_folder(run), flush=True)
    return results


def describe_folder(run: Run) -> str:
    """Return where the model of a finished run is, and how to use it."""
    folder = run.args.output_dir
    split = "" if run.eval_dataset is not None and run.settings.data_args.holdout is None else " --split SPLIT"
    return (
        f"The model is in {folder}. Load it: {type(run.model).__name__}.from_pretrained({folder!r}). Evaluate it: "
        f"hf-frozen-llm evaluate {folder}{split}. Predict: hf-frozen-llm predict {folder} FILE"
    )


def count_eval_rows(run: Run) -> int | None:
    """Return the rows that the run was evaluated on; `None` without evaluation, or for a stream."""
    return None if run.eval_dataset is None or run.task.args.streaming else len(run.eval_dataset.rows)


def describe_model(model: PreTrainedModel) -> str:
    numbers = ", ".join(f"{count:,} {name}" for name, count in count_parameters(model).items())
    block = model.config.llm_block
    if block is None or block.kind != "llm":
        instead = "no LLM block, the plain host" if block is None else f"instead of the LLM layer: {block.kind}"
        return f"{type(model).__name__}: parameters: {numbers}; {instead}"
    return (
        f"{type(model).__name__}: parameters: {numbers}; LLM: {block.llm_name_or_path}, layer {block.layer_index}, "
        f"weights {block.weights}, fingerprint {block.fingerprint}"
    )
