# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm layer`: describe a language model, and write some of its layers to a folder."""

import json

import pytest
import torch
from hub_server import HubServer
from llm_files import write_llm
from paths import shared_dir
from safetensors.torch import load_file
from tiny_llms import tiny_config, tiny_llm

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.layer import describe_llm, extract_layers


NAME = "someone/llm"


@pytest.fixture(scope="module")
def llm():
    return tiny_llm(tiny_config("llama", hidden_size=64, intermediate_size=192), dtype=torch.float16)


@pytest.fixture(params=["single", "sharded", "bin"])
def folder(request, llm, tmp_path):
    options = {"shard_size": 100_000} if request.param == "sharded" else {}
    folder = write_llm(llm, tmp_path / "llm", request.param, **options)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def build(name_or_path, **fields):
    return LLMBlock(LLMBlockConfig(**{"llm_name_or_path": str(name_or_path), "hidden_size": 24, **fields}))


def test_what_a_language_model_offers(folder, llm):
    facts = describe_llm(str(folder), 1)
    layer = llm.model.layers[1]
    parameters = sum(p.numel() for p in layer.parameters())
    assert facts["family"] == "llama" and facts["layers"].startswith("3,") and facts["hidden size"] == "64"
    assert facts["layer 1"] == f"{parameters:,} parameters in {2 * parameters:,} bytes"
    assert facts["stored as"].lower() in ("f16", "float16") and facts["licence"] == "mit"


def test_layers_in_a_folder_of_their_own(folder, tmp_path):
    """The folder replaces the language model, with the same fingerprint."""
    output = tmp_path / "layers"
    extract_layers(str(folder), [1, -1], output)
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    modules = ("model.layers.1.", "model.layers.2.", "model.norm.")
    assert all(key.startswith(modules) for key in load_file(output / "model.safetensors"))
    for fields in ({"layer_index": 1}, {"layer_index": -1, "final_norm": "pretrained"}, {"layer_index": [1, 2]}):
        theirs, ours = build(folder, **fields), build(output, **fields)
        assert ours.config.fingerprint == theirs.config.fingerprint
        assert all(torch.equal(t, ours.llm_layers.state_dict()[n]) for n, t in theirs.llm_layers.state_dict().items())
    with pytest.raises(ValueError, match=r"holds no tensors of layers\.0"):
        build(output, layer_index=0)
    facts = describe_llm(str(output))
    assert facts["licence"] == "mit" and facts["layers"] == "3, of which 1, 2 are here" and "layer 2" in facts
    with pytest.raises(ValueError, match=r"no tensors of layers\.0: .* It holds layer_index 1, 2\."):
        describe_llm(str(output), 0)
    extract_layers(str(folder), [0], tmp_path / "first")
    first = describe_llm(str(tmp_path / "first"))
    assert first["layers"] == "3, of which 0 is here" and "layer 0" in first
    with pytest.raises(FileExistsError, match="extract into a new or empty folder"):
        extract_layers(str(folder), [1], output)


def test_on_the_hub_only_the_layer_is_downloaded(llm, tmp_path, capsys):
    folder = write_llm(llm, tmp_path / "llm")
    with HubServer() as hub, hub.active(tmp_path / "hf_home"):
        commit = hub.add(NAME, folder)
        main(["layer", NAME])
        assert f"{NAME} at revision {commit}" in capsys.readouterr().out
        headers = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
        weights = [r for r in hub.requests if r.path.endswith(".safetensors") and r.status == 206]
        assert sum(r.bytes_sent for r in weights) == headers
        main(["layer", NAME, "--layer", "1", "--output", str(tmp_path / "out")])
        weights = [r for r in hub.requests if r.path.endswith(".safetensors") and r.status == 206]
        extracted = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
        assert sum(r.bytes_sent for r in weights) <= 1.02 * extracted + headers
    card = (tmp_path / "out" / "README.md").read_text()
    assert commit in card and f"base_model: {NAME}" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_real_layers():
    facts = describe_llm(str(shared_dir() / "models" / "SmolLM2-135M-Instruct-layers"))
    assert facts["layer 29"] == "3,540,096 parameters in 7,080,192 bytes" and facts["hidden size"] == "576"


def test_bad_requests(folder, tmp_path):
    with pytest.raises(ValueError, match="layer"):
        extract_layers(str(folder), [7], tmp_path / "out")
    with pytest.raises(OSError, match="nowhere"):
        describe_llm("./nowhere")
    assert not (tmp_path / "out").exists()
