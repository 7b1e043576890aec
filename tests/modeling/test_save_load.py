# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Every way of saving and loading, by hand and through transformers' own Trainer."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_llms import HOST, decoder_stack, published_vit, tiny_config, tiny_llm, write_llm
from transformers import AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments, ViTImageProcessor

from hf_frozen_llm import (
    LLMBlock,
    LLMBlockConfig,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


Classifier = ViTWithLLMBlockForImageClassification


@pytest.fixture
def llm(llm_folder, tmp_path):
    """(LLM in memory, a copy of its folder that a test may move or damage)"""

    def make(family="llama"):
        model, folder = llm_folder(family)
        return model, shutil.copytree(folder, tmp_path / f"llm_{family}")

    return make


def build(folder, seed=2, cls=Classifier, **fields):
    torch.manual_seed(seed)
    block = LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, **fields})
    return cls(ViTWithLLMBlockConfig(**HOST, llm_block=block)).eval()


def pictures(batch=2):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def logits(model):
    with torch.no_grad():
        return model.eval()(pictures())[0]


def stored(folder):
    out = {}
    for file in folder.glob("*.safetensors"):
        out.update(load_file(file))
    return out


def stored_block(folder):
    return json.loads((folder / "config.json").read_text())["llm_block"]


def llm_names(names):
    return {n for n in names if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))}


def assert_same(model, other):
    expected, actual = model.state_dict(), other.state_dict()
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def assert_frozen(model):
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == llm_names(
        n for n, _ in model.named_parameters()
    )


def load(folder, cls=Classifier, **kwargs):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model


# Self-contained and light


@pytest.mark.parametrize("save_weights", [True, False])
@pytest.mark.parametrize("cls", [ViTWithLLMBlockModel, Classifier])
@pytest.mark.parametrize(
    "family", ["llama", "opt_350m", "gpt2", "gemma", "gptj", "mixtral", "gpt_neox", "bloom", "falcon"]
)
def test_round_trip(family, cls, save_weights, llm, tmp_path):
    _, llm_folder = llm(family)
    model = build(llm_folder, cls=cls, save_weights=save_weights)
    before = copy.deepcopy(model.config.llm_block.to_dict())
    model.save_pretrained(tmp_path / "model")
    assert model.config.llm_block.to_dict() == before, "saving must not change the model"
    names = llm_names(model.state_dict())
    assert stored_block(tmp_path / "model")["save_weights"] is save_weights
    assert llm_names(stored(tmp_path / "model")) == (names if save_weights else set())
    if save_weights:
        shutil.rmtree(llm_folder)
    again = load(tmp_path / "model", cls)
    assert_same(model, again)
    assert_frozen(again)
    assert_frozen(again.train())
    assert torch.equal(logits(again), logits(model))
    assert (again.llm_block.bytes_read == 0) is save_weights
    assert again.config.llm_block.save_weights is save_weights
    # and once more, from what was loaded
    again.save_pretrained(tmp_path / "again")
    assert stored_block(tmp_path / "again")["save_weights"] is save_weights
    assert_same(model, load(tmp_path / "again", cls))


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_index": [0, 2]},
        {"layer_index": [-1, 0], "final_norm": "pretrained"},
        {"final_norm": "none", "residual": "hybrid"},
        {"final_norm": "pretrained", "rotary": True, "attention": "causal"},
        {"layer_dtype": "bfloat16"},
        {"position": 1, "fast": False},
    ],
)
@pytest.mark.parametrize("save_weights", [True, False])
def test_round_trip_of_every_field(fields, save_weights, llm, tmp_path):
    model = build(llm()[1], save_weights=save_weights, **fields)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert_same(model, again)
    assert torch.equal(logits(again), logits(model))
    for name, value in fields.items():
        assert getattr(again.config.llm_block, name) == value
    assert again.config.llm_block.fingerprint == model.config.llm_block.fingerprint


@pytest.mark.parametrize("save_weights", [True, False])
def test_block_alone(save_weights, llm, tmp_path):
    _, folder = llm()
    block = LLMBlock(
        LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1, hidden_size=24, save_weights=save_weights)
    )
    block.save_pretrained(tmp_path / "block")
    assert any(n.startswith("llm_layers.") for n in stored(tmp_path / "block")) is save_weights
    if save_weights:
        shutil.rmtree(folder)
    for again in (load(tmp_path / "block", LLMBlock), AutoModel.from_pretrained(tmp_path / "block")):
        assert_same(block, again)
        assert {n for n, p in again.named_parameters() if p.requires_grad} == {
            "input_projection.weight",
            "output_projection.weight",
        }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
