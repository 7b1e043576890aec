# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm check`: find the problems of a run before it starts."""

import shutil
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from hf_frozen_llm.commands.check_data import Split, check_labels, check_length, check_readable, check_shared_rows
from hf_frozen_llm.commands.check_steps import (
    build_step_arguments,
    check_batch,
    check_evaluation,
    check_steps,
    draw_batch,
)
from hf_frozen_llm.commands.report import Report, format_bytes
from hf_frozen_llm.data.datasets import hold_out, take_samples
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks import Task
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import RESULTS_FILE, count_parameters
from hf_frozen_llm.training.resume import check_same_run, find_checkpoint_to_resume
from hf_frozen_llm.training.run import (
    Settings,
    assemble_run,
    best_metric_of_task,
    build_config,
    build_model,
    build_training_arguments,
    freeze_and_adapt,
    read_eval_rows,
    resolve,
)


def check(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    check_rows: int = 64,
    output_file: str | Path | None = None,
) -> Report:
    """
    Find the problems of a run: recipe, disk, model, data, augmentation, two steps of optimisation, a batch of
    evaluation. Print the findings, then all errors and warnings. The only file written is a PNG file of augmented
    examples; files of a later run are not touched.

    Args:
        recipe_path (`str` or `Path`):
            The YAML file.
        overrides (`Sequence[str]`, *optional*):
            Flags, as for [`train`].
        check_rows (`int`, *optional*, defaults to 64):
            Rows of each split that are read, at least those of a step. If a split has no more, all of its rows are
            read, and all are compared with the other split.
        output_file (`str` or `Path`, *optional*):
            The PNG file. By default `check.png` in `output_dir`.

    Returns:
        [`Report`]: facts, errors and warnings.

    Raises:
        `ValueError`: for unknown keys, values of another type, and settings that contradict each other.
    """
    if check_rows < 1:
        raise ValueError(f"check_rows is {check_rows}; it must be at least 1.")
    settings = resolve(read_recipe(recipe_path, overrides))
    report = Report()
    report.say("recipe", f"{recipe_path}: {settings.task.name}, {settings.model_args.model_type}")
    plan = Plan(settings, report, check_rows)
    with report.step("recipe"):
        plan.args = build_training_arguments(settings)
    with report.step("model"):  # before data and weights are downloaded
        plan.model = build_meta_model(settings, {})
    read_splits(plan)
    check_model(plan)
    if plan.args is not None:
        with report.step("output_dir"):
            check_output_dir(plan)
        with report.step("output_dir"):
            plan.checkpoint = find_checkpoint_to_resume(plan.args, settings.run_args)
    check_data(plan)
    has_rows = plan.train is not None and plan.train.readable is not None
    if plan.model is not None and plan.num_steps > 0 and has_rows:
        with report.step("run"):
            run_steps(plan, output_file)
    else:
        report.say("run", "not started, because of the errors below")
    report.print_problems()
    return report


@dataclass
class Plan:
    """
    The shared state of a check's steps; `None` where a step found an error.

    Args:
        settings ([`Settings`]): the recipe.
        report ([`Report`]): the findings so far.
        check_rows (`int`): rows of each split that are read.
        args (`TrainingArguments`, *optional*): the arguments of the run.
        model (`PreTrainedModelWithLLMBlock`, *optional*): the model, on the meta device.
        task ([`Task`], *optional*): the task, made for the host: the LLM does not affect the data.
        train ([`Split`], *optional*): the split to train on.
        evaluation ([`Split`], *optional*): the split to evaluate on.
        config_fields (`dict[str, Any]`): the fields that the task read from the data.
        checkpoint (`Path`, *optional*): the checkpoint to resume from.
        checkpoint_bytes (`int`): size of a checkpoint.
        free_bytes (`int`, *optional*): free bytes on the disk of `output_dir`.
        num_steps (`int`): steps of the run.
    """

    settings: Settings
    report: Report
    check_rows: int
    args: TrainingArguments | None = None
    model: PreTrainedModelWithLLMBlock | None = None
    task: Task | None = None
    train: Split | None = None
    evaluation: Split | None = None
    config_fields: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    checkpoint_bytes: int = 0
    free_bytes: int | None = None
    num_steps: int = 0


