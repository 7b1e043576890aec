# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The generic class with hosts of many kinds: the block before the final norm, pooling, refused hosts."""

import copy

import numpy as np
import pytest
import torch
from model_cases import PROJECTIONS
from PIL import Image
from tiny_hosts import HOSTS, SIZES, plain_host, vision_model
from transformers import ViTImageProcessor, pipeline

from hf_frozen_llm import VisionWithLLMBlockConfig, VisionWithLLMBlockModel


CLASSIFIER = {"classifier.weight", "classifier.bias"}
every_host = pytest.mark.parametrize("host", HOSTS)


# The block in its place


def by_hand(model, pixel_values):
    """Compute the function by steps: transformers' own host, the block before its final norm, pooling, classifier."""
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
    model = vision_model(host, block(), attn_implementation=attn)
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
    model = vision_model(host, block())
    base = VisionWithLLMBlockModel(copy.deepcopy(model.config)).eval()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("classifier")})
    x = HOSTS[host].pixels()
    with torch.no_grad():
        out = base(x)
        # The classifier requests only the CLS token from the block.
        torch.testing.assert_close(model.classifier(out.pooler_output), model(x).logits, rtol=1e-5, atol=1e-6)
        assert torch.equal(base(x, return_dict=False)[0], out.last_hidden_state)
        assert torch.equal(base(x, return_dict=False)[1], out.pooler_output)
        base.config.output_hidden_states = True
        assert len(base(x).hidden_states) >= 3


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
@pytest.mark.parametrize("host", ["deit", "dinov2_with_registers", "beit", "clip", "vivit"])
def test_pooling(host, pooling, block):
    model = vision_model(host, block(), pooling=pooling)
    assert model.classifier.in_features == HOSTS[host].fields["hidden_size"] * (2 if pooling == "cls_mean" else 1)
    with torch.no_grad():
        torch.testing.assert_close(model(HOSTS[host].pixels()).logits, by_hand(model, HOSTS[host].pixels())[2])


@every_host
def test_pooling_by_default(host, block):
    default = {"dinov2": "cls", "dinov2_with_registers": "cls", "clip": "cls"}
    model = vision_model(host, block(), pooling=None)
    assert model.config.pooling == default.get(host, HOSTS[host].pooling)


@pytest.mark.parametrize("selection", [[0, -1], -1, [1, 4], [2, 9]])
def test_selected_hidden_states(selection, block):
    """A selection by indices counts the block's hidden state too."""
    model = vision_model("dinov2", block())
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
    model = vision_model("vit", block(), pooling=pooling)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 9] = 0
    x = HOSTS["vit"].pixels()
    other = x.clone()
    other[:, :, 8:12, 0:4] += 1.0  # patch 8, after the CLS token
    with torch.no_grad():
        assert torch.allclose(
            model(x, attention_mask=mask).logits, model(other, attention_mask=mask).logits, atol=1e-6
        )
        assert not torch.allclose(model(x).logits, model(other).logits, atol=1e-4)
    with pytest.raises(ValueError, match="SwinModel takes no attention_mask"):
        vision_model("swin", block())(HOSTS["swin"].pixels(), attention_mask=torch.ones(2, 16))


def test_arguments_of_the_host_reach_it(block):
    model = vision_model("vit", block())
    picture = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        assert (
            model(picture, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1].shape[1] == 37
        )


def test_hierarchical_host_learns(block):
    model = vision_model("swin", block()).train()
    before = copy.deepcopy(model.llm_block.llm_layers.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    x, labels = HOSTS["swin"].pixels(6), torch.tensor([0, 1, 2, 0, 1, 2])
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
    model = vision_model(host, block())
    inputs = {"pixel_values": HOSTS[host].pixels(), "labels": torch.tensor([0, 1])}
    scaled = model(**inputs, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(scaled, model(**inputs).loss * 2 / 8)
    model.train()(**inputs).loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"{model.base_model_prefix}.{model._host.norm_path}.{n}" for n in ("weight", "bias")} <= with_gradient
    assert PROJECTIONS | CLASSIFIER <= with_gradient
    assert any("patch_embed" in name for name in with_gradient)
    assert all(p.grad is None for p in model.llm_block.llm_layers.parameters())
    model.freeze_host()
    assert {n for n, p in model.train().named_parameters() if p.requires_grad} == PROJECTIONS | CLASSIFIER


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
        # detection tokens after the patches, a pooled one before them, eight class tokens
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
    vision_model("vit", block()).save_pretrained(tmp_path)
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
        vision_model(host, block(), pooling=pooling)


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
        ("swin", (2, 4, 3, 16, 16)),
        ("vivit", (2, 3, 16, 16)),
    ],
)
@pytest.mark.parametrize("with_block", [True, False])
def test_wrong_pictures(host, shape, with_block, block):
    model = vision_model(host, block() if with_block else None)
    with pytest.raises(ValueError, match="pixel_values"):
        model(torch.zeros(shape))


# Pipelines


@pytest.mark.parametrize("host", ["dinov2", "swin"])
def test_pipelines(host, block, tmp_path):
    model = vision_model(host, block())
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
