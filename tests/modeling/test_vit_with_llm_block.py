# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from references import relative_error
from safetensors.torch import load_file
from tiny_llms import HOST, decoder_stack, published_vit
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_frozen_llm import (
    LLMBlockConfig,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(plain ViT classifier, its published folder)"""
    folder = tmp_path_factory.mktemp("vit")
    return published_vit(folder), str(folder)


@pytest.fixture
def block(llm_folder):
    return lambda family="llama", **fields: LLMBlockConfig(
        **{"llm_name_or_path": llm_folder(family)[1], "layer_index": 1, **fields}
    )


def pictures(batch=2, size=8, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(4))


def build(plain, llm_block, **kwargs):
    torch.manual_seed(2)
    model = ViTWithLLMBlockForImageClassification.from_pretrained(plain[1], llm_block=llm_block, **kwargs)
    return model.eval()


def by_hand(model, pixel_values, position):
    """The same function out of the model's own parts, the block after `position` layers. Returns (logits, states)."""
    vit, states = model.vit, []
    hidden = vit.embeddings(pixel_values)
    states.append(hidden)
    for index in range(len(vit.layers) + 1):
        if index == position:
            hidden = model.llm_block(hidden)
            states.append(hidden)
        if index < len(vit.layers):
            hidden = vit.layers[index](hidden)
            states.append(hidden)
    return model.classifier(vit.layernorm(hidden)[:, 0]), states


# Ways in


def test_published_checkpoint_is_written_under_old_names(plain):
    # guards the fixture
    names = load_file(plain[1] + "/model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names


@pytest.mark.host_table("loads", host="vit_class")
@pytest.mark.parametrize("head", ["same labels", "other labels"])
def test_from_a_published_vit(head, plain, block, llm_folder):
    fields = {} if head == "same labels" else {"num_labels": 7, "ignore_mismatched_sizes": True}
    model, info = ViTWithLLMBlockForImageClassification.from_pretrained(
        plain[1], llm_block=block(), output_loading_info=True, **fields
    )
    assert not info["unexpected_keys"]
    allowed = {"llm_block.input_projection.weight", "llm_block.output_projection.weight"}
    assert set(info["missing_keys"]) == allowed
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    assert mismatched == (set() if head == "same labels" else {"classifier.weight", "classifier.bias"})
    expected = plain[0].vit.state_dict()
    assert model.vit.state_dict().keys() == expected.keys()
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in model.llm_block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, decoder_stack(llm_folder("llama")[0])[0][1].state_dict()[name])
    assert model.config.num_labels == (3 if head == "same labels" else 7)
    assert not model.training


@pytest.mark.host_table("loads", host="vit_class")
@pytest.mark.parametrize("cls", [ViTWithLLMBlockModel, ViTWithLLMBlockForImageClassification])
def test_from_a_published_base_model(cls, block, tmp_path):
    base = published_vit(tmp_path, with_head=False)
    model, info = cls.from_pretrained(tmp_path, llm_block=block(), output_loading_info=True)
    # a classifier has no pooler
    assert set(info["unexpected_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert {k.split(".")[0] for k in info["missing_keys"]} <= {"llm_block", "classifier"}
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name]), name


@pytest.mark.host_table("loads", host="vit_class")
def test_base_model_from_a_published_classifier(plain, block):
    model, info = ViTWithLLMBlockModel.from_pretrained(
        plain[1], llm_block=block(), add_pooling_layer=False, output_loading_info=True
    )
    assert set(info["unexpected_keys"]) <= {"classifier.weight", "classifier.bias"}
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, plain[0].vit.state_dict()[name]), name


def test_from_a_config(block):
    config = ViTWithLLMBlockConfig(**HOST, llm_block=block())
    for model in (
        ViTWithLLMBlockForImageClassification(config),
        AutoModelForImageClassification.from_config(config),
        ViTWithLLMBlockForImageClassification(ViTWithLLMBlockConfig(**HOST, llm_block=block().to_dict())),
    ):
        assert model(pictures()).logits.shape == (2, 3)
        assert model.llm_block.bytes_read > 0
    assert type(AutoModel.from_config(config)) is ViTWithLLMBlockModel


