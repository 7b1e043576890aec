# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm evaluate`: evaluate a saved model on a split of a data set."""

import itertools
import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import find_local
from hf_frozen_llm.tasks import TASKS, Task, find_task
from hf_frozen_llm.training.arguments import EvaluationArguments
from hf_frozen_llm.training.progress import progress_bars
from hf_frozen_llm.training.recipe import Recipe, read_recipe, recipe_from_dict
from hf_frozen_llm.training.results import (
    RESULTS_FILE,
    collect_versions,
    count_parameters,
    current_time,
    describe_device,
    digest_weights,
    failing_run,
    find_git_revision,
    load_saved_config,
    read_results,
    refuse_missing_folder,
    to_json,
    write_confusion_matrix,
    write_json,
)
from hf_frozen_llm.training.run import EVALUATION_TRAINER_KEYS, load_run, read_eval_rows


# Keys that concern training data only.
TRAINING_KEYS = {"train_split", "shuffle_buffer_size", "max_train_samples", "holdout"}


def evaluate(model_name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Evaluate a saved model, print the results and write them beside the model (into the current folder for a model from
    the Hub). Earlier results of other settings are kept, under the name `eval_results_1.json` and so on.

    Args:
        model_name_or_path (`str`):
            Folder or Hub id of the model.
        overrides (`Sequence[str]`, *optional*):
            Flags: the fields of [`EvaluationArguments`] and the keys of a recipe.

    Returns:
        `dict[str, Any]`: the content of the written file.
    """
    recipe = read_evaluation_recipe(model_name_or_path, overrides)
    evaluation_args = recipe.arguments(EvaluationArguments)
    folder = Path(model_name_or_path) if Path(model_name_or_path).is_dir() else Path()
    changes = recipe.arguments(TASKS[recipe.values["task"]].arguments).evaluation_changes()
    # The results on corrupted data do not replace the clean ones.
    file_name = "_".join(["eval_results", *map(str, changes.values())]) + ".json"
    output_file = Path(evaluation_args.output_file or folder / file_name)
    if not output_file.absolute().parent.is_dir():
        raise FileNotFoundError(f"output_file is {str(output_file)!r}, but there is no folder {output_file.parent}.")
    with tempfile.TemporaryDirectory() as output_dir, progress_bars(recipe.values.get("disable_tqdm")):
        run = load_run(model_name_or_path, recipe, output_dir)
        data_args = run.settings.data_args
        split = evaluation_args.split or data_args.eval_split
        if split is None:
            raise ValueError("split is not set; say what to evaluate on, as in `--split test`.")
        rows = read_eval_rows(run.settings.task, data_args, split)
        run.task.check_evaluation(rows)
        run.eval_dataset = run.task.dataset(rows, split)
        if was_host_frozen(model_name_or_path):
            run.model.freeze_host()  # for the number of trained parameters
        trainer = run.trainer()
        with failing_run():
            metrics = trainer.evaluate()

    settings = asdict(data_args)
    results = {
        "model": model_name_or_path,
        "dataset": {
            "name": data_args.dataset_name,
            "revision": data_args.dataset_revision,
            "split": split,
            **changes,
        },
        "num_eval_rows": run.num_eval_rows(),
        "settings": {
            **{name: settings[name] for name in data_args.evaluation_keys},
            **{name: value for name, value in recipe.values.items() if name in EVALUATION_TRAINER_KEYS},
        },
        "metrics": metrics,
        **{name: table for name, table in trainer.tables.items() if name != "confusion_matrix"},
        "parameters": count_parameters(run.model),
        "dataset_id": data_args.dataset_name if find_local(data_args) is None else None,
        "date": current_time(),
        "weights_digest": digest_weights(model_name_or_path) if Path(model_name_or_path).is_dir() else None,
        "versions": collect_versions(),
        "git_revision": find_git_revision(),
        "device": describe_device(run.args.device),
    }
    if trainer.is_world_process_zero():
        print(to_json(results, indent=2), flush=True)
        if kept := keep_other_results(output_file, results):
            print(f"{output_file} held the results of other settings; they are now in {kept}.", flush=True)
        write_json(output_file, results)
        write_confusion_matrix(trainer.tables, matrix_of(output_file))
    return results


def keep_other_results(file: Path, results: dict[str, Any]) -> Path | None:
    """Rename the results of another evaluation to `<name>_1.json`, `<name>_2.json`, …; return the new name."""
    if not file.is_file():
        return None
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        earlier = None
    names = ("model", "dataset", "num_eval_rows", "settings")
    now = json.loads(to_json(results))
    if isinstance(earlier, dict) and all(earlier.get(name) == now[name] for name in names):
        return None
    others = (file.with_name(f"{file.stem}_{number}{file.suffix}") for number in itertools.count(1))
    kept = next(other for other in others if not other.exists())
    for suffix in (".csv", ".png"):
        if (matrix := matrix_of(file).with_suffix(suffix)).is_file():
            matrix.rename(matrix_of(kept).with_suffix(suffix))
    return file.rename(kept)


def matrix_of(file: Path) -> Path:
    """Return the file of the confusion matrix that belongs to results."""
    return file.with_name(f"{file.stem}_confusion_matrix.csv")


def was_host_frozen(model_name_or_path: str) -> bool:
    file = Path(model_name_or_path, RESULTS_FILE)
    return file.is_file() and bool(read_results(file)["recipe"].get("freeze_host"))


def read_evaluation_recipe(
    model_name_or_path: str, overrides: Sequence[str], command: str = "evaluate", unused: Collection[str] = ()
) -> Recipe:
    """
    Return the named recipe, else the one of the model's training, else only the flags.

    Args:
        model_name_or_path (`str`): folder or Hub id of the model.
        overrides (`Sequence[str]`): flags.
        command (`str`, *optional*, defaults to `"evaluate"`): named in errors.
        unused (`Collection[str]`, *optional*): keys of an evaluation that this command does not accept.
    """
    refuse_missing_folder(model_name_or_path)
    try:
        config = load_saved_config(model_name_or_path)
    except OSError as error:
        raise OSError(
            f"{model_name_or_path} is neither a folder with a model nor a model on the Hub: {error}"
        ) from error
    try:
        task = find_task(config.model_type, (config.architectures or [None])[0])
    except ValueError as error:
        raise ValueError(f"{model_name_or_path}: {error}") from error
    overrides = ["--task", task.name, *overrides]  # the valid keys depend on it
    extra = [EvaluationArguments]
    flags = read_recipe(None, overrides, extra)
    known = evaluation_keys(task)
    check_evaluation_flags(flags, known - set(unused), command)
    trained = Path(model_name_or_path, RESULTS_FILE)
    if "recipe" in flags.values:
        recipe = read_recipe(flags.values["recipe"], overrides, extra)
    elif trained.is_file() and "dataset_name" not in flags.values:
        settings = {name: value for name, value in read_results(trained)["recipe"].items() if name in known}
        recipe = recipe_from_dict(settings, overrides, str(trained), extra)
    else:
        recipe = flags
    if "problem_type" in {field.name for field in fields(task.arguments)}:
        recipe.values["problem_type"] = config.problem_type
    # Of the model's settings, only the location of a light model's LLM may change.
    recipe.host, recipe.lora, recipe.llm_block = {}, None, flags.llm_block
    return recipe


def evaluation_keys(task: type[Task]) -> set[str]:
    """Return the keys that apply to a saved model: the data, and the settings of the computation."""
    data_keys = {field.name for field in fields(DataArguments)} - TRAINING_KEYS
    own_keys = {field.name for field in fields(EvaluationArguments)}
    return data_keys | set(task.arguments.evaluation_keys) | EVALUATION_TRAINER_KEYS | own_keys


def check_evaluation_flags(flags: Recipe, known: set[str], command: str) -> None:
    given = set(flags.values) - {"task"}
    changed = set(flags.llm_block or {}) - {"llm_name_or_path", "llm_revision"}
    useless = [*(given - known), *(f"host.{name}" for name in flags.host), *(f"llm_block.{name}" for name in changed)]
    if useless:
        raise ValueError(
            f"Command line: {command} does not use {', '.join(f'--{name}' for name in sorted(useless))}; it uses the "
            f"saved model and its processor unchanged. It takes {', '.join(sorted(known))}, "
            "llm_block.llm_name_or_path and llm_block.llm_revision."
        )
