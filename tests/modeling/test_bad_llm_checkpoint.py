# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are bad, and blocks that no checkpoint can give."""

import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc

import pytest
import torch
from llm_block_checks import WIDTH, assert_holds_layer, read_block, vit_config
from llm_files import write_tensors
from safetensors.torch import load_file, save_file
from tiny_llms import tiny_config
from transformers import AutoModel

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockForImageClassification


@pytest.fixture
def copy_of(llm_folder, tmp_path):
    def make(family="llama", layout="single"):
        llm, folder = llm_folder(family, layout)
        return llm, shutil.copytree(folder, tmp_path / f"{family}_{layout}")

    return make


@pytest.mark.parametrize("index", [3, -4, [0, 3], [1, -4]])
def test_layer_index_out_of_range(index, llm_folder):
    with pytest.raises(ValueError, match=r"layer_index.*(3|-4).*out of range.*3 layers"):
        read_block(llm_folder("llama")[1], layer_index=index)


def test_same_layer_twice(llm_folder):
    with pytest.raises(ValueError, match="layer_index"):
        read_block(llm_folder("llama")[1], layer_index=[2, -1])


def test_folder_without_config(copy_of):
    _, folder = copy_of()
    os.remove(folder / "config.json")
    with pytest.raises(OSError, match=r"config\.json") as error:
        read_block(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_config_that_says_nothing(content, copy_of):
    _, folder = copy_of()
    (folder / "config.json").write_text(content)
    with pytest.raises((ValueError, OSError)) as error:
        read_block(folder)
    assert str(folder) in str(error.value) or "model type `no-such-model`" in str(error.value)


def test_no_such_place(tmp_path):
    for name in (tmp_path / "nothing", "./no/such/folder", "/no/such/folder"):
        with pytest.raises((OSError, ValueError), match=str(name).replace(".", r"\.")):
            read_block(name)
    with pytest.raises(OSError, match=r"nothing\.gguf"):
        read_block(tmp_path / "nothing.gguf")


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
        read_block(folder)
    assert str(folder) in str(error.value)


def test_tensor_missing(copy_of):
    llm, folder = copy_of()
    tensors = dict(llm.state_dict())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_tensors(llm.config, tensors, folder)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight") as error:
        read_block(folder)
    assert str(folder) in str(error.value)
    read_block(folder, layer_index=0)
    kept = {k: v for k, v in llm.state_dict().items() if ".layers.1." not in k}
    write_tensors(llm.config, kept, folder)
    with pytest.raises(ValueError, match=r"layers\.1"):
        read_block(folder)
    without_norm = {k: v for k, v in llm.state_dict().items() if k != "model.norm.weight"}
    write_tensors(llm.config, without_norm, folder)
    read_block(folder)
    with pytest.raises(ValueError, match="norm"):
        read_block(folder, final_norm="pretrained")


def test_expert_missing(copy_of):
    _, folder = copy_of("mixtral")
    tensors = load_file(folder / "model.safetensors")
    gone = next(k for k in tensors if "layers.1." in k and "experts.2." in k)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        read_block(folder)
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
        read_block(folder)
    assert str(folder) in str(error.value) and "48, 32" in str(error.value)


def test_config_of_another_size(copy_of):
    _, folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="shape"):
        read_block(folder)


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
            read_block(folder, layer_index=index)


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
        read_block(folder)


def test_shard_missing_or_not_what_the_index_says(copy_of):
    _, folder = copy_of(layout="sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    file = index["weight_map"][name]
    (folder / file).rename(folder / "away")
    with pytest.raises(OSError, match=file):
        read_block(folder)
    (folder / "away").rename(folder / file)
    other = next(f for f in index["weight_map"].values() if f != file)
    index["weight_map"][name] = other
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight") as error:
        read_block(folder)
    assert other in str(error.value)
    for text in ("{", "{}", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            read_block(folder)


def test_shard_outside_the_folder_is_not_read(copy_of, tmp_path):
    _, folder = copy_of(layout="sharded")
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../outside.safetensors")
    index_file.write_text(json.dumps(index))
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "outside.safetensors")
    with pytest.raises((ValueError, OSError), match=r"outside\.safetensors"):
        read_block(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, copy_of):
    llm, folder = copy_of()
    tensors = {k: v.clone() for k, v in llm.state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    write_tensors(llm.config, tensors, folder)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight.*(NaN|infinite)") as error:
        read_block(folder)
    assert str(folder) in str(error.value)


def test_values_too_large_for_the_layers_dtype(copy_of):
    llm, folder = copy_of()
    tensors = {k: v.clone() for k, v in llm.state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    write_tensors(llm.config, tensors, folder)
    read_block(folder)
    with pytest.raises(ValueError, match="layer_dtype"):
        read_block(folder, layer_dtype="float16")


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
        read_block(folder)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<html></html>"])
def test_damaged_bin(content, copy_of):
    _, folder = copy_of(layout="bin")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        read_block(folder)


def test_truncated_bin(copy_of):
    _, folder = copy_of(layout="bin")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        read_block(folder)


def test_bin_that_is_no_dictionary(copy_of):
    _, folder = copy_of(layout="bin")
    torch.save([torch.ones(3)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        read_block(folder)


def test_safetensors_are_preferred_to_pickles(copy_of):
    llm, folder = copy_of()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert_holds_layer(read_block(folder), llm)


def test_llm_that_needs_remote_code(copy_of, tmp_path):
    _, folder = copy_of()
    mark = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "somebodys_llm"
    config["auto_map"] = {"AutoConfig": "code.SomeConfig", "AutoModel": "code.SomeModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(ValueError, match="code") as error:
        read_block(folder)
    assert str(folder) in str(error.value)
    assert not mark.exists()


def test_quantised_llm(copy_of):
    _, folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quanti"):
        read_block(folder)


def refused_at_once(build, match):
    """Refused in under a second and 100 MB."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(ValueError, match=match):
            build()
        assert time.monotonic() - begin < 1
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_too_many_layers(family, copy_of):
    _, folder = copy_of(family)
    config = json.loads((folder / "config.json").read_text())
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    config[name] = 10**9
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    match = f"{name} is 1000000000; at most 1000 layers"
    refused_at_once(lambda: read_block(folder), match)
    refused_at_once(lambda: LLMBlockConfig(llm_config=config), match)
    deep = tiny_config("llama")
    deep.num_hidden_layers = 10**9
    refused_at_once(lambda: LLMBlock(LLMBlockConfig(llm_config=deep, hidden_size=WIDTH)), "1000000000 layers")


def test_header_of_a_gigabyte(copy_of):
    _, folder = copy_of()
    path = folder / "model.safetensors"
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(10**9 + 1000)
    refused_at_once(
        lambda: read_block(folder), r"model\.safetensors is corrupt: its safetensors header has 10{9} bytes"
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_heads(family, copy_of):
    _, folder = copy_of(family)
    config = json.loads((folder / "config.json").read_text())
    config["n_head" if family == "gpt2" else "num_attention_heads"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError):
        read_block(folder)


def test_a_failed_build_leaves_no_random_layer(copy_of):
    """The same bad checkpoint through every way in: always an error, never a model."""
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