def test_one_block_config_for_two_hosts(block):
    one = block()
    for width in (24, 32):
        config = ViTWithLLMBlockConfig(**{**HOST, "hidden_size": width}, llm_block=one)
        assert ViTWithLLMBlockForImageClassification(config).llm_block.config.hidden_size == width


def test_llm_config_travels_with_the_model(plain, block):
    model = build(plain, block())
    assert model.config.llm_block.llm_config.model_type == "llama"
    assert model.config.llm_block.fingerprint == model.llm_block.config.fingerprint is not None
    assert model.config.llm_block is model.llm_block.config


# The plain host


@pytest.mark.host_table("equals AutoModel", host="vit_class")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("way", ["published", "config"])
def test_without_a_block_it_is_the_plain_vit(attn, way, plain):
    expected_model = ViTForImageClassification.from_pretrained(plain[1], attn_implementation=attn).eval()
    if way == "published":
        model, info = ViTWithLLMBlockForImageClassification.from_pretrained(
            plain[1], attn_implementation=attn, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
    else:
        model = AutoModelForImageClassification.from_config(ViTWithLLMBlockConfig(**HOST), attn_implementation=attn)
        model.load_state_dict(expected_model.state_dict())
    model.eval()
    assert model.llm_block is None
    labels = torch.tensor([0, 2])
    attentions = attn == "eager"
    fields = {"labels": labels, "output_hidden_states": True, "output_attentions": attentions}
    expected, out = expected_model(pictures(), **fields), model(pictures(), **fields)
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)
    assert len(out.hidden_states) == len(expected.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, expected.hidden_states))
    if attentions:
        assert len(out.attentions) == len(expected.attentions) == 3
        assert all(torch.equal(a, b) for a, b in zip(out.attentions, expected.attentions))
    expected.loss.backward()
    out.loss.backward()
    gradients = dict(model.named_parameters())
    for name, parameter in expected_model.named_parameters():
        assert torch.equal(gradients[name].grad, parameter.grad), name
    assert type(out) is type(expected)


@pytest.mark.host_table("equals AutoModel", host="vit_class")
def test_base_model_without_a_block(tmp_path):
    base = published_vit(tmp_path, with_head=False)
    model = ViTWithLLMBlockModel.from_pretrained(tmp_path).eval()
    expected, out = base(pictures(), output_hidden_states=True), model(pictures(), output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(out.pooler_output, expected.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, expected.hidden_states))


def test_same_seed_same_host_with_and_without_block(block):
    """The two rows of a comparison start from the same host weights."""
    states = []
    for llm_block in (None, block()):
        torch.manual_seed(3)
        model = ViTWithLLMBlockForImageClassification(ViTWithLLMBlockConfig(**HOST, llm_block=llm_block))
        states.append(model.vit.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


# Positions and outputs


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("position", [-1, 0, 1, 2, 3])
def test_position(position, attn, plain, block):
    model = build(plain, block(position=position), attn_implementation=attn)
    with torch.no_grad():
        out = model(pictures(), output_hidden_states=True, output_attentions=attn == "eager")
        logits, states = by_hand(model, pictures(), 3 if position == -1 else position)
    assert torch.equal(out.logits, logits)
    # the block adds one hidden state, at its place
    assert len(out.hidden_states) == len(states) == 5
    for seen, expected in zip(out.hidden_states, states):
        assert torch.equal(seen, expected)
    if attn == "eager":
        assert len(out.attentions) == 4
        heads = [a.shape[1] for a in out.attentions]
        place = 3 if position == -1 else position
        assert heads[place] == 4 and heads[:place] + heads[place + 1 :] == [2, 2, 2]
        for attention in out.attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))


