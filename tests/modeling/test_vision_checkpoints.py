# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The generic class: published checkpoints of every host, saved folders, and the plain host in them."""

import json
import os
import subprocess

import pytest
import torch
import transformers
from model_cases import PROJECTIONS
from safetensors.torch import load_file
from tiny_hosts import HOSTS, plain_host, vision_model
from tiny_llms import decoder_stack
from transformers import AttentionInterface, AutoModel, AutoModelForImageClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_frozen_llm import (
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
    ViTWithLLMBlockForImageClassification,
)


CLASSIFIER = {"classifier.weight", "classifier.bias"}
every_host = pytest.mark.parametrize("host", HOSTS)


@pytest.mark.host_table("loads")
@pytest.mark.parametrize("checkpoint", ["classifier", "base"])
@every_host
def test_published_checkpoint_loads(host, checkpoint, published, block, llm_folder):
    """Only the block, the classifier and modules that transformers' own classifier drops are missing or unexpected."""
    with_head = checkpoint == "classifier"
    if with_head and HOSTS[host].own_classifier == "none":
        with_head = False
    own, folder = published(host, with_head)
    expected_missing = set() if with_head else CLASSIFIER
    model, info = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        folder, llm_block=block(), pooling=HOSTS[host].pooling, output_loading_info=True
    )
    dropped_by_transformers = set()
    if HOSTS[host].own_classifier != "none":
        reference, _ = published(host, True)
        dropped_by_transformers = type(reference).from_pretrained(folder, output_loading_info=True)[1][
            "unexpected_keys"
        ]
    missing = {key for key in info["missing_keys"] if ".pooler." not in key}
    assert missing == PROJECTIONS | expected_missing
    if host == "data2vec_vision_mean" and not with_head:
        # its base model has no pooler, and the final norm is in the pooler
        assert info["missing_keys"] - missing == {f"data2vec_vision.pooler.layernorm.{n}" for n in ("weight", "bias")}
    else:
        assert info["missing_keys"] == missing
    assert {key for key in info["unexpected_keys"] if "pooler" not in key} <= set(dropped_by_transformers)
    assert not info["mismatched_keys"]

    source = own.state_dict()
    for name, tensor in model.host.state_dict().items():
        found = [key for key in source if key == name or key.endswith(f".{name}")]
        if ".pooler." in f".{name}" and not found:
            continue
        assert any(torch.equal(source[key], tensor) for key in found), name
    layer = decoder_stack(llm_folder("llama")[0])[0][1].state_dict()
    for name, tensor in model.llm_block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, layer[name]), name
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))
    }
    assert not model.training


@pytest.mark.host_table("loads")
@every_host
def test_saved_model_loads(host, block, tmp_path):
    """Under its host's published names, with head and without, light and whole, by the Auto classes, bit for bit."""
    model = vision_model(host, block())
    x = HOSTS[host].pixels()
    model.save_pretrained(tmp_path / "model")
    base = vision_model(host, block(save_weights=False), VisionWithLLMBlockModel)
    base.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for folder, auto, cls, saved, allowed in (
            ("model", AutoModelForImageClassification, type(model), model, set()),
            ("base", AutoModel, type(base), base, set()),
            ("model", AutoModel, VisionWithLLMBlockModel, None, set()),
            ("base", AutoModelForImageClassification, type(model), None, CLASSIFIER),
        ):
            again, info = auto.from_pretrained(tmp_path / folder, output_loading_info=True)
            assert type(again) is cls
            assert info["missing_keys"] == allowed
            assert info["unexpected_keys"] <= CLASSIFIER
            assert again.config.pooling == HOSTS[host].pooling
            if saved is not None:
                assert torch.equal(again(x)[0], saved(x)[0])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["out_features"] is None
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    plain_host(model).save_pretrained(tmp_path / "plain")
    prefix = f"{model.base_model_prefix}."
    written = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert written == {name.removeprefix(prefix) for name in load_file(tmp_path / "plain" / "model.safetensors")}
    assert not any(name.startswith("llm_block.llm") for name in load_file(tmp_path / "base" / "model.safetensors"))


def test_a_checkpoint_that_lacks_weights_of_the_host(published, tmp_path):
    with pytest.raises(ValueError, match=r"no fitting weights for .* tensors of the host: dinov2\.encoder\.layer\.3"):
        VisionWithLLMBlockModel.from_host_pretrained(published("dinov2")[1], num_hidden_layers=5)
    with pytest.raises(
        ValueError, match=r"no fitting weights for 3 tensors of the host: swin.*relative_position_bias"
    ):
        VisionWithLLMBlockModel.from_host_pretrained(published("swin")[1], window_size=2)


