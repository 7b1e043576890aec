# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the share of padding in batches of scenes, in a random order and grouped by size, and the time of a step.

    python benchmarks/scene_padding.py --eth_ucy eth_ucy --log argoverse2_log > benchmarks/results/scene_padding.md
"""

import argparse
import time

import numpy as np
import torch

from hf_frozen_llm import VectorNetWithLLMBlockConfig, VectorNetWithLLMBlockForMotionForecasting
from hf_frozen_llm.tasks import TASKS


TASK = TASKS["motion-forecasting"]


def make_task(**keys):
    args = TASK.arguments(**keys)
    config = VectorNetWithLLMBlockConfig(**TASK.config_fields(args, None))
    return TASK(args, TASK.build_processor(args, {}, config), config)


def batches(task, dataset, order, batch_size, count):
    for start in range(0, count * batch_size, batch_size):
        yield task.collate(dataset.__getitems__(order[start : start + batch_size]))


def measure(name, batch_size, count, **keys):
    """Print a row for each order of the scenes."""
    task = make_task(**keys)
    rows = task.read(task.args, "train")
    dataset = task.dataset(rows, "train", training=True)
    rng = np.random.default_rng(0)
    count = min(count, len(rows) // batch_size)
    orders = {"random": rng.permutation(len(rows)).tolist(), "grouped": list(task.sampler(dataset, batch_size, 0))}
    torch.manual_seed(0)
    model = VectorNetWithLLMBlockForMotionForecasting(task.config)
    for order, numbers in orders.items():
        # The sampler begins with the largest scenes: take batches from everywhere.
        whole = [numbers[start : start + batch_size] for start in range(0, len(numbers) - batch_size + 1, batch_size)]
        chosen = [row for batch in rng.permutation(len(whole))[:count] for row in whole[batch]]
        real = padded = 0
        largest, seconds = 0, 0.0
        for batch in batches(task, dataset, chosen, batch_size, count):
            mask = batch["polyline_mask"]
            real, padded, largest = real + int(mask.sum()), padded + mask.numel(), max(largest, mask.shape[1])
            start = time.process_time()
            model(**batch).loss.backward()
            seconds += time.process_time() - start
        print(
            f"| {name} | {len(rows):,} | {batch_size} | {order} | {real / count / batch_size:.1f} | {largest} "
            f"| {100 * (1 - real / padded):.1f} % | {1000 * seconds / count:.0f} ms |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eth_ucy", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pedestrians = {"dataset_name": args.eth_ucy, "dataset_config_name": "zara1"}
    pedestrians |= {"num_history_steps": 8, "num_future_steps": 12, "agent_radius": 6.0}
    log = {"dataset_name": args.log, "train_share": 0.99, "window_stride": 2}
    command = f"python benchmarks/scene_padding.py --eth_ucy eth_ucy --log argoverse2_log --batches {args.batches}"
    print(f"# Padding in batches of scenes\n\n```bash\n{command}\n```\n")
    print(
        f"A plain VectorNet (width 128), at most {args.batches} training batches each; processor time of one core.\n"
    )
    print("| scenes | number | batch | order | polylines in a scene | in the largest | padding | step |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    measure("pedestrians, all scenes but zara1", 64, args.batches, **pedestrians)
    measure("the same, within 56 m", 64, args.batches, **{**pedestrians, "agent_radius": None})
    measure("a sensor log with lanes", 32, args.batches, **log)


if __name__ == "__main__":
    main()
