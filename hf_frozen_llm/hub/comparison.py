# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The comparison of a model with the plain host and with controls, from their results files."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from hf_frozen_llm.hub.saved_model import SavedModel, strip_prefix
from hf_frozen_llm.training.results import RESULTS_FILE, read_results


# Copies in the folder of the model, so that each number of a card is in a file beside it.
ABLATION_FOLDER = "ablation"
PLAIN_HOST_FILE = "plain_host_results.json"


def copy_ablation(model: SavedModel, ablation: Path) -> None:
    """Copy the tables and the figure of an ablation into the folder of the model."""
    if not (ablation / "ablation.csv").is_file():
        raise FileNotFoundError(f"{ablation} is not a folder of `hf-frozen-llm ablate`: it has no ablation.csv.")
    read_runs(model, ablation)
    folder = model.folder / ABLATION_FOLDER
    if folder.resolve() == ablation.resolve():
        return
    folder.mkdir(exist_ok=True)
    for name in ("ablation.csv", "differences.csv", "ablation.png"):
        if (ablation / name).is_file():
            shutil.copyfile(ablation / name, folder / name)


def read_runs(model: SavedModel, ablation: Path) -> pd.DataFrame:
    """
    Read the runs of an ablation.

    Raises:
        `ValueError`: if they lack the metric of the model's task, or are of other data.
    """
    runs = pd.read_csv(ablation / "ablation.csv")
    column = f"eval_{model.main_metric.name}"
    if missing := {column, "variant", "seed"} - set(runs.columns):
        raise ValueError(f"{ablation / 'ablation.csv'} has no column {sorted(missing)[0]}: it is of another task.")
    names = {Path(name).name for name in runs["dataset_name"].dropna()} if "dataset_name" in runs else set()
    trained_on = Path(model.recipe["dataset_name"]).name if model.recipe else None
    if trained_on and names and trained_on not in names:
        raise ValueError(
            f"{ablation} is an ablation on {', '.join(sorted(names))}, but {model.folder} was trained on {trained_on}."
        )
    return runs


def compare_variants(model: SavedModel) -> dict[str, Any] | None:
    """Return the table of an ablation that is in the folder of the model."""
    folder = model.folder / ABLATION_FOLDER
    if not (folder / "ablation.csv").is_file():
        return None
    metric, runs = model.main_metric, read_runs(model, folder)
    differences = {}
    if (folder / "differences.csv").is_file():
        differences = pd.read_csv(folder / "differences.csv").set_index("variant").to_dict("index")
    rows = []
    for variant, of_variant in runs.groupby("variant", sort=False):
        scores = metric.scale * of_variant[f"eval_{metric.name}"]
        score = metric.format(scores.mean())
        if len(scores) > 1:
            score += f" ± {metric.format(scores.std())}"
        row = {"variant": variant, "score": score, "seeds": len(scores), "difference": ""}
        if (difference := differences.get(variant)) and difference["seeds"] > 0:
            row["difference"] = f"{difference['difference']:+.2f}"
            if difference["seeds"] > 1:
                row["difference"] += f" ({difference['t_low']:+.2f} to {difference['t_high']:+.2f})"
        rows.append(row)
    reference = next((row["reference"] for row in differences.values()), None)
    rows_evaluated = runs["num_eval_rows"].dropna().unique() if "num_eval_rows" in runs else []
    return {
        "metric": metric.label,
        "rows": rows,
        "reference": reference,
        "num_rows": int(rows_evaluated[0]) if len(rows_evaluated) == 1 else None,
        "figure": f"{ABLATION_FOLDER}/ablation.png" if (folder / "ablation.png").is_file() else None,
    }


def copy_plain_host(model: SavedModel, plain_host: Path) -> None:
    """Copy the results of a run of the plain host into the folder of the model."""
    file = plain_host / RESULTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{plain_host} is not the folder of a finished run: it has no {RESULTS_FILE}.")
    results = read_results(file)
    check_plain_host(model, results, plain_host)
    shutil.copyfile(file, model.folder / PLAIN_HOST_FILE)


def check_plain_host(model: SavedModel, results: dict[str, Any], plain_host: Path) -> None:
    """Refuse results that are not those of a plain host, or are of other data."""
    if model.results is None:
        raise ValueError(
            f"{model.folder} has no {RESULTS_FILE}, so that there is nothing to compare {plain_host} with."
        )
    if results["recipe"].get("llm_block") is not None:
        raise ValueError(f"{plain_host} is not a run of the plain host: its recipe has an llm_block.")
    names = ("dataset_name", "eval_split", "holdout")
    ours, theirs = (tuple(recipe.get(name) for name in names) for recipe in (model.recipe, results["recipe"]))
    ours, theirs = (*ours, model.results.get("num_eval_rows")), (*theirs, results.get("num_eval_rows"))
    if ours != theirs:
        raise ValueError(
            f"{plain_host} was evaluated on {theirs}, but {model.folder} on {ours} (dataset_name, eval_split, "
            "holdout, rows): their results cannot be compared."
        )


def compare_plain_host(model: SavedModel) -> dict[str, Any] | None:
    """Return the main metric of this model and of the plain host whose results are in its folder."""
    file = model.folder / PLAIN_HOST_FILE
    if not file.is_file():
        return None
    metric, plain = model.main_metric, read_results(file)
    check_plain_host(model, plain, file)
    rows = []
    for name, results in (("this model", model.results or {}), ("plain host", plain)):
        score = strip_prefix(results["metrics"])[metric.name]
        rows.append(
            {
                "name": name,
                "score": metric.format(metric.scale * score),
                "seed": results["seed"],
                "trained": f"{results['parameters']['trainable']:,}",
            }
        )
    return {"metric": metric.label, "rows": rows, "file": PLAIN_HOST_FILE}
