# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading one layer from an LLM's checkpoint, in any location and format; and bad checkpoints."""

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from paths import REPO, shared_dir
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_llms import (
    GGUF_NAMES,
    decoder_stack,
    final_norm,
    nbytes,
    tiny_config,
    tiny_llm,
    write_gguf,
    write_llm,
    write_tensors,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForImageTextToText

from hf_frozen_llm import (
    LLMBlock,
    LLMBlockConfig,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
)
from hf_frozen_llm.modeling.checkpoint_files import GGUF_ARCHITECTURES
from hf_frozen_llm.modeling.llm_checkpoint import LLMCheckpoint


WIDTH = 16


def build(folder, **fields):
    return LLMBlock(
        LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, "hidden_size": WIDTH, **fields})
    )


def assert_holds_layer(block, llm, index=1, position=0, dtype=None):
    expected = decoder_stack(llm)[0][index].state_dict()
    actual = block.llm_layers[position].state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(dtype or actual[name].dtype)), name


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A LLaMA whose layer is much larger than its files' headers, in float16: (LLM, folder, folder of shards)."""
    llm = tiny_llm(
        tiny_config("llama", hidden_size=128, intermediate_size=384, num_hidden_layers=4), dtype=torch.float16
    )
    single = write_llm(llm, tmp_path_factory.mktemp("single"))
    sharded = write_llm(llm, tmp_path_factory.mktemp("sharded"), "sharded", shard_size=300_000)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    return llm, single, sharded


# Sources


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "bin_sharded"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma3_text"])
def test_folder(family, layout, llm_folder):
    llm, folder = llm_folder(family, layout)
    block = build(folder, layer_index=[0, 2], final_norm="pretrained")
    assert_holds_layer(block, llm, index=0, position=0)
    assert_holds_layer(block, llm, index=2, position=1)
    for name, tensor in final_norm(llm).state_dict().items():
        assert torch.equal(block.final_norm.state_dict()[name], tensor)
    assert block.bytes_read > 0


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_only_the_layers_bytes_are_read(layout, large):
    llm, single, sharded = large
    folder = single if layout == "single" else sharded
    layer_bytes = nbytes(decoder_stack(llm)[0][1].state_dict())
    build(folder)  # imports and caches
    before = bytes_read_by_this_process()
    block = build(folder)
    from_the_system = bytes_read_by_this_process() - before
    assert_holds_layer(block, llm)
    assert layer_bytes < block.bytes_read <= 1.05 * layer_bytes
    # config.json and the index are read beside the weights; the count must not hide more
    assert from_the_system < block.bytes_read + 100_000


def bytes_read_by_this_process():
    with open("/proc/self/io") as f:
        return int(dict(line.split(": ") for line in f)["rchar"])


