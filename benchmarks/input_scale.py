# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The study of the input's scale on CIFAR-10: the variants of `recipes/variants/input_scale.yaml` with tuned learning
rates and five seeds, on the test set, under five corruptions, and with a tenth of the training data.

    python benchmarks/input_scale.py --dataset CIFAR10 --llm SmolLM2-135M-Instruct-layers --max_parallel 2

CIFAR10 is the folder of parquet files that `make quickstart` writes. An interrupted study goes on where it stopped.
The primary contrast, fixed before the first run: "pretrained balanced" minus "random balanced", on the test set.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import yaml


RECIPE = "quickstart/vit_tiny_cifar10_smollm2.yaml"
REFERENCE = "random balanced"
LEARNING_RATES = "learning_rate=1e-4,3e-4,1e-3,3e-3"
STEPS, SEEDS = 500, 5
# What is also read out under shift, and with less data.
MAIN = [
    "plain ViT",
    "one more ViT layer",
    "identity",
    "pretrained",
    "pretrained balanced",
    "pretrained outer",
    "random balanced",
    "shuffled balanced",
]
CORRUPTIONS = ["gaussian_noise", "defocus_blur", "brightness", "contrast", "jpeg_compression"]
SEVERITIES = [1, 3, 5]
SHIFTED_IMAGES = 2000


class Examples(list):
    """The examples of a data set, computed once, and its rows."""

    def __init__(self, dataset):
        super().__init__(dataset[index] for index in range(len(dataset)))
        self.rows = dataset.rows


def common_flags(args, *flags):
    return [
        *("--dataset_name", args.dataset, "--llm_block.llm_name_or_path", args.llm, "--max_steps", str(STEPS)),
        *("--eval_steps", str(STEPS), "--save_strategy", "no", "--max_eval_samples", "null", "--disable_tqdm", "true"),
        *flags,
    ]


def train_all(args):
    """Train on all data, each variant at its own learning rate."""
    from hf_frozen_llm import ablate

    ablate(
        RECIPE,
        variants="input_scale.yaml",
        tune=[LEARNING_RATES],
        seeds=SEEDS,
        reference=REFERENCE,
        max_parallel=args.max_parallel,
        output_dir=args.work_dir / "whole",
        overrides=common_flags(args),
    )


def train_on_a_tenth(args):
    """Train on 5,000 images, at the learning rates that were chosen with all of them."""
    from hf_frozen_llm import ablate
    from hf_frozen_llm.commands.ablation_plan import read_variants

    runs = pd.read_csv(args.work_dir / "whole" / "ablation.csv")
    rates = runs.groupby("variant")["learning_rate"].first()
    fields = read_variants("input_scale.yaml")
    variants = {
        name: {**{key: json.loads(text) for key, text in fields[name].items()}, "learning_rate": float(rates[name])}
        for name in MAIN
    }
    file = args.work_dir / "tenth.yaml"
    file.write_text(yaml.safe_dump(variants, sort_keys=False), encoding="utf-8")
    ablate(
        RECIPE,
        variants=file,
        seeds=SEEDS,
        reference=REFERENCE,
        max_parallel=args.max_parallel,
        output_dir=args.work_dir / "tenth",
        overrides=common_flags(args, "--max_train_samples", "5000"),
    )


def run_folders(folder):
    """Return the folders of the reported runs, with variant and seed."""
    found = []
    for file in sorted(folder.glob("runs/**/results.json")):
        variant = file.relative_to(folder / "runs").parts[0].replace("_", " ")
        found.append((variant, int(file.parent.name.removeprefix("seed")), file.parent))
    return found


def evaluate_under_shift(args):
    """Write `shift.json` into the folder of every run of the main variants."""
    from hf_frozen_llm.training.evaluate import read_evaluation_recipe
    from hf_frozen_llm.training.run import load_run, read_eval_rows

    examples = {}  # corrupted once: all variants read the same pixels
    for variant, seed, folder in run_folders(args.work_dir / "whole"):
        if variant not in MAIN or (folder / "shift.json").is_file():
            continue
        accuracies = {}
        with tempfile.TemporaryDirectory() as output_dir:
            flags = ["--max_eval_samples", str(SHIFTED_IMAGES), "--disable_tqdm", "true"]
            recipe = read_evaluation_recipe(str(folder), flags)
            run = load_run(str(folder), recipe, output_dir)
            data_args = run.settings.data_args
            rows = read_eval_rows(run.settings.task, data_args, str(data_args.eval_split))
            for corruption in [None, *CORRUPTIONS]:
                for severity in SEVERITIES if corruption else [None]:
                    data_args.corruption, data_args.corruption_severity = corruption, severity
                    name = "clean" if corruption is None else f"{corruption}_{severity}"
                    if name not in examples:
                        examples[name] = Examples(run.task.dataset(rows, str(data_args.eval_split)))
                    run.eval_dataset = examples[name]
                    accuracies[name] = run.trainer().evaluate()["eval_top1"]
        (folder / "shift.json").write_text(json.dumps(accuracies), encoding="utf-8")
        print(variant, seed, accuracies, flush=True)


