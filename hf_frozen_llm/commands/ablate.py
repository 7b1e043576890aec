# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm ablate`: train variants of a recipe, several seeds of each, and compare them."""

import importlib.util
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hf_frozen_llm.commands.ablation_plan import (
    FIRST_TUNE_SEED,
    HOLDOUT,
    Plan,
    check_classes,
    make_grid,
    plan_runs,
    plan_tuning,
    read_tuned_values,
)
from hf_frozen_llm.commands.ablation_report import AblationReport, choose_values, is_at_end, write_report
from hf_frozen_llm.commands.ablation_runs import PlannedRun, name_fields, read_cells, read_scores, run_all
from hf_frozen_llm.commands.report import count
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.plotting import check_figure, new_figure
from hf_frozen_llm.training.results import read_results


def ablate(
    recipe: str | Path,
    over: Sequence[str] = (),
    variants: str | Path | None = None,
    seeds: int = 1,
    output_dir: str | Path = "runs/ablation",
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    tune: Sequence[str] = (),
    tune_split: str | None = None,
    tune_seeds: int = 1,
    reference: str | None = None,
    delta: float = 1.0,
    max_parallel: int = 1,
    figure: str | Path | None = None,
) -> bool:
    """
    Train every variant with every seed, each run in a separate process, and report the results.

    A finished run is not repeated, and an interrupted one resumes from its last checkpoint: the same command completes
    an earlier one, and more seeds, variants or values to tune extend it.

    Args:
        recipe (`str` or `Path`):
            The recipe, as for `hf-frozen-llm train`.
        over (`Sequence[str]`, *optional*):
            `field=a,b,c`: one variant for each value; of several fields, for each combination. A variant without an
            LLM block, or without an LLM layer, does not get fields that mean nothing to it, and is run once.
        variants (`str` or `Path`, *optional*):
            A YAML file that maps names to the fields they override, for variants that differ in several fields; or
            the name of a file of this package.
        seeds (`int`, *optional*, defaults to 1):
            Seeds 0, 1, … of each variant.
        output_dir (`str` or `Path`, *optional*, defaults to `"runs/ablation"`):
            Gets `runs/<variant>/seed<n>` (with tuning, `runs/<variant>/<value>/seed<n>`), `ablation.csv` (a row for
            each run), `ablation.md` (means and standard deviations) and `ablation.png`; also `tuning/…` and
            `tuning.csv` with `tune`, and `differences.csv` with `reference`.
        overrides (`Sequence[str]`, *optional*):
            Flags for every run, such as `["--max_steps", "100"]`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to check and print the commands of the runs without running them.
        tune (`Sequence[str]`, *optional*):
            `field=a,b,c`: before the reported runs, find the best of these values for each variant on held-out
            training data, with seeds that no reported run has; of several fields, the best combination.
        tune_split (`str`, *optional*):
            Split that the tuning runs are evaluated on. If it is a part of `train_split`, such as `train[90%:]`, they
            train on the rest. By default, a random tenth of `train_split` is held out.
        tune_seeds (`int`, *optional*, defaults to 1):
            Seeds 1000, 1001, … of each value.
        reference (`str`, *optional*):
            Variant that the others are compared with, seed by seed.
        delta (`float`, *optional*, defaults to 1.0):
            Difference, in the unit of the table, for which the number of necessary seeds is computed.
        max_parallel (`int`, *optional*, defaults to 1):
            Number of runs at a time. They share the cores and, if there are several, each has a GPU of its own.
        figure (`str` or `Path`, *optional*):
            File of the figure, such as a `.svg` or `.pdf`. By default `ablation.png` in `output_dir`.

    Returns:
        `bool`: whether every variant has a result for every seed.

    Raises:
        `ValueError`: for a field or value that the recipe cannot have, variants that cannot be told apart, or a folder
            with results of other settings, before anything is run.
    """
    check_options({"seeds": seeds, "tune_seeds": tune_seeds, "max_parallel": max_parallel}, delta)
    if reference is not None and importlib.util.find_spec("scipy") is None:
        raise ImportError("reference needs scipy: pip install 'hf_frozen_llm[ablate]'")
    new_figure(1, 1)  # matplotlib may be missing, which must not end hours of training
    figure = Path(output_dir) / "ablation.png" if figure is None else check_figure("figure", figure)
    plan = Plan(str(recipe), list(overrides), Path(output_dir))
    plan_runs(plan, make_grid(over, variants), read_tuned_values(tune), seeds)
    if tune or tune_split is not None:
        plan_tuning(plan, tune_split, tune_seeds)
    names = list(plan.candidates)
    if reference is not None and reference not in names:
        raise ValueError(f"There is no variant {reference!r} to compare with; the variants are {', '.join(names)}.")
    if dry_run:
        print_plan(plan, seeds)
        return True
    if tune_split is not None:
        check_classes(plan)
    print(plan.size(seeds), flush=True)
    report = AblationReport(str(recipe), plan.metric, Path(output_dir), figure, names, reference, delta)
    chosen = tune_variants(plan, report, max_parallel)
    run_variants([run for name, value in chosen.items() for run in plan.candidates[name][value]], report, max_parallel)
    return not report.failures


