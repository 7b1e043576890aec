# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What is special about SQA3D: where its visual tokens come from, words by number, and scenes without objects."""

import pytest
import torch
from sqa3d_cases import SQA3D, answers, rooms
from torch import nn

from hf_frozen_llm import SQA3DWithLLMBlockConfig


def predicting(**fields):
    return SQA3D.build(None, object_tokens="predicted", num_proposals=5, **fields)


def scene_and_texts(batch):
    return {name: tensor for name, tensor in rooms(batch).items() if not name.startswith("object_")}


@torch.no_grad()
def test_annotations_are_inputs_only_if_the_tokens_are_annotated():
    model, inputs = predicting(), rooms(2)
    alone, with_labels = model(**scene_and_texts(2)), model(**inputs, **answers(2))
    assert torch.equal(alone.logits, with_labels.logits) and alone.object_mask.shape == (2, 5)
    model = SQA3D.build(None)
    out = model(**inputs)
    assert torch.equal(out.object_mask, inputs["object_mask"].bool()) and out.box_centers.shape == (2, 16, 3)
    moved = model(**{**inputs, "object_centers": inputs["object_centers"] + 0.5})
    assert not torch.equal(out.logits, moved.logits)
    assert SQA3DWithLLMBlockConfig().object_tokens == "predicted"


def test_a_scene_without_objects_is_answered(block):
    """All proposals weigh alike, with finite gradients, for the block too."""
    for attn in ("sdpa", "eager"):
        model = SQA3D.build(block(), attn_implementation=attn)
        inputs = {**rooms(2), "object_mask": torch.zeros(2, 16)}
        out = model(**inputs, **answers(2))
        torch.testing.assert_close(out.object_weights, torch.full((2, 16, 1), 1 / 16))
        out.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert model.llm_block.input_projection.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_words_by_number_are_their_vectors():
    model = predicting(vocab_size=9)
    ids = {name: torch.arange(2 * words).view(2, words) % 9 for name, words in (("situation", 6), ("question", 5))}
    inputs = {n: t for n, t in scene_and_texts(2).items() if not n.endswith("_embeds")}
    by_number = model(**inputs, **{f"{name}_ids": numbers for name, numbers in ids.items()})
    table = model.get_input_embeddings()
    by_vector = model(**inputs, **{f"{name}_embeds": table(numbers) for name, numbers in ids.items()})
    assert torch.equal(by_number.logits, by_vector.logits)


@torch.no_grad()
def test_padded_words_and_objects_change_nothing():
    model, inputs = SQA3D.build(None), rooms(2)
    expected = model(**inputs).logits
    changed = dict(inputs)
    for name in ("situation", "question"):
        padding = inputs[f"{name}_mask"][..., None] == 0
        changed[f"{name}_embeds"] = torch.where(padding, 7.0, inputs[f"{name}_embeds"])
    changed["object_centers"] = torch.where(inputs["object_mask"][..., None] == 0, 3.0, inputs["object_centers"])
    torch.testing.assert_close(model(**changed).logits, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_normalized_proposals():
    """Visual tokens see each feature in units of its own spread over all proposals of a batch."""
    model, inputs = predicting(normalize_proposals=True).double().train(), scene_and_texts(3)
    features = model.sqa3d.detect(inputs["points"].double(), None, None).proposal_features
    mean, variance = features.mean(dim=(0, 1)), features.var(dim=(0, 1), unbiased=False)
    norm = model.sqa3d.object_norm
    standardized = (features - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    projected = model.sqa3d.object_projection(standardized)
    torch.testing.assert_close(model.sqa3d.project_objects(features), nn.functional.gelu(projected))
    changed = {name for name in model.state_dict() if name not in predicting().state_dict()}
    assert changed and all(name.startswith("sqa3d.object_norm.") for name in changed)


@pytest.mark.parametrize(("training", "normalizes"), [(False, False), (True, False), (True, True)])
def test_questions_share_a_scene_exactly(block, training, normalizes):
    """Encoded once or for each question, scenes give the same answers, losses and gradients."""
    scenes, questions = torch.tensor([1, 0, 1, 0]), rooms(4)
    of_scene = [name for name in (rooms(2) | answers(2)) if name.startswith(("points", "object_", "vote_"))]
    once = {name: tensor for name, tensor in (rooms(2) | answers(2)).items() if name in of_scene}
    of_question = {name: tensor for name, tensor in (questions | answers(4)).items() if name not in of_scene}
    results = []
    for inputs in ({**once, "scene_index": scenes}, {name: tensor[scenes] for name, tensor in once.items()}):
        model = SQA3D.build(block(), normalize_proposals=normalizes).double().train(training)
        inputs = {n: t.double() if t.is_floating_point() else t for n, t in (inputs | of_question).items()}
        out = model(**inputs)
        out.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((out.logits, out.situation, out.object_weights, out.loss, gradients))
    # The sums over objects have an epsilon beside their number, which is twice as large without sharing.
    for once, each in zip(*results):
        torch.testing.assert_close(once, each, rtol=1e-6, atol=1e-7)
    assert results[0][0].shape == (4, 3)


def test_loss_of_one_answer():
    model, inputs = SQA3D.build(None, problem_type="single_label_classification"), rooms(2)
    scores = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.6, 0.0]])
    out = model(**inputs, labels=scores)
    log = out.logits.log_softmax(-1)
    expected = -(log[0, 0] + 0.25 * log[1, 0] + 0.75 * log[1, 1]) / 2
    torch.testing.assert_close(out.answer_loss, expected)
    assert model(**inputs, labels=torch.zeros(2, 3)).answer_loss == 0  # no answer that the model knows
    torch.testing.assert_close(out.loss, expected * model.config.answer_loss_weight * model.config.loss_scale)


def test_contradictory_configurations_are_refused(block):
    for fields, message in (
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3; it must be even"),
        ({"hidden_size": 25}, r"hidden_size \(25\) is not a multiple of num_attention_heads"),
        ({"radii": [0.2, 0.4]}, r"radii is \[0\.2, 0\.4\]; the PointNet\+\+ has four levels"),
        ({"use_points": False, "llm_block": block()}, "use_points is False, and the LLM block stands on"),
        ({"object_tokens": "both"}, "object_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            SQA3DWithLLMBlockConfig(**{**SQA3D.fields, **fields})
