# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Farthest point sampling and nearest neighbours of 32 point clouds of 8,192 points, compared with plain loops.

    python benchmarks/point_groups.py
    python benchmarks/point_groups.py --device cuda

The loops follow the definition: for each point cloud, each next point by the distances to all points chosen so far
(kept as a running minimum), neighbours of each centre by one sort. Both find the same indices.
"""

import argparse
import statistics
import time

import torch

from hf_frozen_llm.modeling.point_groups import knn_points, sample_farthest_points


def naive_farthest_points(points, num_samples):
    places = []
    for cloud in points.double():
        chosen, nearest = [0], torch.full((len(cloud),), torch.inf, dtype=torch.float64, device=cloud.device)
        for _ in range(num_samples - 1):
            nearest = torch.minimum(nearest, (cloud - cloud[chosen[-1]]).square().sum(-1))
            chosen.append(int(nearest.argmax()))
        places.append(torch.tensor(chosen, device=points.device))
    return torch.stack(places)


def naive_nearest_points(points, centers, num_points):
    found = []
    for cloud, around in zip(points.double(), centers.double()):
        rows = [(cloud - center).square().sum(-1).sort(stable=True).indices[:num_points] for center in around]
        found.append(torch.stack(rows))
    return torch.stack(found)


def seconds(function, device, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=32)
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--group_size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    points = torch.randn(args.clouds, args.points, 3, device=args.device)
    ours, places = seconds(lambda: sample_farthest_points(points, args.groups), args.device, 3)
    naive, expected = seconds(lambda: naive_farthest_points(points, args.groups), args.device, 1)
    assert torch.equal(places, expected)
    print("| | s | plain loop, s | ratio |\n|---|---:|---:|---:|")
    print(f"| farthest points, {args.groups} of {args.points:,} | {ours:.2f} | {naive:.2f} | {naive / ours:.1f} |")
    centers = points.gather(1, places[..., None].expand(-1, -1, 3))
    ours, nearest = seconds(lambda: knn_points(points, centers, args.group_size), args.device, 3)
    naive, expected = seconds(lambda: naive_nearest_points(points, centers, args.group_size), args.device, 1)
    assert torch.equal(nearest, expected)
    print(f"| {args.group_size} nearest of {args.points:,} | {ours:.2f} | {naive:.2f} | {naive / ours:.1f} |")


if __name__ == "__main__":
    main()