@pytest.mark.parametrize("save_weights", [True, False])
def test_loading_in_another_dtype(dtype, save_weights, llm, tmp_path):
    model = build(llm()[1], save_weights=save_weights)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", dtype=dtype)
    expected = torch.float32 if dtype == "auto" else dtype
    assert {p.dtype for p in again.parameters()} == {expected}
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(expected)), name
    # a cast is no change of the layer
    again.config.llm_block.save_weights = False
    again.save_pretrained(tmp_path / "light")
    assert not llm_names(stored(tmp_path / "light"))
    assert_same(again, load(tmp_path / "light", dtype=expected))


def test_switching_between_the_forms(llm, tmp_path):
    model = build(llm()[1], save_weights=True)
    model.save_pretrained(tmp_path / "model")
    whole = load(tmp_path / "model")
    whole.config.llm_block.save_weights = False
    whole.save_pretrained(tmp_path / "model")
    assert not llm_names(stored(tmp_path / "model"))
    light = load(tmp_path / "model")
    assert_same(model, light)
    light.config.llm_block.save_weights = True
    light.save_pretrained(tmp_path / "model")
    assert llm_names(stored(tmp_path / "model"))
    assert_same(model, load(tmp_path / "model"))


def test_without_a_block(tmp_path):
    model = Classifier(ViTWithLLMBlockConfig(**HOST)).eval()
    model.save_pretrained(tmp_path)
    assert stored_block(tmp_path) is None
    again = load(tmp_path)
    assert_same(model, again)
    assert torch.equal(logits(again), logits(model))
    # the folder is a plain ViT's, too
    plain, info = transformers.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(plain), logits(model))


def test_published_folders_have_published_names(llm, tmp_path):
    model = build(llm()[1])
    model.save_pretrained(tmp_path / "model")
    names = set(stored(tmp_path / "model"))
    published_vit(tmp_path / "vit")
    host = set(stored(tmp_path / "vit"))
    assert host <= names
    assert names - host == {n for n in model.state_dict() if n.startswith("llm_block.")}


# Light: the LLM moved, changed, vanished


def test_moved_llm(llm, tmp_path):
    _, folder = llm()
    model = build(folder, save_weights=False)
    model.save_pretrained(tmp_path / "model")
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match="llm_name_or_path") as error:
        Classifier.from_pretrained(tmp_path / "model")
    assert str(folder) in str(error.value) and "llm_block=" in str(error.value)
    again = load(tmp_path / "model", llm_block={"llm_name_or_path": str(moved)})
    assert_same(model, again)
    assert again.config.llm_block.llm_name_or_path == str(moved)
    assert again.config.llm_block.residual == model.config.llm_block.residual
    again.save_pretrained(tmp_path / "again")
    assert_same(model, load(tmp_path / "again"))
    for auto in (AutoModelForImageClassification, AutoModel):
        other = auto.from_pretrained(tmp_path / "model", llm_block={"llm_name_or_path": str(moved)})
        assert torch.equal(
            other.llm_block.llm_layers[0].mlp.up_proj.weight, model.llm_block.llm_layers[0].mlp.up_proj.weight
        )


def test_changed_llm(llm, tmp_path):
    llm_model, folder = llm()
    model = build(folder, save_weights=False)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    write_llm(tiny_llm(tiny_config("llama"), seed=9), folder)
    with pytest.raises(ValueError, match="fingerprint") as error:
        Classifier.from_pretrained(tmp_path / "model")
    assert str(folder) in str(error.value) and "llm_name_or_path" in str(error.value)
    # one other bit is another LLM
    llm_model = copy.deepcopy(llm_model)
    llm_model.model.layers[1].mlp.up_proj.weight.data.view(torch.int32)[0, 0] ^= 1
    write_llm(llm_model, folder)
    with pytest.raises(ValueError, match="fingerprint"):
        Classifier.from_pretrained(tmp_path / "model")
    # another layer of it does not matter
    llm_model.model.layers[1].mlp.up_proj.weight.data.view(torch.int32)[0, 0] ^= 1
    llm_model.model.layers[2].mlp.up_proj.weight.data += 1
    write_llm(llm_model, folder)
    assert_same(model, load(tmp_path / "model"))


