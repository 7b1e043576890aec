# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Language models published in fp8 and MXFP4 are dequantised as in transformers; errors name other quantisations."""

import json

import pytest
import torch
from llm_files import write_llm, write_tensors
from safetensors.torch import load_file
from tiny_llms import decoder_stack, tiny_config, tiny_llm
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.commands.layer import describe_llm, extract_layers


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def build(folder, **fields):
    return LLMBlock(LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, "hidden_size": 24, **fields}))


def blocks_of(weight):
    """Copies of the weight's blocks of 128 x 128, the last ones smaller, by row and column of blocks."""
    return [list(rows.split(128, dim=1)) for rows in weight.split(128, dim=0)]


def quantize_fp8(weight, per_tensor=False):
    """Return values and scales in DeepSeek-V3's format."""
    if per_tensor:
        scale = weight.abs().max() / 448
        return (weight / scale).to(torch.float8_e4m3fn), scale
    grid = blocks_of(weight)
    scales = torch.stack([torch.stack([block.abs().max() / 448 for block in row]) for row in grid])
    values = torch.cat(
        [torch.cat([block / s for block, s in zip(row, line)], dim=1) for row, line in zip(grid, scales)]
    )
    return values.to(torch.float8_e4m3fn), scales


def dequantize_fp8(values, scales):
    grid = blocks_of(values.float())
    rows = [torch.cat([block * s for block, s in zip(row, line)], dim=1) for row, line in zip(grid, scales)]
    return torch.cat(rows)


def write_fp8(llm, folder, per_tensor=False):
    """Every matrix of the layers in fp8, in the published names."""
    published = load_file(write_llm(llm, folder) / "model.safetensors")
    tensors = {}
    for name, tensor in published.items():
        if ".layers." in name and tensor.ndim == 2 and "norm" not in name and ".gate.weight" not in name:
            tensors[name], tensors[f"{name}_scale_inv"] = quantize_fp8(tensor, per_tensor)
        else:
            tensors[name] = tensor.bfloat16()
    llm.config.quantization_config = FP8
    return write_tensors(llm.config, tensors, folder), tensors


@pytest.mark.parametrize("width", [128, 160])
def test_fp8(width, tmp_path):
    llm = tiny_llm(tiny_config("llama", hidden_size=width, intermediate_size=256, num_attention_heads=4))
    folder, stored = write_fp8(llm, tmp_path / "llm")
    block = build(folder)
    for name, tensor in block.llm_layers[0].state_dict().items():
        key = f"model.layers.1.{name}"
        scales = stored.get(f"{key}_scale_inv")
        expected = stored[key].float() if scales is None else dequantize_fp8(stored[key], scales)
        assert torch.equal(tensor, expected), name
        if width == 128:
            original = decoder_stack(llm)[0][1].state_dict()[name]
            assert (tensor - original).abs().max() < 0.07 * original.abs().max()
    if width == 128:  # transformers wants blocks of one size
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.float32
        )
        for name, tensor in theirs.model.layers[1].state_dict().items():
            torch.testing.assert_close(block.llm_layers[0].state_dict()[name], tensor)


def test_fp8_with_one_scale_for_a_matrix(tmp_path):
    llm = tiny_llm(tiny_config("mistral"))
    folder, stored = write_fp8(llm, tmp_path / "llm", per_tensor=True)
    key = "model.layers.1.mlp.up_proj.weight"
    expected = stored[key].float() * stored[f"{key}_scale_inv"]
    assert torch.equal(build(folder).llm_layers[0].mlp.up_proj.weight, expected)


def test_fp8_of_experts_stored_one_by_one(tmp_path):
    llm = tiny_llm(tiny_config("qwen3_moe"))
    folder, stored = write_fp8(llm, tmp_path / "llm")
    assert "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv" in stored
    experts = build(folder).llm_layers[0].mlp.experts
    for index in range(4):
        parts = []
        for name in ("gate_proj", "up_proj"):
            key = f"model.layers.1.mlp.experts.{index}.{name}.weight"
            parts.append(dequantize_fp8(stored[key], stored[f"{key}_scale_inv"]))
        assert torch.equal(experts.gate_up_proj[index], torch.cat(parts))


def test_mxfp4(tmp_path):
    """GPT-OSS in its published format: two 4-bit numbers per byte, one scale per 32 numbers."""
    llm = tiny_llm(tiny_config("gpt_oss", intermediate_size=32))
    published = load_file(write_llm(llm, tmp_path / "llm") / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in published.items():
        if name.endswith((".gate_up_proj", ".down_proj")):
            experts, inputs, outputs = tensor.shape
            shape = (experts, outputs, inputs // 32)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(120, 128, shape, generator=generator).to(torch.uint8)
        else:
            tensors[name] = tensor.bfloat16()
    llm.config.quantization_config = {"quant_method": "mxfp4"}
    folder = write_tensors(llm.config, tensors, tmp_path / "llm")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    block = build(folder)
    for name, tensor in theirs.model.layers[1].state_dict().items():
        assert torch.equal(block.llm_layers[0].state_dict()[name], tensor.float()), name
    assert describe_llm(str(folder), 1)["stored as"] == "BF16, MXFP4"


def test_extracted_layers_are_no_longer_quantised(tmp_path):
    llm = tiny_llm(tiny_config("llama", hidden_size=128, intermediate_size=256, num_attention_heads=4))
    folder, _ = write_fp8(llm, tmp_path / "llm")
    extract_layers(str(folder), [1], tmp_path / "layer")
    assert "quantization_config" not in json.loads((tmp_path / "layer" / "config.json").read_text())
    ours, theirs = build(tmp_path / "layer"), build(folder)
    assert all(torch.equal(t, ours.llm_layers.state_dict()[n]) for n, t in theirs.llm_layers.state_dict().items())


def test_scales_that_do_not_fit(tmp_path):
    llm = tiny_llm(tiny_config("llama"))
    folder, stored = write_fp8(llm, tmp_path / "llm")
    key = "model.layers.1.mlp.up_proj.weight"
    write_tensors(llm.config, {**stored, f"{key}_scale_inv": torch.ones(2, 2)}, folder)
    with pytest.raises(ValueError, match=r"up_proj\.weight has the shape .* not of blocks of 128 x 128"):
        build(folder)
    del stored[f"{key}_scale_inv"]
    write_tensors(llm.config, stored, folder)
    with pytest.raises(ValueError, match=r"up_proj\.weight as torch\.float8_e4m3fn without the scales"):
        build(folder)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors"},
        {**FP8, "weight_block_size": [64, 64]},
    ],
    ids=lambda quantization: quantization["quant_method"],
)
def test_other_quantisations_are_refused_by_name(quantization, tmp_path):
    llm = tiny_llm(tiny_config("llama"))
    llm.config.quantization_config = quantization
    folder = write_tensors(llm.config, llm.state_dict(), tmp_path / "llm")
    with pytest.raises(ValueError, match=f"is quantised by {quantization['quant_method']} .*Use the unquantised"):
        build(folder)