def test_position_minus_one_is_after_the_last(plain, block):
    models = [build(plain, block(position=p)) for p in (-1, 3)]
    with torch.no_grad():
        assert torch.equal(models[0](pictures()).logits, models[1](pictures()).logits)


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "opt",
        "gpt2",
        "gemma3_text",
        "gpt_neox",
        "bloom",
        "mpt",
        "phi",
        "falcon",
        "gptj",
        "gpt_neo",
        "mixtral",
        "gpt_oss",
    ],
)
def test_attentions_of_every_family(family, plain, block):
    model = build(plain, block(family), attn_implementation="eager")
    with torch.no_grad():
        out = model(pictures(), output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 4 and len(out.hidden_states) == 5
    attention = out.attentions[3]
    heads = model.config.llm_block.llm_config.num_attention_heads
    assert attention.shape == (2, heads, 5, 5)
    assert (attention >= 0).all() and (attention.sum(-1) < 1.001).all() and attention.sum() > 0
    # every token sees every token
    assert (attention > 0).all()


def test_attentions_of_several_layers(plain, block):
    model = build(plain, block(layer_index=[0, 1]), attn_implementation="eager")
    with torch.no_grad():
        out = model(pictures(), output_attentions=True, output_hidden_states=True)
    assert [a.shape[1] for a in out.attentions] == [2, 2, 2, 4, 4]
    assert len(out.hidden_states) == 5


def test_outputs_follow_the_config_and_return_dict(plain, block):
    model = build(plain, block())
    with torch.no_grad():
        assert model(pictures()).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(pictures()).hidden_states) == 5
        model.config.output_hidden_states = False
        out = model(pictures(), labels=torch.tensor([0, 1]), return_dict=False)
    assert isinstance(out, tuple) and len(out) == 2 and out[1].shape == (2, 3)


def test_last_hidden_state_of_the_base_model(plain, block):
    model = build(plain, block())
    base = ViTWithLLMBlockModel(model.config, add_pooling_layer=False).eval()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("classifier")})
    with torch.no_grad():
        out = base(pictures())
        assert out.last_hidden_state.shape == (2, 5, 24)
        # The classifier has the block compute the CLS token alone.
        logits = model.classifier(out.last_hidden_state[:, 0])
        torch.testing.assert_close(logits, model(pictures()).logits, rtol=1e-5, atol=1e-6)


def test_sdpa_equals_eager(plain, block):
    logits = []
    for attn in ("sdpa", "eager"):
        model = build(plain, block(), attn_implementation=attn)
        assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {attn}
        with torch.no_grad():
            logits.append(model(pictures()).logits)
    assert relative_error(logits[0], logits[1]) < 1e-5


def test_attention_per_part(plain, block):
    model = build(plain, block(), attn_implementation={"": "sdpa", "llm_block": "eager"})
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        out = model(pictures())
    layers = {m.config._attn_implementation for m in model.llm_block.llm_layers.modules() if hasattr(m, "config")}
    assert layers == {"eager"}
    with torch.no_grad():
        assert relative_error(out.logits, build(plain, block())(pictures()).logits) < 1e-5


def test_llm_without_sdpa_in_an_sdpa_host(plain, block):
    model = build(plain, block("gemma2"), attn_implementation="sdpa")
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.isfinite(model(pictures()).logits).all()


def test_attention_mask_of_the_tokens(plain, block):
    model = build(plain, block())
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, 3] = 0
    with torch.no_grad():
        out = model(pictures(), attention_mask=mask).logits
        other = model(pictures()).logits
    assert torch.equal(out[1], other[1]) or relative_error(out[1], other[1]) < 1e-5
    assert relative_error(out[0], other[0]) > 1e-4


# Training


@pytest.mark.parametrize(
    ("labels", "fields", "problem"),
    [
        (torch.tensor([0, 2]), {}, "single_label_classification"),
        (torch.rand(2, 3), {}, "multi_label_classification"),
        (torch.rand(2), {"num_labels": 1}, "regression"),
    ],
)
def test_losses_are_those_of_the_plain_vit(labels, fields, problem, block):
    config = ViTWithLLMBlockConfig(**{**HOST, **fields})
    model, plain_model = (
        ViTWithLLMBlockForImageClassification(config),
        ViTForImageClassification(copy.deepcopy(config)),
    )
    plain_model.load_state_dict(model.state_dict())
    assert torch.equal(model(pictures(), labels=labels).loss, plain_model(pictures(), labels=labels).loss)
    assert model.config.problem_type == problem
    with_block = ViTWithLLMBlockForImageClassification(ViTWithLLMBlockConfig(**{**HOST, **fields}, llm_block=block()))
    assert with_block(pictures(), labels=labels).loss.requires_grad


