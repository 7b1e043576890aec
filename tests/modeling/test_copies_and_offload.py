# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models that are copied or averaged, and models on several devices."""

import copy
import io
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights, load_checkpoint_and_dispatch
from distributed_uses import LABELS, frozen_tensors, pixels_of, train_steps
from model_uses import assert_same_function, fast_or_not, logits, three_models
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def norm_of(model):
    """The host's final norm, which stands after the block."""
    return model.vit.layernorm if hasattr(model, "vit") else model._host.norm(model.host)


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@fast_or_not
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch_saved],
    ids=["copy", "pickle", "save"],
)
@three_models
def test_copies_are_equal_and_independent(host, copied, fast, build_model):
    model = build_model(host, fast=fast)
    expected = logits(model, host)
    other = copied(copied(model))
    assert type(other) is type(model) and other.config.to_dict() == model.config.to_dict()
    assert torch.equal(logits(other, host), expected)
    other.train().eval()
    assert frozen_tensors(other).keys() == frozen_tensors(model).keys()
    for part in (lambda m: m.llm_block.input_projection, lambda m: m.llm_block.llm_layers[0].mlp.up_proj, norm_of):
        before = logits(other, host)
        with torch.no_grad():
            part(other).weight.mul_(2)
        assert not torch.equal(logits(other, host), before)
        assert torch.equal(logits(model, host), expected)


@fast_or_not
@three_models
def test_averaged_model(host, fast, build_model):
    model = build_model(host, fast=fast).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    start = copy.deepcopy(model.state_dict())
    train_steps(model, pixels_of(host, 4), LABELS)
    for _ in range(2):
        averaged.update_parameters(model)
    # the first update copies
    assert torch.equal(logits(averaged.eval(), host), logits(model.eval(), host))
    moved = copy.deepcopy(model.state_dict())
    train_steps(model.train(), pixels_of(host, 4), LABELS)
    averaged.update_parameters(model)
    model.eval()
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(tensor, (moved[name] + model.state_dict()[name]) / 2)
        if "llm_layers" in name or "llm_block.final_norm" in name:
            assert torch.equal(tensor, start[name])
    by_hand = build_model(host, fast=fast)
    by_hand.load_state_dict(averaged.module.state_dict())
    assert torch.equal(logits(averaged, host), logits(by_hand, host))
    assert not torch.equal(logits(averaged, host), logits(model, host))


@fast_or_not
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@three_models
def test_device_map(host, device_map, fast, build_model, tmp_path):
    for save_weights in (True, False):
        model = build_model(host, fast=fast, save_weights=save_weights)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(logits(again, host), logits(model, host))
        assert frozen_tensors(again).keys() == frozen_tensors(model).keys()


@pytest.mark.parametrize("on_disk", ["llm_block", "host", "all"])
@three_models
def test_device_map_with_a_disk(host, on_disk, build_model, tmp_path):
    model = build_model(host)
    model.save_pretrained(tmp_path / "model")
    places = {model.base_model_prefix: "cpu", "llm_block": "cpu", "classifier": "cpu"}
    if on_disk == "all":
        places = dict.fromkeys(places, "disk")
    else:
        places[model.base_model_prefix if on_disk == "host" else on_disk] = "disk"
    kwargs = {"device_map": places, "offload_folder": tmp_path / "offload"}
    again = type(model).from_pretrained(tmp_path / "model", **kwargs)
    offloaded = [name for name, p in again.named_parameters() if p.is_meta]
    assert any(name.startswith(("llm_block.", f"{model.base_model_prefix}.")) for name in offloaded)
    assert_same_function(logits(again, host), logits(model, host))


@three_models
def test_light_model_does_not_put_its_block_on_the_disk(host, build_model, tmp_path):
    model = build_model(host, save_weights=False)
    model.save_pretrained(tmp_path / "model")
    places = {model.base_model_prefix: "cpu", "classifier": "cpu", "llm_block": "disk"}
    with pytest.raises(ValueError, match=r"disk.*save_weights"):
        type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")


@fast_or_not
@pytest.mark.parametrize("offload", ["cpu", "disk"])
@three_models
def test_accelerate_offload(host, offload, fast, build_model, tmp_path):
    model = build_model(host, fast=fast)
    expected = logits(model, host)
    if offload == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    for _ in range(2):
        assert_same_function(logits(model, host), expected)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@three_models
def test_load_checkpoint_and_dispatch(host, build_model, tmp_path):
    """accelerate reads the names of the modules, which a folder has with `save_original_format=False`."""
    model = build_model(host)
    model.save_pretrained(tmp_path, save_original_format=False)
    with init_empty_weights(include_buffers=False):
        empty = type(model)(model.config)
    again = load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"}).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
