# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm train`: train the model of a recipe with the Trainer of transformers."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from hf_frozen_llm.hub.card import has_own_card, write_card
from hf_frozen_llm.hub.licences import find_licence, permits_layer
from hf_frozen_llm.hub.push import push
from hf_frozen_llm.training.ema import EMA_FOLDER
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
    load_saved_config,
    measure_memory,
    to_json,
    write_confusion_matrix,
    write_json,
)
from hf_frozen_llm.training.run import Run, build_training_arguments, prepare_run, resolve
from hf_frozen_llm.training.training_set import TrainingSetFacts


logger = logging.get_logger(__name__)


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Train the model of a recipe, save it in `output_dir`, and write `results.json` there at the end. With
    `push_to_hub`, publish it with its card and results.

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
    """Train, evaluate, save and, if it is wanted, push; return the results, which are written beside the model."""
    folder, training_set = Path(str(run.args.output_dir)), TrainingSetFacts(run)

    def write_card_so_far() -> None:
        if not has_own_card(folder):
            write_card(folder, trainer.hub_model_id, results=collect_results(run, trainer, training_set))

    trainer: Any = run.trainer([training_set], write_card_so_far)
    is_first = trainer.is_world_process_zero()
    if is_first:
        print(describe_model(run.model), flush=True)
        if run.args.push_to_hub:
            check_push(folder, run.model.config.llm_block)
    with failing_run():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
        if result.global_step == 0:
            raise ValueError("There was no batch to train on: the data of this process gave none.")
        seconds, parameters = trainer.progress.seconds(), count_parameters(run.model)
        if run.lora is not None:
            run.lora.merge_and_unload()
        trainer.save_model()  # before the evaluation, which may cast the model (bf16_full_eval)
        metrics = {**result.metrics, **(trainer.evaluate() if run.eval_dataset is not None else {})}

    results = collect_results(run, trainer, training_set)
    results |= {"metrics": metrics, "parameters": parameters, "train_time_seconds": seconds}
    if trainer.ema is not None and is_first:
        write_json(folder / EMA_FOLDER / RESULTS_FILE, results_of_average(results, folder / EMA_FOLDER))
    results |= {name: table for name, table in trainer.tables.items() if name != "confusion_matrix"}
    if is_first:
        write_json(folder / RESULTS_FILE, results)
        write_confusion_matrix(trainer.tables, folder / "confusion_matrix.csv")
        print(to_json(metrics, indent=2), flush=True)
        print(describe_folder(run), flush=True)
        if run.args.push_to_hub:
            push_results(run, trainer.hub_model_id)
    return results


def collect_results(run: Run, trainer: Any, training_set: TrainingSetFacts) -> dict[str, Any]:
    """Return the results of a run so far, without the metrics of the evaluation at its end."""
    args, state = run.args, trainer.state
    has_best = args.load_best_model_at_end and state.best_global_step and not trainer.is_in_train
    return {
        "metrics": {},
        "parameters": count_parameters(run.model),
        "recipe": run.settings.to_dict(),
        "config": json.loads(run.model.config.to_json_string(use_diff=False)),
        "versions": collect_versions(),
        "seed": args.seed,
        "git_revision": find_git_revision(),
        "device": describe_device(args.device),
        "num_processes": args.world_size,
        "num_eval_rows": run.num_eval_rows(),
        "train_time_seconds": trainer.progress.seconds(),
        "throughput": trainer.throughput.result,
        "peak_memory_bytes": measure_memory(args.device),
        "date": current_time(),
        "base_models": find_base_models(run.model.config, run.settings.recipe.host.get("name_or_path")),
        "training_set": training_set.facts,
        "saved_step": state.best_global_step if has_best else state.global_step,
        "weights_digest": digest_weights(str(args.output_dir)) if trainer.is_world_process_zero() else None,
        "resumed_from_checkpoint": None if run.checkpoint is None else run.checkpoint.name,
        "log_history": state.log_history,
    }


def results_of_average(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the results of a run for its averaged weights, whose metrics are called `eval_ema_…` there."""
    prefix = "eval_ema_"
    metrics = {name: value for name, value in results["metrics"].items() if not name.startswith(prefix)}
    averaged = {name: value for name, value in results["metrics"].items() if name.startswith(prefix)}
    metrics |= {f"eval_{name.removeprefix(prefix)}": value for name, value in averaged.items()}
    return {**results, "metrics": metrics, "weights_digest": digest_weights(folder)}


def check_push(folder: Path, block: Any) -> None:
    """
    Refuse results of an earlier model, which cannot be published with this one. Warn of a layer that is published
    although the licence of its LLM is not known to permit it.
    """
    if earlier := sorted(folder.glob("eval_results*.json")):
        raise ValueError(
            f"{earlier[0]} holds the results of an earlier model, which cannot be pushed with the new one. Move it, "
            "or choose another output_dir."
        )
    if block is not None and block.kind == "llm" and block.weights != "random" and block.save_weights:
        licence = find_licence(block.llm_name_or_path)
        if not permits_layer(licence):
            logger.warning(
                f"The licence of {block.llm_name_or_path} is {licence}, which is not known to permit redistributing "
                "its layer, and every push has the layer. `--llm_block.save_weights false` leaves it out, if the LLM "
                "is on the Hub."
            )


def push_results(run: Run, repo_id: str) -> None:
    """Push the finished run: its card and results beside the model that is on the Hub already."""
    args = run.args
    block = load_saved_config(str(args.output_dir)).llm_block  # saving has decided whether the layer is left out
    is_light = block is not None and block.kind == "llm" and not block.save_weights
    push(
        str(args.output_dir),
        repo_id,
        light=is_light,
        include_layer=not is_light,
        revision=args.hub_revision,
        token=args.hub_token,
    )


def describe_folder(run: Run) -> str:
    """Return where the model of a finished run is, and how to use it."""
    folder = run.args.output_dir
    split = "" if run.eval_dataset is not None and run.settings.data_args.holdout is None else " --split SPLIT"
    averaged = Path(str(folder), EMA_FOLDER)
    average = "" if run.settings.run_args.ema_decay is None else f"The average of the weights is in {averaged}. "
    return (
        f"{average}The model is in {folder}. Load it: {type(run.model).__name__}.from_pretrained({folder!r}). "
        f"Evaluate it: hf-frozen-llm evaluate {folder}{split}. Predict: hf-frozen-llm predict {folder} FILE"
    )


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