def test_other_layer_or_llm_for_a_saved_model_is_an_error(llm, tmp_path):
    _, folder = llm()
    other = write_llm(tiny_llm(tiny_config("llama"), seed=9), tmp_path / "other")
    for save_weights in (True, False):
        build(folder, save_weights=save_weights).save_pretrained(tmp_path / "model")
        for override in (
            {"layer_index": 0},
            {"final_norm": "pretrained"},
            {"weights": "random"},
            LLMBlockConfig(llm_name_or_path=str(folder), layer_index=0),
            LLMBlockConfig(llm_name_or_path=str(folder), layer_index=[1, 0]),
        ):
            with pytest.raises(ValueError, match=r"layer_index|final_norm|weights|fingerprint"):
                Classifier.from_pretrained(tmp_path / "model", llm_block=override)
    with pytest.raises(ValueError, match="fingerprint"):
        Classifier.from_pretrained(tmp_path / "model", llm_block={"llm_name_or_path": str(other)})


@pytest.mark.parametrize("save_weights", [True, False])
def test_configuration_of_another_layer_is_an_error(save_weights, llm, tmp_path):
    _, folder = llm()
    model = build(folder, save_weights=save_weights)
    model.save_pretrained(tmp_path / "model")
    changed = ViTWithLLMBlockConfig.from_pretrained(tmp_path / "model")
    changed.llm_block.layer_index = 0
    fresh = ViTWithLLMBlockConfig(**HOST, llm_block=LLMBlockConfig(llm_name_or_path=str(folder), layer_index=0))
    for config in (changed, fresh):
        with pytest.raises(ValueError, match=r"layer_index|fingerprint"):
            Classifier.from_pretrained(tmp_path / "model", config=config)
    same = ViTWithLLMBlockConfig.from_pretrained(tmp_path / "model")
    same.llm_block.layer_index = 1 - 3  # the same of its three layers, counted from the end
    assert_same(model, load(tmp_path / "model", config=same))


def test_trained_layer_that_is_frozen_afterwards_is_not_lost(llm, tmp_path):
    model = build(llm()[1], trainable=True)
    with torch.no_grad():
        model.llm_block.llm_layers[0].mlp.up_proj.weight += 0.1
    model.save_pretrained(tmp_path / "trained")
    frozen = load(tmp_path / "trained", llm_block={"trainable": False, "save_weights": False})
    frozen.save_pretrained(tmp_path / "frozen")
    frozen.save_pretrained(tmp_path / "checkpoint-1")
    for name in ("frozen", "checkpoint-1"):
        # A frozen layer takes the fast path, a trained one does not.
        torch.testing.assert_close(logits(load(tmp_path / name)), logits(model), rtol=1e-5, atol=1e-6)


def test_host_saved_alone_is_a_plain_host(llm, tmp_path):
    _, folder = llm()
    model = build(folder)
    model.vit.save_pretrained(tmp_path / "host")
    again, info = Classifier.from_pretrained(tmp_path / "host", output_loading_info=True)
    assert info["missing_keys"] == {n for n in model.state_dict() if n.startswith(("llm_block.", "classifier."))} - {
        f"llm_block.{n}" for n in model.llm_block.llm_tensors()
    }
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(again.vit.state_dict()[name], tensor)
    for name in model.llm_block.llm_tensors():
        assert torch.equal(again.llm_block.state_dict()[name], model.llm_block.state_dict()[name])


def test_what_an_override_object_does_not_say_stays(llm, tmp_path):
    _, folder = llm()
    model = build(folder, residual="outer", save_weights=False)
    model.save_pretrained(tmp_path / "model")
    moved = shutil.copytree(folder, tmp_path / "moved")
    for override in (LLMBlockConfig(llm_name_or_path=str(moved)), model.config.llm_block):
        again = load(tmp_path / "model", llm_block=override)
        assert again.config.llm_block.residual == "outer"
        assert torch.equal(logits(again), logits(model))


def test_moved_llm_does_not_matter_to_a_whole_folder(llm, tmp_path):
    _, folder = llm()
    model = build(folder)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    assert_same(model, load(tmp_path / "model", llm_block={"llm_name_or_path": "/now/here"}))


