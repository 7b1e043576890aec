# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""METER with an LLM block: published encoders, padding, several texts of an image, losses."""

import copy

import pytest
import torch
from meter_cases import METER_EMBEDDINGS, METER_QUESTIONS, METER_RETRIEVAL, pairs
from model_case import randn
from references import relative_error
from tiny_llms import randomize
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTModel,
)

from hf_frozen_llm import (
    MeterWithLLMBlockConfig,
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
)


FIELDS = METER_QUESTIONS.fields
FUSION = {name: value for name, value in FIELDS.items() if name not in ("vision_config", "text_config", "patch_size")}
FUSION.pop("image_size")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(a CLIP of 3 vision layers, a RoBERTa with its language modelling head, the folders of both)"""
    folder = tmp_path_factory.mktemp("published")
    text_config = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24}
    vision_config = {**FIELDS["vision_config"], "num_hidden_layers": 3, "image_size": 16}
    clip = CLIPModel(CLIPConfig(text_config={**text_config, "vocab_size": 9}, vision_config=vision_config))
    roberta = RobertaForMaskedLM(RobertaConfig(**FIELDS["text_config"]))
    for name, model in (("clip", clip), ("roberta", roberta)):
        randomize(model, seed=3).save_pretrained(folder / name)
    return clip, roberta, str(folder / "clip"), str(folder / "roberta")


@torch.no_grad()
@pytest.mark.parametrize("image_size", [None, 8])
def test_published_encoders(image_size, published, block):
    """CLIP without its last layer, its final norm on all tokens; RoBERTa as it is; everything else new."""
    clip, roberta, clip_folder, roberta_folder = published
    model, info = MeterWithLLMBlockForVisualQuestionAnswering.from_host_pretrained(
        clip_folder,
        text_name_or_path=roberta_folder,
        image_size=image_size,
        llm_block=block(),
        output_loading_info=True,
        **FUSION,
    )
    meter, config = model.meter, model.config
    assert not info["unexpected_keys"] and not any("_model." in name for name in info["missing_keys"])
    assert config.vision_config.num_hidden_layers == 2 and config.num_labels == 3 and not model.training
    assert config.vision_config.image_size == (image_size or 16)
    inputs = {**pairs(2), "pixel_values": randn(2, 3, image_size or 16, image_size or 16)}
    states = clip.vision_model(inputs["pixel_values"], output_hidden_states=True, interpolate_pos_encoding=True)
    expected = clip.vision_model.post_layernorm(states.hidden_states[-2])
    projected = meter.cross_modal_image_transform(expected) + meter.token_type_embeddings.weight[1]
    assert relative_error(meter.encode_image(inputs["pixel_values"]), projected) < 2e-6
    texts = inputs["input_ids"], inputs["attention_mask"]
    expected = roberta.roberta(*texts).last_hidden_state
    projected = meter.cross_modal_text_transform(expected) + meter.token_type_embeddings.weight[0]
    assert relative_error(meter.encode_text(*texts), projected) < 2e-6
    assert model(**inputs).logits.shape == (2, 3)


def test_wrong_encoders_are_refused(published, tmp_path):
    _, _, clip, roberta = published
    load = MeterWithLLMBlockModel.from_host_pretrained
    with pytest.raises(ValueError, match="is of a roberta, and the vision encoder of a METER is a clip or"):
        load(roberta, text_name_or_path=roberta)
    with pytest.raises(ValueError, match="is of a clip, and the text encoder of a METER is a roberta"):
        load(clip, text_name_or_path=clip)
    vision = CLIPVisionModel.from_pretrained(clip)
    state = {name: tensor for name, tensor in vision.state_dict().items() if "layers.0.mlp" not in name}
    vision.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks weights of the encoder: .*layers\.0\.mlp"):
        load(tmp_path, text_name_or_path=roberta)
    for given, pattern in (
        ({"vision_config": ViTConfig()}, "vision_config is of a vit; a METER has a clip_vision_model"),
        ({"text_config": {"model_type": "bert"}}, "text_config is of a bert; a METER has a roberta"),
        ({"llm_block": {"position": 1, "llm_name_or_path": "x"}}, r"llm_block\.position is 1; in a METER"),
        ({"num_attention_heads": 7}, r"hidden_size \(24\) is not a multiple of num_attention_heads \(7\)"),
        ({"vision_confg": {}}, "has no key 'vision_confg'; did you mean 'vision_config'"),
    ):
        with pytest.raises(ValueError, match=pattern):
            MeterWithLLMBlockConfig(**{**FIELDS, **given})
    ViTModel(ViTConfig(**{**FUSION, "image_size": 8, "patch_size": 4})).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="no fitting weights"):
        load(tmp_path / "vit", **{name: FIELDS[name] for name in ("vision_config", "text_config")})


def test_the_default_is_the_papers():
    config = MeterWithLLMBlockConfig()
    with torch.device("meta"):
        model = MeterWithLLMBlockForVisualQuestionAnswering(config)
        again = MeterWithLLMBlockForVisualQuestionAnswering(MeterWithLLMBlockConfig(**config.to_dict()))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in again.named_parameters()}

    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 1)

    assert millions(model.meter.vision_model) == 80.4 and millions(model.meter.text_model) == 124.1
    assert millions(model.meter.cross_modal_text_layers) == millions(model.meter.cross_modal_image_layers) == 56.7
    assert model.dummy_inputs["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("fast", [True, False])
def test_padding_changes_nothing(attn, fast, block):
    """Neither that of texts nor that of images, whatever it holds."""
    model = METER_QUESTIONS.build(block(fast=fast), attn_implementation=attn)
    inputs = pairs(2)
    mask = torch.ones(2, 8, 8, dtype=torch.long)
    mask[1, 5:], mask[1, :, 3:] = 0, 0  # one of four patches beside the CLS token is left, and a part of a second
    with torch.no_grad():
        expected = model(**inputs, pixel_mask=mask).logits
        other = copy.deepcopy(inputs)
        other["pixel_values"][1, :, :, 4:] = 7.0
        other["input_ids"][1, 4:] = 5
        assert relative_error(model(**other, pixel_mask=mask).logits, expected) < 2e-6
        assert relative_error(model(**other).logits, expected) > 1e-3
        whole = model(**inputs, pixel_mask=torch.ones(2, 8, 8)).logits
        assert relative_error(whole, model(**inputs).logits) < 2e-6


def test_a_mask_of_patches(block):
    meter = METER_QUESTIONS.build(None).meter
    mask = torch.zeros(1, 8, 8)
    mask[0, :5, :1] = 1
    assert meter.image_token_mask(mask).tolist() == [[1, 1, 0, 1, 0]]


@torch.no_grad()
def test_several_texts_of_an_image(block):
    model = METER_RETRIEVAL.build(block())
    images, texts = pairs(2)["pixel_values"], {n: t for n, t in pairs(6).items() if n != "pixel_values"}
    mask = torch.ones(2, 8, 8)
    mask[1, 4:] = 0
    seen = []
    model.meter.vision_model.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    actual = model(images, pixel_mask=mask, **texts)
    expected = model(images.repeat_interleave(3, 0), pixel_mask=mask.repeat_interleave(3, 0), **texts)
    assert seen == [2, 6] and actual.scores.shape == (6,) and actual.match_logits.shape == (6, 2)
    assert relative_error(actual.scores, expected.scores) < 2e-6
    assert relative_error(actual.match_logits, expected.match_logits) < 2e-6


@torch.no_grad()
def test_losses(block):
    """Those of METER, written out; with Trainer's count of items, their share of a larger batch."""
    questions, retrieval = METER_QUESTIONS.build(block()), METER_RETRIEVAL.build(block())
    scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.6]])
    out = questions(**pairs(2), labels=scores)
    expected = 3 * nn.functional.binary_cross_entropy_with_logits(out.logits, scores)
    torch.testing.assert_close(out.loss, expected)
    halved = questions(**pairs(2), labels=scores, num_items_in_batch=2 * scores.numel()).loss
    torch.testing.assert_close(halved, expected / 2)
    single = retrieval(**pairs(4), labels=torch.tensor([1, 0, 0, 1]))
    matches = nn.functional.cross_entropy(single.match_logits, torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(single.loss, matches)
    grouped = retrieval(**pairs(4), labels=torch.tensor([[1, 0], [0, 1]]))
    ranking = nn.functional.cross_entropy(single.scores.view(2, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(grouped.loss, matches + ranking)
    assert torch.equal(grouped.scores, retrieval.rank_head(pooled(retrieval, 4))[:, 0])


def pooled(model, batch):
    outputs = []
    hook = model.match_head.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    model(**pairs(batch))
    hook.remove()
    return outputs[0]


def test_the_rank_head_begins_as_the_match_head(block, tmp_path):
    config = MeterWithLLMBlockConfig(**FIELDS, llm_block=block())
    torch.manual_seed(0)
    model = MeterWithLLMBlockForImageTextRetrieval(config)
    assert torch.equal(model.rank_head.weight, model.match_head.weight[1:])
    assert model.rank_head.weight.data_ptr() != model.match_head.weight[1:].data_ptr()
    with torch.no_grad():
        model.rank_head.weight += 1
    model.save_pretrained(tmp_path)
    again = MeterWithLLMBlockForImageTextRetrieval.from_pretrained(tmp_path)
    assert torch.equal(again.rank_head.weight, model.rank_head.weight)


@torch.no_grad()
def test_embeddings(block):
    """Those of images and texts alone are those of pairs; padding does not change them."""
    model = METER_EMBEDDINGS.build(block())
    inputs = {name: part for name, part in pairs(6).items() if name != "pixel_values"}
    images, mask = pairs(2)["pixel_values"], torch.ones(2, 8, 8)
    mask[1, 4:] = 0
    out = model(images, pixel_mask=mask, **inputs)
    of_images, of_texts = model.get_image_features(images, mask), model.get_text_features(**inputs)
    assert of_images.last_hidden_state.shape == (2, 5, 16) and of_texts.last_hidden_state.shape == (6, 6, 20)
    for embeddings in (of_images.pooler_output, of_texts.pooler_output):
        assert embeddings.shape[1] == 8 and torch.allclose(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    expected = model.logit_scale.exp() * of_images.pooler_output @ of_texts.pooler_output.T
    assert expected.shape == (2, 6) and relative_error(out.logits_per_image, expected) < 2e-6
    images[1, :, 4:], inputs["input_ids"][1::2, 4:] = 7.0, 5
    again = model.get_image_features(images, mask).pooler_output @ model.get_text_features(**inputs).pooler_output.T
    assert relative_error(model.logit_scale.exp() * again, expected) < 2e-6
    with pytest.raises(ValueError, match="contrastive_loss_weight is 0: the model compares images and texts only"):
        METER_RETRIEVAL.build(None).get_text_features(**inputs)
    for call, message in (
        (lambda: model.get_image_features(images[:, :2]), r"pixel_values has the shape \(2, 2, 8, 8\)"),
        (lambda: model.get_text_features(torch.ones(2, 11, dtype=torch.long)), "input_ids has 11 tokens"),
        (lambda: MeterWithLLMBlockConfig(contrastive_loss_weight=-1.0), "contrastive_loss_weight is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@torch.no_grad()
def test_the_contrastive_loss(block):
    """That of CLIP on the matches, among all images and all texts of the batch; no weight, no parameters."""
    model, plain = METER_EMBEDDINGS.build(block()), METER_RETRIEVAL.build(block())
    plain.load_state_dict(model.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in model.state_dict().keys() - plain.state_dict().keys()} == {
        *("image_projection", "text_projection", "logit_scale"),
    }
    inputs = {**pairs(6), "pixel_values": pairs(2)["pixel_values"]}
    labels = torch.tensor([[1, 0, 0], [0, 1, 0]])
    out, without = model(**inputs, labels=labels), plain(**inputs, labels=labels)
    assert torch.equal(out.scores, without.scores) and without.logits_per_image is None
    logits = out.logits_per_image
    of_images = nn.functional.cross_entropy(logits, torch.tensor([0, 4]))
    of_texts = nn.functional.cross_entropy(logits.T[[0, 4]], torch.tensor([0, 1]))
    torch.testing.assert_close(out.loss - without.loss, 0.5 * (of_images + of_texts) / 2)
    halved = model(**inputs, labels=labels, num_items_in_batch=2 * labels.numel()).loss
    torch.testing.assert_close(halved, out.loss / 2)
    pair = model(**pairs(2), labels=torch.tensor([1, 0])), plain(**pairs(2), labels=torch.tensor([1, 0]))
    logits = pair[0].logits_per_image
    one = -(logits.log_softmax(0) + logits.log_softmax(1))[0, 0] / 2
    torch.testing.assert_close(pair[0].loss - pair[1].loss, 0.5 * one)


@torch.no_grad()
def test_the_fusion_is_simultaneous_and_sees_both_ways(block):
    """The text sees the image although the block does not reach it; its output is that of the plain host."""
    model, plain = METER_QUESTIONS.build(block(), MeterWithLLMBlockModel), METER_QUESTIONS.build(None)
    inputs = pairs(2)
    out, expected = model(**inputs), plain.meter(**inputs)
    assert torch.equal(out.text_last_hidden_state, expected.text_last_hidden_state)
    half = FIELDS["hidden_size"]
    assert torch.equal(out.pooler_output[:, :half], expected.pooler_output[:, :half])
    assert not torch.equal(out.pooler_output[:, half:], expected.pooler_output[:, half:])
    changed = plain.meter(**{**inputs, "pixel_values": inputs["pixel_values"] + 1})
    assert relative_error(changed.text_last_hidden_state, expected.text_last_hidden_state) > 1e-3
