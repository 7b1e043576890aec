# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import functools

import pytest
from hub_server import HubServer
from tiny_llms import tiny_config, tiny_llm, write_llm


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory):
    """`llm_folder("llama", layout="single", **config)` -> (whole LLM in memory, its checkpoint folder), made once."""

    @functools.cache
    def make(family, layout="single", **overrides):
        llm = tiny_llm(tiny_config(family, **overrides))
        return llm, str(write_llm(llm, tmp_path_factory.mktemp(f"{family}_{layout}"), layout))

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