def test_only_needed_shards_are_opened(large, tmp_path):
    llm, _, sharded = large
    folder = shutil.copytree(sharded, tmp_path / "llm")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {f for k, f in weight_map.items() if k.startswith("model.layers.1.")}
    for file in set(weight_map.values()) - needed:
        os.remove(folder / file)
    assert_holds_layer(build(folder), llm)


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("rotary", [False, True])
def test_gguf(quantization, rotary, tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama", intermediate_size=64))
    folder = write_llm(llm, tmp_path / "llm")
    path = write_gguf(llm, tmp_path / "llm.gguf", quantization)
    block = build(path, rotary=rotary, final_norm="pretrained")
    expected = build(folder, rotary=rotary, final_norm="pretrained")
    assert block.config.llm_config.model_type == "llama"
    tolerance = {"F32": 0.0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3}[quantization]
    state = expected.state_dict()
    for name, tensor in block.state_dict().items():
        if "projection" not in name:
            scale = state[name].abs().max()
            assert (tensor - state[name]).abs().max() <= tolerance * scale, name
    expected.load_state_dict({**state, **{k: v for k, v in block.state_dict().items() if "projection" in k}})
    x = torch.randn(2, 6, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(
            block(x), expected(x), rtol=0, atol=(10 * tolerance + 1e-6) * expected(x).abs().max()
        )


# sizes that transformers assumes where it does not read them from the file
GGUF_FAMILIES = {
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention"] * 3},
    "phi3": {"vocab_size": 32064},
    "stablelm": {},
    "starcoder2": {},
    "nemotron": {},
}


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_gguf_of_other_families(family, tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config(family, **GGUF_FAMILIES[family]))
    path = write_gguf(llm, tmp_path / "llm.gguf")
    block = build(path, rotary=True, final_norm="pretrained")
    assert block.config.llm_config.model_type == family
    folder = write_llm(llm, tmp_path / "llm")
    expected = build(folder, rotary=True, final_norm="pretrained")
    # Adding one to a norm and taking it away again rounds.
    tolerance = 3e-7 if "gemma" in family or family == "nemotron" else 0
    for name, tensor in expected.state_dict().items():
        if "projection" not in name:
            torch.testing.assert_close(block.state_dict()[name], tensor, rtol=0, atol=tolerance)
    expected.load_state_dict({k: v for k, v in block.state_dict().items() if "projection" in k}, strict=False)
    x = torch.randn(2, 6, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected(x), rtol=1e-4, atol=1e-5)
    with LLMCheckpoint(str(path)) as checkpoint:
        names = [f"model.layers.1.{name}" for name in block.llm_layers[0].state_dict()]
        sizes = [checkpoint.size_of(name) for name in names]
    assert sum(size for size, _ in sizes) == sum(4 * p.numel() for p in block.llm_layers.parameters())
    assert {kind for _, kind in sizes} == {"F32"}


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_gguf_of_gemma_27b(family, layers, tmp_path):
    """Its attention is scaled by the width of the model, which no field of the file says."""
    pytest.importorskip("gguf")
    fields = {"num_hidden_layers": layers, "layer_types": ["sliding_attention"] * layers}
    llm = tiny_llm(tiny_config(family, query_pre_attn_scalar=8, **fields))
    block = build(write_gguf(llm, tmp_path / "llm.gguf", layers=[1]), layer_index=1)
    assert block.config.llm_config.query_pre_attn_scalar == 32 // 4


def test_every_listed_gguf_architecture_can_be_read():
    """Every listed architecture is tested, and transformers can read its config."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    tested = {"llama", *(GGUF_NAMES.get(family, family) for family in GGUF_FAMILIES)}
    assert set(GGUF_ARCHITECTURES) == tested
    of_transformers = {name.replace("_moe", "moe") for name in GGUF_SUPPORTED_ARCHITECTURES}
    assert set(GGUF_ARCHITECTURES) <= of_transformers


def test_only_the_layers_bytes_of_a_gguf_are_read(tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6))
    path = write_gguf(llm, tmp_path / "llm.gguf", "F16")
    block = build(path, layer_index=3)
    layer_bytes = 2 * sum(p.numel() for p in block.llm_layers.parameters())
    # a GGUF header has no length: it is read in pieces of a megabyte at most
    assert block.bytes_read <= 1.05 * layer_bytes + 2**20 < path.stat().st_size / 3


def test_gguf_without_the_other_layers(tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    path = write_gguf(llm, tmp_path / "llm.gguf", layers=[1])
    assert_holds_layer(build(path, layer_index=1), llm)
    with pytest.raises(ValueError, match=r"layers\.2"):
        build(path, layer_index=2)


def test_mixture_of_experts_is_fused(llm_folder):
    for family in ("mixtral", "qwen3_moe", "phimoe", "deepseek_v3", "gpt_oss"):
        for layout in ("single", "sharded"):
            llm, folder = llm_folder(family, layout)
            block = build(folder)
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
    """Checkpoints of the bare model (published GPT-2, OPT and BLOOM), and of a model that contains the LLM."""
    llm, _ = llm_folder(family)
    tensors = {
        new_prefix + k.removeprefix(old_prefix): v for k, v in llm.state_dict().items() if k.startswith(old_prefix)
    }
    folder = write_tensors(llm.config, tensors, tmp_path)
    assert_holds_layer(build(folder, final_norm="pretrained"), llm)


def test_leftover_buffers_are_ignored(llm_folder, tmp_path):
    llm, _ = llm_folder("llama")
    tensors = dict(llm.state_dict())
    for i in range(3):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    block = build(write_tensors(llm.config, tensors, tmp_path / "llama"))
    assert_holds_layer(block, llm)
    llm, _ = llm_folder("gpt2")
    tensors = {k.removeprefix("transformer."): v for k, v in llm.state_dict().items() if k != "lm_head.weight"}
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert_holds_layer(build(write_tensors(llm.config, tensors, tmp_path / "gpt2")), llm)


def test_language_model_beside_a_vision_tower(tmp_path):
    """The vision tower has as many layers as the language model, under paths with the same end."""
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
    block = build(tmp_path)
    expected = model.model.language_model.layers[1].state_dict()
    assert block.llm_layers[0].state_dict().keys() == expected.keys()
    for name, tensor in block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert block(torch.randn(1, 3, WIDTH)).shape == (1, 3, WIDTH)


def test_real_layers_of_smollm2():
    folder = shared_dir() / "models" / "SmolLM2-135M-Instruct-layers"
    stored = load_file(folder / "model.safetensors")
    for index in (14, 29, -1):
        block = build(folder, layer_index=index, final_norm="pretrained")
        for name, tensor in block.llm_layers[0].state_dict().items():
            assert torch.equal(tensor, stored[f"model.layers.{index % 30}.{name}"].float())
        assert torch.equal(block.final_norm.weight, stored["model.norm.weight"].float())
        assert len(block.config.fingerprint) == 64
        layer = nbytes({k: v for k, v in stored.items() if f"layers.{index % 30}." in k or k == "model.norm.weight"})
        assert block.bytes_read <= 1.05 * layer
    out = block(torch.randn(2, 5, WIDTH))
    assert torch.isfinite(out).all() and out.std() > 0
    with pytest.raises(ValueError, match=r"layers\.3\b"):
        build(folder, layer_index=3)


def test_nothing_is_read_on_the_meta_device(llm_folder):
    _, folder = llm_folder("llama")
    with torch.device("meta"):
        block = build(folder)
    assert all(p.is_meta for p in block.parameters())
    assert block.bytes_read == 0
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        assert build(folder).bytes_read == 0


# Fingerprint


def test_fingerprint(llm_folder, tmp_path):
    llm, folder = llm_folder("llama")
    fingerprint = build(folder).config.fingerprint
    assert len(fingerprint) == 64 and int(fingerprint, 16)
    for layout in ("sharded", "bin", "bin_sharded"):
        assert build(llm_folder("llama", layout)[1]).config.fingerprint == fingerprint
    bare = {k.removeprefix("model."): v for k, v in llm.state_dict().items()}
    assert build(write_tensors(llm.config, bare, tmp_path / "bare")).config.fingerprint == fingerprint
    # as stored, before any cast
    assert build(folder, layer_dtype="bfloat16").config.fingerprint == fingerprint
    others = [
        build(folder, layer_index=0),
        build(folder, layer_index=[1, 2]),
        build(folder, layer_index=[2, 1]),
        build(folder, final_norm="pretrained"),
    ]
    changed = {k: v.clone() for k, v in llm.state_dict().items()}
    changed["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1
    others.append(build(write_tensors(llm.config, changed, tmp_path / "changed")))
    half = {k: v.half() for k, v in llm.state_dict().items()}
    others.append(build(write_tensors(llm.config, half, tmp_path / "half")))
    found = [block.config.fingerprint for block in others]
    assert len({fingerprint, *found}) == 1 + len(found)
    # independent of the block's use of the layer
    assert build(folder, residual="outer", attention="causal", rotary=True).config.fingerprint == fingerprint
    assert build(folder, layer_index=-2).config.fingerprint == fingerprint


def test_fingerprint_is_verified(llm_folder):
    _, folder = llm_folder("llama")
    right = build(folder).config.fingerprint
    build(folder, fingerprint=right)
    with pytest.raises(ValueError, match="fingerprint") as error:
        build(folder, fingerprint="0" * 64)
    assert folder in str(error.value)


# The Hub


def test_hub_asks_only_for_needed_shards(hub, large):
    llm, _, sharded = large
    commit = hub.add("someone/llm", sharded)
    block = build("someone/llm")
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == commit
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {f for k, f in weight_map.items() if k.startswith("model.layers.1.")}
    got = hub.downloaded("someone/llm")
    assert {f for f in got if f.endswith(".safetensors")} == needed != set(weight_map.values())
    # cached now: the commit is known, nothing is sent again
    hub.clear()
    again = build("someone/llm", llm_revision=commit)
    assert_holds_layer(again, llm)
    assert hub.downloaded() == []


def test_hub_revision(hub, llm_folder, tmp_path):
    llm, folder = llm_folder("llama")
    old = hub.add("someone/moving", folder)
    other = tiny_llm(tiny_config("llama"), seed=7)
    new = hub.add("someone/moving", write_llm(other, tmp_path / "new"))
    hub.add("someone/moving", folder, revision="v1")
    assert_holds_layer(build("someone/moving"), other)
    block = build("someone/moving", llm_revision=old)
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == old != new
    assert_holds_layer(build("someone/moving", llm_revision="v1"), llm)
    with pytest.raises(OSError, match="nonsense"):
        build("someone/moving", llm_revision="nonsense")


def test_hub_gguf(hub, tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    folder = tmp_path / "repository"
    folder.mkdir()
    write_gguf(llm, folder / "tiny.gguf")
    commit = hub.add("someone/gguf", folder)
    block = build("someone/gguf/tiny.gguf")
    assert_holds_layer(block, llm)
    assert block.config.llm_revision == commit


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
        build("someone/nothing")


def test_offline_with_and_without_cache(hub_server, large, tmp_path):
    llm, _, sharded = large
    hub_server.add("someone/offline", sharded)
    with hub_server.active(tmp_path):
        build("someone/offline")
    hub_server.clear()
    with hub_server.active(tmp_path, offline=True):
        assert_holds_layer(build("someone/offline"), llm)
        # another layer is in shards that were never downloaded
        with pytest.raises(OSError, match="someone/offline"):
            build("someone/offline", layer_index=3)
        with pytest.raises(OSError, match="someone/other"):
            build("someone/other")
    assert not hub_server.requests


def vit_config(**fields):
    return ViTWithLLMBlockConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
        **fields,
    )


# Bad input


@pytest.fixture
def copy_of(llm_folder, tmp_path):
    def make(family="llama", layout="single"):
        llm, folder = llm_folder(family, layout)
        return llm, shutil.copytree(folder, tmp_path / f"{family}_{layout}")

    return make


@pytest.mark.parametrize("index", [3, -4, [0, 3], [1, -4]])
def test_layer_index_out_of_range(index, llm_folder):
    with pytest.raises(ValueError, match=r"layer_index.*(3|-4).*out of range.*3 layers"):
        build(llm_folder("llama")[1], layer_index=index)


def test_same_layer_twice(llm_folder):
    with pytest.raises(ValueError, match="layer_index"):
        build(llm_folder("llama")[1], layer_index=[2, -1])


def test_folder_without_config(copy_of):
    _, folder = copy_of()
    os.remove(folder / "config.json")
    with pytest.raises(OSError, match=r"config\.json") as error:
        build(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_config_that_says_nothing(content, copy_of):
    _, folder = copy_of()
    (folder / "config.json").write_text(content)
    with pytest.raises((ValueError, OSError)) as error:
        build(folder)
    assert str(folder) in str(error.value) or "model type `no-such-model`" in str(error.value)


def test_no_such_place(tmp_path):
    for name in (tmp_path / "nothing", "./no/such/folder", "/no/such/folder"):
        with pytest.raises((OSError, ValueError), match=str(name).replace(".", r"\.")):
            build(name)
    with pytest.raises(OSError, match=r"nothing\.gguf"):
        build(tmp_path / "nothing.gguf")


def test_no_llm_named():
    with pytest.raises(ValueError, match="llm_name_or_path"):
        LLMBlock(LLMBlockConfig(hidden_size=WIDTH))
    with pytest.raises(ValueError, match="llm_name_or_path"):
        LLMBlock(LLMBlockConfig(llm_config=tiny_config("llama"), hidden_size=WIDTH))


def test_width_missing(llm_folder):
    with pytest.raises(ValueError, match="hidden_size"):
        LLMBlock(LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1]))


def test_folder_without_weights(copy_of):
    _, folder = copy_of()
    os.remove(folder / "model.safetensors")
    with pytest.raises(OSError, match="weights") as error:
        build(folder)
    assert str(folder) in str(error.value)


def test_tensor_missing(copy_of):
    llm, folder = copy_of()
    tensors = dict(llm.state_dict())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_tensors(llm.config, tensors, folder)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight") as error:
        build(folder)
    assert str(folder) in str(error.value)
    build(folder, layer_index=0)
    kept = {k: v for k, v in llm.state_dict().items() if ".layers.1." not in k}
    write_tensors(llm.config, kept, folder)
    with pytest.raises(ValueError, match=r"layers\.1"):
        build(folder)
    without_norm = {k: v for k, v in llm.state_dict().items() if k != "model.norm.weight"}
    write_tensors(llm.config, without_norm, folder)
    build(folder)
    with pytest.raises(ValueError, match="norm"):
        build(folder, final_norm="pretrained")


def test_expert_missing(copy_of):
    _, folder = copy_of("mixtral")
    tensors = load_file(folder / "model.safetensors")
    gone = next(k for k in tensors if "layers.1." in k and "experts.2." in k)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        build(folder)
    assert str(folder) in str(error.value) and "expert" in str(error.value)


@pytest.mark.parametrize("layout", ["single", "bin"])
@pytest.mark.parametrize("change", ["wider", "transposed", "flat"])
def test_wrong_shape(change, layout, copy_of):
    llm, folder = copy_of(layout=layout)
    tensors = {k: v.clone() for k, v in llm.state_dict().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    old = tensors[name]
    tensors[name] = {"wider": torch.ones(64, 32), "transposed": old.T.contiguous(), "flat": old.reshape(-1)}[change]
    if layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight.*shape") as error:
        build(folder)
    assert str(folder) in str(error.value) and "48, 32" in str(error.value)


def test_config_of_another_size(copy_of):
    _, folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="shape"):
        build(folder)


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path, header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "few bytes": lambda p: p.write_bytes(b"\x10\x00\x00"),
    "cut in the header": lambda p: p.write_bytes(p.read_bytes()[:100]),
    "cut in the data": lambda p: p.write_bytes(p.read_bytes()[: 8 + 4000]),
    "cut in the last tensor": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "huge header": lambda p: p.write_bytes(struct.pack("<Q", 1 << 60) + p.read_bytes()[8:]),
    "header is noise": lambda p: write_safetensors(p, b"\xff" * 64, b"\0" * 64),
    "header is a list": lambda p: write_safetensors(p, [1, 2], b""),
    "zeros": lambda p: p.write_bytes(b"\0" * 5000),
    "an HTML page": lambda p: p.write_bytes(b"<!doctype html><html>not logged in</html>" * 100),
    "a Git LFS pointer": lambda p: p.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_safetensors(damage, copy_of):
    _, folder = copy_of()
    path = folder / "model.safetensors"
    DAMAGE[damage](path)
    # whatever part of the file the layer is in
    for index in (0, 1, 2):
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            build(folder, layer_index=index)


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [10**12, 10**12 + 6144]},
        {"data_offsets": [-8, 6136]},
        {"data_offsets": [6144, 0]},
        {"data_offsets": [0]},
        {"data_offsets": "0"},
        {"dtype": "F7"},
        {"shape": [48, -32]},
        {"shape": None},
        {"shape": [48, 33]},
    ],
)
def test_corrupt_safetensors_entry(entry, copy_of):
    _, folder = copy_of()
    path = folder / "model.safetensors"
    header, data = header_of(path)
    name = "model.layers.1.mlp.up_proj.weight"
    header[name] = {**header[name], **entry}
    write_safetensors(path, header, data)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        build(folder)


def test_shard_missing_or_not_what_the_index_says(copy_of):
    _, folder = copy_of(layout="sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    file = index["weight_map"][name]
    (folder / file).rename(folder / "away")
    with pytest.raises(OSError, match=file):
        build(folder)
    (folder / "away").rename(folder / file)
    other = next(f for f in index["weight_map"].values() if f != file)
    index["weight_map"][name] = other
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight") as error:
        build(folder)
    assert other in str(error.value)
    for text in ("{", "{}", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            build(folder)


def test_shard_outside_the_folder_is_not_read(copy_of, tmp_path):
    _, folder = copy_of(layout="sharded")
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../outside.safetensors")
    index_file.write_text(json.dumps(index))
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "outside.safetensors")
    with pytest.raises((ValueError, OSError), match=r"outside\.safetensors"):
        build(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, copy_of):
    llm, folder = copy_of()
    tensors = {k: v.clone() for k, v in llm.state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    write_tensors(llm.config, tensors, folder)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight.*(NaN|infinite)") as error:
        build(folder)
    assert str(folder) in str(error.value)


def test_values_too_large_for_the_layers_dtype(copy_of):
    llm, folder = copy_of()
    tensors = {k: v.clone() for k, v in llm.state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    write_tensors(llm.config, tensors, folder)
    build(folder)
    with pytest.raises(ValueError, match="layer_dtype"):
        build(folder, layer_dtype="float16")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("container", ["torch", "bare"])
def test_pickle_with_code_is_never_executed(container, copy_of, tmp_path):
    llm, folder = copy_of(layout="bin")
    mark = tmp_path / "executed"
    state = {**llm.state_dict(), "extra": Payload(str(mark))}
    path = folder / "pytorch_model.bin"
    if container == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(str(mark))}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        build(folder)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<html></html>"])
def test_damaged_bin(content, copy_of):
    _, folder = copy_of(layout="bin")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        build(folder)


def test_truncated_bin(copy_of):
    _, folder = copy_of(layout="bin")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        build(folder)


def test_bin_that_is_no_dictionary(copy_of):
    _, folder = copy_of(layout="bin")
    torch.save([torch.ones(3)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        build(folder)


def test_safetensors_are_preferred_to_pickles(copy_of):
    llm, folder = copy_of()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert_holds_layer(build(folder), llm)


@pytest.mark.parametrize("cut", [0, 3, 20, 200, 1000, 0.5, -1])
def test_truncated_gguf(cut, tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tiny_llm(tiny_config("llama")), tmp_path / "llm.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    for index in (0, 1, 2):
        with pytest.raises(ValueError, match=r"llm\.gguf"):
            build(path, layer_index=index, final_norm="pretrained")


@pytest.mark.parametrize(
    "content", [b"GGUF" + b"\xff" * 200, b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\0" * 100, b"noise" * 100]
)
def test_corrupt_gguf(content, tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "llm.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"llm\.gguf"):
        build(path)


def test_gguf_of_an_unsupported_architecture(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "llm.gguf"), "mamba")
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="mamba"):
        build(tmp_path / "llm.gguf")


def test_llm_that_needs_remote_code(copy_of, tmp_path):
    _, folder = copy_of()
    mark = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "somebodys_llm"
    config["auto_map"] = {"AutoConfig": "code.SomeConfig", "AutoModel": "code.SomeModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(ValueError, match="code") as error:
        build(folder)
    assert str(folder) in str(error.value)
    assert not mark.exists()


def test_quantised_llm(copy_of):
    _, folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quanti"):
        build(folder)


def test_a_failed_build_leaves_no_random_layer(copy_of):
    """The same bad checkpoint through every entry point: always an error, never a model."""
    llm, folder = copy_of()
    tensors = {k: v for k, v in llm.state_dict().items() if k != "model.layers.1.mlp.up_proj.weight"}
    write_tensors(llm.config, tensors, folder)
    fields = {"llm_name_or_path": str(folder), "layer_index": 1}
    for make in (
        lambda: LLMBlock(LLMBlockConfig(hidden_size=WIDTH, **fields)),
        lambda: AutoModel.from_config(LLMBlockConfig(hidden_size=WIDTH, **fields)),
        lambda: ViTWithLLMBlockForImageClassification(vit_config(llm_block=LLMBlockConfig(**fields))),
    ):
        with pytest.raises(ValueError, match="up_proj"):
            make()


def test_stored_names_of_a_sharded_checkpoint_match(large):
    # guards the fixture: a sharded and a single file hold the same tensors
    _, single, sharded = large
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
