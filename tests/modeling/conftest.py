# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import functools
import shutil

import pytest
from hub_server import HubServer
from tiny_hosts import HOSTS
from tiny_llms import tiny_config, tiny_llm, write_llm

from hf_frozen_llm import LLMBlockConfig


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
