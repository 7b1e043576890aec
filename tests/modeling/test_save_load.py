# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""All kinds of saving and loading: self-contained and light folders, changed layers, damage, interrupted saves."""

import copy
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading

import pytest
import torch
import transformers
from safetensors.torch import load_file
from saved_models import Classifier, assert_frozen, assert_same, build, llm_names, load, logits, stored, stored_block
from tiny_llms import HOST, published_vit, tiny_config
from transformers import AutoModel, ViTImageProcessor

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockModel


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
    # an incomplete folder is not a model, and no temporary files remain
    with pytest.raises(OSError):
        Classifier.from_pretrained(tmp_path / "first")
    assert {p.name for p in tmp_path.iterdir()} - {"first"} == {"model", "llm_llama"}
    model.save_pretrained(folder)
    assert_same(model, load(folder))


def test_killed_save_leaves_the_old_model(llm, tmp_path):
    """The process stops while it writes the weights."""
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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    model = load(folder)
    assert len(list(folder.glob(".saving-*"))) == 1
    model.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == set(before)


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
@pytest.mark.parametrize("forms", [("whole", "whole"), ("whole", "shards"), ("shards", "whole"), ("shards", "shards")])
def test_save_killed_while_files_are_replaced(forms, renames, llm, tmp_path):
    """Between two renames: the folder is the old model, the new model, or an error that says how to finish it."""
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
    if not (folder / "config.json").exists():
        (leftover,) = folder.glob(".replacing-*")
        with pytest.raises(OSError, match=f"was interrupted .* move the files of {leftover}"):
            Classifier.from_pretrained(folder)
        finished = shutil.copytree(folder, tmp_path / "finished")
        for file in (finished / leftover.name).iterdir():
            file.rename(finished / file.name)
        assert_same(new, load(finished))
    else:
        again = load(folder)
        states = [{k: v.tolist() for k, v in m.state_dict().items()} for m in (again, old, new)]
        assert states[0] == states[1] or states[0] == states[2]
    new.save_pretrained(folder, **sizes[1])
    assert_same(new, load(folder))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def together(*saves, monkeypatch):
    """Run saves in threads that write their weights at the same time."""
    barrier, write, errors = threading.Barrier(len(saves)), transformers.modeling_utils.safe_save_file, []

    def write_together(*args, **kwargs):
        barrier.wait(30)
        write(*args, **kwargs)
        barrier.wait(30)

    def run(save):
        try:
            save()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", write_together)
    threads = [threading.Thread(target=run, args=(save,)) for save in saves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert not errors, errors


def test_saving_from_two_threads(llm, tmp_path, monkeypatch):
    """A light and a self-contained folder at the same time: each has the layer or not, as its `config.json` says."""
    model = build(llm()[1])
    before = copy.deepcopy(model.config.to_dict())
    folders = [tmp_path / "model", tmp_path / "checkpoint-1"]
    together(*(functools.partial(model.save_pretrained, folder) for folder in folders), monkeypatch=monkeypatch)
    for folder in folders:
        is_whole = folder.name == "model"
        assert stored_block(folder)["save_weights"] is is_whole
        assert bool(llm_names(stored(folder))) is is_whole
        assert_same(model, load(folder))
    assert model.config.to_dict() == before


def test_other_saves_take_the_new_folder_for_a_leftover(llm, tmp_path, monkeypatch):
    """The first one removes it before it can be locked, the second one locks it: the save begins with a third."""
    model, make, taken = build(llm()[1]), tempfile.mkdtemp, []

    def make_and_lose(*args, **kwargs):
        folder = make(*args, **kwargs)
        if "saving" in folder and len(taken) < 2:
            taken.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(taken[-1], fcntl.LOCK_EX)
            threading.Timer(0.02, os.rmdir, (folder,)).start() if len(taken) == 2 else os.rmdir(folder)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    model.save_pretrained(tmp_path / "model")
    assert len(taken) == 2
    assert_same(model, load(tmp_path / "model"))


def test_two_threads_save_into_one_folder(llm, tmp_path, monkeypatch):
    folder, llm_folder = tmp_path / "model", llm()[1]
    models = [build(llm_folder, seed=seed) for seed in (2, 3)]
    models[0].save_pretrained(folder)
    together(*(functools.partial(model.save_pretrained, folder) for model in models), monkeypatch=monkeypatch)
    again = load(folder)
    assert any(
        all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        for model in models
    )
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


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
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
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
