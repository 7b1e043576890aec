# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""ViT with an LLM block: published checkpoints, attention of every LLM family, losses, images of other sizes."""

import copy
import logging

import pytest
import torch
from references import relative_error
from safetensors.torch import load_file
from tiny_llms import HOST, decoder_stack, published_vit
from transformers import VideoMAEConfig, ViTForImageClassification

from hf_frozen_llm import ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(plain ViT classifier, its published folder)"""
    folder = tmp_path_factory.mktemp("vit")
    return published_vit(folder), str(folder)


def pictures(size=8):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))


def build(plain, llm_block, **kwargs):
    torch.manual_seed(2)
    model = ViTWithLLMBlockForImageClassification.from_pretrained(plain[1], llm_block=llm_block, **kwargs)
    return model.eval()


# Published checkpoints


def test_published_checkpoint_is_written_under_old_names(plain):
    # guards the fixture
    names = load_file(plain[1] + "/model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names


def test_a_published_vit_is_no_model_of_another_type(plain, caplog):
    """transformers' warning of another model type, meant for mistakes, does not come."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model = ViTWithLLMBlockForImageClassification.from_host_pretrained(plain[1], num_labels=4)
        assert "to instantiate a model of type" not in caplog.text
        VideoMAEConfig.from_pretrained(plain[1])
        assert "to instantiate a model of type `videomae`" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    assert model.config.model_type == "vit_with_llm_block" and model.classifier.out_features == 4


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


def test_one_block_config_for_two_hosts(block):
    one = block()
    for width in (24, 32):
        config = ViTWithLLMBlockConfig(**{**HOST, "hidden_size": width}, llm_block=one)
        assert ViTWithLLMBlockForImageClassification(config).llm_block.config.hidden_size == width


# The plain host


@pytest.mark.host_table("equals AutoModel", host="vit_class")
def test_base_model_without_a_block(tmp_path):
    base = published_vit(tmp_path, with_head=False)
    model = ViTWithLLMBlockModel.from_pretrained(tmp_path).eval()
    expected, out = base(pictures(), output_hidden_states=True), model(pictures(), output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(out.pooler_output, expected.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, expected.hidden_states))


# Attention


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


# Losses, sizes


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
