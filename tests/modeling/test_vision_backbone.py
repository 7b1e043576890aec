# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Feature maps of the generic class: their shapes and values, and transformers' own models on them."""

import copy
import json

import pytest
import torch
from model_cases import PROJECTIONS
from tiny_hosts import HOSTS, plain_host, vision_model
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    Dinov2Backbone,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_frozen_llm import VisionWithLLMBlockBackbone, VisionWithLLMBlockConfig, VisionWithLLMBlockModel


IMAGE_HOSTS = [name for name, host in HOSTS.items() if "num_frames" not in host.fields]


@pytest.mark.parametrize("host", IMAGE_HOSTS)
def test_feature_maps(host, block):
    stages = {"swin": ["stage1", "stage2", "llm_block"]}.get(host, ["stem", "stage2", "llm_block"])
    model = vision_model(host, block(), VisionWithLLMBlockBackbone, out_features=stages)
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
    model = vision_model("dinov2", None, VisionWithLLMBlockBackbone, out_features=stages)
    own = Dinov2Backbone(HOSTS["dinov2"].config(out_features=stages)).eval()
    own.load_state_dict(model.host.state_dict())
    with torch.no_grad():
        maps, expected = (m(HOSTS["dinov2"].pixels()).feature_maps for m in (model, own))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected)) and len(maps) == 2


def test_swin_maps_are_those_before_merging(block):
    model = vision_model("swin", block(), VisionWithLLMBlockBackbone, out_features=["stem", "stage1", "stage2"])
    with torch.no_grad():
        maps = model(HOSTS["swin"].pixels()).feature_maps
        own = plain_host(model)(
            HOSTS["swin"].pixels(), output_hidden_states=True, output_hidden_states_before_downsampling=True
        )
    for feature_map, expected, width in zip(maps, own.reshaped_hidden_states, (12, 12, 24)):
        norm = torch.nn.LayerNorm(width)
        torch.testing.assert_close(feature_map, norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_backbone_by_its_auto_class(block, hub, tmp_path):
    model = vision_model("dinov2", block(), VisionWithLLMBlockBackbone)
    assert model.out_features == ["llm_block"] and model.out_indices == [4]
    assert model.out_feature_channels == dict.fromkeys(["stem", "stage1", "stage2", "stage3", "llm_block"], 24)
    vision_model("dinov2", block()).save_pretrained(tmp_path / "classifier")
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
    by_index = vision_model("dinov2", block(), VisionWithLLMBlockBackbone, out_indices=[2, 4])
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
        model = vision_model("dinov2", llm_block, VisionWithLLMBlockBackbone)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["out_features"] is None
        again = VisionWithLLMBlockBackbone.from_pretrained(tmp_path, llm_block=other)
        assert again.out_features == ["llm_block" if other else "stage3"]


def test_stages_can_be_changed(block):
    model = vision_model("swin", block(), VisionWithLLMBlockBackbone)
    model.out_features = ["stem", "stage2"]
    assert model.out_indices == [0, 2] and model.channels == [12, 24]
    with torch.no_grad():
        assert [m.shape[1] for m in model(HOSTS["swin"].pixels()).feature_maps] == [12, 24]
