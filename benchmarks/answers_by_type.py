# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Print EM@1 of a study of questions about 3D scenes, in percent, by the type of the question: its first word, or the
nine classes of Situation3D. Mean and standard deviation over the seeds.

    hf-frozen-llm ablate situated_question_answering/rooms.yaml --variants situated_questions.yaml --seeds 3 \
        --output_dir runs/rooms
    python benchmarks/answers_by_type.py runs/rooms
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output_dir of the study")
    parser.add_argument("--types", choices=("first_word", "nine_classes"), default="first_word")
    args = parser.parse_args()
    files = sorted(args.folder.glob("runs/*/seed*/results.json"))
    if not files:
        parser.error(f"{args.folder}/runs holds no results.json of a finished run.")
    scores, counts = defaultdict(lambda: defaultdict(list)), {}
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        variant = file.parent.parent.name.replace("_", " ")
        scores[variant]["all"].append(results["metrics"]["eval_em@1"])
        counts["all"] = results["num_eval_rows"]
        for row in results[args.types]:
            scores[variant][row["type"]].append(row["accuracy"])
            counts[row["type"]] = row["questions"]
    print(f"| variant | seeds | {' | '.join(counts)} |\n|---|---:|{'---:|' * len(counts)}")
    print(f"| questions | – | {' | '.join(map(str, counts.values()))} |")
    for variant, by_type in scores.items():
        cells = []
        for name in counts:
            values = 100 * np.array(by_type[name])
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        print(f"| {variant} | {len(by_type['all'])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
