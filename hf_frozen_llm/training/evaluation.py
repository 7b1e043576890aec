# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm evaluate`: a saved model on labelled data."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, TrainingArguments

from hf_frozen_llm.data.examples import match_labels, take_samples
from hf_frozen_llm.tasks import DATA_ARGUMENTS, DATA_MODULES, MODELS, find_task
from hf_frozen_llm.training.arguments import DataArguments, EvaluationArguments
from hf_frozen_llm.training.recipe import Recipe, read_recipe, recipe_from_dict
from hf_frozen_llm.training.results import collect_versions, describe_device, find_git_revision, write_json
from hf_frozen_llm.training.train import count_parameters, prepared_for_evaluation
from hf_frozen_llm.training.trainer import ClassificationTrainer


# The keys of a recipe that mean something here: which data, beside the task's own, and how to run. The model and its
# processor know everything else.
DATA_KEYS = {field.name for field in fields(DataArguments)} - {
    "train_split",
    "shuffle_buffer_size",
    "max_train_samples",
}
TRAINER_KEYS = {
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "use_cpu",
    "bf16",
    "fp16",
    "tf32",
    "disable_tqdm",
}


def evaluate(model_name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Evaluates a saved model, prints the results and writes them beside the model (into the current folder for a model
    from the Hub).

    Args:
        model_name_or_path (`str`):
            Folder or Hub id of the model.
        overrides (`Sequence[str]`, *optional*):
            Flags: the fields of [`EvaluationArguments`] and the keys of a recipe.

    Returns:
        `dict[str, Any]`: what was written.
    """
    config = AutoConfig.from_pretrained(model_name_or_path)
    task = find_task(config.model_type)
    overrides = ["--task", task, *overrides]  # which keys there are depends on it
    recipe = read_evaluation_recipe(model_name_or_path, task, overrides)
    evaluation_args = recipe.arguments(EvaluationArguments)
    data_args, data = recipe.arguments(DATA_ARGUMENTS[task]), DATA_MODULES[task]
    split = evaluation_args.split or data_args.eval_split
    if split is None:
        raise ValueError("split is not set; say what to evaluate on, as in `--split test`.")

    # A light model reads its LLM layer again, from another place if a flag says so.
    moved = read_recipe(None, overrides, [EvaluationArguments]).llm_block
    model: Any = MODELS[config.model_type].from_pretrained(
        model_name_or_path, **({"llm_block": moved} if moved else {})
    )
    processor = data.load_processor(model_name_or_path)
    dataset = take_samples(data_args, data.load_split(data_args, split), data_args.max_eval_samples)
    label_ids = match_labels(data_args, dataset, model.config.label2id)
    prepare = data.build_preparer(data_args, split, processor, label_ids, model.config, None)
    with tempfile.TemporaryDirectory() as output_dir:
        args = TrainingArguments(
            output_dir,
            dataloader_pin_memory=torch.cuda.is_available() and not recipe.values.get("use_cpu", False),
            label_names=["labels"],
            remove_unused_columns=False,
            report_to="none",
            **{name: recipe.values[name] for name in TRAINER_KEYS if name in recipe.values},
        )
        batches = data.build_batches(data_args, processor, model.config.num_labels)
        trainer = ClassificationTrainer(model, args, data_collator=data.collate, batches=batches)
        metrics = trainer.evaluate(prepared_for_evaluation(dataset, prepare))

    results = {
        "model": model_name_or_path,
        "dataset": {"name": data_args.dataset_name, "revision": data_args.dataset_revision, "split": split},
        "metrics": metrics,
        "parameters": count_parameters(model),
        "versions": collect_versions(),
        "git_revision": find_git_revision(),
        "device": describe_device(args.device),
    }
    if trainer.is_world_process_zero():
        print(json.dumps(results, indent=2), flush=True)
        folder = Path(model_name_or_path) if Path(model_name_or_path).is_dir() else Path()
        write_json(evaluation_args.output_file or folder / "eval_results.json", results)
    return results


def read_evaluation_recipe(model_name_or_path: str, task: str, overrides: Sequence[str]) -> Recipe:
    """The recipe that is named, or the one the model was trained by, or flags alone."""
    extra = [EvaluationArguments]
    flags = read_recipe(None, overrides, extra)
    given = {name: value for name, value in flags.values.items() if name != "task"}
    known = DATA_KEYS | set(DATA_ARGUMENTS[task].evaluation_keys) | TRAINER_KEYS
    known |= {field.name for field in fields(EvaluationArguments)}
    changed = set(flags.llm_block or {}) - {"llm_name_or_path", "llm_revision"}
    useless = [*(set(given) - known), *(f"host.{n}" for n in flags.host), *(f"llm_block.{n}" for n in changed)]
    if useless:
        flags_of_no_use = ", ".join(f"--{name}" for name in sorted(useless))
        raise ValueError(
            f"Command line: evaluate makes no use of {flags_of_no_use}; the saved model and its processor are "
            f"evaluated as they are. It takes {', '.join(sorted(known))}, llm_block.llm_name_or_path and "
            "llm_block.llm_revision."
        )
    trained = Path(model_name_or_path, "results.json")
    if "recipe" in given:
        return read_recipe(given["recipe"], overrides, extra)
    if trained.is_file() and "dataset_name" not in given:
        settings = json.loads(trained.read_text(encoding="utf-8"))["recipe"]
        # What the model was made of may have moved, and is not needed.
        settings = {name: value for name, value in settings.items() if name in known}
        return recipe_from_dict(settings, overrides, str(trained), extra)
    return read_recipe(None, overrides, extra)
