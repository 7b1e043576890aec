# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Published METERs: every number of METER's own code, and every tensor of its files accounted for."""

import json
from collections import Counter

import pytest
import torch
from paths import shared_dir
from references import relative_error
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForVisualQuestionAnswering

from hf_frozen_llm import (
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.conversion import convert_released_checkpoint, read_released_checkpoint


QUESTIONS, RETRIEVAL, FEATURES = "visual-question-answering", "image-text-retrieval", "feature-extraction"
HEADS = {"vision_num_attention_heads": 4, "text_num_attention_heads": 3, "num_attention_heads": 4}
UNUSED = {
    "vit_model.positional_embedding",
    "vit_model.ln_final.weight",
    "vit_model.ln_final.bias",
    "text_transformer.pooler.dense.weight",
    "text_transformer.pooler.dense.bias",
    "text_transformer.embeddings.position_ids",
}


class Callback:
    """An object of another library in a checkpoint."""

    def __init__(self):
        self.best_score = torch.ones(2)

    def __reduce__(self):
        return Callback, (), {"best_score": self.best_score}


@pytest.fixture(scope="module")
def official():
    """Every tensor of the fixture that is not a weight, by name."""
    with safe_open(shared_dir() / "fixtures" / "meter" / "official_meter_tiny.safetensors", "pt") as f:
        assert json.loads(f.metadata()["config"])["fusion"]["num_attention_heads"] == HEADS["num_attention_heads"]
        return {name: f.get_tensor(name) for name in f.keys()}


@pytest.fixture
def state(official):
    prefix = "state_dict."
    return {name.removeprefix(prefix): value for name, value in official.items() if name.startswith(prefix)}


@pytest.fixture
def lightning(state, tmp_path):
    """A file as PyTorch Lightning writes it."""
    path = tmp_path / "meter.ckpt"
    contents = {
        "epoch": 3,
        "pytorch-lightning_version": "1.3.2",
        "state_dict": state,
        "callbacks": {Callback: {"best_model_path": "x"}},
        "hyper_parameters": {"config": Callback(), "counts": Counter("abba")},
    }
    torch.save(contents, path)
    return path


def inputs_of(official):
    return {name: official[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def inner_outputs(model):
    """Return a dictionary that the model's next run fills with the tensors that the fixture has."""
    seen, meter = {}, model.meter

    def keep(module, name, choose=lambda args, out: out):
        module.register_forward_hook(lambda module, args, out: seen.update({name: choose(args, out)}))

    keep(meter.text_model.embeddings, "text_embedding_output")
    keep(meter.cross_modal_text_transform, "text_encoder_output", lambda args, out: args[0])
    # The last call counts: CLIP itself applies the norm to its CLS token.
    keep(meter.vision_model.post_layernorm, "image_encoder_output")
    for modality in ("text", "image"):
        layers = getattr(meter, f"cross_modal_{modality}_layers")
        keep(layers[0], f"fusion.{modality}.0", lambda args, out: args[0])
        for index, layer in enumerate(layers, start=1):
            keep(layer, f"fusion.{modality}.{index}")
            keep(layer.attention, f"fusion.{modality}.{index}.after_self_attention", lambda args, out: out[0])
            keep(layer.crossattention, f"fusion.{modality}.{index}.after_cross_attention", lambda args, out: out[0])
        keep(getattr(meter, f"cross_modal_{modality}_pooler"), f"{modality}_pooled")
    return seen


def assert_equal(actual, official, bound=2e-6):
    for name, tensor in actual.items():
        assert tensor.shape == official[name].shape, name
        assert relative_error(tensor, official[name]) < bound, f"{name}: {relative_error(tensor, official[name]):.1e}"


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_questions_equal_meters(attn, lightning, official):
    model = convert_released_checkpoint(lightning, QUESTIONS, **HEADS)
    assert type(model) is MeterWithLLMBlockForVisualQuestionAnswering and not model.training
    model.set_attn_implementation(attn)
    seen = inner_outputs(model)
    out = model(**inputs_of(official), labels=official["vqa_targets"])
    assert len(seen) == 3 + 2 * (1 + 2 * 3 + 1)
    score = official["vqa_targets"].gather(1, out.logits.argmax(dim=1)[:, None]).mean()
    seen |= {"vqa_logits": out.logits, "vqa_loss": out.loss, "vqa_batch_score": score}
    seen["pooled"] = torch.cat([seen["text_pooled"], seen["image_pooled"]], dim=-1)
    assert_equal(seen, official)
    out.loss.backward()
    meter = model.meter
    of_block = meter.vision_model.encoder.layers[0].self_attn
    in_projection = [p.weight.grad for p in (of_block.q_proj, of_block.k_proj, of_block.v_proj)]
    gradients = {
        "vit_model.visual.transformer.resblocks.0.attn.in_proj_weight": torch.cat(in_projection),
        "text_transformer.encoder.layer.0.attention.self.key.weight": meter.text_model.encoder.layer[
            0
        ].attention.self.key.weight.grad,
        "cross_modal_image_layers.0.crossattention.self.value.weight": meter.cross_modal_image_layers[
            0
        ].crossattention.self.value.weight.grad,
        "token_type_embeddings.weight": meter.token_type_embeddings.weight.grad,
    }
    names = {name.removeprefix("grad.") for name in official if name.startswith("grad.")}
    assert names == gradients.keys()
    assert_equal({f"grad.{name}": gradient for name, gradient in gradients.items()}, official, bound=5e-6)


@torch.no_grad()
def test_retrieval_equals_meters(lightning, official):
    model = convert_released_checkpoint(lightning, RETRIEVAL, **HEADS)
    assert type(model) is MeterWithLLMBlockForImageTextRetrieval
    pixels, texts, mask = inputs_of(official).values()
    matched = model(pixels, texts, mask)
    all_pairs = model(pixels, texts.repeat(3, 1), mask.repeat(3, 1)).scores.view(3, 3)
    assert_equal({"itm_logits_matched": matched.match_logits, "rank_scores": all_pairs}, official)
    labels = official["itm.labels"].long()
    mixed = torch.where(labels.bool()[:, None, None, None], pixels, official["itm.false_pixel_values"])
    out = model(mixed, texts, mask, labels=labels)
    assert_equal({"itm.logits": out.match_logits, "itm.loss": out.loss}, official)
    texts, mask = (
        torch.cat([true[:, None], official[f"irtr.false_{name}"]], dim=1).flatten(0, 1)
        for true, name in ((texts, "input_ids"), (mask, "attention_mask"))
    )
    groups = torch.tensor([[1, 0, 0]] * 3)
    out = model(pixels, texts, mask, labels=groups)
    loss = out.loss - nn.functional.cross_entropy(out.match_logits, groups.flatten())
    assert_equal({"irtr.scores": out.scores.view(3, 3), "irtr.loss": loss}, official)


def test_positions_are_resized_as_meter_does(lightning, official):
    """An independent pair of tables, from 32 to 48 pixels."""
    model = convert_released_checkpoint(lightning, FEATURES, **HEADS)
    model.resize_images(32)
    with torch.no_grad():
        table = model.meter.vision_model.embeddings.position_embedding.weight
        table.copy_(official["clip_position_embedding_before"])
    model.resize_images(48)
    table = model.meter.vision_model.embeddings.position_embedding.weight
    assert table.requires_grad and torch.equal(table, official["clip_position_embedding_after"])
    assert model(**inputs_of(official)).last_hidden_state.shape == (3, 10, 32)
    with pytest.raises(ValueError, match="image_size is 8, less than a patch of 16 pixels"):
        model.resize_images(8)


@pytest.mark.parametrize("task", [QUESTIONS, RETRIEVAL, FEATURES])
def test_every_tensor_is_accounted_for(task, lightning, state):
    converted = read_released_checkpoint(lightning, task, **HEADS)
    of_task = {QUESTIONS: ("vqa_classifier.",), RETRIEVAL: ("itm_score.", "rank_output."), FEATURES: ()}
    others = tuple(head for heads in of_task.values() for head in heads if head not in of_task[task])
    assert set(converted.left_out) == UNUSED | {name for name in state if name.startswith(others)}
    assert set(converted.sources.values()) == set(state) - set(converted.left_out)
    used = sum(state[name].numel() for name in set(converted.sources.values()))
    assert sum(tensor.numel() for tensor in converted.tensors.values()) == used
    lines = converted.describe().splitlines()
    assert len(lines) == len(converted.tensors) + len(converted.left_out)
    assert "vit_model.ln_final.bias: left out, of CLIP's text encoder, which METER does not use" in lines
    assert "text_transformer.embeddings.position_ids: left out, a constant" in lines


def without(state, *heads):
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


def test_the_published_kinds(state):
    """Pre-trained, retrieval, questions, NLVR2, SNLI-VE: the heads that the package has; the others without."""
    for_questions = without(state, "itm_score", "rank_output")
    for_retrieval = without(state, "vqa_classifier")
    headless = without(for_retrieval, "itm_score", "rank_output")
    pretrained = headless | {n: t for n, t in state.items() if n.startswith("itm_score")}
    pretrained["mlm_score.bias"] = torch.zeros(60)
    entailment = headless | {"snli_classifier.0.weight": torch.zeros(64, 64)}
    pairs = headless | {"nlvr2_classifier.0.weight": torch.zeros(128, 128)}
    pairs["token_type_embeddings.weight"] = torch.zeros(3, 32)

    model = convert_released_checkpoint(pretrained, QUESTIONS, num_labels=7, **HEADS)
    assert model.classifier.out_proj.out_features == 7
    model = convert_released_checkpoint(pretrained, RETRIEVAL, **HEADS)
    assert torch.equal(model.match_head.weight, state["itm_score.fc.weight"])
    assert torch.equal(model.rank_head.weight, state["itm_score.fc.weight"][1:]), "METER's start of fine-tuning"
    assert torch.equal(model.rank_head.bias, state["itm_score.fc.bias"][1:])
    for checkpoint in (entailment, pairs, for_questions, for_retrieval):
        model = convert_released_checkpoint(checkpoint, FEATURES, **HEADS)
        assert type(model) is MeterWithLLMBlockModel
    assert convert_released_checkpoint(pairs, FEATURES, **HEADS).meter.token_type_embeddings.num_embeddings == 3
    assert convert_released_checkpoint(for_questions, QUESTIONS, **HEADS).config.num_labels == 10
    model = convert_released_checkpoint(for_retrieval, RETRIEVAL, **HEADS)
    more = convert_released_checkpoint(for_retrieval, RETRIEVAL, contrastive_loss_weight=1.0, **HEADS)
    assert torch.equal(more.rank_head.weight, model.rank_head.weight)
    new = {name for name in more.state_dict() if name not in model.state_dict()}
    assert new == {"image_projection.weight", "text_projection.weight", "logit_scale"}, "to be trained"
    for checkpoint, task, head in (
        (for_questions, RETRIEVAL, "vqa_classifier"),
        (for_retrieval, QUESTIONS, "rank_output"),
        (entailment, QUESTIONS, "snli_classifier"),
        (pairs, RETRIEVAL, "nlvr2_classifier"),
    ):
        with pytest.raises(ValueError, match=rf"is that of another task: it has {head}\.\* and none of"):
            convert_released_checkpoint(checkpoint, task, **HEADS)


def test_bad_checkpoints_are_refused(state):
    def convert(checkpoint, task=QUESTIONS, **more):
        return convert_released_checkpoint(checkpoint, task, **{**HEADS, **more})

    with pytest.raises(ValueError, match=r"lacks tensors that the model needs, or has others: .*post_layernorm"):
        convert(without(state, "vit_model.visual.ln_post"))
    with pytest.raises(ValueError, match=r"does not have: \['cross_modal_image_layers\.0\.surprise\.weight'\]"):
        convert({**state, "cross_modal_image_layers.0.surprise.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"lacks vit_model\.visual\.positional_embedding, whose shape"):
        convert(without(state, "vit_model.visual.positional_embedding"))
    with pytest.raises(ValueError, match="image_size is given as 64, but the checkpoint's tensors show 48"):
        convert(state, image_size=64)
    with pytest.raises(ValueError, match="num_labels is given as 3, but the checkpoint's tensors show 10"):
        convert(state, num_labels=3)
    for name in HEADS:
        with pytest.raises(ValueError, match=f"do not show {name}: give it"):
            convert(state, **{name: None})
    with pytest.raises(ValueError, match="The checkpoint is of visual-question-answering or image-text-retrieval"):
        convert(state, "image-classification")


def test_objects_in_a_file_are_not_built(state, tmp_path):
    mark = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (exec, (f"open({str(mark)!r}, 'w').close()",))

    torch.save({"hyper_parameters": Malicious(), "state_dict": state}, tmp_path / "meter.ckpt")
    assert convert_released_checkpoint(tmp_path / "meter.ckpt", FEATURES, **HEADS).config.hidden_size == 32
    assert not mark.exists()
    torch.save({"state_dict": {**state, "rank_output.bias": Malicious()}}, tmp_path / "meter.ckpt")
    with pytest.raises(ValueError, match="holds no state dictionary of a model"):
        convert_released_checkpoint(tmp_path / "meter.ckpt", FEATURES, **HEADS)
    assert not mark.exists()


def test_command_and_round_trip(lightning, official, tmp_path, capsys):
    flags = [part for name, value in HEADS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    for task, auto in ((QUESTIONS, AutoModelForVisualQuestionAnswering), (FEATURES, AutoModel)):
        main(["convert", str(lightning), "--task", task, "--output", str(tmp_path / task), *flags])
        assert "rank_output.weight: left out, the head of another task" in capsys.readouterr().out
        model = auto.from_pretrained(tmp_path / task)
        outputs = model(**inputs_of(official))
        name = "pooled" if task == FEATURES else "vqa_logits"
        assert_equal({name: outputs["pooler_output" if task == FEATURES else "logits"]}, official)
