# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from paths import REPO
from PIL import Image
from safetensors.torch import load_file
from tiny_hosts import HOSTS, SIZES
from tiny_llms import decoder_stack
from transformers import (
    AttentionInterface,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    Dinov2Backbone,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTImageProcessor,
    pipeline,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_frozen_llm import (
    LLMBlockConfig,
    VisionWithLLMBlockBackbone,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
    ViTWithLLMBlockForImageClassification,
)


IMAGE_HOSTS = [name for name, host in HOSTS.items() if "num_frames" not in host.fields]
PROJECTIONS = {"llm_block.input_projection.weight", "llm_block.output_projection.weight"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
EVERY = 0
every_host = pytest.mark.parametrize("host", HOSTS)


@pytest.fixture
def block(llm_folder):
    return lambda **fields: LLMBlockConfig(**{"llm_name_or_path": llm_folder("llama")[1], "layer_index": 1, **fields})


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """`published("dinov2", with_head=True)` -> (transformers' own model, its folder), made once."""
    made = {}

    def make(name, with_head=True):
        if (name, with_head) not in made:
            folder = tmp_path_factory.mktemp(f"{name}_{with_head}")
            model = HOSTS[name].published(with_head)
            model.save_pretrained(folder)
            made[name, with_head] = model, str(folder)
        return made[name, with_head]

    return make


def build(name, llm_block, model_class=VisionWithLLMBlockForImageClassification, **kwargs):
    host = HOSTS[name]
    config = VisionWithLLMBlockConfig(
        vision_config=host.config(), llm_block=llm_block, **{"pooling": host.pooling, "num_labels": 3, **kwargs}
    )
    torch.manual_seed(3)
    model = model_class(config)
    if llm_block is not None:
        torch.nn.init.normal_(model.llm_block.output_projection.weight, std=0.3)
    return model.eval()


def plain_host(model):
    """transformers' own model with the weights of our model's host."""
    plain = AutoModel.from_config(copy.deepcopy(model.config.vision_config), **model._host.kwargs)
    plain.load_state_dict(model.host.state_dict())
    return plain.eval()


# Published checkpoints


@pytest.mark.host_table("loads")
@pytest.mark.parametrize("checkpoint", ["classifier", "base"])
@every_host
def test_published_checkpoint_loads(host, checkpoint, published, block, llm_folder):
    """Nothing is missing or unexpected but the block, the classifier, and what transformers' own classifier drops."""
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
        # its base model has no pooler, in which the final norm is
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
    model = build(host, block())
    x = HOSTS[host].pixels()
    model.save_pretrained(tmp_path / "model")
    base = build(host, block(save_weights=False), VisionWithLLMBlockModel)
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
    """A host is tried out with eager attention, whatever it is built with."""
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
    build("dinov2", block()).save_pretrained(tmp_path)
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
    model = build(host, block(residual="outer"), VisionWithLLMBlockModel)
    torch.nn.init.zeros_(model.llm_block.output_projection.weight)
    with torch.no_grad():
        expected = plain_host(model)(HOSTS[host].pixels()).last_hidden_state
        out = model(HOSTS[host].pixels()).last_hidden_state
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_same_seed_same_host_with_and_without_block(block):
    for name in ("dinov2", "swin"):
        states = [build(name, llm_block).host.state_dict() for llm_block in (None, block())]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_transformers_own_classes_are_left_alone(published, block):
    """The norm of other models still works, and nothing that a host caches is left on the meta device."""
    for name in ("beit", "swin", "dinov2", "dinov3_vit"):
        VisionWithLLMBlockModel.from_host_pretrained(published(name, False)[1], llm_block=block())
        own, folder = published(name, False)
        with torch.no_grad():
            again = AutoModel.from_pretrained(folder).eval()(HOSTS[name].pixels())
            assert torch.isfinite(again.last_hidden_state).all()
            assert torch.equal(again.last_hidden_state, own(HOSTS[name].pixels()).last_hidden_state)


# The block in its place


def by_hand(model, pixel_values):
    """The same function out of parts: transformers' own host, the block before its final norm, pooling, classifier."""
    plain, seen = plain_host(model), {}
    norm = model._host.norm(plain)
    if not model._host.norm_is_after_pooling:
        norm.register_forward_hook(lambda module, args, out: seen.update(tokens=args[0]))
    out = plain(pixel_values)
    raw = model.llm_block(seen.get("tokens", out.last_hidden_state))
    tokens = raw if model._host.norm_is_after_pooling else norm.forward(raw)
    first = {"deit": 2, "dinov2_with_registers": 4, "dinov3_vit": 4, "swin": 0, "siglip_vision_model": 0}
    skip = first.get(plain.config.model_type, 0 if plain.config.model_type in ("ijepa", "videomae") else 1)
    parts = {"cls": [tokens[:, 0]], "mean": [tokens[:, skip:].mean(1)]}
    parts = parts.get(model.config.pooling, parts["cls"] + parts["mean"])
    if model._host.norm_is_after_pooling:
        parts = [norm(part) for part in parts]
    return raw, tokens, model.classifier(torch.cat(parts, -1))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@every_host
def test_block_stands_before_the_final_norm(host, attn, block):
    model = build(host, block(), attn_implementation=attn)
    x = HOSTS[host].pixels()
    with torch.no_grad():
        raw, _, logits = by_hand(model, x)
        out = model(x, output_hidden_states=True, output_attentions=attn == "eager")
        plain = plain_host(model)
        plain.set_attn_implementation(attn)
        expected = plain(x, output_hidden_states=True, output_attentions=attn == "eager")
    assert raw.shape[1] == HOSTS[host].num_tokens
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-6)
    # the block adds one hidden state and one attention at the end
    assert len(out.hidden_states) == len(expected.hidden_states) + 1
    for ours, theirs in zip(out.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.hidden_states[-1], raw, rtol=1e-5, atol=1e-5)
    if attn == "eager":
        assert len(out.attentions) == len(expected.attentions) + 1
        assert out.attentions[-1].shape == (2, 4, raw.shape[1], raw.shape[1])
        torch.testing.assert_close(out.attentions[-1].sum(-1), torch.ones(2, 4, raw.shape[1]))


@every_host
def test_pooler_output_is_what_the_classifier_reads(host, block):
    model = build(host, block())
    base = VisionWithLLMBlockModel(copy.deepcopy(model.config)).eval()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("classifier")})
    x = HOSTS[host].pixels()
    with torch.no_grad():
        out = base(x)
        # The classifier has the block compute the CLS token alone.
        torch.testing.assert_close(model.classifier(out.pooler_output), model(x).logits, rtol=1e-5, atol=1e-6)
        assert torch.equal(base(x, return_dict=False)[0], out.last_hidden_state)
        assert torch.equal(base(x, return_dict=False)[1], out.pooler_output)
        base.config.output_hidden_states = True
        assert len(base(x).hidden_states) >= 3


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
@pytest.mark.parametrize("host", ["deit", "dinov2_with_registers", "beit", "clip", "vivit"])
def test_pooling(host, pooling, block):
    model = build(host, block(), pooling=pooling)
    assert model.classifier.in_features == HOSTS[host].fields["hidden_size"] * (2 if pooling == "cls_mean" else 1)
    with torch.no_grad():
        torch.testing.assert_close(model(HOSTS[host].pixels()).logits, by_hand(model, HOSTS[host].pixels())[2])


