# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import copy
import json
import subprocess
import sys

import pytest
from tiny_llms import tiny_config
from transformers import AutoConfig, LlamaConfig

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockModel


FIELDS = {
    "llm_name_or_path": "someone/llm",
    "llm_revision": "abc",
    "layer_index": [30, -1],
    "hidden_size": 24,
    "weights": "pretrained",
    "trainable": True,
    "position": 3,
    "attention": "causal",
    "rotary": True,
    "final_norm": "pretrained",
    "residual": "hybrid",
    "layer_dtype": "bfloat16",
    "fast": False,
    "save_weights": False,
    "fingerprint": "0" * 64,
    "saved_fingerprint": "1" * 64,
}


def test_defaults():
    config = LLMBlockConfig()
    expected = {
        "llm_name_or_path": None,
        "llm_revision": None,
        "layer_index": -1,
        "llm_config": None,
        "hidden_size": None,
        "weights": "pretrained",
        "trainable": False,
        "position": -1,
        "attention": "bidirectional",
        "rotary": False,
        "final_norm": "unit",
        "residual": "none",
        "layer_dtype": None,
        "fast": True,
        "save_weights": True,
        "fingerprint": None,
        "saved_fingerprint": None,
    }
    assert {k: getattr(config, k) for k in expected} == expected
    assert config.model_type == "llm_block"
    assert ViTWithLLMBlockConfig().llm_block is None
    assert ViTWithLLMBlockConfig.model_type == "vit_with_llm_block"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("layer_idx", "layer_index"),
        ("llm_layer_index", "layer_index"),
        ("llm_name", "llm_name_or_path"),
        ("name_or_pth", "name_or_path"),
        ("residuals", "residual"),
        ("final_norms", "final_norm"),
        ("Trainable", "trainable"),
        ("save_weight", "save_weights"),
        ("layer_dtypes", "layer_dtype"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ValueError, match=key) as error:
        LLMBlockConfig(**{key: 1})
    assert nearest in str(error.value)
    with pytest.raises(ValueError, match=key):
        ViTWithLLMBlockConfig(llm_block={key: 1})
    with pytest.raises(ValueError, match=key):
        LLMBlockConfig.from_dict({"model_type": "llm_block", key: 1})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("weights", "trained", ["pretrained", "random"]),
        ("attention", "full", ["bidirectional", "causal"]),
        ("final_norm", "rms", ["unit", "pretrained", "none"]),
        ("final_norm", None, ["unit", "pretrained", "none"]),
        ("residual", True, ["none", "inner", "outer", "hybrid"]),
        ("layer_dtype", "bf16", ["float32", "bfloat16", "float16"]),
        ("layer_index", "31", ["int"]),
        ("layer_index", 1.5, ["int"]),
        ("layer_index", [], ["layer_index"]),
        ("layer_index", ["31"], ["int"]),
        ("layer_index", True, ["int"]),
        ("layer_index", [3, 3], ["layer_index"]),
        ("trainable", "yes", ["bool"]),
        ("rotary", "off", ["bool"]),
        ("hidden_size", 0, ["hidden_size"]),
        ("hidden_size", "24", ["int"]),
    ],
)
def test_unknown_value_names_field_and_choices(field, value, allowed):
    with pytest.raises(ValueError, match=field) as error:
        LLMBlockConfig(**{field: value})
    assert all(choice in str(error.value) for choice in allowed)
    with pytest.raises(ValueError, match=field):
        ViTWithLLMBlockConfig(llm_block={field: value})


def test_contradictions():
    with pytest.raises(ValueError, match=r"final_norm.*weights|weights.*final_norm"):
        LLMBlockConfig(weights="random", final_norm="pretrained")
    with pytest.raises(ValueError, match="hidden_size"):
        ViTWithLLMBlockConfig(hidden_size=32, num_attention_heads=2, llm_block=LLMBlockConfig(hidden_size=24))
    with pytest.raises(ValueError, match="model_type"):
        LLMBlockConfig(llm_config={"hidden_size": 3})


@pytest.mark.parametrize("position", [-2, 3, 12])
def test_position_beyond_the_host(position):
    with pytest.raises(ValueError, match=r"llm_block\.position.*num_hidden_layers"):
        ViTWithLLMBlockConfig(num_hidden_layers=2, llm_block=LLMBlockConfig(position=position))


def test_host_fills_in_its_width():
    block = LLMBlockConfig(llm_name_or_path="someone/llm")
    config = ViTWithLLMBlockConfig(hidden_size=36, num_attention_heads=3, llm_block=block)
    assert config.llm_block.hidden_size == 36
    other = ViTWithLLMBlockConfig(hidden_size=24, num_attention_heads=3, llm_block=block)
    assert other.llm_block.hidden_size == 24 and config.llm_block.hidden_size == 36


