# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Print the mean and the standard deviation over the seeds of several metrics of an ablation, and the differences of the
pretrained layer to the others, paired by seed, with 95 % intervals (Student's t).

    python benchmarks/means.py benchmarks/results/emoji/ablation.csv image_recall@1 image_recall@5 image_recall@10
"""

import argparse
from pathlib import Path

import pandas as pd

from hf_frozen_llm.commands.ablation_report import summarize_differences


PRETRAINED = "frozen LLM layer"


def describe_difference(differences):
    """Return the mean and its interval."""
    summary = summarize_differences(differences, delta=1)
    return f"{summary['difference']:+.2f} ({summary['t_low']:+.2f} to {summary['t_high']:+.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="an ablation.csv")
    parser.add_argument("metrics", nargs="+", help="names without eval_; shares are shown in percent")
    args = parser.parse_args()
    runs = pd.read_csv(args.table).set_index(["variant", "seed"])
    scores = runs[[f"eval_{name}" for name in args.metrics]]
    scores.columns = args.metrics
    scores = scores * [1 if name.endswith("rank") else 100 for name in args.metrics]
    print(f"| variant | seeds | {' | '.join(args.metrics)} |\n|---|---:|{'---:|' * len(args.metrics)}")
    for variant, of_variant in scores.groupby("variant", sort=False):
        cells = [f"{values.mean():.2f} ± {values.std():.2f}" for _, values in of_variant.items()]
        print(f"| {variant} | {len(of_variant)} | {' | '.join(cells)} |")
    for variant in scores.index.unique("variant").drop(PRETRAINED):
        differences = (scores.loc[PRETRAINED] - scores.loc[variant]).dropna()
        cells = [describe_difference(differences[name].to_numpy()) for name in args.metrics]
        print(f"| {PRETRAINED} − {variant} | {len(differences)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
