# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Train a small ViT with and without a frozen LLM layer; compare, reload and plot the two models."""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from downloads import DownloadError, find_dataset, find_llm
from transformers import AutoModelForImageClassification, pipeline

# On transformers 5.17 the top-level name needs torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_frozen_llm import cli
from hf_frozen_llm.plotting import plot_image_grid, plot_training_curves
from hf_frozen_llm.training.progress import progress_bars
from hf_frozen_llm.training.recipe import read_recipe


# The curves show what the table says: all test images; often enough for a curve.
EVALUATION = ["--max_eval_samples", "null", "--eval_steps", "150"]
RECIPES = {"ViT": "vit_tiny_cifar10", "ViT+LLM": "vit_tiny_cifar10_smollm2"}
PICTURES = 32

NOTE = """\
One seed each, a few minutes of training: a difference between the two accuracies is noise until
several seeds agree, and says nothing of longer training. What this shows is that every piece works."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python examples/quickstart.py",
        description=__doc__,
        epilog="Any other `--key value` goes to both training runs, for example `--seed 1`.",
        allow_abbrev=False,
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/quickstart"), help="where everything is written")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path("~/.cache/hf_frozen_llm/quickstart"), help="where downloads are kept"
    )
    parser.add_argument("--llm", help="another LLM: Hub id, folder or .gguf file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--dataset", help="another copy of CIFAR-10: Hub id or folder of parquet files")
    args, overrides = parser.parse_known_args(argv)
    try:
        run(args.work_dir.expanduser(), args.cache_dir.expanduser(), args.llm, args.dataset, overrides)
    except DownloadError as error:
        sys.exit(f"quickstart: {error}")


def run(
    work_dir: Path,
    cache_dir: Path,
    llm: str | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """
    Run the steps whose results `work_dir` lacks, then print the comparison.

    Args:
        work_dir (`Path`):
            The folder of the models, the figures and the comparison.
        cache_dir (`Path`):
            The folder of the downloads.
        llm (`str`, *optional*):
            Hub id, folder or `.gguf` file of the LLM, instead of SmolLM2-135M-Instruct.
        dataset (`str`, *optional*):
            Hub id or folder of the data set, instead of CIFAR-10.
        overrides (`Sequence[str]`, *optional*):
            Flags for both training runs.
    """
    start = time.monotonic()
    settings = choose_settings(work_dir, cache_dir, llm, dataset, list(overrides))
    for module in ["matplotlib", *(["gguf"] if settings["llm"].endswith(".gguf") else [])]:
        if importlib.util.find_spec(module) is None:
            sys.exit(f"quickstart: {module} is not installed; run `pip install -e '.[gguf,plot]'`.")
    results, scores = {}, {}
    for name, recipe_name in RECIPES.items():
        folder = work_dir / recipe_name
        flags = ["--dataset_name", settings["dataset"], "--output_dir", str(folder), "--resume", "true", *EVALUATION]
        if name != "ViT":
            flags += ["--llm_block.llm_name_or_path", settings["llm"]]
        if not (folder / "results.json").is_file():
            print(f"\n== Training {name} ({folder})", flush=True)
            cli.main(["train", f"quickstart/{recipe_name}.yaml", *flags, *overrides])
        results[name] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if not (folder / "eval_results.json").is_file():
            print(f"\n== Evaluating the saved {name} on all test images", flush=True)
            cli.main(["evaluate", str(folder), "--max_eval_samples", "null"])
        scores[name] = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))

    recipe = results["ViT"]["recipe"]
    if not (work_dir / "curves.png").is_file():
        histories = {name: result["log_history"] for name, result in results.items()}
        title = f"ViT with and without a frozen LLM layer, seed {results['ViT']['seed']}"
        evaluated = f"the {results['ViT']['num_eval_rows']:,} test images"
        write(work_dir / "curves.png", plot_training_curves, histories, title, evaluated)
    if not (work_dir / "pictures.png").is_file():
        print(f"\n== Classifying {PICTURES} test images with the reloaded models", flush=True)
        test = datasets.load_dataset(settings["dataset"], split=recipe["eval_split"]).select(range(PICTURES))
        images = [image.convert("RGB") for image in test[recipe["image_column"]]]
        labels = test.features[recipe["label_column"]].int2str(test[recipe["label_column"]])
        with progress_bars(recipe.get("disable_tqdm")):
            predictions = {name: classify(work_dir / recipe_name, images) for name, recipe_name in RECIPES.items()}
        title = "Test images: true label above, predictions below"
        write(work_dir / "pictures.png", plot_image_grid, images, labels, predictions, title)

    table = comparison(results, scores)
    (work_dir / "comparison.txt").write_text(table, encoding="utf-8")
    print(f"\n{table}")
    for name, recipe_name in RECIPES.items():
        print(f"{name:8} {work_dir / recipe_name}")
    print(f"figures  {work_dir / 'pictures.png'}, {work_dir / 'curves.png'}")
    print(f"This call took {duration(time.monotonic() - start)}.")


def choose_settings(
    work_dir: Path, cache_dir: Path, llm: str | None, dataset: str | None, overrides: list[str]
) -> dict[str, Any]:
    """Return the settings of the runs in `work_dir`; they are saved once, so that a resumed run keeps them."""
    recipes = {name: read_recipe(f"quickstart/{name}.yaml").to_dict() for name in RECIPES.values()}
    path = work_dir / "settings.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        asked = {"llm": llm, "dataset": dataset, "overrides": overrides, "recipes": recipes}
        for key, value in asked.items():
            if value is not None and value != settings[key]:
                sys.exit(
                    f"quickstart: the runs in {work_dir} were started with another value of `{key}` (see its "
                    "settings.json). Give another --work-dir, or delete this one."
                )
        return settings
    settings = {
        "llm": llm or find_llm(cache_dir),
        "dataset": dataset or find_dataset(cache_dir),
        "overrides": overrides,
        "recipes": recipes,
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    write(path, lambda target: target.write_text(json.dumps(settings, indent=2), encoding="utf-8"))
    return settings


def classify(folder: Path, images: list) -> list[str]:
    classifier = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    return [prediction[0]["label"] for prediction in classifier(images, top_k=1)]


def write(path: Path, function, *args) -> None:
    """Call `function(path, *args)` on a temporary path and rename it, so that no partial file is left at `path`."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    function(beside, *args)
    os.replace(beside, path)