def test_whole_folder_that_lacks_a_tensor(llm, tmp_path):
    """Never read again in silence, never random."""
    model = build(llm()[1])
    for gone in (
        "llm_block.llm_layers.0.mlp.up_proj.weight",
        "llm_block.llm_layers.0.input_layernorm.weight",
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
    ):
        model.save_pretrained(tmp_path / "model")
        file = tmp_path / "model" / "model.safetensors"
        tensors = load_file(file)
        del tensors[gone]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"llm_block|incomplete"):
            Classifier.from_pretrained(tmp_path / "model")


def test_light_folder_that_lacks_a_projection(llm, tmp_path):
    model = build(llm()[1], save_weights=False)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "input_projection" not in k}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"input_projection|incomplete"):
        Classifier.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("cut", [0, 100, 0.5, -1])
def test_truncated_folder(cut, llm, tmp_path):
    model = build(llm()[1])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|truncated|incomplete|metadata"):
        Classifier.from_pretrained(tmp_path)


# Always written


@pytest.mark.parametrize("folder_name", ["model", "checkpoint-7"])
@pytest.mark.parametrize(
    "fields", [{"weights": "random"}, {"trainable": True}, {"weights": "random", "trainable": True}]
)
def test_random_and_trainable_layers_are_always_written(fields, folder_name, llm, tmp_path):
    _, llm_folder = llm()
    model = build(llm_folder, save_weights=False, **fields)
    assert any(p.requires_grad for p in model.llm_block.llm_layers.parameters()) is fields.get("trainable", False)
    model.save_pretrained(tmp_path / folder_name)
    assert stored_block(tmp_path / folder_name)["save_weights"] is True
    assert len(llm_names(stored(tmp_path / folder_name))) >= 9
    shutil.rmtree(llm_folder)
    again = load(tmp_path / folder_name)
    assert_same(model, again)
    trainable = {n for n, p in again.named_parameters() if p.requires_grad and ".llm_layers." in n}
    assert bool(trainable) is fields.get("trainable", False)
    again.save_pretrained(tmp_path / "again")
    assert_same(model, load(tmp_path / "again"))


def test_random_layer_needs_only_the_config(tmp_path):
    block = LLMBlockConfig(llm_config=tiny_config("llama"), weights="random", layer_index=1)
    model = Classifier(ViTWithLLMBlockConfig(**HOST, llm_block=block)).eval()
    model.save_pretrained(tmp_path)
    assert_same(model, load(tmp_path))


@pytest.mark.parametrize("folder_name", ["model", "checkpoint-7"])
@pytest.mark.parametrize("how", ["in place", "data", "load_state_dict", "new parameter", "swapped rows", "deepcopy"])
def test_changed_layer_is_written(how, folder_name, llm, tmp_path):
    model = build(llm()[1], save_weights=False)
    if how == "deepcopy":
        model = copy.deepcopy(model)
    layer = model.llm_block.llm_layers[0]
    weight = layer.mlp.up_proj.weight
    if how == "in place" or how == "deepcopy":
        with torch.no_grad():
            weight[3, 5] += 1e-3
    elif how == "data":
        weight.data = weight.data * 1.001
    elif how == "load_state_dict":
        state = model.state_dict()
        state["llm_block.llm_layers.0.mlp.up_proj.weight"] = weight.detach() * 1.001
        model.load_state_dict(state)
    elif how == "new parameter":
        layer.mlp.up_proj.weight = torch.nn.Parameter(weight.detach() * 1.001)
    else:
        with torch.no_grad():
            weight[[0, 1]] = weight[[1, 0]]
    expected = logits(model)
    model.save_pretrained(tmp_path / folder_name)
    assert stored_block(tmp_path / folder_name)["save_weights"] is True
    again = load(tmp_path / folder_name)
    assert_same(model, again)
    assert torch.equal(logits(again), expected)
    # what was loaded is not the LLM's, and stays written
    again.config.llm_block.save_weights = False
    again.save_pretrained(tmp_path / "checkpoint-9")
    assert_same(model, load(tmp_path / "checkpoint-9"))


# Base and head


