# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading one layer out of an LLM's checkpoint folder, however it is stored."""

import json
import os
import shutil

import pytest
import torch
from llm_block_checks import WIDTH, assert_holds_layer, read_block
from llm_files import nbytes, write_llm, write_tensors
from paths import REPO, shared_dir
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_llms import decoder_stack, final_norm, tiny_config, tiny_llm
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_frozen_llm import LLMBlock, LLMBlockConfig


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "bin_sharded"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma3_text"])
def test_folder(family, layout, llm_folder):
    llm, folder = llm_folder(family, layout)
    block = read_block(folder, layer_index=[0, 2], final_norm="pretrained")
    assert_holds_layer(block, llm, index=0, position=0)
    assert_holds_layer(block, llm, index=2, position=1)
    for name, tensor in final_norm(llm).state_dict().items():
        assert torch.equal(block.final_norm.state_dict()[name], tensor)
    assert block.bytes_read > 0


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_only_the_layers_bytes_are_read(layout, large_llama):
    llm, single, sharded = large_llama
    folder = single if layout == "single" else sharded
    layer_bytes = nbytes(decoder_stack(llm)[0][1].state_dict())
    read_block(folder)  # imports and caches
    before = bytes_read_by_this_process()
    block = read_block(folder)
    from_the_system = bytes_read_by_this_process() - before
    assert_holds_layer(block, llm)
    assert layer_bytes < block.bytes_read <= 1.05 * layer_bytes
    # config.json and the index are read beside the weights; the count must not hide more
    assert from_the_system < block.bytes_read + 100_000


def bytes_read_by_this_process():
    with open("/proc/self/io") as f:
        return int(dict(line.split(": ") for line in f)["rchar"])


def test_only_needed_shards_are_opened(large_llama, tmp_path):
    llm, _, sharded = large_llama
    folder = shutil.copytree(sharded, tmp_path / "llm")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {f for k, f in weight_map.items() if k.startswith("model.layers.1.")}
    for file in set(weight_map.values()) - needed:
        os.remove(folder / file)
    assert_holds_layer(read_block(folder), llm)


def test_mixture_of_experts_is_fused(llm_folder):
    for family in ("mixtral", "qwen3_moe", "phimoe", "deepseek_v3", "gpt_oss"):
        for layout in ("single", "sharded"):
            llm, folder = llm_folder(family, layout)
            block = read_block(folder)
            assert_holds_layer(block, llm)
            if family != "gpt_oss":
                names = json.loads((REPO / folder / "config.json").read_text())
                assert names["model_type"] == llm.config.model_type
        files = load_file(llm_folder(family)[1] + "/model.safetensors")
        if family in ("mixtral", "qwen3_moe", "phimoe", "deepseek_v3"):
            assert any("experts.0." in name for name in files), "this test wants per-expert names"


@pytest.mark.parametrize(
    ("family", "old_prefix", "new_prefix"),
    [
        ("llama", "model.", ""),
        ("llama", "model.", "language_model.model."),
        ("opt", "model.", ""),
        ("gpt2", "transformer.", ""),
        ("bloom", "transformer.", ""),
        ("gpt_neox", "gpt_neox.", ""),
        ("biogpt", "biogpt.", ""),
    ],
)
def test_other_prefixes(family, old_prefix, new_prefix, llm_folder, tmp_path):
    """Checkpoints of the bare model (published GPT-2, OPT and BLOOM), and of a model that holds the LLM."""
    llm, _ = llm_folder(family)
    tensors = {
        new_prefix + k.removeprefix(old_prefix): v for k, v in llm.state_dict().items() if k.startswith(old_prefix)
    }
    folder = write_tensors(llm.config, tensors, tmp_path)
    assert_holds_layer(read_block(folder, final_norm="pretrained"), llm)


def test_leftover_buffers_are_ignored(llm_folder, tmp_path):
    llm, _ = llm_folder("llama")
    tensors = dict(llm.state_dict())
    for i in range(3):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    block = read_block(write_tensors(llm.config, tensors, tmp_path / "llama"))
    assert_holds_layer(block, llm)
    llm, _ = llm_folder("gpt2")
    tensors = {k.removeprefix("transformer."): v for k, v in llm.state_dict().items() if k != "lm_head.weight"}
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert_holds_layer(read_block(write_tensors(llm.config, tensors, tmp_path / "gpt2")), llm)


def test_language_model_beside_a_vision_tower(tmp_path):
    """The vision tower has as many layers as the language model, under paths that end alike."""
    config = AutoConfig.for_model(
        "llava",
        text_config=tiny_config("llama").to_dict(),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 8,
            "patch_size": 4,
        },
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path)
    block = read_block(tmp_path)
    expected = model.model.language_model.layers[1].state_dict()
    assert block.llm_layers[0].state_dict().keys() == expected.keys()
    for name, tensor in block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert block(torch.randn(1, 3, WIDTH)).shape == (1, 3, WIDTH)