@pytest.mark.parametrize("llm_config", [None, "object", "dict"])
def test_round_trips(llm_config, tmp_path):
    value = {"object": tiny_config("llama"), "dict": tiny_config("llama").to_dict()}.get(llm_config)
    config = LLMBlockConfig(**FIELDS, llm_config=value)
    again = [
        LLMBlockConfig(**config.to_dict()),
        LLMBlockConfig.from_dict(config.to_dict()),
        LLMBlockConfig.from_dict(json.loads(config.to_json_string())),
        LLMBlockConfig.from_dict(config.to_diff_dict()),
        copy.deepcopy(config),
    ]
    config.save_pretrained(tmp_path)
    again += [LLMBlockConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)]
    for other in again:
        assert type(other) is LLMBlockConfig
        for name, expected in FIELDS.items():
            assert getattr(other, name) == expected, name
        if llm_config is None:
            assert other.llm_config is None
        else:
            assert type(other.llm_config) is LlamaConfig
            assert other.llm_config.num_key_value_heads == 2 and other.llm_config.vocab_size == 64


@pytest.mark.parametrize("block", [None, "config", "dict"])
def test_host_round_trips(block, tmp_path):
    fields = {**FIELDS, "position": 1, "llm_config": tiny_config("llama").to_dict()}
    value = {"config": LLMBlockConfig(**fields), "dict": fields}.get(block)
    config = ViTWithLLMBlockConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, num_labels=7, llm_block=value
    )
    config.save_pretrained(tmp_path)
    for other in (
        ViTWithLLMBlockConfig(**config.to_dict()),
        ViTWithLLMBlockConfig.from_dict(config.to_dict()),
        ViTWithLLMBlockConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(config),
    ):
        assert type(other) is ViTWithLLMBlockConfig
        assert other.num_labels == 7 and other.hidden_size == 24
        if block is None:
            assert other.llm_block is None
            continue
        assert type(other.llm_block) is LLMBlockConfig
        assert type(other.llm_block.llm_config) is LlamaConfig
        assert {k: getattr(other.llm_block, k) for k in FIELDS} == {**FIELDS, "position": 1}


def test_layer_dtype_survives_what_transformers_does_to_dtypes(tmp_path):
    import torch

    config = ViTWithLLMBlockConfig(llm_block=LLMBlockConfig(layer_dtype="bfloat16"))
    config.dtype = torch.float16
    config.save_pretrained(tmp_path)
    assert ViTWithLLMBlockConfig.from_pretrained(tmp_path).llm_block.layer_dtype == "bfloat16"


def test_override_when_loading(tmp_path):
    config = ViTWithLLMBlockConfig(llm_block=LLMBlockConfig(llm_name_or_path="old/place", residual="inner"))
    config.save_pretrained(tmp_path)
    moved = ViTWithLLMBlockConfig.from_pretrained(tmp_path, llm_block={"llm_name_or_path": "new/place"})
    assert moved.llm_block.llm_name_or_path == "new/place" and moved.llm_block.residual == "inner"
    with pytest.raises(ValueError, match="llm_name_or_pth"):
        ViTWithLLMBlockConfig.from_pretrained(tmp_path, llm_block={"llm_name_or_pth": "new/place"})


def test_building_a_config_opens_nothing():
    """In a fresh process: after the imports no file or socket is opened, whatever the config says."""
    script = """
import sys
from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig
LLMBlockConfig(llm_config={"model_type": "llama"})          # imports the family's module
opened = []
def hook(event, args):
    if event in ("open", "socket.connect", "socket.getaddrinfo", "os.listdir", "os.scandir"):
        opened.append((event, args[:1]))
sys.addaudithook(hook)
for name in ("someone/llm", "/no/such/folder", "no/such/file.gguf", "/tmp"):
    block = LLMBlockConfig(llm_name_or_path=name, llm_config={"model_type": "llama"}, layer_index=[3, -1])
    config = ViTWithLLMBlockConfig(llm_block=block)
    ViTWithLLMBlockConfig.from_dict(config.to_dict())
    assert block.llm_revision is None and block.fingerprint is None
assert not opened, opened
print("nothing opened")
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "nothing opened" in out.stdout, out.stderr


def test_misspelt_llm_block_is_no_plain_host():
    with pytest.raises(ValueError, match="did you mean 'llm_block'"):
        ViTWithLLMBlockConfig(llm_blok={"llm_name_or_path": "x"})
    with pytest.raises(ValueError, match="llm_block"):
        ViTWithLLMBlockConfig(llm_block="HuggingFaceTB/SmolLM2-135M")


def test_block_set_on_a_finished_configuration():
    """The natural way to give a published host's configuration a block."""
    llm_config = tiny_config("llama")
    config = ViTWithLLMBlockConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config.llm_block = LLMBlockConfig(llm_config=llm_config, weights="random")
    model = ViTWithLLMBlockModel(config)
    assert model.llm_block.config.hidden_size == 16
    config.llm_block = {"llm_config": llm_config.to_dict(), "weights": "random"}
    assert isinstance(ViTWithLLMBlockModel(config).config.llm_block, LLMBlockConfig)
    config.llm_block.position = 9
    with pytest.raises(ValueError, match=r"position is 9"):
        ViTWithLLMBlockModel(config)
