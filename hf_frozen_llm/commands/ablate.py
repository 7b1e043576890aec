# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm ablate`: train variants of a recipe, several seeds of each, and compare them."""

import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from transformers import AutoConfig

import hf_frozen_llm.recipes
from hf_frozen_llm.flops import count_flops
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.plotting import plot_ablation
from hf_frozen_llm.training.recipe import RecipeLoader, read_recipe
from hf_frozen_llm.training.results import write_json
from hf_frozen_llm.training.run import resolve


def ablate(
    recipe: str | Path,
    over: Sequence[str] = (),
    variants: str | Path | None = None,
    seeds: int = 1,
    output_dir: str | Path = "runs/ablation",
    overrides: Sequence[str] = (),
    dry_run: bool = False,
) -> bool:
    """
    Train every variant with every seed, each run in a separate process, and report the results.

    A finished run is not repeated, and an interrupted one resumes from its last checkpoint: the same command completes
    an earlier one.

    Args:
        recipe (`str` or `Path`):
            The recipe, as for `hf-frozen-llm train`.
        over (`Sequence[str]`, *optional*):
            `field=a,b,c`: one variant for each value; of several fields, for each combination.
        variants (`str` or `Path`, *optional*):
            A YAML file that maps names to the fields they override, for variants that differ in several fields; or
            the name of a file of this package.
        seeds (`int`, *optional*, defaults to 1):
            Seeds 0, 1, … of each variant.
        output_dir (`str` or `Path`, *optional*, defaults to `"runs/ablation"`):
            Gets `runs/<variant>/seed<n>`, `ablation.csv` (a row for each run), `ablation.md` (means and standard
            deviations) and `ablation.png`.
        overrides (`Sequence[str]`, *optional*):
            Flags for every run, such as `["--max_steps", "100"]`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to check and print the commands of the runs without running them.

    Returns:
        `bool`: whether all runs have finished.

    Raises:
        `ValueError`: for a field or value that the recipe cannot have, before anything is run.
    """
    grid = make_grid(over, variants)
    output_dir = Path(output_dir)
    runs: list[tuple[str, dict[str, str], int, list[str], Path]] = []
    for (variant, fields), seed in itertools.product(grid.items(), range(seeds)):
        folder = output_dir / "runs" / file_name(variant) / f"seed{seed}"
        flags = [flag for field, value in fields.items() for flag in (f"--{field}", value)]
        command = ["train", str(recipe), *overrides, *flags, "--seed", str(seed), "--output_dir", str(folder)]
        metric = check(command, folder)
        runs.append((variant, fields, seed, command, folder))
    if dry_run:
        print("\n".join(shlex.join(["hf-frozen-llm", *command]) for *_, command, _ in runs))
        return True
    rows, failed = [], []
    for number, (variant, fields, seed, command, folder) in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {variant}, seed {seed}", flush=True)
        if not run_once(command, folder):
            failed.append(f"{variant}, seed {seed}: {folder / 'log.txt'}")
            print(f"    failed, see {folder / 'log.txt'}", flush=True)
            continue
        rows.append({"variant": variant, **fields, "seed": seed, **read_results(folder)})
        score = metric.scale * rows[-1][f"eval_{metric.name}"]
        print(f"    {metric.title} {metric.format(score)}{metric.unit}", flush=True)
        write_report(rows, output_dir, str(recipe), metric)
    if failed:
        print("\n".join([f"{len(failed)} of {len(runs)} runs failed:", *failed]), flush=True)
    return not failed


def make_grid(over: Sequence[str], variants: str | Path | None) -> dict[str, dict[str, str]]:
    """Return the fields that each variant overrides, by its name."""
    axes: list[dict[str, dict[str, str]]] = []
    if variants is not None:
        axes.append(read_variants(variants))
    for text in over:
        field, equals, values = text.partition("=")
        if not equals or not field or not values:
            raise ValueError(f"--over takes FIELD=a,b,c, got {text!r}.")
        source = f"[{values}]"
        node: Any = yaml.compose(source, Loader=RecipeLoader)
        texts = [source[part.start_mark.index : part.end_mark.index] for part in node.value]
        axes.append({f"{field}={value}": {field: value} for value in texts})
    if not axes:
        raise ValueError("Nothing to vary: give --over FIELD=a,b,c or --variants FILE.")
    return {
        ", ".join(name for name, _ in chosen): {name: value for _, fields in chosen for name, value in fields.items()}
        for chosen in itertools.product(*(axis.items() for axis in axes))
    }


