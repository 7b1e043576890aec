# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Point-BERT with an LLM block: groups of points, stochastic depth, precision of the coordinates."""

import pytest
import torch
from vision_cases import POINT_BERT

from hf_frozen_llm import PointBertWithLLMBlockConfig
from hf_frozen_llm.modeling.modeling_point_bert_with_llm_block import group_points
from hf_frozen_llm.modeling.point_groups import knn_points, sample_farthest_points


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


def test_order_of_the_points_is_of_no_importance_but_for_the_first(block):
    """Farthest point sampling begins with it."""
    model, points = POINT_BERT.build(block()), clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(31)])
    with torch.no_grad():
        torch.testing.assert_close(model(points[:, order]).logits, model(points).logits)


def test_drop_path(block):
    model = POINT_BERT.build(block(), drop_path_rate=0.5)
    first, last = model.point_bert.layers
    update = torch.ones(2000, 1, 1)
    assert torch.equal(last._drop_path(update), update)  # in evaluation
    dropped = last.train()._drop_path(update)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0} and 0.9 < dropped.mean() < 1.1
    assert torch.equal(first.train()._drop_path(update), update)


def test_bfloat16_groups_as_float32_does(block):
    """Coordinates keep their type until the groups are found."""
    model, points = POINT_BERT.build(block()).bfloat16(), clouds()
    seen = []
    model.point_bert.embeddings.group_encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        assert model(points).logits.isfinite().all()
    assert torch.equal(seen[0], group_points(points, 6, 4)[0].bfloat16())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="hidden_size \\(24\\) is not a multiple of num_attention_heads \\(5\\)"):
        PointBertWithLLMBlockConfig(**{**POINT_BERT.fields, "num_attention_heads": 5})
