# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading one layer out of an LLM on the Hub: its commit, its shards, the token and the cache."""

import json

import pytest
import torch
from llm_block_checks import assert_holds_layer, read_block, vit_config
from llm_files import write_gguf, write_llm
from safetensors.torch import load_file
from tiny_llms import tiny_config, tiny_llm
from transformers import AutoModelForImageClassification

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockForImageClassification


def test_hub_asks_only_for_needed_shards(hub, large_llama):
    llm, _, sharded = large_llama
    commit = hub.add("someone/llm", sharded)
    block = read_block("someone/llm")
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == commit
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {f for k, f in weight_map.items() if k.startswith("model.layers.1.")}
    got = hub.downloaded("someone/llm")
    assert {f for f in got if f.endswith(".safetensors")} == needed != set(weight_map.values())
    # cached now: the commit is known, nothing is sent again
    hub.clear()
    again = read_block("someone/llm", llm_revision=commit)
    assert_holds_layer(again, llm)
    assert hub.downloaded() == []


def test_hub_revision(hub, llm_folder, tmp_path):
    llm, folder = llm_folder("llama")
    old = hub.add("someone/moving", folder)
    other = tiny_llm(tiny_config("llama"), seed=7)
    new = hub.add("someone/moving", write_llm(other, tmp_path / "new"))
    hub.add("someone/moving", folder, revision="v1")
    assert_holds_layer(read_block("someone/moving"), other)
    block = read_block("someone/moving", llm_revision=old)
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == old != new
    assert_holds_layer(read_block("someone/moving", llm_revision="v1"), llm)
    with pytest.raises(OSError, match="nonsense"):
        read_block("someone/moving", llm_revision="nonsense")


def test_hub_gguf(hub, tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    folder = tmp_path / "repository"
    folder.mkdir()
    write_gguf(llm, folder / "tiny.gguf")
    commit = hub.add("someone/gguf", folder)
    block = read_block("someone/gguf/tiny.gguf")
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == commit
    # Its header and layer are in the cache.
    hub.clear()
    with hub.active(tmp_path / "hf_home", offline=True):
        assert_holds_layer(read_block("someone/gguf/tiny.gguf"), llm)
    assert not hub.requests
    (layer,) = (tmp_path / "hf_home").rglob("llm_layers/*/tiny.gguf/layers.1.safetensors")
    assert load_file(layer)["model.layers.1.mlp.up_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("gated", [True, False])
def test_hub_token(hub, gated, llm_folder, tmp_path):
    llm, folder = llm_folder("llama")
    name = f"someone/secret-{gated}"
    hub.add(name, folder, token="hf_right", gated=gated)
    block = LLMBlockConfig(llm_name_or_path=name, layer_index=1, save_weights=False)
    config = vit_config(llm_block=block)
    with pytest.raises(OSError, match=name):
        ViTWithLLMBlockForImageClassification(config)
    plain = ViTWithLLMBlockForImageClassification(vit_config())
    plain.save_pretrained(tmp_path / "vit")
    for token in (None, "hf_wrong"):
        with pytest.raises(OSError, match=name):
            ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path / "vit", llm_block=block, token=token)
    cache = tmp_path / "own_cache"
    model = ViTWithLLMBlockForImageClassification.from_pretrained(
        tmp_path / "vit", llm_block=block, token="hf_right", cache_dir=cache
    )
    assert_holds_layer(model.llm_block, llm)
    assert any(cache.rglob("llm_layers/*/*.safetensors")), "cache_dir is for the LLM too"
    model.save_pretrained(tmp_path / "light")
    with pytest.raises(OSError, match=name):
        ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path / "light", cache_dir=tmp_path / "empty")
    again = ViTWithLLMBlockForImageClassification.from_pretrained(
        tmp_path / "light", token="hf_right", cache_dir=tmp_path / "empty"
    )
    assert_holds_layer(again.llm_block, llm)
    # nothing secret is written
    assert all("hf_right" not in p.read_text() for p in (tmp_path / "light").glob("*.json"))


@pytest.mark.parametrize("save_weights", [True, False])
def test_model_on_the_hub(save_weights, hub, llm_folder, tmp_path):
    """A self-contained model never asks for the LLM's repository; a light one reads the commit it was trained with."""
    llm, folder = llm_folder("llama")
    name = f"someone/llm-of-a-model-{save_weights}"
    commit = hub.add(name, folder)
    block = LLMBlockConfig(llm_name_or_path=name, layer_index=1, save_weights=save_weights)
    model = ViTWithLLMBlockForImageClassification(vit_config(llm_block=block))
    assert model.config.llm_block.llm_revision == commit
    model.save_pretrained(tmp_path / "model")
    hub.add(f"someone/model-{save_weights}", tmp_path / "model")
    hub.add(name, write_llm(tiny_llm(tiny_config("llama"), seed=7), tmp_path / "next"))
    hub.clear()
    again = AutoModelForImageClassification.from_pretrained(
        f"someone/model-{save_weights}", cache_dir=tmp_path / "empty"
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert_holds_layer(again.llm_block, llm)
    asked = {r.path for r in hub.requests if name in r.path}
    if save_weights:
        assert not asked
    else:
        assert set(hub.downloaded(name)) == {"model.safetensors"} and not any("/main/" in path for path in asked)


def test_hub_repository_that_is_not_there(hub):
    with pytest.raises(OSError, match="someone/nothing"):
        read_block("someone/nothing")


def test_offline_with_and_without_cache(hub_server, large_llama, tmp_path):
    llm, _, sharded = large_llama
    hub_server.add("someone/offline", sharded)
    with hub_server.active(tmp_path):
        read_block("someone/offline")
    hub_server.clear()
    with hub_server.active(tmp_path, offline=True):
        assert_holds_layer(read_block("someone/offline"), llm)
        # another layer is in shards that were never downloaded
        with pytest.raises(OSError, match="someone/offline"):
            read_block("someone/offline", layer_index=3)
        with pytest.raises(OSError, match="someone/other"):
            read_block("someone/other")
    assert not hub_server.requests