def test_real_layers_of_smollm2():
    folder = shared_dir() / "models" / "SmolLM2-135M-Instruct-layers"
    stored = load_file(folder / "model.safetensors")
    for index in (14, 29, -1):
        block = read_block(folder, layer_index=index, final_norm="pretrained")
        for name, tensor in block.llm_layers[0].state_dict().items():
            assert torch.equal(tensor, stored[f"model.layers.{index % 30}.{name}"].float())
        assert torch.equal(block.final_norm.weight, stored["model.norm.weight"].float())
        assert len(block.config.fingerprint) == 64
        layer = nbytes({k: v for k, v in stored.items() if f"layers.{index % 30}." in k or k == "model.norm.weight"})
        assert block.bytes_read <= 1.05 * layer
    out = block(torch.randn(2, 5, WIDTH))
    assert torch.isfinite(out).all() and out.std() > 0
    with pytest.raises(ValueError, match=r"layers\.3\b"):
        read_block(folder, layer_index=3)


def test_nothing_is_read_on_the_meta_device(llm_folder):
    _, folder = llm_folder("llama")
    with torch.device("meta"):
        block = read_block(folder)
    assert all(p.is_meta for p in block.parameters())
    assert block.bytes_read == 0
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        assert read_block(folder).bytes_read == 0


def test_fingerprint(llm_folder, tmp_path):
    llm, folder = llm_folder("llama")
    fingerprint = read_block(folder).config.fingerprint
    assert len(fingerprint) == 64 and int(fingerprint, 16)
    for layout in ("sharded", "bin", "bin_sharded"):
        assert read_block(llm_folder("llama", layout)[1]).config.fingerprint == fingerprint
    bare = {k.removeprefix("model."): v for k, v in llm.state_dict().items()}
    assert read_block(write_tensors(llm.config, bare, tmp_path / "bare")).config.fingerprint == fingerprint
    # as stored, before any cast
    assert read_block(folder, layer_dtype="bfloat16").config.fingerprint == fingerprint
    others = [
        read_block(folder, layer_index=0),
        read_block(folder, layer_index=[1, 2]),
        read_block(folder, layer_index=[2, 1]),
        read_block(folder, final_norm="pretrained"),
    ]
    changed = {k: v.clone() for k, v in llm.state_dict().items()}
    changed["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1
    others.append(read_block(write_tensors(llm.config, changed, tmp_path / "changed")))
    half = {k: v.half() for k, v in llm.state_dict().items()}
    others.append(read_block(write_tensors(llm.config, half, tmp_path / "half")))
    found = [block.config.fingerprint for block in others]
    assert len({fingerprint, *found}) == 1 + len(found)
    # what the block does with the layer is no part of it
    assert read_block(folder, residual="outer", attention="causal", rotary=True).config.fingerprint == fingerprint
    assert read_block(folder, layer_index=-2).config.fingerprint == fingerprint


def test_fingerprint_is_verified(llm_folder):
    _, folder = llm_folder("llama")
    right = read_block(folder).config.fingerprint
    read_block(folder, fingerprint=right)
    with pytest.raises(ValueError, match="fingerprint") as error:
        read_block(folder, fingerprint="0" * 64)
    assert folder in str(error.value)


def test_stored_names_of_a_sharded_checkpoint_match(large_llama):
    # guards the fixture: a sharded and a single file hold the same tensors
    _, single, sharded = large_llama
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(single / "model.safetensors", "pt") as f:
        assert set(weight_map) == set(f.keys())


def test_pretrained_final_norm_without_weights(tmp_path):
    """OLMo's norm only normalises, so there is nothing to read."""
    folder = write_llm(tiny_llm(tiny_config("olmo")), tmp_path / "llm")
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=str(folder), final_norm="pretrained", hidden_size=16))
    assert not list(block.final_norm.parameters())


def test_other_modules_of_the_same_name_do_not_matter(tmp_path):
    """Checkpoints with multi-token prediction hold `mtp.layers.0` and `mtp.norm` beside the language model's own."""
    model = tiny_llm(tiny_config("llama"))
    folder = write_llm(model, tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        if name.startswith(("model.layers.0.", "model.norm.")):
            tensors[name.replace("model.", "mtp.", 1)] = torch.zeros_like(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    block = LLMBlock(
        LLMBlockConfig(llm_name_or_path=str(folder), layer_index=0, final_norm="pretrained", hidden_size=16)
    )
    assert torch.equal(block.llm_layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(block.final_norm.weight, model.model.norm.weight)


def test_bin_file_from_before_torch_1_6(tmp_path):
    model = tiny_llm(tiny_config("llama"))
    folder = write_llm(model, tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1, hidden_size=16))
    assert torch.equal(block.llm_layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