def test_num_items_in_batch_reaches_the_loss(plain, block):
    model = build(plain, block())
    labels = torch.tensor([0, 2])
    loss = model(pictures(), labels=labels).loss
    scaled = model(pictures(), labels=labels, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(scaled, loss * 2 / 8)


def test_freeze_host_and_counts(plain, block, capsys):
    model = build(plain, block())
    frozen = (
        sum(p.numel() for p in model.llm_block.llm_layers.parameters()) + model.llm_block.final_norm.weight.numel()
    )
    total = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == total
    assert model.num_parameters(only_trainable=True) == total - frozen
    model.print_trainable_parameters()
    line = capsys.readouterr().out
    assert f"{total - frozen:,d}" in line and f"{total:,d}" in line
    model.freeze_host()
    model.train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
        "classifier.weight",
        "classifier.bias",
    }
    model(pictures(), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is None for p in model.vit.parameters())


def test_learns(plain, block):
    """A few steps reduce the loss, and the LLM layer stays as it is."""
    model = build(plain, block()).train()
    before = copy.deepcopy(model.llm_block.llm_layers.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    x, labels = pictures(6), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(x, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, tensor in model.llm_block.llm_layers.state_dict().items():
        assert torch.equal(tensor, before[name])


# Types, devices, sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, "auto", None])
def test_dtype(dtype, plain, block, tmp_path):
    kwargs = {} if dtype is None else {"dtype": dtype}
    model = build(plain, block(), **kwargs)
    expected = dtype if isinstance(dtype, torch.dtype) else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}
    with torch.no_grad():
        out = model(pictures().to(expected)).logits
        assert out.dtype == expected
        assert relative_error(out, build(plain, block())(pictures()).logits) < 0.05
    model.save_pretrained(tmp_path)
    again = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {expected}
    with torch.no_grad():
        assert torch.equal(again(pictures().to(expected)).logits, out)


def test_low_precision_layer_in_a_float32_model(plain, block):
    model = build(plain, block(layer_dtype="bfloat16"))
    assert model.dtype == torch.float32
    assert {p.dtype for p in model.llm_block.llm_layers.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vit.parameters()} == {torch.float32}
    model.train()(pictures(), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)


def test_published_host_with_a_device_map(plain, block):
    with torch.no_grad():
        expected = build(plain, block())(pictures()).logits
        assert torch.equal(build(plain, block(), device_map="cpu")(pictures()).logits, expected)
        assert torch.equal(build(plain, block(), device_map="auto")(pictures()).logits, expected)


def test_interpolate_pos_encoding(plain, block):
    model = build(plain, block())
    with torch.no_grad():
        out = model(pictures(size=12), interpolate_pos_encoding=True, output_hidden_states=True)
        assert out.logits.shape == (2, 3)
        assert out.hidden_states[0].shape == (2, 10, 24)
        expected = plain[0].vit.embeddings(pictures(size=12), interpolate_pos_encoding=True)
        assert torch.equal(out.hidden_states[0], expected)
        same = model(pictures(), interpolate_pos_encoding=True).logits
        assert relative_error(same, model(pictures()).logits) < 1e-5


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.zeros(2, 3, 12, 12), ["12", "8", "image_size", "interpolate_pos_encoding"]),
        (torch.zeros(2, 3, 8, 16), ["16", "image_size"]),
        (torch.zeros(2, 1, 8, 8), ["num_channels", "3", "1"]),
        (torch.zeros(2, 4, 8, 8), ["num_channels", "4"]),
        (torch.zeros(3, 8, 8), ["pixel_values"]),
        (None, ["pixel_values"]),
    ],
)
@pytest.mark.parametrize("with_block", [True, False])
def test_wrong_pictures(picture, words, with_block, plain, block):
    model = build(plain, block() if with_block else None)
    with pytest.raises(ValueError, match="pixel_values") as error:
        model(pixel_values=picture)
    assert all(word in str(error.value) for word in words)


def test_frozen_set(plain, block):
    model = build(plain, block())
    for change in (
        lambda m: m,
        lambda m: m.train(),
        copy.deepcopy,
        lambda m: m.to(torch.bfloat16),
        lambda m: m.float(),
        lambda m: m.requires_grad_(True).train(),
        lambda m: copy.deepcopy(m).eval(),
    ):
        model = change(model)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {
            n for n, _ in model.named_parameters() if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))
        }


