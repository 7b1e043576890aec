# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm evaluate --suite …`: several models on test sets with shifts, corruptions and attacks."""

import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from hf_frozen_llm.commands.predict import CollateReadable, ReadableRows, predict_readable
from hf_frozen_llm.plotting import check_figure, plot_robustness
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.task import Record, SuitePart, SuiteSource
from hf_frozen_llm.training.arguments import EvaluationArguments
from hf_frozen_llm.training.evaluate import read_evaluation_recipe
from hf_frozen_llm.training.progress import progress_bars
from hf_frozen_llm.training.recipe import Recipe
from hf_frozen_llm.training.results import digest_weights, failing_run, load_saved_config, replacing, write_text
from hf_frozen_llm.training.run import load_run
from hf_frozen_llm.training.trainer import TaskTrainer


# Keys of an evaluation that a suite sets itself, or does not compute.
UNUSED_KEYS = {"output_file", "corruption", "corruption_severity", "metrics", "streaming"}
MEAN = "mean"


def evaluate_suites(
    models: Sequence[str],
    suites: Sequence[str],
    overrides: Sequence[str] = (),
    suite_folder: str | None = None,
    wnids: str | None = None,
    output: str = "robustness",
    baseline: str | None = None,
    unreadable: str = "error",
) -> pd.DataFrame:
    """
    Evaluate image classifiers on suites of robustness; write one table, `<output>.csv`, and one figure,
    `<output>.png`. The table is written after each data set.

    Args:
        models (`Sequence[str]`):
            Folders or Hub ids of the models.
        suites (`Sequence[str]`):
            `clean` (the data set of the model, or that of `overrides`), `corruptions` (15 of it in 5 severities),
            `fgsm` and `pgd` (attacks on it); `imagenet`, `imagenet-v2`, `imagenet-real`, `imagenet-c`, `imagenet-a`,
            `imagenet-r` and `imagenet-sketch` (published test sets).
        overrides (`Sequence[str]`, *optional*):
            Flags as those of `evaluate`, such as `["--split", "test"]`, for all models.
        suite_folder (`str`, *optional*):
            The folder of the published test sets, each in a folder of its suite's name.
        wnids (`str`, *optional*):
            A text file with the WordNet id of each label of the models, a line each, for models whose labels are not
            called so.
        output (`str`, *optional*, defaults to `"robustness"`):
            The files to write, without their suffixes.
        baseline (`str`, *optional*):
            The model, one of `models`, to whose errors the mean corruption error of `corruptions` relates; that of
            `imagenet-c` always relates to AlexNet's published ones.
        unreadable (`"error"` or `"skip"`, *optional*, defaults to `"error"`):
            Whether an image that cannot be decoded ends the evaluation, or is listed, counted and left out.

    Returns:
        `pandas.DataFrame`: the table, with a row for each model, suite, corruption, severity and metric. Accuracies
        are shares. A suite of several data sets has a row `mean` for each metric, and `mce`, where 1 is as many errors
        as the model to which it relates.

    Raises:
        `ValueError`: for a suite that there is not, or images of classes that a model does not know.
        `FileNotFoundError`: if the files of a suite are not where they are expected.
        `ImportError`: if a suite needs a package of the extra `robust`.
    """
    for name, given in (("MODEL", models), ("suite", suites)):
        if len(set(given)) < len(given) or not given:
            raise ValueError(f"{name} is {', '.join(given) or 'empty'}; give at least one, and none twice.")
    if baseline is not None and baseline not in models:
        raise ValueError(f"baseline is {baseline!r}; it must be one of the models: {', '.join(models)}.")
    if unreadable not in ("error", "skip"):
        raise ValueError(f"unreadable is {unreadable!r}; it must be 'error' or 'skip'.")
    figure = check_figure("output", f"{output}.png")
    # All models are checked before the first one is evaluated.
    plans = [(model, *plan_suites(model, suites, overrides, suite_folder, wnids)) for model in models]
    rows: list[dict[str, Any]] = []
    failures: dict[str, None] = {}
    is_main = PartialState().is_main_process
    for model, recipe, plan in plans:
        digest = digest_weights(model) if Path(model).is_dir() else None
        with tempfile.TemporaryDirectory() as output_dir, progress_bars(recipe.values.get("disable_tqdm")):
            run = load_run(model, recipe, output_dir)
            run.args.disable_tqdm = run.args.disable_tqdm or not sys.stderr.isatty()
            trainer = run.trainer()
            for suite, part in plan:
                with failing_run():
                    records, num_left_out = evaluate_part(trainer, part, unreadable == "skip")
                failed = [record["error"] for record in records if "error" in record]
                scores = [record["scores"] for record in records if "error" not in record]
                if not scores:
                    raise ValueError(f"{part.data}: no image can be read; the first: {failed[0]}")
                for metric in scores[0]:
                    row = {
                        "model": model,
                        "suite": suite,
                        "corruption": part.corruption,
                        "severity": part.severity,
                        "metric": metric,
                        "value": float(np.mean([score[metric] for score in scores])),
                        "count": len(scores),
                        "unreadable": len(failed),
                        "without_label": num_left_out,
                        "data": part.data,
                        "constants": part.constants,
                        "weights_digest": digest,
                    }
                    rows.append(row)
                if is_main:
                    new = [message for message in failed if message not in failures]
                    failures |= dict.fromkeys(new)
                    report(rows[-len(scores[0])], new)
                    write_text(f"{output}.csv", tabulate(rows, plans, baseline).to_csv(index=False))
    table = tabulate(rows, plans, baseline)
    if is_main:
        print_means(table)
        with replacing(figure) as temporary:
            plot_robustness(temporary, table)
        print(f"Written: {output}.csv, {output}.png", flush=True)
    return table