def read_variants(path: str | Path) -> dict[str, dict[str, str]]:
    file = Path(path)
    packaged = Path(hf_frozen_llm.recipes.__file__).parent / "variants" / file
    file = file if file.is_file() else packaged
    if not file.is_file():
        known = sorted(found.name for found in packaged.parent.glob("*.yaml"))
        raise FileNotFoundError(f"There is no file of variants {path}. The package has: {', '.join(known)}.")
    loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=RecipeLoader)
    if not isinstance(loaded, dict) or not all(isinstance(fields, (dict, type(None))) for fields in loaded.values()):
        raise ValueError(f"{file} must map the name of each variant to the fields that it overrides.")
    return {
        str(name): {field: json.dumps(value) for field, value in (fields or {}).items()}
        for name, fields in loaded.items()
    }


def file_name(variant: str) -> str:
    return "".join(c if c.isalnum() or c in "=-._" else "_" for c in variant)


def check(command: list[str], folder: Path) -> Metric:
    """Refuse invalid settings, and a folder of another command; return the metric that compares the runs."""
    settings = resolve(read_recipe(command[1], command[2:]))
    if settings.data_args.eval_split is None:
        raise ValueError(f"{command[1]} has no eval_split to compare variants on.")
    file = folder / "command.json"
    if file.is_file() and (earlier := json.loads(file.read_text(encoding="utf-8"))["command"]) != command:
        raise ValueError(f"{folder} holds runs of another command, {' '.join(earlier)}. Choose another output_dir.")
    return settings.task.main_metric


def run_once(command: list[str], folder: Path) -> bool:
    """Train unless the run has finished; return whether there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "command.json", {"command": command})
    if (folder / "results.json").is_file():
        return True
    # A run without a complete checkpoint starts from the beginning.
    full = [sys.executable, "-m", "hf_frozen_llm", *command, "--resume", "true"]
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        return subprocess.run(full, stdout=log, stderr=log).returncode == 0


def read_results(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    fields = dict(results["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    recipe = results["recipe"]
    batch_size = recipe.get("per_device_train_batch_size", 8)
    forward, step = count_flops(config, batch_size, recipe["freeze_host"], recipe["lora"])
    return {
        **{name: value for name, value in results["metrics"].items() if is_score(name)},
        "train_loss": results["metrics"]["train_loss"],
        **{f"{name}_parameters": count for name, count in results["parameters"].items()},
        "forward_mflop": forward / 1e6,
        "step_mflop": step / 1e6,
        "train_seconds": results["train_time_seconds"],
        "device": results["device"],
    }


def is_score(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))


def write_report(rows: list[dict[str, Any]], output_dir: Path, recipe: str, metric: Metric) -> None:
    """Write `ablation.csv`, `ablation.md` and `ablation.png` of the runs so far."""
    runs = pd.DataFrame(rows)
    runs.to_csv(output_dir / "ablation.csv", index=False)
    groups = runs.groupby("variant", sort=False)
    lines = [
        f"# {recipe}: an ablation",
        "",
        f"| variant | {metric.label}, mean ± standard deviation | seeds | trained parameters | frozen | "
        "MFLOP forward | MFLOP training step | training s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for variant, of_variant in groups:
        first = of_variant.iloc[0]
        scores = metric.scale * of_variant[f"eval_{metric.name}"]
        score = metric.format(scores.mean())
        if len(scores) > 1:
            score += f" ± {metric.format(scores.std())}"
        cells = [
            str(variant),
            score,
            str(len(of_variant)),
            f"{first['trainable_parameters']:,}",
            f"{first['frozen_parameters']:,}",
            f"{first['forward_mflop']:,.1f}",
            f"{first['step_mflop']:,.1f}",
            f"{of_variant['train_seconds'].mean():.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    device = ", ".join(sorted(runs["device"].unique()))
    lines += [
        "",
        "FLOPs are for one input, of matrix products, as the model runs: a trained layer runs without the fast path. "
        f"Standard deviations are over seeds (n - 1). Device: {device}.",
    ]
    (output_dir / "ablation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot_ablation(output_dir / "ablation.png", runs, metric, recipe)
