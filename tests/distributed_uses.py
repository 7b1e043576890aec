# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Train saved models in each of torchrun's processes, for test_distributed_and_low_precision.py.

The argument is a folder: the script trains its `models/<host>-<fast>`, and writes the results to `results.json`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_hosts import HOSTS
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageClassification

import hf_frozen_llm


MODELS = ["vit_class", "dinov2", "swin"]
LABELS = torch.tensor([0, 2, 1, 0])


def pixels_of(host: str, batch: int) -> torch.Tensor:
    return HOSTS["vit" if host == "vit_class" else host].pixels(batch)


def load(folder: Path):
    return AutoModelForImageClassification.from_pretrained(folder).train()


def frozen_tensors(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def train_steps(model, pixel_values: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Losses of three steps of SGD."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def shard(model):
    """As FSDP of accelerate and Trainer does: every module that is not to be split, then the rest."""
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module)
    return fully_shard(model)


def run(folder: Path, host: str, fully_sharded: bool) -> dict:
    """Every process trains on its part of the batch; the losses are those of the whole batch."""
    model = load(folder)
    before = frozen_tensors(model)
    wrapped = shard(model) if fully_sharded else DistributedDataParallel(model, find_unused_parameters=True)
    computed: list[int] = []
    model.llm_block.output_projection.register_forward_hook(lambda module, args, out: computed.append(out.shape[1]))
    part = slice(dist.get_rank(), None, dist.get_world_size())
    losses = torch.tensor(train_steps(wrapped, pixels_of(host, len(LABELS))[part], LABELS[part]))
    dist.all_reduce(losses)
    state = {n: p.full_tensor() if fully_sharded else p for n, p in model.named_parameters()}
    return {
        "losses": (losses / dist.get_world_size()).tolist(),
        "frozen_is_intact": bool(before) and all(torch.equal(state[name], tensor) for name, tensor in before.items()),
        "num_tokens": computed[0],
        "num_sharded": sum(type(module).__name__.startswith("FSDP") for module in model.modules()),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    assert hf_frozen_llm.auto
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, dict] = {"ddp": {}, "fully_shard": {}}
    for path in sorted((folder / "models").iterdir()):
        host = path.name.partition("-")[0]
        results["ddp"][path.name] = run(path, host, fully_sharded=False)
        if host in MODELS:
            results["fully_shard"][path.name] = run(path, host, fully_sharded=True)
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # wrapped models keep gloo's threads alive, which now and then abort an interpreter that ends
