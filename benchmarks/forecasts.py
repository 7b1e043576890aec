# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Average the runs of a study of motion forecasting over its seeds and scenes, beside the baselines on the same windows.

    hf-frozen-llm ablate motion_forecasting/vectornet_eth_ucy.yaml --variants with_and_without.yaml \
        --over dataset_config_name=eth,hotel,univ,zara1,zara2 --seeds 3 --output_dir runs/pedestrians
    python benchmarks/forecasts.py runs/pedestrians > benchmarks/results/pedestrians/averages.md
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np


METRICS = ("minADE_1", "minFDE_1", "MR_1", "minADE_6", "minFDE_6", "MR_6")


def read_scores(folder):
    """Return by variant, then scene, the metrics of each seed; the baselines are variants that do not vary by seed."""
    scores = defaultdict(lambda: defaultdict(dict))
    for file in sorted(folder.glob("runs/*/seed*/results.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        scene, seed = results["recipe"]["dataset_config_name"], results["seed"]
        variant = file.parent.parent.name.partition("__")[0].replace("_", " ")
        metrics = {name: results["metrics"][f"eval_{name}"] for name in METRICS}
        scores[variant][scene][seed] = {**metrics, "seconds": results["train_time_seconds"]}
        for row in results["baselines"]:
            scores[row["baseline"]][scene][0] = row
    return scores


def mean_over_scenes(by_scene, name):
    """Return the mean over the scenes of each seed that has all of them."""
    seeds = set.intersection(*map(set, by_scene.values()))
    return [float(np.mean([of_scene[seed][name] for of_scene in by_scene.values()])) for seed in sorted(seeds)]


def describe(values):
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    scores = read_scores(parser.parse_args().folder)
    scenes = sorted({scene for by_scene in scores.values() for scene in by_scene}, key=str)
    print("# Mean and standard deviation over the seeds\n")
    of_scenes = f", each the mean of the {len(scenes)} scenes" if len(scenes) > 1 else ""
    print(f"Metres, and shares of misses (2 m){of_scenes}.\n")
    print(f"| forecast | seeds | {' | '.join(METRICS)} | seconds |")
    print(f"|---|---:|{'---:|' * (len(METRICS) + 1)}")
    complete = [variant for variant in scores if len(scores[variant]) == len(scenes)]
    for variant in complete:
        cells = [describe(mean_over_scenes(scores[variant], name)) for name in METRICS]
        trained = "seconds" in next(iter(scores[variant][scenes[0]].values()))
        seconds = f"{np.mean(mean_over_scenes(scores[variant], 'seconds')):.0f}" if trained else "–"
        count = str(len(mean_over_scenes(scores[variant], METRICS[0]))) if trained else "–"
        print(f"| {variant} | {count} | {' | '.join(cells)} | {seconds} |")
    for name in ("minFDE_1", "minFDE_6") if len(scenes) > 1 else ():
        print(f"\n## {name} by scene\n\n| forecast | {' | '.join(scenes)} |\n|---|{'---:|' * len(scenes)}")
        for variant in complete:
            cells = [describe([of_seed[name] for of_seed in scores[variant][scene].values()]) for scene in scenes]
            print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
