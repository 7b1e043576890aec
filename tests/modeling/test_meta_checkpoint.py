# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""LLaMA in Meta's format, in one file or several, gives the same layer as transformers' checkpoint."""

import json

import pytest
import torch
from llm_files import permute_rows, write_llm
from tiny_llms import tiny_config, tiny_llm
from transformers import LlamaConfig

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.commands.layer import describe_llm, extract_layers
from hf_frozen_llm.modeling.meta_checkpoint import META_LAYER, read_meta_config


SIZES = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
# Those of the models that Meta has published.
PARAMS = {
    "7B": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
    "2-70B": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "3.2-1B": {
        "dim": 2048,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.5,
        "n_heads": 32,
        "n_kv_heads": 8,
        "n_layers": 16,
        "norm_eps": 1e-05,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    },
}


@pytest.fixture(scope="module")
def llm():
    return tiny_llm(tiny_config("llama", **SIZES))


def write_meta(llm, folder, num_files=1):
    """Shard like Meta's training code: rows of q, k, v, gate and up, columns of the others, copies of norms."""
    folder.mkdir()
    params = {"dim": 32, "multiple_of": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "vocab_size": 64}
    (folder / "params.json").write_text(json.dumps({**params, "norm_eps": llm.config.rms_norm_eps}))
    names = {theirs: ours for ours, theirs in META_LAYER.items()}
    parts = [{"rope.freqs": torch.ones(4)} for _ in range(num_files)]
    for name, tensor in llm.model.state_dict().items():
        _, _, path = name.partition("layers.")
        index, _, module = path.removesuffix(".weight").partition(".")
        key = f"layers.{index}.{names[module]}.weight" if module in names else name
        if ".q_proj" in name or ".k_proj" in name:
            tensor = permute_rows(tensor, 4 if ".q_proj" in name else 2)
        is_split = tensor.ndim == 2
        columns = any(part in name for part in ("o_proj", "down_proj", "embed"))
        chunks = tensor.chunk(num_files, dim=1 if columns else 0) if is_split else [tensor] * num_files
        for part, chunk in zip(parts, chunks):
            part[key] = chunk.clone()
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    return folder


def build(folder, **fields):
    return LLMBlock(LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, "hidden_size": 24, **fields}))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("num_files", [1, 2])
def test_same_layer_as_transformers_has(num_files, rotary, llm, tmp_path):
    block = build(write_meta(llm, tmp_path / "meta", num_files), rotary=rotary, final_norm="pretrained")
    expected = build(write_llm(llm, tmp_path / "llm"), rotary=rotary, final_norm="pretrained")
    assert block.config.fingerprint == expected.config.fingerprint
    expected.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 24)
    torch.testing.assert_close(block(x), expected(x))


def test_files_of_transformers_beside_are_read(llm, tmp_path):
    folder = write_meta(llm, tmp_path / "both")
    other = tiny_llm(tiny_config("llama", **SIZES), seed=1)
    write_llm(other, folder)
    assert torch.equal(build(folder).llm_layers[0].mlp.up_proj.weight, other.model.layers[1].mlp.up_proj.weight)


def test_layer_command(llm, tmp_path):
    folder = write_meta(llm, tmp_path / "meta", 2)
    facts = describe_llm(str(folder), 1)
    parameters = sum(p.numel() for p in llm.model.layers[1].parameters())
    assert facts["layer 1"] == f"{parameters:,} parameters in {4 * parameters:,} bytes"
    extract_layers(str(folder), [1], tmp_path / "layer")
    assert build(tmp_path / "layer").config.fingerprint == build(folder).config.fingerprint


@pytest.mark.parametrize(("name", "intermediate_size"), [("7B", 11008), ("2-70B", 28672), ("3.2-1B", 8192)])
def test_published_params(name, intermediate_size, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS[name]))
    config = read_meta_config(str(tmp_path))
    assert isinstance(config, LlamaConfig) and config.intermediate_size == intermediate_size
    assert config.head_dim == PARAMS[name]["dim"] // PARAMS[name]["n_heads"]
    assert config.vocab_size == (32000 if "3" not in name else 128256)
    assert config.rope_parameters["rope_type"] == ("llama3" if name == "3.2-1B" else "default")


def test_broken_folders(llm, tmp_path):
    folder = write_meta(llm, tmp_path / "meta", 2)
    params = (folder / "params.json").read_text()
    (folder / "params.json").write_text('{"dim": 32}')
    with pytest.raises(ValueError, match=r"params\.json is not the params\.json of a LLaMA \(KeyError\('n_heads'\)\)"):
        build(folder)
    for fields in ({"n_heads": 0}, {"n_heads": 5}, {"n_heads": -4}, {"hidden_dim": None, "multiple_of": 0}):
        (folder / "params.json").write_text(json.dumps({**json.loads(params), **fields}))
        with pytest.raises(ValueError, match=r"params\.json is not the params\.json of a LLaMA"):
            build(folder)
    (folder / "params.json").write_text(params)
    content = (folder / "consolidated.01.pth").read_bytes()
    (folder / "consolidated.01.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth cannot be read as a plain dictionary of tensors"):
        build(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(ValueError, match=r"has the shape .* in the checkpoint and"):
        build(folder)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.01.pth")
    with pytest.raises(ValueError, match=r"has consolidated\.01\.pth: files are missing between them"):
        build(folder)