@every_host
def test_pooling_by_default(host, block):
    default = {"dinov2": "cls", "dinov2_with_registers": "cls", "clip": "cls"}
    model = build(host, block(), pooling=None)
    assert model.config.pooling == default.get(host, HOSTS[host].pooling)


@pytest.mark.parametrize("selection", [[0, -1], -1, [1, 4], [2, 9]])
def test_selected_hidden_states(selection, block):
    """A selection by indices counts the block's hidden state too."""
    model = build("dinov2", block())
    with torch.no_grad():
        every = model(HOSTS["dinov2"].pixels(), output_hidden_states=True).hidden_states
        some = model(HOSTS["dinov2"].pixels(), output_hidden_states=selection).hidden_states
    wanted = {i % 5 for i in ([selection] if isinstance(selection, int) else selection) if i < 5}
    assert len(some) == len(every) == 5
    for index, (one, other) in enumerate(zip(some, every)):
        assert torch.equal(one, other) if index in wanted else one is None


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_attention_mask_of_the_tokens(pooling, block):
    """A padded token changes nothing."""
    model = build("vit", block(), pooling=pooling)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 9] = 0
    x = HOSTS["vit"].pixels()
    other = x.clone()
    other[:, :, 8:12, 0:4] += 1.0  # patch 8, behind the CLS token
    with torch.no_grad():
        assert torch.allclose(
            model(x, attention_mask=mask).logits, model(other, attention_mask=mask).logits, atol=1e-6
        )
        assert not torch.allclose(model(x).logits, model(other).logits, atol=1e-4)
    with pytest.raises(ValueError, match="SwinModel takes no attention_mask"):
        build("swin", block())(HOSTS["swin"].pixels(), attention_mask=torch.ones(2, 16))


