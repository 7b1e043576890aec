# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The operators of PointNet++ and SQA3D's model on 8 scenes of 40,000 points: time and memory.

    python benchmarks/point_operators.py
    python benchmarks/point_operators.py --compare
    python benchmarks/point_operators.py --scenes 1 --points 10000 --centers 512 --compare

Sampling, balls and three nearest points are those of SQA3D's first level; the detector and the training step are
those of the paper's model (hidden_size 768) without an LLM. `--compare` adds full matrices, which follow the
definition (all distances of a scene at once), and naive loops (one centre at a time); all find the same indices. A
matrix of more than 8 GB is left out. Each case runs in a process of its own. Seconds are those of the processor;
memory is the peak beyond that before the call, and for the training step the peak of the whole process.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from hf_frozen_llm import SQA3DWithLLMBlockConfig, SQA3DWithLLMBlockForQuestionAnswering
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


def loop_ball(points, centers):
    rows = []
    for cloud, around in zip(points, centers):
        for center in around:
            (near,) = torch.nonzero((center - cloud).square().sum(-1) < RADIUS**2, as_tuple=True)
            first = near[:1] if len(near) else torch.zeros(1, dtype=torch.long)
            rows.append(torch.cat([near[:NEIGHBORS], first.expand(NEIGHBORS - len(near[:NEIGHBORS]))]))
    return torch.stack(rows)


def loop_nearest(points, centers):
    return torch.stack(
        [
            (point - known).square().sum(-1).topk(3, largest=False).indices
            for cloud, known in zip(points, centers)
            for point in cloud
        ]
    )


def full_sampling(points, centers):
    rows = []
    for cloud in points:
        squares = (cloud[:, None] - cloud).square().sum(-1)
        squares[:, cloud.square().sum(-1) <= 1e-3] = -1  # the kernel leaves out points near the origin
        nearest, chosen = squares[0], [0]
        while len(chosen) < centers.shape[1]:
            chosen.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, squares[chosen[-1]])
        rows.append(torch.tensor(chosen))
    return torch.stack(rows)


def loop_sampling(points, centers):
    rows = []
    for cloud in points:
        nearest = torch.full((len(cloud),), 1e10).masked_fill(cloud.square().sum(-1) <= 1e-3, -1)
        chosen = [0]
        while len(chosen) < centers.shape[1]:
            nearest = torch.minimum(nearest, (cloud - cloud[chosen[-1]]).square().sum(-1))
            chosen.append(int(nearest.argmax()))
        rows.append(torch.tensor(chosen))
    return torch.stack(rows)


def make_model():
    torch.manual_seed(0)
    config = SQA3DWithLLMBlockConfig(hidden_size=768, num_labels=707)
    return SQA3DWithLLMBlockForQuestionAnswering(config).train()


def detect(points, centers):
    with torch.no_grad():
        detection = make_model().sqa3d.detector(torch.cat([points, torch.rand(*points.shape[:2], 4)], dim=-1))
    return detection.seed_indices


def train(points, centers):
    """A forward and a backward pass with all losses, and a step of AdamW."""
    batch, count = points.shape[:2]
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    objects = torch.rand(batch, 32, 3) * 5
    outputs = model(
        torch.cat([points, torch.rand(batch, count, 4)], dim=-1),
        situation_embeds=torch.randn(batch, 20, 300),
        question_embeds=torch.randn(batch, 12, 300),
        labels=torch.zeros(batch, 707).bernoulli_(0.01),
        situation_labels=torch.randn(batch, 7),
        object_centers=objects,
        object_mask=torch.ones(batch, 32),
        object_classes=torch.zeros(batch, 32, dtype=torch.long),
        object_size_residuals=torch.zeros(batch, 32, 3),
        vote_labels=torch.randn(batch, count, 9),
        vote_mask=torch.ones(batch, count, dtype=torch.long),
    )
    outputs.loss.backward()
    optimizer.step()
    return outputs.logits.argmax(-1)


WHOLE = {"detector, forward": detect, "training step, whole process": train}
CASES = {
    "sampling": lambda points, centers: sample_farthest(points, centers.shape[1]),
    "balls": lambda points, centers: query_ball(points, centers, RADIUS, NEIGHBORS),
    "three nearest": lambda points, centers: find_three_nearest(points, centers)[0],
}
COMPARED = {
    "sampling, full matrix": full_sampling,
    "sampling, naive loop": loop_sampling,
    "balls, full matrix": full_ball,
    "balls, naive loop": loop_ball,
    "three nearest, full matrix": full_nearest,
    "three nearest, naive loop": loop_nearest,
}


def measure(args):
    points, centers = make_scenes(args)
    before = 0 if args.case == "training step, whole process" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    indices = (CASES | COMPARED | WHOLE)[args.case](points, centers)
    seconds = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    weights = torch.arange(indices.numel()) % 8191
    print(f"{args.case}|{seconds:.2f}|{memory:.0f}|{int((indices.flatten() * weights).sum())}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--points", type=int, default=40000)
    parser.add_argument("--centers", type=int, default=2048)
    parser.add_argument("--compare", action="store_true", help="add full matrices and naive loops")
    parser.add_argument("--case", choices=CASES | COMPARED | WHOLE)
    args = parser.parse_args(argv)
    if args.case is not None:
        return measure(args)
    print("| case | seconds | MB |\n|---|---|---|")
    sizes = [f"--{name}={getattr(args, name)}" for name in ("scenes", "points", "centers")]
    sums = {}
    for case in CASES | (COMPARED if args.compare else WHOLE):
        size = 12 * args.points**2 / 1e6  # of the differences of all coordinates of a scene
        if case == "sampling, full matrix" and size > 8000:
            print(f"| {case} | – | {size:.0f} needed |", flush=True)
            continue
        command = [sys.executable, __file__, *sizes, f"--case={case}"]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        name, seconds, memory, sums[case] = line.split("|")
        print(f"| {name} | {seconds} | {memory} |", flush=True)
    for case in sums:
        if case in COMPARED and sums[case] != sums[case.split(",")[0]]:
            sys.exit(f"point_operators: {case} finds other indices.")


if __name__ == "__main__":
    main()
