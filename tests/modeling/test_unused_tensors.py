# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Every tensor of a language model's layer is used, known to be needless, or an error."""

import json
import shutil

import llm_files
import pytest
import torch
from llm_block_checks import assert_holds_layer, read_block
from llm_files import write_gguf, write_llm, write_tensors
from safetensors.torch import load_file, save_file
from tiny_llms import tiny_config, tiny_llm
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.commands.layer import describe_llm
from hf_frozen_llm.modeling.meta_checkpoint import META_LAYER


LAYER = "model.layers.1."


@pytest.fixture(scope="module")
def llm():
    return tiny_llm(tiny_config("llama"))


UNUSED = {
    "self_attn.q_proj.bias": torch.ones(32),
    "self_attn.v_proj.bias": torch.ones(16),
    "self_attn.q_proj.lora_A.default.weight": torch.ones(4, 32),
    "mlp.up_proj.weight_scale": torch.ones(1),
    "mlp.up_proj.SCB": torch.ones(48),
    "mlp.up_proj.weight_scales": torch.ones(1),
    "mlp.other_proj.weight_scale_inv": torch.ones(1),
    "post_feedforward_layernorm.weight": torch.ones(32),
}


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("name", UNUSED)
def test_a_tensor_that_the_layer_has_no_place_for(name, layout, llm, tmp_path):
    tensors = {**llm.state_dict(), LAYER + name: UNUSED[name]}
    folder = write_tensors(llm.config, tensors, tmp_path)
    if layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"holds tensors of layers\.1 .* no place for: \['{name}'\]") as error:
        read_block(folder)
    assert str(folder) in str(error.value)
    assert_holds_layer(read_block(folder, layer_index=0), llm, index=0)