def build_meta_model(settings: Settings, config_fields: dict[str, Any]) -> PreTrainedModelWithLLMBlock:
    """Return the model without weights: read only the configurations of LLM and host."""
    settings = replace(settings, llm_block=deepcopy(settings.llm_block))
    config = build_config(settings, config_fields)
    with torch.device("meta"):
        model: Any = settings.task.models[settings.model_args.model_type](config)
        freeze_and_adapt(settings, model)
    return model


def read_splits(plan: Plan) -> None:
    """Read both splits, and build the task for them."""
    settings, args = plan.settings, plan.settings.data_args
    with plan.report.step("train_split"):
        rows = settings.task.read(args, args.train_split)
        plan.config_fields = settings.task.config_fields(args, rows)
        if args.holdout is not None:
            rows, held = hold_out(rows, args.holdout)
            held = take_samples(args, held, args.max_eval_samples)
            plan.evaluation = Split(f"{args.train_split}, held out", held, args.max_eval_samples)
        plan.train = Split(args.train_split, take_samples(args, rows, args.max_train_samples), args.max_train_samples)
    if args.holdout is None and args.eval_split is None:
        plan.report.warnings.append("There is no eval_split: nothing is evaluated.")
    elif args.holdout is None and args.eval_split is not None:
        with plan.report.step("eval_split"):
            rows = read_eval_rows(settings.task, args, args.eval_split)
            plan.evaluation = Split(args.eval_split, rows, args.max_eval_samples)
    if plan.train is not None:
        with plan.report.step("host"):
            config = build_config(replace(settings, llm_block=None), plan.config_fields)
            processor = settings.task.build_processor(args, settings.recipe.host, config)
            plan.task = settings.task(args, processor, config)


def check_model(plan: Plan) -> None:
    """Count parameters, with the classes of the data, and the bytes of the saved files."""
    if plan.model is None:
        return
    with plan.report.step("model"):
        plan.model = build_meta_model(plan.settings, plan.config_fields)
        numbers = ", ".join(f"{number:,} {name}" for name, number in count_parameters(plan.model).items())
        plan.report.say("model", f"{type(plan.model).__name__}: parameters: {numbers}")
        block: Any = plan.model.config.llm_block
        fact = "none, the plain host"
        if block is not None:
            fact = f"{block.llm_name_or_path}, layer {block.layer_index}, weights {block.weights}"
            fact = fact if block.kind == "llm" else f"none, in its place: {block.kind}"
        plan.report.say("LLM", fact)


def check_output_dir(plan: Plan) -> None:
    """Write into `output_dir`, or its nearest existing parent; compare the free bytes with those needed."""
    args: Any = plan.args
    folder = Path(args.output_dir)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"output_dir is {str(folder)!r}, but {existing} is a file. Choose another one.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(
            f"output_dir is {str(folder)!r}, but {existing} cannot be written to: {error.strerror}."
        ) from error
    if (folder / RESULTS_FILE).is_file():
        plan.report.warnings.append(
            f"output_dir {folder} holds the results of an earlier run, which would be replaced."
        )
    if plan.model is None:
        return
    plan.checkpoint_bytes, model_bytes = estimate_bytes(plan.model, args.save_only_model)
    plan.free_bytes = shutil.disk_usage(existing).free
    checkpoints = 0 if args.save_strategy == "no" else 2
    needed = checkpoints * plan.checkpoint_bytes + model_bytes
    free, parts = format_bytes(plan.free_bytes), f"the model ({format_bytes(model_bytes)})"
    if checkpoints:
        parts = f"{checkpoints} checkpoints ({format_bytes(plan.checkpoint_bytes)} each) and {parts}"
    plan.report.say("output_dir", f"{folder}: about {format_bytes(needed)} for {parts}; {free} are free")
    if needed > plan.free_bytes:
        plan.report.errors.append(
            f"output_dir {folder}: {parts} need about {format_bytes(needed)}, and {free} are free. Choose another "
            "output_dir, or free space."
        )


