# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Loading after a change since the save: the LLM moved, another layer in the configuration, damaged folders."""

import copy
import json
import shutil

import pytest
import torch
from llm_files import write_llm
from safetensors.torch import load_file, save_file
from saved_models import Classifier, assert_same, build, load, logits
from tiny_llms import HOST, tiny_config, tiny_llm
from transformers import AutoModel, AutoModelForImageClassification
from vision_cases import VIT

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockModel
from hf_frozen_llm.commands.info import describe_checkpoint


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


def test_new_configuration_of_another_llm_is_an_error(llm, tmp_path):
    """It has no fingerprint; that of the folder counts."""
    _, folder = llm()
    other = write_llm(tiny_llm(tiny_config("llama"), seed=9), tmp_path / "other")
    model = build(folder, save_weights=False)
    model.save_pretrained(tmp_path / "model")

    def new_config(llm_folder):
        return ViTWithLLMBlockConfig(
            **VIT.fields, llm_block=LLMBlockConfig(llm_name_or_path=str(llm_folder), layer_index=1)
        )

    assert_same(model, load(tmp_path / "model", config=new_config(folder)))
    with pytest.raises(ValueError, match="fingerprint"):
        Classifier.from_pretrained(tmp_path / "model", config=new_config(other))


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
    """The layer is never silently read again, and never random."""
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


@pytest.mark.parametrize("with_block", [True, False])
def test_folder_that_lacks_tensors_beside_the_block(with_block, llm, tmp_path):
    """Neither host nor head is silently random, but a head of another class is new, and a pooler."""
    model = build(llm()[1]) if with_block else VIT.build(None)
    for gone in ("vit.embeddings.cls_token", "classifier.bias"):
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors[gone]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"incomplete: its weights lack \['{gone}'\] of the ViTWithLLMBlockFor"):
            Classifier.from_pretrained(tmp_path)
        if gone.startswith("vit."):
            with pytest.raises(ValueError, match=rf"incomplete: its weights lack \['{gone}'\]"):
                AutoModel.from_pretrained(tmp_path)
    base, info = ViTWithLLMBlockModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"vit.pooler.dense.weight", "vit.pooler.dense.bias"}
    base.save_pretrained(tmp_path)
    _, info = Classifier.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}


def flip_a_bit(folder, name="llm_block.llm_layers.0.mlp.up_proj.weight"):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(torch.int32)[3, 5] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_flipped_bit(llm, tmp_path):
    folder = tmp_path / "model"
    model = build(llm()[1])
    model.save_pretrained(folder)
    assert describe_checkpoint(str(folder), verify=True)["verified"] == "the layer is the one that was saved"
    flip_a_bit(folder)
    with pytest.raises(ValueError, match="damaged: its LLM layer is not the one that was saved") as error:
        Classifier.from_pretrained(folder)
    assert str(folder) in str(error.value)
    with pytest.raises(ValueError, match="damaged: its LLM layer is not the one that was saved"):
        describe_checkpoint(str(folder), verify=True)
    # A cast layer has other bytes, and is not compared.
    model.save_pretrained(folder)
    for dtype in (torch.bfloat16, torch.float64):
        again = load(folder, dtype=dtype)
        again.save_pretrained(tmp_path / "cast")
        assert describe_checkpoint(str(tmp_path / "cast"), verify=True)["verified"].endswith("was saved")
        load(tmp_path / "cast", dtype=dtype)


def test_verified_are_trained_layers_and_given_state_dictionaries(llm, tmp_path):
    model = build(llm()[1], trainable=True)
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.llm_block.llm_layers[0].mlp.up_proj.weight += 0.1
    model.save_pretrained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "given", state_dict=state)
    for name in ("trained", "given"):
        assert describe_checkpoint(str(tmp_path / name), verify=True)["verified"].endswith("was saved")
        flip_a_bit(tmp_path / name)
        with pytest.raises(ValueError, match="damaged"):
            describe_checkpoint(str(tmp_path / name), verify=True)


def test_verifying_a_folder_without_a_saved_fingerprint(llm, tmp_path):
    """The fingerprint of the LLM's checkpoint tells it, if the layer has the same data type."""
    _, llm_folder = llm()
    for final_norm in ("unit", "pretrained"):
        build(llm_folder, final_norm=final_norm).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["llm_block"]["saved_fingerprint"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert describe_checkpoint(str(tmp_path), verify=True)["verified"] == "the layer is the LLM's"
        flip_a_bit(tmp_path)
        assert describe_checkpoint(str(tmp_path), verify=True)["verified"].startswith("unknown")
        Classifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("cut", [0, 100, 0.5, -1])
def test_truncated_folder(cut, llm, tmp_path):
    model = build(llm()[1])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|truncated|incomplete|metadata"):
        Classifier.from_pretrained(tmp_path)