def check_options(numbers: Mapping[str, int], delta: float) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1.")
    if not 0 < delta < math.inf:
        raise ValueError(f"delta is {delta}; it is the size of a difference, above 0.")


def print_plan(plan: Plan, seeds: int) -> None:
    """Print the number of the runs, and their commands; a value that is not chosen yet is BEST."""
    print(f"# {plan.size(seeds)}")
    for run in plan.tuning:
        print(shlex.join(["hf-frozen-llm", *run.command]))
    for candidates in plan.candidates.values():
        for run in next(iter(candidates.values())):
            command = list(run.command)
            for name in run.value if len(candidates) > 1 else ():
                command[len(command) - command[::-1].index(f"--{name}")] = "BEST"
            print(shlex.join(["hf-frozen-llm", *command]))


def tune_variants(plan: Plan, report: AblationReport, max_parallel: int) -> dict[str, str]:
    """Run the tuning; return the best value of each variant that has one, and say in the report how it was found."""
    rows: dict[Path, dict[str, Any]] = {}

    def end(run: PlannedRun) -> str:
        rows[run.folder] = row = read_tuning_run(run, plan.metric)
        done = pd.DataFrame([rows[run.folder] for run in plan.tuning if run.folder in rows])
        done.to_csv(plan.output_dir / "tuning.csv", index=False)
        if row["status"] == "finished":
            return describe_score(plan.metric, row)
        return f"{row['status']}, see {run.log}"

    run_all(plan.tuning, max_parallel, "tuning ", end)
    best = choose_values(pd.DataFrame(rows[run.folder] for run in plan.tuning), plan.metric) if plan.tuning else {}
    chosen: dict[str, str] = {}
    for variant, candidates in plan.candidates.items():
        value = best.get(variant, next(iter(candidates)))
        if value is None:
            first = next(run for run in plan.tuning if run.variant == variant)
            report.failures[f"{variant}, tuning: no value can be trained with"] = first.log
            print(f"{variant}: failed, no tuned value can be trained with, see {first.log}", flush=True)
            continue
        chosen[variant] = value
        grid = [runs[0].value for runs in candidates.values()]
        report.tuned[variant] = describe_value(candidates[value][0].value, grid)
    report.notes += describe_tuning(plan, [rows[run.folder] for run in plan.tuning])
    return chosen


def read_tuning_run(run: PlannedRun, metric: Metric) -> dict[str, Any]:
    """Return the row of a tuning run in `tuning.csv`."""
    score = f"eval_{metric.name}"
    row = {"variant": run.variant, **run.fields, "value": name_fields(run.value), "seed": run.seed}
    if not run.is_finished:
        return {**row, "status": "failed", score: math.nan}
    scores = read_scores(read_results(run.results_file))
    is_finite = math.isfinite(scores[score]) and math.isfinite(scores["eval_loss"])
    return {**row, "status": "finished" if is_finite else "diverged", **scores}


def describe_value(value: Mapping[str, str], grid: Sequence[Mapping[str, str]]) -> str:
    parts = []
    for name, text in value.items():
        at_end = is_at_end(text, [other[name] for other in grid])
        parts.append(f"{name}={text}{' (at the end of the grid)' if at_end else ''}")
    return ", ".join(parts)


def describe_tuning(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the data and the seeds of the tuning, and on its runs without a usable result."""
    if not rows:
        return []
    settings = plan.tuning[0].settings
    share = f"a random {100 * HOLDOUT:g} % of {settings['train_split']}"
    sentences = [
        f"Tuned: the value with the best mean {plan.metric.title} on "
        f"{share if settings['holdout'] else settings['eval_split']}, which the tuning runs do not train on, over "
        f"{count(plan.tune_seeds, 'seed')} from {FIRST_TUNE_SEED} on. `tuning.csv` has all tuning runs."
    ]
    bad = [
        f"{row['variant']}, {row['value']}, seed {row['seed']} ({row['status']})"
        for row in rows
        if row["status"] != "finished"
    ]
    return [*sentences, *([f"Not chosen, because of a run without a usable result: {'; '.join(bad)}."] if bad else [])]


def run_variants(runs: Sequence[PlannedRun], report: AblationReport, max_parallel: int) -> None:
    """Run the runs to report, and write the report after each."""
    rows: dict[Path, dict[str, Any]] = {}

    def end(run: PlannedRun) -> str:
        text = f"failed, see {run.log}"
        if run.is_finished:
            rows[run.folder] = {"variant": run.variant, **run.fields, "seed": run.seed, **read_cells(run)}
            text = describe_score(report.metric, rows[run.folder])
        else:
            report.failures[run.name] = run.log
        write_report(report, [rows[run.folder] for run in runs if run.folder in rows])
        return text

    run_all(runs, max_parallel, "", end)
    if not runs:
        write_report(report, [])
    if failed := [run for run in runs if not run.is_finished]:
        print("\n".join([f"{len(failed)} of {len(runs)} runs failed:", *(f"{run.name}: {run.log}" for run in failed)]))


def describe_score(metric: Metric, row: Mapping[str, Any]) -> str:
    return f"{metric.title} {metric.format(metric.scale * row[f'eval_{metric.name}'])}{metric.unit}"
