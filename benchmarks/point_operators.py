# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The operators of PointNet++ on 8 scenes of 40,000 points: time and memory, beside full matrices of distances.

    python benchmarks/point_operators.py
    python benchmarks/point_operators.py --scenes 1 --points 10000

Sampling, balls and three nearest points are those of SQA3D's first level. The full matrices follow the definition: all
distances of a scene at once. Both find the same indices. Each case runs in a process of its own, whose peak memory
counts beyond that before the call.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from hf_frozen_llm.modeling.pointnet2 import find_three_nearest, query_ball, sample_farthest


RADIUS, NEIGHBORS = 0.2, 64


def make_scenes(args):
    torch.manual_seed(0)
    points = torch.rand(args.scenes, args.points, 3) * torch.tensor([6.0, 5.0, 2.5])
    return points, points[:, :: args.points // args.centers][:, : args.centers].contiguous()


def full_ball(points, centers):
    rows = []
    for cloud, around in zip(points, centers):
        is_near = (around[:, None] - cloud).square().sum(-1) < RADIUS**2
        order = torch.where(is_near, torch.arange(len(cloud)), len(cloud)).sort(dim=1).values[:, :NEIGHBORS]
        first = order[:, :1].clamp(max=len(cloud) - 1) * is_near.any(1, keepdim=True)
        rows.append(torch.where(order < len(cloud), order, first))
    return torch.stack(rows)


def full_nearest(points, centers):
    squares = [(cloud[:, None] - known).square().sum(-1) for cloud, known in zip(points, centers)]
    return torch.stack([square.topk(3, dim=1, largest=False).indices for square in squares])


CASES = {
    "sampling": lambda points, centers: sample_farthest(points, centers.shape[1]),
    "balls": lambda points, centers: query_ball(points, centers, RADIUS, NEIGHBORS),
    "balls, full matrix": full_ball,
    "three nearest": lambda points, centers: find_three_nearest(points, centers)[0],
    "three nearest, full matrix": full_nearest,
}


def measure(args):
    points, centers = make_scenes(args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    indices = CASES[args.case](points, centers)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    weights = torch.arange(indices.numel()) % 8191
    print(f"{args.case},{seconds:.2f},{memory:.0f},{int((indices.flatten() * weights).sum())}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--points", type=int, default=40000)
    parser.add_argument("--centers", type=int, default=2048)
    parser.add_argument("--case", choices=CASES)
    args = parser.parse_args(argv)
    if args.case is not None:
        return measure(args)
    print("| operator | seconds | MB |\n|---|---|---|")
    sizes = [f"--{name}={getattr(args, name)}" for name in ("scenes", "points", "centers")]
    sums = {}
    for case in CASES:
        command = [sys.executable, __file__, *sizes, f"--case={case}"]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        *name, seconds, memory, sums[case] = line.split(",")
        print(f"| {','.join(name)} | {seconds} | {memory} |")
    for case in ("balls", "three nearest"):
        if sums[case] != sums[f"{case}, full matrix"]:
            sys.exit(f"point_operators: {case} and the full matrix find other indices.")


if __name__ == "__main__":
    main()
