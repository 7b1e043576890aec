# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Point-BERT with an LLM block: groups of points, positions of the block, saving, bad input."""

import pytest
import torch
from references import relative_error
from tiny_llms import randomize
from transformers import AutoConfig, AutoModel

from hf_frozen_llm import (
    LLMBlockConfig,
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    PointBertWithLLMBlockModel,
)
from hf_frozen_llm.modeling.modeling_point_bert_with_llm_block import group_points
from hf_frozen_llm.modeling.point_groups import knn_points, sample_farthest_points


FIELDS = {
    "num_groups": 6,
    "group_size": 4,
    "encoder_hidden_size": 16,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "num_labels": 3,
}


@pytest.fixture
def block(llm_folder):
    return LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], layer_index=1)


@pytest.fixture
def build(block):
    def make(use_block=True, **fields):
        torch.manual_seed(0)
        config = PointBertWithLLMBlockConfig(**{**FIELDS, "llm_block": block if use_block else None, **fields})
        model = PointBertWithLLMBlockForPointCloudClassification(config)
        randomize(model.point_bert, seed=1)
        return model.eval()

    return make


def clouds(batch=2, points=32):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(3))


def crowded_clouds():
    """Many equal distances: points of a grid, each of them twice."""
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)
    return torch.stack([torch.cat([grid, grid]), torch.cat([grid.flip(0), grid])])


def farthest_by_brute_force(points, count):
    chosen = [0]
    while len(chosen) < count:
        distances = [min((p - points[c]).square().sum() for c in chosen) for p in points]
        chosen.append(max(range(len(points)), key=lambda i: (distances[i], -i)))
    return chosen


def nearest_by_brute_force(points, center, count):
    distances = (points - center).square().sum(-1).tolist()
    return sorted(range(len(points)), key=lambda i: (distances[i], i))[:count]


@pytest.mark.parametrize("points", [clouds(), crowded_clouds(), clouds() * 1e-4 + 100])
def test_groups_are_those_of_brute_force_in_float64(points):
    chosen, exact = sample_farthest_points(points, 9), points.double()
    assert chosen.tolist() == [farthest_by_brute_force(cloud, 9) for cloud in exact]
    centers = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    nearest = knn_points(points, centers, 7)
    assert nearest.tolist() == [
        [nearest_by_brute_force(cloud, center, 7) for center in of_cloud]
        for cloud, of_cloud in zip(exact, centers.double())
    ]
    groups, same_centers = group_points(points, 9, 7)
    assert torch.equal(same_centers, centers)
    assert torch.equal(groups[1, 2], points[1, nearest[1, 2]] - centers[1, 2])


def test_too_few_points():
    with pytest.raises(ValueError, match="Cannot sample 9 points: the point clouds have 5"):
        sample_farthest_points(clouds(points=5), 9)
    with pytest.raises(ValueError, match="Cannot find 9 neighbours: the point clouds have 5 points"):
        knn_points(clouds(points=5), clouds(points=2), 9)


def test_order_of_the_points_is_of_no_importance_but_for_the_first(build):
    """Farthest point sampling begins with it."""
    model, points = build(), clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(31)])
    with torch.no_grad():
        torch.testing.assert_close(model(points[:, order]).logits, model(points).logits)


@pytest.mark.parametrize("position", [-1, 0, 1])
def test_block_stands_at_its_position(position, build, block):
    block.position = position
    model, seen = build(), []
    model.llm_block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        states = model(clouds(), output_hidden_states=True).hidden_states
    place = 2 if position == -1 else position
    assert len(states) == 4
    torch.testing.assert_close(seen[0], states[place])
    torch.testing.assert_close(states[place + 1], model.llm_block(states[place]))


def test_without_a_block_it_is_the_host(build):
    model = build(use_block=False)
    with torch.no_grad():
        hidden_states = model.point_bert(clouds()).last_hidden_state
        assert torch.equal(model.classifier(hidden_states), model(clouds()).logits)


def test_sdpa_equals_eager(build):
    with torch.no_grad():
        out = build(attn_implementation="eager")(clouds(), output_attentions=True)
        torch.testing.assert_close(out.logits, build()(clouds()).logits)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 2, 7, 7)] * 2 + [(2, 4, 7, 7)]


def test_drop_path(build):
    model = build(drop_path_rate=0.5)
    first, last = model.point_bert.layers
    update = torch.ones(2000, 1, 1)
    assert torch.equal(last._drop_path(update), update)  # in evaluation
    dropped = last.train()._drop_path(update)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0} and 0.9 < dropped.mean() < 1.1
    assert torch.equal(first.train()._drop_path(update), update)


def test_gradients_and_what_is_frozen(build):
    model = build().train()
    model(clouds(), labels=torch.tensor([1, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith(("llm_block.llm_layers", "llm_block.final_norm"))
        assert parameter.requires_grad != is_frozen
        assert is_frozen == (parameter.grad is None), name


def test_fast_path_gives_the_same(build):
    model, results = build(drop_path_rate=0.0, classifier_dropout=0.0).train(), []
    for fast in (True, False):
        model.llm_block.config.fast = fast
        model.zero_grad()
        out = model(clouds(16), labels=torch.arange(16) % 3)
        out.loss.backward()
        results.append((out.logits.detach(), model.llm_block.input_projection.weight.grad.clone()))
    for ours, theirs in zip(*results):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("save_weights", [True, False])
def test_save_and_load_by_the_auto_classes(save_weights, build, block, tmp_path):
    block.save_weights = save_weights
    model = build()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is PointBertWithLLMBlockForPointCloudClassification
    assert type(AutoConfig.from_pretrained(tmp_path)) is PointBertWithLLMBlockConfig
    base = PointBertWithLLMBlockModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(clouds()).logits, model(clouds()).logits, rtol=1e-5, atol=1e-6)
        assert base(clouds()).last_hidden_state.shape == (2, 7, 24)


def test_bfloat16_groups_as_float32_does(build):
    """Coordinates keep their type until the groups are found."""
    model, points = build().bfloat16(), clouds()
    seen = []
    model.point_bert.embeddings.group_encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        assert model(points).logits.isfinite().all()
    assert torch.equal(seen[0], group_points(points, 6, 4)[0].bfloat16())


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 32, 6), r"\(2, 32, 6\); it must be \(batch, points, 3\)"),
        (torch.zeros(32, 3), r"it must be \(batch, points, 3\)"),
        (torch.zeros(2, 5, 3), "Point clouds of 5 points cannot be grouped: num_groups is 6 and group_size 4"),
        (None, "points"),
    ],
)
def test_bad_input_is_refused(points, message, build):
    with pytest.raises(ValueError, match=message):
        build()(points)


def test_bad_configuration_is_refused(block):
    block.position = 3
    with pytest.raises(ValueError, match=r"llm_block\.position is 3; with num_hidden_layers=2"):
        PointBertWithLLMBlockConfig(**FIELDS, llm_block=block)
    with pytest.raises(ValueError, match="hidden_size \\(24\\) is not a multiple of num_attention_heads \\(5\\)"):
        PointBertWithLLMBlockConfig(**{**FIELDS, "num_attention_heads": 5})