def estimate_bytes(model: Any, save_only_model: bool) -> tuple[int, int]:
    """Return the bytes of a checkpoint, with the two moments of Adam, and of the saved model."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items()}
    left_out = model._keys_left_out_of_checkpoints()
    whole, light = sum(sizes.values()), sum(size for name, size in sizes.items() if name not in left_out)
    moments = 0 if save_only_model else 2 * 4 * model.num_parameters(only_trainable=True)
    block = model.config.llm_block
    return light + moments, whole if block is None or block.save_weights else light


def check_data(plan: Plan) -> None:
    """Look at the rows of both splits, and count the steps."""
    report, task, train = plan.report, plan.task, plan.train
    if task is None or train is None:
        return
    args = plan.args
    workers, a_step, an_evaluation = 0, 1, 1
    if args is not None:  # the rows of the steps are among those that are read
        workers = args.dataloader_num_workers
        a_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        an_evaluation = args.eval_batch_size * args.world_size
    for split, needed in ((train, a_step), (plan.evaluation, an_evaluation)):
        if split is not None:
            with report.step(split.name):
                check_labels(task, split, report)
            with report.step(split.name):
                check_readable(task, split, max(plan.check_rows, needed), workers, report)
    if plan.evaluation is not None:
        with report.step("evaluation"):
            best = None if args is None else best_metric_of_task(plan.settings.run_args, args)
            task.check_evaluation(plan.evaluation.rows, best)
    if plan.evaluation is not None and task.args.holdout is None and not task.args.streaming:
        with report.step("shared rows"):
            check_shared_rows(plan.settings, train, plan.evaluation, plan.check_rows, report)
    if plan.args is None:
        return
    with report.step("length"):
        if task.args.streaming:
            plan.num_steps = plan.args.max_steps
            report.say("length", f"{plan.num_steps:,} steps; a stream does not say how many an epoch has")
        else:
            plan.num_steps, num_checkpoints = check_length(
                plan.args, plan.settings.run_args.warmup_epochs, train, report
            )
            needed = num_checkpoints * plan.checkpoint_bytes
            if plan.free_bytes is not None and needed > plan.free_bytes:
                report.warnings.append(
                    f"save_total_limit is not set: {num_checkpoints:,} checkpoints need about {format_bytes(needed)}, "
                    f"and {format_bytes(plan.free_bytes)} are free."
                )


def run_steps(plan: Plan, output_file: str | Path | None) -> None:
    """Build the model with its weights; run a batch, two steps, and an evaluation batch."""
    args, report, settings = plan.args, plan.report, plan.settings
    assert args is not None and plan.train is not None and plan.train.readable is not None
    set_seed(args.seed)
    eval_rows = None if plan.evaluation is None else plan.evaluation.readable
    run = assemble_run(settings, args, build_model(settings, plan.config_fields), plan.train.readable, eval_rows)
    if plan.checkpoint is not None:
        report.say("resume", f"resumes from {plan.checkpoint}")
        with report.step("resume"):
            check_same_run(plan.checkpoint, run.flat_settings(), run.settings.run_args.resume_changes)
    with tempfile.TemporaryDirectory() as output_dir:
        run.args = build_step_arguments(settings, output_dir, plan.num_steps)
        batch = check_batch(run, run.trainer(), report)
        file = Path(str(args.output_dir), "check.png") if output_file is None else Path(output_file)
        with report.step("figure"):
            draw_batch(run, batch, file, report)
        with report.step("steps"):
            trainer = check_steps(run, plan.num_steps, report)
            if eval_rows is not None:
                with report.step("evaluation"):
                    check_evaluation(run, trainer, eval_rows, report)