def comparison(results: dict[str, dict[str, Any]], scores: dict[str, dict[str, Any]]) -> str:
    names = list(results)
    parameters = {name: results[name]["parameters"] for name in names}
    rows = {
        "": names,
        **{
            f"top-{k} accuracy": [f"{100 * scores[name]['metrics'][f'eval_top{k}']:.2f} %" for name in names]
            for k in (1, 5)
            if f"eval_top{k}" in scores[names[0]]["metrics"]  # with few classes there is no top 5
        },
        "parameters": [f"{parameters[name]['total']:,}" for name in names],
        "  trained": [f"{parameters[name]['trainable']:,}" for name in names],
        "  frozen": [f"{parameters[name]['frozen']:,}" for name in names],
        "training time": [duration(training_seconds(results[name])) for name in names],
    }
    lines = [f"{label:16}" + "".join(f"{value:>14}" for value in values) for label, values in rows.items()]
    return "\n".join([*lines, "", NOTE, ""])


def training_seconds(results: dict[str, Any]) -> float:
    """Return the time of a training without its evaluations; the last one comes after it."""
    evaluations = [entry["eval_runtime"] for entry in results["log_history"] if "eval_runtime" in entry][:-1]
    return results["train_time_seconds"] - sum(evaluations)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


if __name__ == "__main__":
    main()