def condense(args):
    """Write `runs.csv` (a row for each run, with update ratios and accuracies under shift), and copy the reports."""
    rows = []
    for data in ("tuning", "whole", "tenth"):
        folder = args.work_dir / ("tenth" if data == "tenth" else "whole")
        files = sorted(folder.glob(f"{'tuning' if data == 'tuning' else 'runs'}/**/results.json"))
        for file in files:
            results = json.loads(file.read_text(encoding="utf-8"))
            ratios = [entry["update_ratio"] for entry in results["log_history"] if "update_ratio" in entry]
            block = results["config"].get("llm_block") or {}
            row = {
                "data": data,
                "variant": file.relative_to(folder).parts[1].replace("_", " "),
                "seed": results["seed"],
                "learning_rate": results["recipe"]["learning_rate"],
                "input_scale": block.get("input_scale", 1.0) if block else None,
                "top1": results["metrics"]["eval_top1"],
                "loss": results["metrics"]["eval_loss"],
                "train_loss": results["metrics"]["train_loss"],
                "first_update_ratio": ratios[0] if ratios else None,
                "last_update_ratio": ratios[-1] if ratios else None,
                "trainable_parameters": results["parameters"]["trainable"],
                "train_seconds": results["train_time_seconds"],
            }
            shift = file.parent / "shift.json"
            rows.append({**row, **(json.loads(shift.read_text(encoding="utf-8")) if shift.is_file() else {})})
    runs = pd.DataFrame(rows)
    args.output.mkdir(parents=True, exist_ok=True)
    runs.to_csv(args.output / "runs.csv", index=False)
    write_shift_table(runs, args.output / "shift.md")
    reports = {"whole": ["ablation.csv", "ablation.md", "ablation.png", "differences.csv"], "tenth": ["ablation.md"]}
    for data, names in reports.items():
        for name in names:
            content = (args.work_dir / data / name).read_bytes()
            if name.endswith(".csv"):  # the names of local copies, as in the other files
                for path in (args.dataset, args.llm):
                    content = content.replace(path.encode(), Path(path).name.encode())
            (args.output / (name if data == "whole" else f"tenth{Path(name).suffix}")).write_bytes(content)


def write_shift_table(runs, path):
    """Mean and standard deviation of the accuracy of the main variants, for each corruption over its severities."""
    shifted = runs[(runs["data"] == "whole") & runs["clean"].notna()]
    lines = [
        f"| variant | seeds | clean | {' | '.join(name.replace('_', ' ') for name in CORRUPTIONS)} | all |",
        f"|---|{'---:|' * (len(CORRUPTIONS) + 3)}",
    ]
    for variant, of_variant in shifted.groupby("variant", sort=False):
        columns = {"clean": of_variant["clean"]}
        for corruption in CORRUPTIONS:
            columns[corruption] = of_variant[[f"{corruption}_{severity}" for severity in SEVERITIES]].mean(axis=1)
        columns["all"] = sum(columns[corruption] for corruption in CORRUPTIONS) / len(CORRUPTIONS)
        cells = [f"{100 * column.mean():.1f} ± {100 * column.std():.1f}" for column in columns.values()]
        lines.append(f"| {variant} | {len(of_variant)} | {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/input_scale"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "input_scale")
    parser.add_argument("--max_parallel", type=int, default=1)
    parser.add_argument("--stages", default="whole,tenth,shift,condense")
    args = parser.parse_args()
    stages = {
        "whole": train_all,
        "tenth": train_on_a_tenth,
        "shift": evaluate_under_shift,
        "condense": condense,
    }
    for name in args.stages.split(","):
        stages[name](args)


if __name__ == "__main__":
    main()
