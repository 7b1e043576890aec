# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import functools
import shutil

import pytest
import torch
from hub_server import HubServer
from llm_files import write_llm
from tiny_hosts import HOSTS
from tiny_llms import randomize, tiny_config, tiny_llm

from hf_frozen_llm import (
    LLMBlockConfig,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
)


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory):
    """`llm_folder("llama", layout="single", **config)` -> (whole LLM in memory, its checkpoint folder), made once."""

    @functools.cache
    def make(family, layout="single", **overrides):
        llm = tiny_llm(tiny_config(family, **overrides))
        return llm, str(write_llm(llm, tmp_path_factory.mktemp(f"{family}_{layout}"), layout))

    return make


@pytest.fixture
def block(llm_folder):
    """`block("llama", **fields)` -> the configuration of a block that reads layer 1."""
    return lambda family="llama", **fields: LLMBlockConfig(
        **{"llm_name_or_path": llm_folder(family)[1], "layer_index": 1, **fields}
    )


@pytest.fixture
def llm(llm_folder, tmp_path):
    """(LLM in memory, a copy of its folder that a test may move or damage)"""

    def make(family="llama"):
        model, folder = llm_folder(family)
        return model, shutil.copytree(folder, tmp_path / f"llm_{family}")

    return make


@pytest.fixture(scope="session")
def large_llama(tmp_path_factory):
    """A LLaMA whose layer dwarfs the headers of its files, in float16: (LLM, folder, folder of shards)."""
    llm = tiny_llm(
        tiny_config("llama", hidden_size=128, intermediate_size=384, num_hidden_layers=4), dtype=torch.float16
    )
    single = write_llm(llm, tmp_path_factory.mktemp("single"))
    sharded = write_llm(llm, tmp_path_factory.mktemp("sharded"), "sharded", shard_size=300_000)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    return llm, single, sharded


@pytest.fixture
def build_model(llm_folder):
    """`build_model("swin", fast=False)`: the same weights at every call; the host's are random, of its norms too."""

    def make(host, seed=2, **block_fields):
        fields = {"llm_name_or_path": llm_folder("llama")[1], "layer_index": 1, **block_fields}
        torch.manual_seed(seed)
        if host == "vit_class":
            config = ViTWithLLMBlockConfig(**HOSTS["vit"].fields, num_labels=3, llm_block=LLMBlockConfig(**fields))
            model = ViTWithLLMBlockForImageClassification(config)
        else:
            # Nothing random in training: two processes would draw other numbers than one.
            host_config = HOSTS[host].config(drop_path_rate=0.0, pos_embed_rescale=None)
            config = VisionWithLLMBlockConfig(
                vision_config=host_config, num_labels=3, llm_block=LLMBlockConfig(**fields)
            )
            model = VisionWithLLMBlockForImageClassification(config)
        randomize(getattr(model, model.base_model_prefix), seed=seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """`published("dinov2", with_head=True)` -> (transformers' own model, its folder), made once."""
    made = {}

    def make(name, with_head=True):
        if (name, with_head) not in made:
            folder = tmp_path_factory.mktemp(f"{name}_{with_head}")
            model = HOSTS[name].published(with_head)
            model.save_pretrained(folder)
            made[name, with_head] = model, str(folder)
        return made[name, with_head]

    return make


@pytest.fixture(scope="module")
def hub_server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server, tmp_path):
    """A local Hub with an empty cache; huggingface_hub of this process talks to it."""
    hub_server.clear()
    with hub_server.active(tmp_path / "hf_home"):
        yield hub_server