def test_a_classifier_that_does_not_fit_is_not_replaced_unasked(published, block):
    with pytest.raises(ValueError, match=r"has the shape \(3, 48\), and here \(3, 24\) with pooling='cls'.*cls_mean"):
        VisionWithLLMBlockForImageClassification.from_host_pretrained(published("dinov2")[1], llm_block=block())
    model = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        published("dinov2")[1], llm_block=block(), num_labels=3, ignore_mismatched_sizes=True
    )
    assert model.classifier.in_features == 24


def test_arguments_of_the_whole_model(published, block):
    folder = published("dinov2", False)[1]
    load = VisionWithLLMBlockModel.from_host_pretrained
    assert load(folder, llm_block=block(), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    model = load(folder, llm_block=block(), output_hidden_states=True, return_dict=False)
    assert isinstance(model(HOSTS["dinov2"].pixels()), tuple)
    assert len(model(HOSTS["dinov2"].pixels(), return_dict=True).hidden_states) == 5


def test_attention_that_does_not_run_on_the_meta_device(block):
    """The trial run of a host uses eager attention, whatever the host's own implementation."""
    seen = []

    def attention(module, query, key, value, mask, **kwargs):
        assert not query.is_meta
        seen.append(type(module).__name__)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    AttentionInterface.register("not_on_meta", attention)
    config = VisionWithLLMBlockConfig(vision_config=HOSTS["dinov2"].config())
    model = AutoModel.from_config(config, attn_implementation="not_on_meta").eval()
    with torch.no_grad():
        out = model(HOSTS["dinov2"].pixels())
    assert torch.isfinite(out.last_hidden_state).all() and len(seen) == 3


def test_new_labels_replace_the_head(published, block):
    model, info = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        published("swin")[1], llm_block=block(), num_labels=7, output_loading_info=True
    )
    assert model.config.num_labels == model.classifier.out_features == len(model.config.id2label) == 7
    assert {key for key, *_ in info["mismatched_keys"]} == CLASSIFIER
    named = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        published("swin")[1], id2label={0: "ant", 1: "bee"}, label2id={"ant": 0, "bee": 1}
    )
    assert named.config.id2label == {0: "ant", 1: "bee"} and named.classifier.out_features == 2
    kept = VisionWithLLMBlockForImageClassification.from_host_pretrained(published("swin")[1])
    assert torch.equal(kept.classifier.weight, published("swin")[0].classifier.weight)


@pytest.mark.parametrize("host", ["dinov2", "clip"])
def test_fields_of_the_host_can_be_given(host, published):
    folder = published(host, False)[1]
    model = VisionWithLLMBlockModel.from_host_pretrained(folder, hidden_act="relu", layer_norm_eps=1e-3)
    assert model.host.config.hidden_act == "relu" and model._host.norm(model.host).eps == 1e-3
    assert model.host.config.hidden_size == HOSTS[host].fields["hidden_size"]
    with pytest.raises(ValueError, match="no fitting weights"):
        VisionWithLLMBlockModel.from_host_pretrained(folder, num_hidden_layers=5)


def test_vit_class_from_host_pretrained(published, block):
    model, info = ViTWithLLMBlockForImageClassification.from_host_pretrained(
        published("vit")[1], llm_block=block(), num_labels=7, output_loading_info=True
    )
    assert set(info["missing_keys"]) == PROJECTIONS
    assert model.classifier.out_features == 7
    with pytest.raises(ValueError, match="no fitting weights"):
        ViTWithLLMBlockForImageClassification.from_host_pretrained(published("vit")[1], num_hidden_layers=4)


def test_from_the_hub(published, block, hub):
    hub.add("somebody/dinov2", published("dinov2")[1])
    model = VisionWithLLMBlockModel.from_host_pretrained("somebody/dinov2", llm_block=block(), revision="main")
    assert model.config.vision_config.model_type == "dinov2"
    with pytest.raises(OSError, match="somebody/nothing"):
        VisionWithLLMBlockModel.from_host_pretrained("somebody/nothing", llm_block=block())


def test_the_other_way_to_load_is_named(published, block, tmp_path):
    vision_model("dinov2", block()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is not a plain host but a saved model of this class: load it by from_pretrained"
    ):
        VisionWithLLMBlockModel.from_host_pretrained(tmp_path, llm_block=block())
    with pytest.raises(ValueError, match="from_host_pretrained"):
        VisionWithLLMBlockModel.from_pretrained(published("dinov2")[1], llm_block=block())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_dtype(dtype, published, block):
    kwargs = {} if dtype is None else {"dtype": dtype}
    model = VisionWithLLMBlockModel.from_host_pretrained(published("dinov2")[1], llm_block=block(), **kwargs)
    assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
    half = HOSTS["dinov2"].config(dtype="float16")
    built = VisionWithLLMBlockModel(VisionWithLLMBlockConfig(vision_config=half, llm_block=block()))
    assert {p.dtype for p in built.parameters()} == {torch.float32}


# The plain host