def plan_suites(
    model: str, suites: Sequence[str], overrides: Sequence[str], suite_folder: str | None, wnids: str | None
) -> tuple[Recipe, list[tuple[str, SuitePart]]]:
    """Return the settings of a model's evaluation, and the parts of all suites."""
    recipe = read_evaluation_recipe(model, overrides, "evaluate --suite", UNUSED_KEYS)
    task_class = TASKS[recipe.values["task"]]
    recipe.values["streaming"] = False
    if suite_folder is not None:  # published test sets need no data set
        recipe.values.setdefault("dataset_name", suite_folder)
    data_args: Any = recipe.arguments(task_class.arguments)
    task = task_class(data_args, task_class.load_processor(model), load_saved_config(model))
    split = recipe.arguments(EvaluationArguments).split or data_args.eval_split
    source = SuiteSource(split, suite_folder, wnids)
    try:
        return recipe, [(suite, part) for suite in suites for part in task.suite_parts(suite, source)]
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error


def evaluate_part(trainer: TaskTrainer, part: SuitePart, skips_unreadable: bool) -> tuple[list[Record], int]:
    """Return the records of all rows, with an `error` for those that are skipped, and the number of rows left out."""
    task, dataset, num_left_out = part.build()
    trainer.task, trainer.data_collator = task, task.collate
    if not skips_unreadable:
        return trainer.predict_records(dataset, lambda predict: predict), num_left_out
    dataset.transform = ReadableRows(dataset.transform)
    trainer.data_collator = CollateReadable(task.collate)
    return trainer.predict_records(dataset, lambda predict: partial(predict_readable, predict)), num_left_out


def tabulate(
    rows: Sequence[dict[str, Any]],
    plans: Sequence[tuple[str, Recipe, Sequence[tuple[str, SuitePart]]]],
    baseline: str | None,
) -> pd.DataFrame:
    """Return the table of all rows, with the means of each suite that is complete and has several parts."""
    table = pd.DataFrame(rows).astype({"severity": "Int64"})
    means = []
    for model, _, plan in plans:
        parts = defaultdict(list)
        for suite, part in plan:
            parts[suite].append(part)
        for suite, of_suite in parts.items():
            done = table[(table.model == model) & (table.suite == suite)]
            if len(of_suite) == 1 or len(done) < len(of_suite) * done.metric.nunique() or done.empty:
                continue
            common = {
                **done.iloc[0].to_dict(),
                "corruption": MEAN,
                "severity": None,
                "count": int(done[done.metric == done.metric.iloc[0]]["count"].sum()),
                "constants": f"mean of {len(of_suite)} data sets",
            }
            for metric, values in done.groupby("metric", sort=False).value:
                means.append({**common, "metric": metric, "value": float(values.mean())})
            reference = {part.corruption: part.published_error for part in of_suite}
            relation = "AlexNet's published errors"
            if None in reference.values():
                if baseline is None:
                    continue
                reference, relation = errors_of(table[(table.model == baseline) & (table.suite == suite)]), baseline
            errors = errors_of(done)
            if reference.keys() == errors.keys():
                ratios = [errors[name] / reference[name] if reference[name] else math.nan for name in errors]
                constants = f"mean corruption error, relative to {relation}"
                means.append({**common, "metric": "mce", "value": float(np.mean(ratios)), "constants": constants})
    if not means:
        return table
    return pd.concat([table, pd.DataFrame(means).astype({"severity": "Int64"})], ignore_index=True)


def errors_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return the error under each corruption, over all severities; a baseline may not be evaluated yet."""
    accuracies = table[table.metric == "top1"].groupby("corruption").value.mean()
    return (1 - accuracies).to_dict()


def report(row: dict[str, Any], failures: Sequence[str]) -> None:
    """Print the first metric of a data set, and the images that are skipped now and were not before."""
    name = " ".join(str(row[key]) for key in ("suite", "corruption", "severity") if row[key])
    counts = f"{row['count']:,} images"
    for key, text in (("unreadable", "unreadable"), ("without_label", "without label")):
        counts += f", {row[key]:,} {text}" if row[key] else ""
    print(f"{row['model']}  {name}  {row['metric']} {100 * row['value']:.2f} %  ({counts})", flush=True)
    for failure in failures:
        print(f"skipped: {failure}", file=sys.stderr, flush=True)


def print_means(table: pd.DataFrame) -> None:
    for row in table[table.corruption == MEAN].to_dict("records"):
        value = f"{row['value']:.4f}" if row["metric"] == "mce" else f"{100 * row['value']:.2f} %"
        print(f"{row['model']}  {row['suite']} mean  {row['metric']} {value}  ({row['constants']})")