def test_arguments_of_the_host_reach_it(block):
    model = build("vit", block())
    picture = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        assert (
            model(picture, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1].shape[1] == 37
        )


def test_learns(block):
    for name in ("swin", "dinov2"):
        model = build(name, block()).train()
        before = copy.deepcopy(model.llm_block.llm_layers.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        x, labels = HOSTS[name].pixels(6), torch.tensor([0, 1, 2, 0, 1, 2])
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = model(x, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        for key, tensor in model.llm_block.llm_layers.state_dict().items():
            assert torch.equal(tensor, before[key])


@every_host
def test_gradients_reach_the_host_and_its_norm(host, block):
    model = build(host, block()).train()
    model(HOSTS[host].pixels(), labels=torch.tensor([0, 1])).loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"{model.base_model_prefix}.{model._host.norm_path}.{n}" for n in ("weight", "bias")} <= with_gradient
    assert PROJECTIONS | CLASSIFIER <= with_gradient
    assert any("patch_embed" in name for name in with_gradient)
    assert all(p.grad is None for p in model.llm_block.llm_layers.parameters())


def test_freeze_host(block):
    model = build("swin", block())
    model.freeze_host()
    model.train()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == PROJECTIONS | CLASSIFIER


def test_num_items_in_batch_reaches_the_loss(block):
    model = build("data2vec_vision", block())
    labels = torch.tensor([0, 2])
    loss = model(HOSTS["vit"].pixels(), labels=labels).loss
    scaled = model(HOSTS["vit"].pixels(), labels=labels, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(scaled, loss * 2 / 8)


@pytest.mark.parametrize("host", ["aimv2", "timesformer", "focalnet", "swinv2", "pvt"])
def test_hosts_beyond_the_table(host, block):
    """Any other encoder that ends with a norm, by the same code: RMS norms, videos, hierarchies."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    fields = {
        "aimv2": {**small, "model_type": "aimv2_vision_model", "image_size": 16, "patch_size": 4},
        "timesformer": {**small, "model_type": "timesformer", "image_size": 16, "patch_size": 4, "num_frames": 2},
        "focalnet": {
            "model_type": "focalnet",
            "image_size": 32,
            "embed_dim": 8,
            "depths": [1, 1],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
            "hidden_sizes": [8, 16],
            "use_conv_embed": False,
        },
        "swinv2": {
            "model_type": "swinv2",
            "image_size": 32,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        "pvt": {"model_type": "pvt", "image_size": 64},
    }[host]
    config = VisionWithLLMBlockConfig(vision_config=fields, llm_block=block(residual="outer"))
    model = VisionWithLLMBlockModel(config).eval()
    torch.nn.init.zeros_(model.llm_block.output_projection.weight)
    size = fields["image_size"]
    frames = [2] if host == "timesformer" else []
    x = torch.randn(2, *frames, 3, size, size)
    with torch.no_grad():
        out, expected = model(x), plain_host(model)(x)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, rtol=1e-6, atol=1e-6)
    tokens = out.last_hidden_state
    pooled = tokens[:, 0] if host in ("timesformer", "pvt") else tokens.mean(1)
    torch.testing.assert_close(out.pooler_output, pooled)


@pytest.mark.parametrize(
    ("fields", "pooling", "message"),
    [
        # detection tokens behind the patches, a pooled one before them, eight class tokens
        ({"model_type": "yolos", **SIZES, "image_size": [16, 16]}, "mean", "which tokens of yolos are patches"),
        ({"model_type": "dinov3_convnext", "image_size": 64}, None, "which tokens of dinov3_convnext are patches"),
        ({"model_type": "pixio", **SIZES}, "cls", "pixio has no CLS token"),
    ],
)
def test_tokens_that_are_no_patches(fields, pooling, message, block):
    config = VisionWithLLMBlockConfig(vision_config=fields, llm_block=block(), pooling=pooling)
    with pytest.raises(ValueError, match=message):
        VisionWithLLMBlockModel(config)
    if fields["model_type"] == "yolos":
        config.pooling = "cls"
        assert VisionWithLLMBlockModel(config).config.pooling == "cls"


# Bad input


@pytest.mark.parametrize(
    ("vision_config", "words"),
    [
        (
            {"model_type": "videomae", **SIZES, "num_frames": 4, "tubelet_size": 2},
            ["final norm|end with a norm", "use_mean_pooling=False"],
        ),
        (
            {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
            ["tokens", "resnet", "LLMBlock"],
        ),
        ({"model_type": "vit_mae", **SIZES, "mask_ratio": 0.0}, ["at random", "ViTWithLLMBlockModel.from_host"]),
        ({"model_type": "vit_with_llm_block", **SIZES}, ["has an LLM block already"]),
        ({"model_type": "siglip_vision_model", **SIZES, "image_size": [16, 24]}, ["cannot be built"]),
        ({"model_type": "bert"}, ["bert cannot be a host"]),
        ({"model_type": "upernet"}, ["upernet", "AutoModel"]),
        ({"model_type": "clip"}, ["vision_config", "clip"]),
        ({"hidden_size": 24}, ["model_type"]),
        (None, ["vision_config", "from_host_pretrained"]),
    ],
)
def test_what_cannot_be_a_host(vision_config, words, block):
    with pytest.raises(ValueError) as error:
        VisionWithLLMBlockModel(VisionWithLLMBlockConfig(vision_config=vision_config, llm_block=block()))
    assert all(any(choice in str(error.value) for choice in word.split("|")) for word in words), error.value


def test_fields_of_the_host_belong_into_its_configuration(block, tmp_path):
    vision_config = HOSTS["vit"].config()
    for fields in ({"image_size": 8}, {"hidden_size": 8}, {"num_channels": 1}):
        with pytest.raises(ValueError, match="it is the host's; set it in vision_config"):
            VisionWithLLMBlockConfig(vision_config=vision_config, llm_block=block(), **fields)
    build("vit", block()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'image_size' of its own: it is the host's"):
        VisionWithLLMBlockModel.from_pretrained(tmp_path, image_size=32)


def test_one_host_configuration_for_two_models(block):
    vision_config = HOSTS["dinov2"].config()
    models = [
        VisionWithLLMBlockModel(VisionWithLLMBlockConfig(vision_config=vision_config, llm_block=block()))
        for _ in range(2)
    ]
    models[0].set_attn_implementation("eager")
    assert models[1].host.config._attn_implementation == models[1].config._attn_implementation == "sdpa"


def test_a_host_of_another_width_at_its_end(block):
    config = VisionWithLLMBlockConfig(vision_config=HOSTS["swin"].config(), llm_block=block())
    config.vision_config.hidden_size = 48
    config.llm_block.hidden_size = None
    with pytest.raises(ValueError, match=r"last tokens of this swin are 24 wide.*hidden_size=48.*LLMBlock"):
        VisionWithLLMBlockModel(config)
    with pytest.raises(ValueError, match=r"llm_block\.hidden_size is 99 .* host's hidden_size is 24"):
        VisionWithLLMBlockConfig(vision_config=HOSTS["swin"].config(), llm_block=block(hidden_size=99))


@pytest.mark.parametrize("position", [0, 1, 3])
def test_other_positions(position, block):
    with pytest.raises(ValueError, match=f"position is {position};.*vit_with_llm_block"):
        VisionWithLLMBlockConfig(vision_config=HOSTS["vit"].config(), llm_block=block(position=position))


@pytest.mark.parametrize("pooling", ["cls", "cls_mean"])
@pytest.mark.parametrize("host", ["swin", "siglip", "ijepa", "videomae"])
def test_pooling_without_a_cls_token(host, pooling, block):
    with pytest.raises(ValueError, match=f"pooling='{pooling}', but .* has no CLS token. Use 'mean'"):
        build(host, block(), pooling=pooling)


def test_wrong_values_of_the_configuration(block):
    vision_config = HOSTS["vit"].config()
    with pytest.raises(ValueError, match="pooling"):
        VisionWithLLMBlockConfig(vision_config=vision_config, pooling="max")
    with pytest.raises(ValueError, match="no key 'poolin'; did you mean 'pooling'"):
        VisionWithLLMBlockConfig(vision_config=vision_config, poolin="mean")
    assert VisionWithLLMBlockConfig().stage_names == ["stem"]
    with pytest.raises(ValueError, match="no key 'visionconfig'; did you mean 'vision_config'"):
        VisionWithLLMBlockConfig(visionconfig=vision_config)
    with pytest.raises(ValueError, match="no key 'llmblock'; did you mean 'llm_block'"):
        VisionWithLLMBlockConfig(vision_config=vision_config, llmblock=block())
    with pytest.raises(ValueError, match=r"stage_names: \['stem', 'stage1', 'stage2', 'stage3', 'llm_block'\]"):
        VisionWithLLMBlockConfig(vision_config=vision_config, llm_block=block(), out_features=["stage4"])


@pytest.mark.parametrize(
    ("host", "shape"),
    [
        ("dinov2", (3, 16, 16)),
        ("dinov2", (2, 1, 16, 16)),
        ("swin", (2, 4, 3, 16, 16)),
        ("vivit", (2, 3, 16, 16)),
        ("vit", None),
    ],
)
@pytest.mark.parametrize("with_block", [True, False])
def test_wrong_pictures(host, shape, with_block, block):
    model = build(host, block() if with_block else None)
    with pytest.raises(ValueError, match="pixel_values"):
        model(None if shape is None else torch.zeros(shape))


# Feature maps


@pytest.mark.parametrize("host", IMAGE_HOSTS)
def test_feature_maps(host, block):
    stages = {"swin": ["stage1", "stage2", "llm_block"]}.get(host, ["stem", "stage2", "llm_block"])
    model = build(host, block(), VisionWithLLMBlockBackbone, out_features=stages)
    reference = VisionWithLLMBlockModel(VisionWithLLMBlockConfig.from_dict(model.config.to_dict())).eval()
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if "hidden_states_norms" not in k})
    x = HOSTS[host].pixels()
    with torch.no_grad():
        out = model(x)
        expected = reference(x).last_hidden_state
        if model._host.norm_is_after_pooling:
            expected = model._host.norm(model.host)(expected)
    width = HOSTS[host].fields.get("hidden_size", 24)
    shapes = [(2, width, 4, 4)] * 3
    if host == "swin":
        shapes[0] = (2, 12, 8, 8)
    assert [tuple(feature_map.shape) for feature_map in out.feature_maps] == shapes
    assert model.channels == [shape[1] for shape in shapes]
    assert out.hidden_states is None
    patches = expected[:, model._host.num_prefix_tokens :]
    torch.testing.assert_close(out.feature_maps[-1].flatten(2).transpose(1, 2), patches, rtol=1e-5, atol=1e-6)


def test_feature_maps_of_the_plain_host_are_transformers_own():
    stages = ["stage1", "stage3"]
    model = build("dinov2", None, VisionWithLLMBlockBackbone, out_features=stages)
    own = Dinov2Backbone(HOSTS["dinov2"].config(out_features=stages)).eval()
    own.load_state_dict(model.host.state_dict())
    with torch.no_grad():
        maps, expected = (m(HOSTS["dinov2"].pixels()).feature_maps for m in (model, own))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected)) and len(maps) == 2


def test_swin_maps_are_those_before_merging(block):
    model = build("swin", block(), VisionWithLLMBlockBackbone, out_features=["stem", "stage1", "stage2"])
    with torch.no_grad():
        maps = model(HOSTS["swin"].pixels()).feature_maps
        own = plain_host(model)(
            HOSTS["swin"].pixels(), output_hidden_states=True, output_hidden_states_before_downsampling=True
        )
    for feature_map, expected, width in zip(maps, own.reshaped_hidden_states, (12, 12, 24)):
        norm = torch.nn.LayerNorm(width)
        torch.testing.assert_close(feature_map, norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_backbone_by_its_auto_class(block, hub, tmp_path):
    model = build("dinov2", block(), VisionWithLLMBlockBackbone)
    assert model.out_features == ["llm_block"] and model.out_indices == [4]
    assert model.out_feature_channels == dict.fromkeys(["stem", "stage1", "stage2", "stage3", "llm_block"], 24)
    build("dinov2", block()).save_pretrained(tmp_path / "classifier")
    hub.add("somebody/classifier", tmp_path / "classifier")  # AutoBackbone takes no folders
    again = AutoBackbone.from_pretrained("somebody/classifier", out_features=["stage2", "llm_block"]).eval()
    assert type(again) is VisionWithLLMBlockBackbone
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["out_features"] == ["stage2", "llm_block"]
    third = VisionWithLLMBlockBackbone.from_pretrained(tmp_path / "again").eval()
    x = HOSTS["dinov2"].pixels()
    with torch.no_grad():
        out = third(x, output_hidden_states=True, output_attentions=True)
        assert all(torch.equal(a, b) for a, b in zip(out.feature_maps, again(x).feature_maps))
    assert len(out.feature_maps) == 2 and len(out.hidden_states) == 5
    by_index = build("dinov2", block(), VisionWithLLMBlockBackbone, out_indices=[2, 4])
    assert by_index.out_features == ["stage2", "llm_block"]


@pytest.mark.parametrize("host", ["dinov2", "swin"])
def test_segmentation_with_a_backbone_of_ours(host, block, tmp_path):
    """transformers' own UperNet on our feature maps: trains, stays frozen, saves, loads."""
    stages = {"dinov2": ["stage1", "stage3", "llm_block"], "swin": ["stage1", "stage2", "llm_block"]}[host]
    config = VisionWithLLMBlockConfig(vision_config=HOSTS[host].config(), llm_block=block(), out_features=stages)
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=4
        )
    )
    x, labels = HOSTS[host].pixels(), torch.randint(0, 4, (2, 16, 16))
    before = copy.deepcopy(model.backbone.llm_block.llm_layers.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(8):
        loss = model.train()(x, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, tensor in model.backbone.llm_block.llm_layers.state_dict().items():
        assert torch.equal(tensor, before[name])
    model.save_pretrained(tmp_path)
    again, info = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        # Convolutions may round differently where memory is aligned differently.
        torch.testing.assert_close(again.eval()(x).logits, model.eval()(x).logits, rtol=1e-5, atol=1e-6)
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert frozen and all(
        n.startswith(("backbone.llm_block.llm_layers.", "backbone.llm_block.final_norm.")) for n in frozen
    )


@pytest.mark.parametrize("host", ["dinov2", "swin"])
def test_detection_with_a_backbone_of_ours(host, block, tmp_path):
    """transformers' own DETR on our feature maps: gradients reach the projections, it saves and loads."""
    config = VisionWithLLMBlockConfig(vision_config=HOSTS[host].config(), llm_block=block())
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5}
    torch.manual_seed(0)
    model = DetrForObjectDetection(
        DetrConfig(backbone_config=config, use_timm_backbone=False, backbone=None, num_labels=3, **sizes)
    ).train()
    model(HOSTS[host].pixels()).logits.square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"model.backbone.model.{name}" for name in PROJECTIONS} <= with_gradient
    assert not any(".llm_layers." in name for name in with_gradient)
    model.save_pretrained(tmp_path)
    again, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        out, expected = again.eval()(HOSTS[host].pixels()), model.eval()(HOSTS[host].pixels())
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.pred_boxes, expected.pred_boxes)


