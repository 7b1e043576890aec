# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
How much a layer changes its input, ‖layer(h) - h‖ / ‖h‖, at initialisation and after a short training, as released and
with a balanced input: tiny random layers of ten families (of the tests) and a real layer.

    python benchmarks/update_ratio.py --dataset CIFAR10 --llm SmolLM2-135M-Instruct-layers [--output FILE.md]

CIFAR10 is the folder of parquet files that `make quickstart` writes. 32 is the width of the tiny layers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

FAMILIES = ["llama", "opt", "gpt2", "gemma2", "qwen3", "olmo2", "phi", "bloom", "falcon", "granite"]
HEADER = [
    "# How much a layer changes its input",
    "",
    "`‖layer(h) - h‖ / ‖h‖` in the first and the last step of a short training on CIFAR-10, as released (scale 1) and "
    "balanced; `python benchmarks/update_ratio.py --dataset CIFAR10 --llm SmolLM2-135M-Instruct-layers`. The tiny "
    "layers have width 32 and random weights. The accuracies are of one seed, on 2,000 test images.",
]
RECIPE = "quickstart/vit_tiny_cifar10_smollm2.yaml"


def measure(llm, input_scale, dataset, steps):
    """Return the factor, the ratio in the first step, the ratio in the last step, and the accuracy in percent."""
    from hf_frozen_llm.commands.train import train

    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "dataset_name": dataset,
            "llm_block.llm_name_or_path": llm,
            "llm_block.layer_index": "-1",
            "llm_block.input_scale": input_scale,
            "llm_block.residual": "none",
            "max_steps": steps,
            "eval_steps": steps,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": "true",
            "output_dir": f"{folder}/run",
        }
        train(RECIPE, [word for name, value in flags.items() for word in (f"--{name}", str(value))])
        results = json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))
    ratios = [entry["update_ratio"] for entry in results["log_history"] if "update_ratio" in entry]
    scale = results["config"]["llm_block"].get("input_scale", 1.0)
    return scale, ratios[0], ratios[-1], 100 * results["metrics"]["eval_top1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    from llm_files import write_llm
    from tiny_llms import tiny_config, tiny_llm

    lines = [
        f"| layer | scale | first step | step {args.steps} | top-1 % | balanced scale | first step | "
        f"step {args.steps} | top-1 % |",
        f"|---|{'---:|' * 8}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        llms = {f"`{f}`, tiny": str(write_llm(tiny_llm(tiny_config(f)), Path(folder, f))) for f in FAMILIES}
        for name, llm in {**llms, Path(args.llm).name: args.llm}.items():
            cells = [name]
            for input_scale in (1.0, "balanced"):
                scale, first, last, top1 = measure(llm, input_scale, args.dataset, args.steps)
                cells += [f"{scale:.4g}", f"{first:.3g}", f"{last:.3g}", f"{top1:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    text = "\n".join([*HEADER, "", *lines, ""])
    print(text)
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
