# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The computations of `check`: a batch, a figure of it, two steps of optimisation and a batch of evaluation."""

import importlib.util
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from hf_frozen_llm.commands.report import Report, count, format_bytes
from hf_frozen_llm.data.datasets import HFDataset
from hf_frozen_llm.tasks.classification import MULTI_LABEL
from hf_frozen_llm.tasks.task import Batch
from hf_frozen_llm.training.optimizer import group_patterns
from hf_frozen_llm.training.results import measure_memory, replacing
from hf_frozen_llm.training.run import Run, Settings, build_training_arguments
from hf_frozen_llm.training.trainer import TaskTrainer


STEPS = 2
DRAWN = 16
# Settings of the steps that replace the recipe's: write nothing, log every loss unchanged.
STEP_VALUES = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "resume_from_checkpoint": None,
    "dataloader_drop_last": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def build_step_arguments(settings: Settings, output_dir: str, num_steps: int) -> TrainingArguments:
    """Return the recipe's arguments for steps that write no files, with the schedule of `num_steps`."""
    values = {**settings.recipe.values, **STEP_VALUES, "output_dir": output_dir, "max_steps": num_steps}
    return build_training_arguments(replace(settings, recipe=replace(settings.recipe, values=values)))


def check_batch(run: Run, trainer: TaskTrainer, report: Report) -> Batch:
    """Return the first training batch in the form of the model's input; check that its numbers are finite."""
    batch = next(iter(trainer.get_train_dataloader()))
    # The seed of the first step, see `TaskTrainer.training_step`.
    batch = run.task.augment(batch, np.random.default_rng((trainer.data_seed, 0, 0, run.args.process_index)))
    for name, values in batch.items():
        if not torch.is_tensor(values):
            continue
        fact = f"{name} {tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}"
        if values.numel() > 0:
            numbers = values.float()
            fact += f", {numbers.min().item():.4g} to {numbers.max().item():.4g}"
            if not numbers.isfinite().all():
                report.errors.append(f"batch: {name} holds numbers that are not finite (NaN or infinity).")
        report.say("batch", fact)
    return batch


def draw_batch(run: Run, batch: Batch, file: Path, report: Report) -> None:
    """Draw augmented examples with their labels into a file, in the format of its suffix."""
    if importlib.util.find_spec("matplotlib") is None:
        report.say("figure", "not drawn: it needs matplotlib, pip install 'hf_frozen_llm[plot]'")
        return
    from matplotlib.figure import Figure

    titles = label_titles(batch, run.model.config)
    sizes = [len(values) for values in batch.values() if torch.is_tensor(values) and values.ndim > 0]
    number = min(DRAWN, *sizes)
    columns = min(4, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * lines), dpi=120, layout="constrained")
    for index, axis in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axis.set_axis_off()
        if index < number:
            run.task.draw(axis, batch, index)
            axis.set_title(titles[index] if titles else "", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:] or "png")
    report.say("figure", f"{file}: {number} augmented examples")


def label_titles(batch: Batch, config: Any) -> list[str]:
    """Return the name of each label; of mixed ones, the two largest shares."""
    labels = batch.get("labels")
    if not torch.is_tensor(labels):
        return []
    if labels.ndim == 1 and not labels.is_floating_point():
        return [str(config.id2label.get(label, label)) for label in labels.tolist()]
    if labels.ndim != 2:
        return []
    if config.problem_type == MULTI_LABEL:
        return [", ".join(str(config.id2label[i]) for i in row.nonzero().flatten().tolist()) for row in labels.cpu()]
    shares, indices = labels.float().topk(min(2, labels.shape[1]))
    return [
        ", ".join(f"{config.id2label.get(i, i)} {100 * s:.0f} %" for i, s in zip(pair, parts) if s > 0.005)
        for pair, parts in zip(indices.tolist(), shares.tolist())
    ]