@pytest.mark.parametrize(
    "fields",
    [
        HOSTS["vivit"].config().to_dict(),
        {"model_type": "pvt", "image_size": 64},
        # whose maps come merged, or laid out in another way
        {"model_type": "swinv2", "image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
        {"model_type": "hiera", "image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1]},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_hosts_without_feature_maps(fields, block):
    config = VisionWithLLMBlockConfig(vision_config=fields, llm_block=block())
    with pytest.raises(ValueError, match="cannot be laid out as the feature maps"):
        VisionWithLLMBlockBackbone(config)


def test_the_default_stage_is_not_kept(block, tmp_path):
    """It is the last one, with and without a block, whatever the model was saved with."""
    for llm_block, other in ((None, block()), (block(), None)):
        model = build("dinov2", llm_block, VisionWithLLMBlockBackbone)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["out_features"] is None
        again = VisionWithLLMBlockBackbone.from_pretrained(tmp_path, llm_block=other)
        assert again.out_features == ["llm_block" if other else "stage3"]


def test_stages_can_be_changed(block):
    model = build("swin", block(), VisionWithLLMBlockBackbone)
    model.out_features = ["stem", "stage2"]
    assert model.out_indices == [0, 2] and model.channels == [12, 24]
    with torch.no_grad():
        assert [m.shape[1] for m in model(HOSTS["swin"].pixels()).feature_maps] == [12, 24]


# Auto classes, pipelines, remote code


def test_auto_classes(block, tmp_path):
    model = build("dinov2", block())
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VisionWithLLMBlockConfig and config.vision_config.model_type == "dinov2"
    assert type(AutoModelForImageClassification.from_config(config)) is VisionWithLLMBlockForImageClassification
    assert type(AutoModel.from_config(config)) is VisionWithLLMBlockModel
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["llm_block"]["fingerprint"] == model.config.llm_block.fingerprint is not None
    assert stored["out_features"] is None


@pytest.mark.parametrize("host", ["dinov2", "swin"])
def test_pipelines(host, block, tmp_path):
    model = build(host, block())
    model.config.id2label = {0: "cat", 1: "dog", 2: "bird"}
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    x = processor(picture, return_tensors="pt").pixel_values
    base = VisionWithLLMBlockModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, best = base(x), model(x).logits.softmax(-1).max().item()
    out = pipeline("image-classification", model=str(tmp_path), device="cpu")(picture)
    assert {entry["label"] for entry in out} == {"cat", "dog", "bird"} and abs(out[0]["score"] - best) < 1e-5
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    np.testing.assert_allclose(extract(picture), expected.last_hidden_state.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extract(picture, pool=True), expected.pooler_output.numpy(), rtol=1e-4, atol=1e-5)


def test_remote_code(block, tmp_path):
    """Saved with its code, it loads in a fresh process in which this package does not exist."""
    model = build("dinov2", block())
    model.save_pretrained(tmp_path / "plain")
    torch.save(model(HOSTS["dinov2"].pixels()).logits.detach(), tmp_path / "logits.pt")
    torch.save(HOSTS["dinov2"].pixels(), tmp_path / "pixels.pt")
    register = """
from hf_frozen_llm import VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification as Model
VisionWithLLMBlockConfig.register_for_auto_class()
Model.register_for_auto_class("AutoModelForImageClassification")
Model.from_pretrained("plain").save_pretrained("remote")
"""
    load = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_frozen_llm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForImageClassification as Auto
model = Auto.from_pretrained("remote", trust_remote_code=True)
assert torch.equal(model(torch.load("pixels.pt")).logits, torch.load("logits.pt"))
model.save_pretrained("resaved")
again = Auto.from_pretrained("resaved", trust_remote_code=True)
assert torch.equal(again(torch.load("pixels.pt")).logits, torch.load("logits.pt"))
print("equal")
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    for script in (register, load):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("equal")
    copied = {path.name for path in (tmp_path / "remote").glob("*.py")}
    assert {"modeling_vision_with_llm_block.py", "vision_host.py", "modeling_llm_block.py"} <= copied
    assert copied <= {path.name for path in (REPO / "modeling").glob("*.py")}


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
    models = {name: build(name, block()) for name in hosts}
    for name, model in models.items():
        model.save_pretrained(tmp_path / "here" / name)
        torch.save(HOSTS[name].pixels(), tmp_path / "here" / f"{name}.pt")
    command = [FLOOR, "-c", VERSION_SCRIPT, *hosts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] != transformers.__version__
    for name, model in models.items():
        again = VisionWithLLMBlockForImageClassification.from_pretrained(tmp_path / "there" / name).eval()
        with torch.no_grad():
            logits = model(HOSTS[name].pixels()).logits
            assert torch.equal(again(HOSTS[name].pixels()).logits, logits), name
        torch.testing.assert_close(torch.load(tmp_path / "there" / f"{name}.pt"), logits, rtol=1e-5, atol=1e-6)