def test_a_bias_of_the_final_norm(llm, tmp_path):
    folder = write_tensors(llm.config, {**llm.state_dict(), "model.norm.bias": torch.ones(32)}, tmp_path)
    read_block(folder)
    with pytest.raises(ValueError, match=r"holds tensors of norm .* \['bias'\]"):
        read_block(folder, final_norm="pretrained")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_beside_experts_that_are_converted(family, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    needless = {f"{LAYER}self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert_holds_layer(read_block(write_tensors(llm.config, {**tensors, **needless}, folder)), llm)
    write_tensors(llm.config, {**tensors, f"{LAYER}self_attn.o_proj.bias": torch.ones(32)}, folder)
    with pytest.raises(ValueError, match=r"no place for: \['self_attn\.o_proj\.bias'\]"):
        read_block(folder)


def test_tensors_that_the_family_leaves_out(tmp_path):
    """transformers says of each family which tensors of published checkpoints it leaves out."""
    llm = tiny_llm(tiny_config("gpt_neox"))
    for name in ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"):
        tensors = {**llm.state_dict(), f"gpt_neox.layers.1.{name}": torch.ones(1, 1, 8, 8)}
        assert_holds_layer(read_block(write_tensors(llm.config, tensors, tmp_path)), llm)


def test_meta_format(llm, tmp_path):
    published = {new: old for old, new in META_LAYER.items()}
    state, config = llm.state_dict(), llm.config
    stored = {}
    for name, tensor in state.items():
        if name.startswith(LAYER):
            stored[f"layers.1.{published[name.removeprefix(LAYER).removesuffix('.weight')]}.weight"] = tensor
    (tmp_path / "params.json").write_text(
        json.dumps({"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "norm_eps": 1e-6})
    )
    assert config.num_key_value_heads == 2
    torch.save(
        {**stored, "layers.1.attention.inner_attention.rope.freqs": torch.ones(4)}, tmp_path / "consolidated.00.pth"
    )
    read_block(tmp_path)
    for name in ("attention.wq.bias", "attention.wq.lora_a.weight", "feed_forward.w1.scales"):
        torch.save({**stored, f"layers.1.{name}": torch.ones(32)}, tmp_path / "consolidated.00.pth")
        with pytest.raises(ValueError, match="no place for"):
            read_block(tmp_path)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_integers_are_no_weights(family, kind, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith(LAYER) and "o_proj" in name)
    write_tensors(llm.config, {**tensors, name: (100 * tensors[name]).to(kind)}, folder)
    with pytest.raises(ValueError, match=rf"o_proj\.weight as {kind}, which cannot be read") as error:
        read_block(folder)
    assert str(folder) in str(error.value)


def header_and_data(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path, text, data):
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_tensors_that_share_bytes(llm, tmp_path):
    folder = write_llm(llm, tmp_path)
    header, data = header_and_data(folder / "model.safetensors")
    name = f"{LAYER}mlp.up_proj.weight"
    header[name]["data_offsets"] = header[f"{LAYER}mlp.gate_proj.weight"]["data_offsets"]
    write_safetensors(folder / "model.safetensors", json.dumps(header).encode(), data)
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt: .*mlp\.(up|gate)_proj\.weight overlap"):
        read_block(folder)


def test_a_tensor_named_twice(llm, tmp_path):
    folder = write_llm(llm, tmp_path)
    header, data = header_and_data(folder / "model.safetensors")
    name = f"{LAYER}mlp.up_proj.weight"
    twice = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    write_safetensors(folder / "model.safetensors", twice.encode(), data)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight is there twice"):
        read_block(folder)


def test_a_tensor_in_two_shards(llm, tmp_path):
    folder = write_llm(llm, tmp_path, "sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = [name for name in index["weight_map"] if name.startswith(LAYER)]
    files = {"a.safetensors": names[:4], "b.safetensors": names[3:]}
    for file, held in files.items():
        save_file({name: llm.state_dict()[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=rf"stores {names[3]} twice, in b\.safetensors and a\.safetensors"):
        read_block(folder)
    text = json.dumps({"weight_map": weight_map})
    twice = text.replace(f'"{names[0]}":', f'"{names[0]}": "b.safetensors", "{names[0]}":')
    (folder / "model.safetensors.index.json").write_text(twice)
    with pytest.raises(ValueError, match=rf"{names[0]} is there twice"):
        read_block(folder)


@pytest.mark.parametrize("place", ["..", "absolute", "windows"])
def test_an_index_that_leads_out_of_the_folder(place, llm, tmp_path):
    folder = write_llm(llm, tmp_path / "llm", "sharded")
    outside = write_llm(llm, tmp_path / "other") / "model.safetensors"
    shutil.copy(outside, tmp_path / "outside.safetensors")
    name = {"..": "../outside.safetensors", "absolute": str(outside), "windows": "..\\outside.safetensors"}[place]
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    index_file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not in the folder of the index"):
        read_block(folder)


def test_gguf_biases(llm, tmp_path):
    pytest.importorskip("gguf")
    for name, size in {"blk.1.attn_q.bias": 32, "blk.1.ffn_up.scale": 1, "output_norm.bias": 32}.items():
        path = write_gguf(llm, tmp_path / "llm.gguf", more_tensors={name: torch.ones(size)})
        fields = {"final_norm": "pretrained" if "norm" in name else "unit"}
        with pytest.raises(ValueError, match=rf"has no place for: \['{name}'\]"):
            read_block(path, **fields)
        if "norm" not in name:
            assert_holds_layer(read_block(path, layer_index=0), llm, index=0)
            with pytest.raises(ValueError, match="no place for"):
                describe_llm(str(path), 1)
    old = {"blk.1.attn_rot_embd.weight": torch.ones(4)}
    assert_holds_layer(read_block(write_gguf(llm, tmp_path / "llm.gguf", more_tensors=old)), llm)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_split_gguf(part, llm, tmp_path):
    """llama-gguf-split: the first part has the metadata, each part some of the tensors."""
    gguf = pytest.importorskip("gguf")
    whole = write_gguf(llm, tmp_path / "llm.gguf")
    expected = read_block(whole, final_norm="pretrained")
    names = sorted(llm_files.gguf_tensors(llm))
    thirds = [names[::3], names[1::3], names[2::3]]
    reader = gguf.GGUFReader(whole)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for number, third in enumerate(thirds):
        writer = gguf.GGUFWriter(str(tmp_path / f"part-{number + 1:05d}-of-00003.GGUF"), "llama")
        if number:
            writer.kv_data[0].pop("general.architecture")
        else:
            for field in reader.fields.values():
                if field.name != "general.architecture" and field.types and not field.name.startswith("GGUF."):
                    if field.types[0] in (gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32):
                        writer.add_key_value(field.name, field.contents(), field.types[0])
        writer.add_key_value("split.tensors.count", len(names), gguf.GGUFValueType.INT32)
        for name in third:
            writer.add_tensor(name, stored[name].data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path = tmp_path / f"part-{part:05d}-of-00003.GGUF"
    block = read_block(path, final_norm="pretrained")
    for name, tensor in expected.llm_layers.state_dict().items():
        assert torch.equal(block.llm_layers.state_dict()[name], tensor), name
    assert block.config.fingerprint == expected.config.fingerprint
    (tmp_path / "part-00002-of-00003.GGUF").rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"part-00002-of-00003\.GGUF"):
        read_block(path)


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {**DEFAULT, "rope_type": "linear", "factor": 4.0}
YARN = {**DEFAULT, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {**DEFAULT, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        (LINEAR, {"add_rope_scaling_type": "LINEAR", "add_rope_scaling_factor": 4.0}),
        (LINEAR, {"add_rope_scaling_factor": 4.0}),
        (DEFAULT, {"add_rope_scaling_type": "NONE", "add_rope_scaling_factor": 4.0}),
        (YARN, {"add_rope_scaling_type": "YARN", "add_rope_scaling_factor": 4.0, "add_rope_scaling_orig_ctx_len": 16}),
        (LLAMA3, {}),
    ],
)
def test_gguf_rope_scaling(rope, keys, tmp_path):
    """Rotary frequencies are scaled as by the same scaling in a `config.json`."""
    gguf = pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    tensors = {}
    if rope is LLAMA3:  # llama.cpp's converter writes what the frequencies are divided by
        config = tiny_config("llama", rope_parameters=rope)
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        tensors["rope_freqs.weight"] = 10000.0**-exponents / ROPE_INIT_FUNCTIONS["llama3"](config)[0]
        assert tensors["rope_freqs.weight"].max() > 2
    if "add_rope_scaling_type" in keys:
        keys = {**keys, "add_rope_scaling_type": gguf.RopeScalingType[keys["add_rope_scaling_type"]]}
    path = write_gguf(llm, tmp_path / "llm.gguf", more_tensors=tensors, more_keys=keys)
    llm.config.rope_parameters = rope
    expected = read_block(write_llm(llm, tmp_path / "llm"), rotary=True, attention="causal").eval()
    block = read_block(path, rotary=True, attention="causal").eval()
    state = expected.state_dict()
    block.load_state_dict({name: state[name] for name in state if "projection" in name}, strict=False)
    x = 5 * torch.randn(1, 12, 24)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected(x), rtol=1e-5, atol=1e-5)
    again = LLMBlockConfig(**block.config.to_dict())
    assert again.llm_config.rope_parameters == block.config.llm_config.rope_parameters


def test_gguf_rope_scaling_that_cannot_be_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    llm = tiny_llm(tiny_config("llama"))
    yarn = {"add_rope_scaling_type": gguf.RopeScalingType.YARN, "add_rope_scaling_factor": 4.0}
    longrope = {"add_rope_scaling_type": gguf.RopeScalingType.LONGROPE}
    for keys, tensors in ((yarn, {"rope_freqs.weight": torch.ones(4)}), (longrope, {})):
        path = write_gguf(llm, tmp_path / "llm.gguf", more_tensors=tensors, more_keys=keys)
        with pytest.raises(ValueError, match=r"llm\.gguf scales its rotary frequencies by (yarn|longrope)"):
            read_block(path)
