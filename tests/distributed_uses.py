# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Train saved models in each of torchrun's processes, for test_distributed_and_low_precision.py.

The argument is a folder: the script trains its `models/<host>-<fast>`, and writes the results to `results.json`.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
from paths import REPO
from tiny_hosts import HOSTS
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageClassification

import hf_frozen_llm
from hf_frozen_llm.training.sharding import name_sharded_layers


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


def make_fsdp_plugin(model) -> FullyShardedDataParallelPlugin:
    """Return what `accelerate launch` makes of recipes/accelerate/fsdp2.yaml, and TaskTrainer of that."""
    config = yaml.safe_load((REPO / "recipes" / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8"))
    with mock.patch.dict(os.environ, {name.upper(): str(value) for name, value in config["fsdp_config"].items()}):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.transformer_cls_names_to_wrap is None
    plugin.transformer_cls_names_to_wrap = name_sharded_layers(model)
    return plugin


def shard(model):
    """By accelerate's own function, which an `Accelerator` calls on GPUs alone."""
    state = SimpleNamespace(fsdp_plugin=make_fsdp_plugin(model))
    return fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no", is_main_process=True), model)


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
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if fully_sharded:  # as Trainer saves
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:
            model.save_pretrained(folder.parents[1] / "sharded" / folder.name, state_dict=whole)
    return {
        "frozen_is_sharded": all(isinstance(p, DTensor) and p.grad is None for p in frozen),
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