class StepWatch(TrainerCallback):
    """Stop after two steps; keep their seconds, and the largest norm of a gradient in each group of parameters."""

    def __init__(self, prefix: str, device: torch.device):
        self.patterns = group_patterns(prefix)
        self.device = device
        self.seconds: list[float] = []
        self.norms: dict[str, float] = {}
        self.start = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            groups = [group for group in ("host", "projections", "head") if re.search(self.patterns[group], name)]
            group = groups[0] if groups else "LLM block"
            norm = 0.0 if parameter.grad is None else parameter.grad.float().norm().item()
            self.norms[group] = float(np.maximum(self.norms.get(group, 0.0), norm))  # NaN stays

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.now() - self.start)
        control.should_training_stop = state.global_step >= STEPS


def check_steps(run: Run, steps: int, report: Report) -> TaskTrainer:
    """Train for two steps: their time, memory, losses and gradients."""
    watch = StepWatch(run.model.base_model_prefix, run.args.device)
    trainer = run.trainer([watch])
    trainer.remove_callback(PrinterCallback)
    trainer.stops_when_infinite = False  # the report says what is not finite
    if run.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.args.device)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses = [math.nan if loss is None else loss for loss in logged]
    seconds = ", ".join(f"{second:.3g}" for second in watch.seconds)
    report.say("steps", f"losses {', '.join(f'{loss:.4g}' for loss in losses)}; {seconds} seconds")
    if len(watch.seconds) == STEPS and steps > 0:
        minutes = steps * watch.seconds[-1] / 60
        report.say("", f"{steps:,} like the last one take {minutes:,.1f} minutes, without loading and evaluation")
    if not all(map(math.isfinite, losses)):
        report.errors.append(
            f"steps: the losses are {', '.join(map(str, losses))}, and must be finite. Look at the data, "
            "learning_rate and bf16 or fp16."
        )
    report.say("memory", describe_memory(run.args.device))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        report.say("gradients", "not looked at: they are sharded")
        return trainer
    norms = ", ".join(f"{group} {norm:.3g}" for group, norm in watch.norms.items())
    report.say("gradients", f"{norms} (the largest norm of a parameter's)")
    if still := [group for group, norm in watch.norms.items() if norm == 0]:
        report.errors.append(f"steps: no gradient reaches {', '.join(still)}, which should be trained.")
    infinite = [group for group, norm in watch.norms.items() if not math.isfinite(norm)]
    if infinite and not run.args.fp16:  # its scaled gradients may overflow in the first steps
        report.errors.append(f"steps: the gradients of {', '.join(infinite)} are not finite.")
    return trainer


def describe_memory(device: torch.device) -> str:
    peak = measure_memory(device)
    if peak is None:
        return "not measured on Windows"
    if device.type == "cuda":
        return f"{format_bytes(peak)} allocated at most on {torch.cuda.get_device_name(device)}"
    return f"{format_bytes(peak)} at most, of the whole process (resident set)"


def check_evaluation(run: Run, trainer: TaskTrainer, rows: HFDataset, report: Report) -> None:
    """Evaluate one batch."""
    number = run.args.eval_batch_size * run.args.world_size
    part = rows.take(number) if run.settings.data_args.streaming else rows.select(range(min(number, len(rows))))
    start = time.monotonic()
    if getattr(run.task.args, "metrics", None):
        run.task.args = replace(run.task.args, metrics=None)  # a batch may lack classes
    metrics = trainer.evaluate(run.task.dataset(part, str(run.settings.data_args.eval_split)))
    name = run.task.main_metric.name
    seconds = time.monotonic() - start
    scores = f"loss {metrics['eval_loss']:.4g}, {name} {metrics[f'eval_{name}']:.4g}"
    report.say("evaluation", f"one batch of {count(number, 'row')} at most: {scores}; {seconds:.3g} seconds")
    if not math.isfinite(metrics["eval_loss"]):
        report.errors.append(f"evaluation: the loss is {metrics['eval_loss']}; it must be finite.")
