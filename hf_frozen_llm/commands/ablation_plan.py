# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The plan of an ablation: its variants, their runs, and the runs that tune them; refuse what cannot be run."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

import hf_frozen_llm.recipes
from hf_frozen_llm.commands.ablation_runs import (
    RESULT_INDEPENDENT_KEYS,
    PlannedRun,
    name_fields,
    name_variant,
    refuse_other_settings,
)
from hf_frozen_llm.commands.report import count, name_some
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.casting import construct
from hf_frozen_llm.training.recipe import compose, read_recipe
from hf_frozen_llm.training.run import build_config, resolve


# Fields of the block that change nothing without an LLM layer, in the controls `identity`, `mlp` and `projections`.
LAYER_ONLY_FIELDS = {"llm_block.layer_index", "llm_block.final_norm", "llm_block.layer_dtype", "llm_block.fast"}
FIRST_TUNE_SEED = 1000
HOLDOUT = 0.1


@dataclass
class Plan:
    """
    All runs of an ablation.

    Args:
        recipe (`str`): the recipe.
        overrides (`list[str]`): flags for every run.
        output_dir (`Path`): gets their folders.
        candidates (`dict[str, dict[str, list[PlannedRun]]]`): for each variant and each of its tuned values, the runs
            that are reported if the value is the best; a single value, `""`, without tuning.
        tuning (`list[PlannedRun]`): the runs that choose the values.
        tune_seeds (`int`): seeds of each value.
    """

    recipe: str
    overrides: list[str]
    output_dir: Path
    candidates: dict[str, dict[str, list[PlannedRun]]] = field(default_factory=dict)
    tuning: list[PlannedRun] = field(default_factory=list)
    tune_seeds: int = 1

    @property
    def metric(self) -> Metric:
        first = next(iter(next(iter(self.candidates.values())).values()))[0]
        return TASKS[first.settings["task"]].find_main_metric(first.settings)

    def size(self, seeds: int) -> str:
        number = len(self.candidates)
        text = f"{count(number, 'variant')} x {count(seeds, 'seed')} = {count(number * seeds, 'run')}"
        if not self.tuning:
            return text
        values = len(self.tuning) // self.tune_seeds
        return (
            f"{text}, after {count(values, 'tuned value')} of the variants x {count(self.tune_seeds, 'seed')} = "
            f"{count(len(self.tuning), 'tuning run')}"
        )


def make_grid(over: Sequence[str], variants: str | Path | None) -> dict[str, dict[str, str]]:
    """Return the fields that each variant overrides, by its name."""
    axes = [] if variants is None else [read_variants(variants)]
    axes += [{f"{name}={value}": {name: value} for value in values} for name, values in read_axes(over, "over")]
    if not axes:
        raise ValueError("Nothing to vary: give --over FIELD=a,b,c or --variants FILE.")
    grid: dict[str, dict[str, str]] = {}
    for chosen in itertools.product(*(axis.items() for axis in axes)):
        merged = {name: value for _, part in chosen for name, value in part.items()}
        names, fields = [], dict[str, str]()
        for name, part in chosen:
            kept = {key: value for key, value in part.items() if has_meaning(key, merged)}
            if kept or not part:
                names.append(name)
            if twice := sorted(fields.keys() & kept.keys()):
                raise ValueError(f"The variant {names[0]!r} sets {twice[0]}, and so does --over; remove one of them.")
            fields |= kept
        grid[", ".join(names)] = fields
    refuse_equal_folders(grid)
    return grid


def has_meaning(name: str, fields: Mapping[str, str]) -> bool:
    """Return whether a field can change a variant with these fields: without an LLM layer, its fields cannot."""
    if fields.get("llm_block") == "null":
        return not name.startswith(("llm_block.", "lora."))
    is_control = fields.get("llm_block.kind", "llm").strip("\"'") != "llm"
    return not (is_control and name in LAYER_ONLY_FIELDS)


def read_axes(options: Sequence[str], option: str) -> list[tuple[str, list[str]]]:
    """Read `field=a,b,c` as the field and the texts of its values."""
    axes: dict[str, list[str]] = {}
    for text in options:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise ValueError(f"--{option} takes FIELD=a,b,c, got {text!r}.")
        name, source = name.replace("-", "_"), f"[{values}]"
        if name in axes:
            raise ValueError(f"--{option} {name} is given twice; give all of its values at once.")
        node: Any = compose(source, f"--{option} {name}")
        axes[name] = [source[part.start_mark.index : part.end_mark.index] for part in node.value]
    return list(axes.items())