@pytest.mark.parametrize("save_weights", [True, False])
def test_base_from_head_and_head_from_base(save_weights, llm, tmp_path):
    _, folder = llm()
    head = build(folder, save_weights=save_weights)
    head.save_pretrained(tmp_path / "head")
    base, info = ViTWithLLMBlockModel.from_pretrained(
        tmp_path / "head", add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"] and set(info["unexpected_keys"]) <= {"classifier.weight", "classifier.bias"}
    expected = {k: v for k, v in head.state_dict().items() if not k.startswith("classifier.")}
    assert base.state_dict().keys() == expected.keys()
    assert all(torch.equal(base.state_dict()[k], v) for k, v in expected.items())
    assert_frozen(base)
    base = build(folder, cls=ViTWithLLMBlockModel, save_weights=save_weights)
    base.save_pretrained(tmp_path / "base")
    head, info = Classifier.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert set(info["unexpected_keys"]) <= {"vit.pooler.dense.weight", "vit.pooler.dense.bias"}
    for name, tensor in base.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(head.state_dict()[name], tensor), name
    assert_frozen(head)


# Files


def test_shards(llm, tmp_path):
    model = build(llm()[1])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(model, load(tmp_path))
    # a save over it leaves nothing of the old one behind
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - {"llm_llama"} == {"config.json", "model.safetensors"}
    assert_same(model, load(tmp_path))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(model, load(tmp_path))


@pytest.mark.parametrize("moment", ["before any byte", "half written"])
def test_interrupted_save_leaves_the_old_model(moment, llm, tmp_path, monkeypatch):
    model = build(llm()[1])
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with torch.no_grad():
        model.classifier.weight.add_(1)

    def full_disk(tensors, filename, metadata=None):
        if moment == "half written":
            with open(filename, "wb") as f:
                f.write(b"\0" * 1000)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "safe_save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(folder)
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(tmp_path / "first")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    load(folder)
    # a folder that was never completed is no model, and nothing lies about
    with pytest.raises(OSError):
        Classifier.from_pretrained(tmp_path / "first")
    assert {p.name for p in tmp_path.iterdir()} - {"first"} == {"model", "llm_llama"}
    model.save_pretrained(folder)
    assert_same(model, load(folder))


def test_killed_save_leaves_the_old_model(llm, tmp_path):
    """The process dies in the middle of writing the weights."""
    folder = tmp_path / "model"
    build(llm()[1]).save_pretrained(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    script = f"""
import os, transformers
from hf_frozen_llm import ViTWithLLMBlockForImageClassification as Model
model = Model.from_pretrained({str(folder)!r})
model.classifier.weight.data += 1
def die(tensors, filename, metadata=None):
    with open(filename, "wb") as f:
        f.write(b"\\0" * 1000)
    os._exit(9)
transformers.modeling_utils.safe_save_file = die
model.save_pretrained({str(folder)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    load(folder)


@pytest.mark.parametrize("renames", [1, 2, 3])
@pytest.mark.parametrize("forms", [("whole", "whole"), ("whole", "shards"), ("shards", "whole"), ("shards", "shards")])
def test_save_killed_while_files_are_replaced(forms, renames, llm, tmp_path):
    """Between two renames: the folder is the old model, the new model, or no model, never a mixture of both."""
    folder = tmp_path / "model"
    sizes = [{} if form == "whole" else {"max_shard_size": "20KB"} for form in forms]
    old = build(llm()[1])
    old.save_pretrained(folder, **sizes[0])
    new = copy.deepcopy(old)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if not name.startswith(("llm_block.llm_layers", "llm_block.final_norm")):
                parameter.add_(1)
    replace, calls = os.replace, []

    class Killed(BaseException):
        pass

    def dying_replace(*args):
        if len(calls) == renames:
            raise Killed
        calls.append(args)
        replace(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying_replace)
        try:
            new.save_pretrained(folder, **sizes[1])
        except Killed:
            pass
    try:
        again = Classifier.from_pretrained(folder)
    except (OSError, ValueError):
        return
    states = [{k: v.tolist() for k, v in m.state_dict().items()} for m in (again, old, new)]
    assert states[0] == states[1] or states[0] == states[2]


def test_saving_over_a_file(llm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, ValueError), match="file"):
        build(llm()[1]).save_pretrained(tmp_path / "file")


def test_other_files_of_the_folder_stay(llm, tmp_path):
    model = build(llm()[1])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    ViTImageProcessor().save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    assert (tmp_path / "model" / "preprocessor_config.json").exists()


# Trainer's checkpoints


def test_checkpoint_folder_is_light_and_has_module_names(llm, tmp_path):
    model = build(llm()[1], save_weights=True)
    folder = tmp_path / "checkpoint-12"
    model.save_pretrained(folder)
    assert set(stored(folder)) == set(model.state_dict()) - llm_names(model.state_dict())
    assert stored_block(folder)["save_weights"] is False
    again = load(folder)
    assert_same(model, again)
    # nothing about the model in memory changed
    assert model.config.llm_block.save_weights is True
    model.save_pretrained(tmp_path / "final")
    assert llm_names(stored(tmp_path / "final"))
    # only Trainer's own names
    for name in ("checkpoint-", "checkpoint-best", "my-checkpoint-3"):
        model.save_pretrained(tmp_path / name)
        assert stored_block(tmp_path / name)["save_weights"] is True


class Pictures(torch.utils.data.Dataset):
    def __init__(self, count=12):
        generator = torch.Generator().manual_seed(11)
        self.x = torch.randn(count, 3, 8, 8, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": i % 3}


def stock_trainer(model, folder, **arguments):
    arguments = {
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "remove_unused_columns": False,
        "seed": 3,
        **arguments,
    }
    args = TrainingArguments(output_dir=str(folder), **arguments)
    return Trainer(model=model, args=args, train_dataset=Pictures(), eval_dataset=Pictures())


FORMS = {
    "self-contained": {},
    "light": {"save_weights": False},
    "random": {"weights": "random"},
    "trainable": {"trainable": True},
    "several layers": {"layer_index": [0, 2], "final_norm": "pretrained"},
    "low precision": {"layer_dtype": "bfloat16"},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_stock_trainer_resumes_bit_equal(form, llm, tmp_path, caplog):
    _, llm_folder = llm()
    fields = FORMS[form]
    straight = stock_trainer(build(llm_folder, **fields), tmp_path / "straight")
    before = copy.deepcopy(straight.model.state_dict())
    straight.train()
    expected = straight.model.state_dict()
    names = llm_names(expected)
    assert not torch.equal(expected["vit.embeddings.cls_token"], before["vit.embeddings.cls_token"])
    if form != "trainable":
        assert all(torch.equal(expected[n], before[n]) for n in names)
    written = llm_names(stored(tmp_path / "straight" / "checkpoint-4"))
    assert written == (names if form in ("random", "trainable") else set())

    # killed after step 4, started again with another seed's weights
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    resumed = stock_trainer(build(llm_folder, seed=77, **fields), tmp_path / "resumed")
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert not [r for r in caplog.records if "missing keys" in r.getMessage() or "unexpected keys" in r.getMessage()]
    assert_same(straight.model, resumed.model)
    history = [[e["loss"] for e in t.state.log_history if "loss" in e][4:] for t in (straight, resumed)]
    assert history[0] == history[1] and len(history[0]) == 2
    assert {n for n, p in resumed.model.named_parameters() if not p.requires_grad} == {
        n for n, p in straight.model.named_parameters() if not p.requires_grad
    }

    # the last checkpoint is a model, and so is what save_model writes
    last = load(tmp_path / "straight" / "checkpoint-6")
    assert_same(straight.model, last)
    straight.save_model(str(tmp_path / "final"))
    assert stored_block(tmp_path / "final")["save_weights"] is (form != "light")
    if form != "light":
        shutil.rmtree(llm_folder)
    final = load(tmp_path / "final")
    assert_same(straight.model, final)
    assert torch.equal(logits(final), logits(straight.model))


@pytest.mark.parametrize("form", ["self-contained", "light", "random", "trainable"])
def test_stock_trainer_loads_the_best_model(form, llm, tmp_path):
    _, llm_folder = llm()
    scores = iter([0.2, 0.9, 0.5])
    trainer = stock_trainer(
        build(llm_folder, **FORMS[form]),
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
    )
    trainer.compute_metrics = lambda prediction: {"score": next(scores, 0.0)}
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert_same(trainer.model, load(tmp_path / "checkpoint-4"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[4], abs=1e-7)
    assert losses[4] != losses[6]


def test_stock_trainer_from_a_published_host(llm, tmp_path):
    published_vit(tmp_path / "vit")
    _, folder = llm()

    def model(seed):
        torch.manual_seed(seed)
        return Classifier.from_pretrained(
            tmp_path / "vit", llm_block=LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1)
        )

    straight = stock_trainer(model(2), tmp_path / "straight")
    straight.train()
    shutil.rmtree(tmp_path / "straight" / "checkpoint-6")
    resumed = stock_trainer(model(3), tmp_path / "straight")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    assert_same(straight.model, resumed.model)


def test_stock_trainer_without_a_block(tmp_path):
    def model(seed):
        torch.manual_seed(seed)
        return Classifier(ViTWithLLMBlockConfig(**HOST))

    straight = stock_trainer(model(2), tmp_path)
    straight.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = stock_trainer(model(3), tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same(straight.model, resumed.model)


def test_stock_trainer_freezes_the_host(llm, tmp_path):
    model = build(llm()[1])
    model.freeze_host()
    before = copy.deepcopy(model.state_dict())
    trainer = stock_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    changed = {n for n, t in trainer.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
        "classifier.weight",
        "classifier.bias",
    }


def test_stock_trainer_variants(llm, tmp_path):
    llm_model, folder = llm()
    for i, fields in enumerate(
        (
            {"bf16": True},
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
            {"label_smoothing_factor": 0.1},
            {"torch_compile": True, "torch_compile_backend": "eager"},
        )
    ):
        trainer = stock_trainer(build(folder), tmp_path / str(i), max_steps=2, **fields)
        assert torch.isfinite(torch.tensor(trainer.train().training_loss))
        for name, tensor in trainer.model.llm_block.llm_layers[0].state_dict().items():
            assert torch.equal(tensor, decoder_stack(llm_model)[0][1].state_dict()[name]), name


def test_stock_trainer_saves_the_image_processor(llm, tmp_path):
    model = build(llm()[1])
    trainer = stock_trainer(model, tmp_path / "out", max_steps=1, save_steps=1)
    trainer.processing_class = ViTImageProcessor(size={"height": 8, "width": 8})
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert (folder / "preprocessor_config.json").exists()


# Versions of transformers


FLOOR = os.environ.get("HF_FROZEN_LLM_FLOOR_PYTHON")
VERSION_SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from hf_frozen_llm import ViTWithLLMBlockForImageClassification as Model
source, target = sys.argv[1:]
model, info = Model.from_pretrained(source, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
model.eval()
x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
with torch.no_grad():
    state = {"state." + k: v for k, v in model.state_dict().items()}
    save_file({"logits": model(x).logits, **state}, target + "/seen")
frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
assert frozen == {n for n, _ in model.named_parameters() if ".llm_layers." in n or ".final_norm." in n}
model.save_pretrained(target + "/model")
model.save_pretrained(target + "/checkpoint-1")
import transformers
print(transformers.__version__)
"""


@pytest.mark.skipif(
    not FLOOR,
    reason="needs HF_FROZEN_LLM_FLOOR_PYTHON, a Python with the lowest supported transformers and this package",
)
@pytest.mark.parametrize(("family", "save_weights"), [("llama", True), ("llama", False), ("gpt_neox", True)])
def test_folders_of_lowest_and_highest_transformers(family, save_weights, llm, tmp_path):
    """Saved here, loaded exactly on the lowest supported transformers, saved there, loaded exactly here."""
    model = build(llm(family)[1], save_weights=save_weights)
    for name in ("model", "checkpoint-1"):
        model.save_pretrained(tmp_path / "here" / name)
        there = tmp_path / f"there-{name}"
        there.mkdir()
        command = [FLOOR, "-c", VERSION_SCRIPT, str(tmp_path / "here" / name), str(there)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        version = done.stdout.split()[-1]
        assert version != transformers.__version__, "HF_FROZEN_LLM_FLOOR_PYTHON has this same transformers"
        seen = load_file(there / "seen")
        for key, tensor in model.state_dict().items():
            assert torch.equal(seen[f"state.{key}"], tensor), key
        torch.testing.assert_close(seen["logits"], logits(model), rtol=1e-6, atol=1e-6)
        for folder in ("model", "checkpoint-1"):
            again = load(there / folder)
            assert_same(model, again)
            assert torch.equal(logits(again), logits(model))