def test_state_dict_keys(plain, block):
    keys = set(build(plain, block(layer_index=[0, 1])).state_dict())
    names = {k for k in keys if not k.startswith("vit.")}
    layers = {k for k in names if k.startswith("llm_block.llm_layers.")}
    assert "llm_block.llm_layers.1.self_attn.q_proj.weight" in layers
    assert {k.split(".")[2] for k in layers} == {"0", "1"}
    assert names - layers == {
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
        "llm_block.final_norm.weight",
        "classifier.weight",
        "classifier.bias",
    }


# Auto classes, pipeline, remote code


@pytest.fixture
def saved(plain, block, tmp_path):
    model = build(plain, block())
    model.config.id2label = {0: "cat", 1: "dog", 2: "bird"}
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return model, folder


def test_auto_classes(saved):
    model, folder = saved
    assert type(AutoConfig.from_pretrained(folder)) is ViTWithLLMBlockConfig
    again = AutoModelForImageClassification.from_pretrained(folder)
    assert type(again) is ViTWithLLMBlockForImageClassification
    base = AutoModel.from_pretrained(folder)
    assert type(base) is ViTWithLLMBlockModel
    with torch.no_grad():
        assert torch.equal(again(pictures()).logits, model(pictures()).logits)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "ViTWithLLMBlockForImageClassification"
    ]


def test_pipeline(saved):
    model, folder = saved
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    out = classify(picture)
    assert {entry["label"] for entry in out} == {"cat", "dog", "bird"}
    pixels = ViTImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        best = model(pixels).logits.softmax(-1).max().item()
    assert abs(out[0]["score"] - best) < 1e-5


def test_remote_code(plain, block, tmp_path):
    """Saved with its code, it loads in a fresh process in which this package does not exist."""
    forms = {"whole": True, "light": False}
    for form, save_weights in forms.items():
        model = build(plain, block(save_weights=save_weights))
        model.save_pretrained(tmp_path / "plain" / form)
    torch.save(model(pictures()).logits.detach(), tmp_path / "logits.pt")
    # registering is a state of the class, so it happens in a process of its own
    register = """
import sys
from hf_frozen_llm import ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification as Model
ViTWithLLMBlockConfig.register_for_auto_class()
Model.register_for_auto_class("AutoModelForImageClassification")
for form in ("whole", "light"):
    Model.from_pretrained(f"plain/{form}").save_pretrained(f"remote/{form}")
"""
    load = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_frozen_llm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForImageClassification as Auto
x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
for form in ("whole", "light"):
    try:
        Auto.from_pretrained(f"remote/{form}", trust_remote_code=False)
    except ValueError:
        print("refused without trust")
    model = Auto.from_pretrained(f"remote/{form}", trust_remote_code=True)
    assert torch.equal(model(x).logits, torch.load("logits.pt"))
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith(("llm_block.llm_layers", "llm_block.final_norm")) for n in frozen)
    model.save_pretrained(f"resaved/{form}")
    again = Auto.from_pretrained(f"resaved/{form}", trust_remote_code=True)
    assert torch.equal(again(x).logits, model(x).logits)
    try:
        Auto.from_pretrained(f"remote/{form}", trust_remote_code=False)
    except ValueError:
        print("still refused without trust")
assert not any(name.split(".")[0] == "hf_frozen_llm" for name in sys.modules)
print("equal")
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    for script in (register, load):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if "refused" in line or line == "equal"]
    assert seen == 2 * ["refused without trust", "still refused without trust"] + ["equal"]
    for form in forms:
        folder = tmp_path / "remote" / form
        assert {"AutoConfig", "AutoModelForImageClassification"} <= set(
            json.loads((folder / "config.json").read_text())["auto_map"]
        )
        copied = {p.name for p in folder.glob("*.py")}
        assert {"modeling_vit_with_llm_block.py", "modeling_llm_block.py", "llm_checkpoint.py"} <= copied
        assert copied <= {p.name for p in (REPO / "modeling").glob("*.py")}


def test_plain_vit_is_left_alone(plain, block):
    """Nothing of this package changes what transformers' own classes do."""
    build(plain, block())
    model = ViTModel.from_pretrained(plain[1], add_pooling_layer=False).eval()
    with torch.no_grad():
        assert torch.equal(model(pictures()).last_hidden_state, plain[0].vit(pictures()).last_hidden_state)