def read_tuned_values(tune: Sequence[str]) -> list[dict[str, str]]:
    """Return the combinations of the values to tune; one without fields if there is nothing to tune."""
    axes = read_axes(tune, "tune")
    return [dict(zip([name for name, _ in axes], values)) for values in itertools.product(*(v for _, v in axes))]


def read_variants(path: str | Path) -> dict[str, dict[str, str]]:
    file = Path(path)
    packaged = Path(hf_frozen_llm.recipes.__file__).parent / "variants" / file
    file = file if file.is_file() else packaged
    if not file.is_file():
        known = sorted(found.name for found in packaged.parent.glob("*.yaml"))
        raise FileNotFoundError(f"There is no file of variants {path}. The package has: {', '.join(known)}.")
    root: Any = compose(file.read_text(encoding="utf-8"), str(file))
    loaded = construct(root)
    if not isinstance(loaded, dict) or not all(isinstance(fields, (dict, type(None))) for fields in loaded.values()):
        raise ValueError(f"{file} must map the name of each variant to the fields that it overrides.")
    names = [str(key.value) for key, _ in root.value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{file} has two variants {name!r}; rename one of them.")
    variants = {
        name: {field: json.dumps(value) for field, value in (fields or {}).items()}
        for name, fields in zip(names, loaded.values())
    }
    for name, fields in variants.items():
        if wrong := [field for field in fields if not has_meaning(field, fields)]:
            raise ValueError(f"{file}: the variant {name!r} has no LLM layer, so {wrong[0]} means nothing. Remove it.")
    return variants


def refuse_equal_folders(grid: Iterable[str]) -> None:
    names: dict[str, str] = {}
    for variant in grid:
        other = names.setdefault(file_name(variant), variant)
        if other != variant:
            raise ValueError(
                f"The variants {other!r} and {variant!r} would share the folder {file_name(variant)}; rename one."
            )


def file_name(variant: str) -> str:
    return "".join(c if c.isalnum() or c in "=-._" else "_" for c in variant)


def plan_runs(plan: Plan, grid: Mapping[str, dict[str, str]], values: list[dict[str, str]], seeds: int) -> None:
    """Plan the runs to report for each variant and tuned value; leave out a variant that equals an earlier one."""
    known: dict[str, str] = {}
    for variant, fields in grid.items():
        candidates: dict[str, list[PlannedRun]] = {}
        for value in values:
            value = {name: text for name, text in value.items() if has_meaning(name, fields)}
            if twice := sorted(fields.keys() & value.keys()):
                raise ValueError(f"The variant {variant!r} sets {twice[0]}, which --tune chooses; remove one of them.")
            folder = plan.output_dir / "runs" / file_name(variant) / file_name(name_fields(value))
            candidates[name_fields(value)] = make_runs(plan, variant, fields, value, [], range(seeds), folder)
        ignored = {**dict.fromkeys(RESULT_INDEPENDENT_KEYS), "seed": None}
        key = json.dumps([{**runs[0].settings, **ignored} for runs in candidates.values()], sort_keys=True)
        if (earlier := known.setdefault(key, variant)) != variant:
            print(f"# {variant} has the settings of {earlier}, and is left out.")
            continue
        for runs in candidates.values():
            for run in runs:
                refuse_other_settings(run)
        plan.candidates[variant] = candidates


def plan_tuning(plan: Plan, tune_split: str | None, tune_seeds: int) -> None:
    """Plan the runs that choose the tuned values of each variant that has several."""
    plan.tune_seeds = tune_seeds
    seeds = range(FIRST_TUNE_SEED, FIRST_TUNE_SEED + tune_seeds)
    for variant, candidates in plan.candidates.items():
        for value, runs in candidates.items() if len(candidates) > 1 else ():
            first = runs[0]
            flags = ["--holdout", str(HOLDOUT)]
            if tune_split is not None:
                rest = find_rest(first.settings["train_split"], first.settings["eval_split"], tune_split)
                flags = ["--train_split", rest, "--eval_split", tune_split]
            folder = plan.output_dir / "tuning" / file_name(variant) / file_name(value)
            fields = {name: text for name, text in first.fields.items() if name not in first.value}
            plan.tuning += make_runs(plan, variant, fields, first.value, flags, seeds, folder)
    if not plan.tuning:
        raise ValueError("There is nothing to tune: give several values that the variants can have, --tune FIELD=a,b.")
    for run in plan.tuning:
        refuse_other_settings(run)


def make_runs(
    plan: Plan,
    variant: str,
    fields: Mapping[str, str],
    value: Mapping[str, str],
    flags: list[str],
    seeds: Iterable[int],
    folder: Path,
) -> list[PlannedRun]:
    """Return the runs of a variant with a tuned value, one for each seed; refuse settings that cannot be."""
    overridden = {**fields, **value}
    flags = [*plan.overrides, *(word for name, text in overridden.items() for word in (f"--{name}", text)), *flags]
    try:
        settings = resolve(read_recipe(plan.recipe, flags))
        # A host that cannot be read now is the failure of its run.
        with suppress(OSError):
            build_config(settings, {})
    except ValueError as error:
        raise ValueError(f"The variant {name_variant(variant, value)!r}: {error}") from error
    if settings.data_args.eval_split is None:
        raise ValueError(f"{plan.recipe} has no eval_split to compare variants on.")
    runs = []
    for seed in seeds:
        at = folder / f"seed{seed}"
        command = ["train", plan.recipe, *flags, "--seed", str(seed), "--output_dir", str(at)]
        runs.append(
            PlannedRun(variant, overridden, dict(value), seed, command, at, {**settings.to_dict(), "seed": seed})
        )
    return runs


def find_rest(train_split: str, eval_split: str, tune_split: str) -> str:
    """Return the split that the tuning runs train on; refuse a `tune_split` that shares rows with another one."""
    name, bracket, bounds = tune_split.partition("[")
    rest = train_split
    if bracket and name == train_split:
        start, colon, stop = bounds.removesuffix("]").partition(":")
        rest = "+".join([*([f"{name}[:{start}]"] if start else []), *([f"{name}[{stop}:]"] if stop else [])])
        if not rest or not colon:
            raise ValueError(f"tune_split is {tune_split!r}; give a part of {name}, such as {name}[90%:].")
    for split, use in ((rest, "trains on"), (eval_split, "reports the results on")):
        if is_overlapping(split, tune_split):
            raise ValueError(
                f"tune_split is {tune_split!r}, but the ablation {use} {split}, which shares rows with it."
            )
    return rest


def is_overlapping(*splits: str) -> bool:
    """Return whether two splits, possibly slices, share rows; a percentage is taken of many rows."""
    sizes = {part.partition("[")[0]: 10**9 for split in splits for part in split.split("+")}
    try:
        first, second = (datasets.ReadInstruction.from_spec(split).to_absolute(sizes) for split in splits)
    except ValueError:  # a file or a pattern of a task that reads its data itself
        return splits[0] == splits[1]
    return any(a.splitname == b.splitname and a.from_ < b.to and b.from_ < a.to for a in first for b in second)


def check_classes(plan: Plan) -> None:
    """Refuse a `tune_split` that lacks classes, or leaves none of their rows to train on: data is often sorted."""
    checked = set()
    for run in {run.variant: run for run in plan.tuning}.values():
        settings = resolve(read_recipe(run.command[1], run.command[2:]))
        args, task_class = settings.data_args, settings.task
        if args.streaming or repr(args) in checked:
            continue
        checked.add(repr(args))
        whole = next(iter(plan.candidates[run.variant].values()))[0].settings["train_split"]
        rows = {split: task_class.read(args, split) for split in (whole, args.train_split, str(args.eval_split))}
        config = build_config(settings, task_class.config_fields(args, rows[whole]))
        task = task_class(args, task_class.build_processor(args, settings.recipe.host, config), config)
        counts = {split: task.label_counts(of_split) for split, of_split in rows.items()}
        for split in rows:
            lacking = [name for name, number in counts[whole].items() if number and not counts[split][name]]
            if lacking:
                raise ValueError(
                    f"{args.dataset_name} [{split}] has no row of {len(lacking)} of the {len(counts[whole])} classes "
                    f"of {whole}: {name_some(lacking)}. Data is often sorted by class. Leave tune_split out, to hold "
                    f"out a random tenth of {whole}, or name another split."
                )
