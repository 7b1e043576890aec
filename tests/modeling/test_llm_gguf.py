# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading one layer out of a GGUF file; and GGUF files that are bad."""

import struct
import time

import pytest
import torch
from llm_block_checks import WIDTH, assert_holds_layer, read_block
from llm_files import GGUF_NAMES, write_gguf, write_llm
from tiny_llms import tiny_config, tiny_llm

from hf_frozen_llm.modeling.gguf_file import GGUF_ARCHITECTURES
from hf_frozen_llm.modeling.llm_checkpoint import LLMCheckpoint


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("rotary", [False, True])
def test_gguf(quantization, rotary, tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama", intermediate_size=64))
    folder = write_llm(llm, tmp_path / "llm")
    path = write_gguf(llm, tmp_path / "llm.gguf", quantization)
    block = read_block(path, rotary=rotary, final_norm="pretrained")
    expected = read_block(folder, rotary=rotary, final_norm="pretrained")
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
    block = read_block(path, rotary=True, final_norm="pretrained")
    assert block.config.llm_config.model_type == family
    folder = write_llm(llm, tmp_path / "llm")
    expected = read_block(folder, rotary=True, final_norm="pretrained")
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
    block = read_block(write_gguf(llm, tmp_path / "llm.gguf", layers=[1]), layer_index=1)
    assert block.config.llm_config.query_pre_attn_scalar == 32 // 4


def test_every_listed_gguf_architecture_can_be_read():
    """All are tested, and none is promised that transformers cannot read the config of."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    tested = {"llama", *(GGUF_NAMES.get(family, family) for family in GGUF_FAMILIES)}
    assert set(GGUF_ARCHITECTURES) == tested
    of_transformers = {name.replace("_moe", "moe") for name in GGUF_SUPPORTED_ARCHITECTURES}
    assert set(GGUF_ARCHITECTURES) <= of_transformers


def test_only_the_layers_bytes_of_a_gguf_are_read(tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6))
    path = write_gguf(llm, tmp_path / "llm.gguf", "F16")
    block = read_block(path, layer_index=3)
    layer_bytes = 2 * sum(p.numel() for p in block.llm_layers.parameters())
    # a GGUF header has no length: it is read in pieces of a megabyte at most
    assert block.bytes_read <= 1.05 * layer_bytes + 2**20 < path.stat().st_size / 3


def test_gguf_without_the_other_layers(tmp_path):
    pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    path = write_gguf(llm, tmp_path / "llm.gguf", layers=[1])
    assert_holds_layer(read_block(path, layer_index=1), llm)
    with pytest.raises(ValueError, match=r"layers\.2"):
        read_block(path, layer_index=2)


@pytest.mark.parametrize("cut", [0, 3, 20, 200, 1000, 0.5, -1])
def test_truncated_gguf(cut, tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tiny_llm(tiny_config("llama")), tmp_path / "llm.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    for index in (0, 1, 2):
        with pytest.raises(ValueError, match=r"llm\.gguf"):
            read_block(path, layer_index=index, final_norm="pretrained")


@pytest.mark.parametrize(
    "content", [b"GGUF" + b"\xff" * 200, b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\0" * 100, b"noise" * 100]
)
def test_corrupt_gguf(content, tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "llm.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"llm\.gguf"):
        read_block(path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("llama.block_count", 10**6, "block_count is 1000000, which must be between 1 and 1000"),
        ("llama.block_count", 0, "block_count is 0"),
        ("general.alignment", 0, "general.alignment is 0"),
        ("llama.attention.head_count", 0, "."),
        ("llama.attention.head_count_kv", 0, "."),
        ("llama.attention.head_count", 3, "."),
    ],
)
def test_gguf_metadata_that_cannot_be(key, value, match, tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tiny_llm(tiny_config("llama")), tmp_path / "llm.gguf", more_keys={"add_custom_alignment": 32})
    stored = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 4)
    data = bytearray(path.read_bytes())
    position = data.index(stored) + len(stored)
    data[position : position + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=match):
        read_block(path)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 10**9),  # a string of a gigabyte
        struct.pack("<Q4sII", 4, b"keyy", 9, 9),  # an array of arrays
        struct.pack("<Q4sIIQ", 4, b"keyy", 9, 0, 10**9),
    ],
)
def test_gguf_header_of_a_gigabyte(header, tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "llm.gguf"
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + header)
        file.truncate(2 * 10**9)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"llm\.gguf is corrupt"):
        read_block(path)
    assert time.monotonic() - begin < 1


def test_gguf_of_an_unsupported_architecture(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "llm.gguf"), "mamba")
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="mamba"):
        read_block(tmp_path / "llm.gguf")