@pytest.mark.host_table("equals AutoModel")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@every_host
def test_without_a_block_it_is_auto_model(host, attn, published):
    model = VisionWithLLMBlockModel.from_host_pretrained(published(host, False)[1], attn_implementation=attn).eval()
    own_class = type(model.host)
    own = own_class.from_pretrained(published(host, False)[1], attn_implementation=attn).eval()
    fields = {"output_hidden_states": True, "output_attentions": attn == "eager"}
    expected, out = own(HOSTS[host].pixels(), **fields), model(HOSTS[host].pixels(), **fields)
    assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    assert len(out.hidden_states) == len(expected.hidden_states) > 1
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, expected.hidden_states))
    if attn == "eager":
        assert len(out.attentions) == len(expected.attentions) >= 2
        assert all(torch.equal(a, b) for a, b in zip(out.attentions, expected.attentions))
    expected.last_hidden_state.square().sum().backward()
    out.last_hidden_state.square().sum().backward()
    gradients = {name: p.grad for name, p in model.host.named_parameters()}
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(gradients[name], parameter.grad), name


@pytest.mark.host_table("equals AutoModel")
@pytest.mark.parametrize("host", [name for name, host in HOSTS.items() if host.own_classifier == "same"])
def test_without_a_block_the_classifier_is_transformers_own(host, published):
    own, folder = published(host)
    model, info = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        folder, pooling=HOSTS[host].pooling, output_loading_info=True
    )
    assert not info["missing_keys"]
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        expected, out = own(HOSTS[host].pixels(), labels=labels), model(HOSTS[host].pixels(), labels=labels)
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.host_table("equals AutoModel")
@every_host
def test_a_block_that_adds_nothing_leaves_auto_model(host, block):
    """The host up to its final norm, then that norm: with the block's output zero and a residual around it."""
    model = vision_model(host, block(residual="outer"), VisionWithLLMBlockModel)
    same_seed = vision_model(host, None).host.state_dict()
    assert all(torch.equal(same_seed[name], tensor) for name, tensor in model.host.state_dict().items())
    torch.nn.init.zeros_(model.llm_block.output_projection.weight)
    with torch.no_grad():
        expected = plain_host(model)(HOSTS[host].pixels()).last_hidden_state
        out = model(HOSTS[host].pixels()).last_hidden_state
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_transformers_own_classes_are_left_alone(published, block):
    """The norm of other models still works, and nothing that a host caches is left on the meta device."""
    for name in ("beit", "swin", "dinov2", "dinov3_vit"):
        VisionWithLLMBlockModel.from_host_pretrained(published(name, False)[1], llm_block=block())
        own, folder = published(name, False)
        with torch.no_grad():
            again = AutoModel.from_pretrained(folder).eval()(HOSTS[name].pixels())
            assert torch.isfinite(again.last_hidden_state).all()
            assert torch.equal(again.last_hidden_state, own(HOSTS[name].pixels()).last_hidden_state)


# Versions of transformers


FLOOR = os.environ.get("HF_FROZEN_LLM_FLOOR_PYTHON")
VERSION_SCRIPT = """
import sys, torch, transformers
from hf_frozen_llm import VisionWithLLMBlockForImageClassification as Model
for host in sys.argv[1:]:
    model, info = Model.from_pretrained(f"here/{host}", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (host, info)
    with torch.no_grad():
        torch.save(model.eval()(torch.load(f"here/{host}.pt")).logits, f"there/{host}.pt")
    model.save_pretrained(f"there/{host}")
print(transformers.__version__)
"""


@pytest.mark.skipif(
    not FLOOR,
    reason="needs HF_FROZEN_LLM_FLOOR_PYTHON, a Python with the lowest supported transformers and this package",
)
def test_folders_of_lowest_and_highest_transformers(block, tmp_path):
    """Every host, saved here, loaded exactly on the lowest transformers, saved there, loaded exactly here."""
    # transformers 5.17 itself cannot read the published names of VideoMAE's biases.
    hosts = [name for name in HOSTS if name != "videomae"]
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    models = {name: vision_model(name, block()) for name in hosts}
    for name, model in models.items():
        model.save_pretrained(tmp_path / "here" / name)
        torch.save(HOSTS[name].pixels(), tmp_path / "here" / f"{name}.pt")
    command = [FLOOR, "-c", VERSION_SCRIPT, *hosts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] != transformers.__version__
    for name, model in models.items():
        again = VisionWithLLMBlockForImageClassification.from_pretrained(tmp_path / "there" / name).eval()
        with torch.no_grad():
            logits = model(HOSTS[name].pixels()).logits
            assert torch.equal(again(HOSTS[name].pixels()).logits, logits), name
        torch.testing.assert_close(torch.load(tmp_path / "there" / f"{name}.pt"), logits, rtol=1e-5, atol=1e-6)
