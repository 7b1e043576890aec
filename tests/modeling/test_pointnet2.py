# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The operators of PointNet++: the published kernels' indices, and a naive loop beside the chunked search."""

import pytest
import torch
from paths import shared_dir
from safetensors import safe_open

from hf_frozen_llm.modeling import pointnet2
from hf_frozen_llm.modeling.pointnet2 import (
    find_three_nearest,
    group_neighbors,
    interpolate_three_nearest,
    query_ball,
    sample_farthest,
)


FPS = "random near_origin duplicates all_equal all_skipped grid_ties collinear npoint_eq_n npoint_gt_n single".split()
BALLS = "random_small random_large nsample_1 empty exact_boundary duplicates fewer_points_than_nsample".split()
RADII = dict(zip(BALLS, (0.2, 0.4, 0.4, 0.2, 0.5, 0.2, 2.0)))
NEAREST = "random coincident duplicate_ties grid_ties three_known two_known one_known".split()


@pytest.fixture(scope="module")
def official():
    with safe_open(shared_dir() / "fixtures" / "sqa3d" / "official_pointnet2_ops.safetensors", "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}


def test_every_case_is_tested(official):
    cases = {tuple(name.split(".")[:2]) for name in official}
    groups = {("group", name) for name in ("xyz_and_features", "no_normalisation", "features_only", "xyz_only")}
    named = [("fps", FPS), ("ball_query", BALLS), ("three_nn", NEAREST)]
    assert cases == groups | {(operator, name) for operator, names in named for name in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", FPS)
def test_sampling_equals_the_kernel(case, dtype, official):
    points, expected = official[f"fps.{case}.xyz"].to(dtype), official[f"fps.{case}.inds"]
    assert torch.equal(sample_farthest(points, expected.shape[1]), expected.long())


@pytest.mark.parametrize("chunk", [None, 40], ids=["whole", "chunked"])
@pytest.mark.parametrize("case", BALLS)
def test_balls_equal_the_kernel(case, chunk, official, monkeypatch):
    if chunk:
        monkeypatch.setattr(pointnet2, "MAX_DISTANCES", chunk)
    points, centers, expected = (official[f"ball_query.{case}.{name}"] for name in ("xyz", "new_xyz", "inds"))
    assert torch.equal(query_ball(points, centers, RADII[case], expected.shape[2]), expected.long())


@pytest.mark.parametrize("case", NEAREST)
def test_interpolation_equals_the_kernel(case, official):
    def get(name):
        return official[f"three_nn.{case}.{name}"]

    indices, distances = find_three_nearest(get("unknown"), get("known"))
    assert torch.equal(indices, get("inds").long())
    torch.testing.assert_close(distances, get("dist"), rtol=1e-5, atol=1e-6)
    features = get("features").clone().requires_grad_()
    out = interpolate_three_nearest(features, indices, distances)
    torch.testing.assert_close(out, get("interpolated"), rtol=1e-4, atol=1e-5)
    out.backward(get("grad_output"))
    torch.testing.assert_close(features.grad, get("grad_features"), rtol=1e-4, atol=1e-5)
    exact = get("unknown").double(), get("known").double()
    indices, distances = find_three_nearest(*exact)
    out = interpolate_three_nearest(get("features").double(), indices, distances)
    torch.testing.assert_close(out, get("interpolated_f64"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["xyz_and_features", "no_normalisation", "xyz_only"])
def test_groups_equal_the_published_ones(case, official):
    def get(name):
        return official[f"group.{case}.{name}"]

    points, centers = (get(name).clone().requires_grad_() for name in ("xyz", "new_xyz"))
    has_features = case != "xyz_only"
    features = get("features").clone().requires_grad_() if has_features else None
    indices = query_ball(points, centers, 0.4, 16)
    assert torch.equal(indices, get("inds").long())
    out = group_neighbors(points, centers, features, indices, 1.0 if case == "no_normalisation" else 0.4)
    torch.testing.assert_close(out, get("grouped_features"), rtol=1e-5, atol=1e-6)
    out.backward(get("grad_output"))
    leaves = {"xyz": points, "new_xyz": centers, **({"features": features} if has_features else {})}
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, get(f"grad_{name}"), rtol=1e-4, atol=2e-5)


def test_features_are_gathered_alone(official):
    get = {name: official[f"group.features_only.{name}"] for name in ("features", "inds", "grad_output")}
    features = get["features"].clone().requires_grad_()
    out = pointnet2.gather_features(features, get["inds"].long())
    assert torch.equal(out, official["group.features_only.grouped_features"])
    out.backward(get["grad_output"])
    torch.testing.assert_close(features.grad, official["group.features_only.grad_features"], rtol=1e-5, atol=1e-6)


def naive_ball(points, centers, radius, num_neighbors):
    """One point after the other."""
    found = [i for i, point in enumerate(points) if (centers - point).square().sum() < radius**2][:num_neighbors]
    return found + [found[0] if found else 0] * (num_neighbors - len(found))


def test_chunks_equal_a_naive_loop(monkeypatch):
    monkeypatch.setattr(pointnet2, "MAX_DISTANCES", 100)
    points = torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(0))
    centers = points[:, :7] + 0.01
    indices = query_ball(points, centers, 0.3, 5)
    expected = [[naive_ball(cloud, center, 0.3, 5) for center in of_cloud] for cloud, of_cloud in zip(points, centers)]
    assert indices.tolist() == expected
    nearest, distances = find_three_nearest(centers, points)
    exact = torch.cdist(centers.double(), points.double()).sort(stable=True)
    assert torch.equal(nearest, exact.indices[..., :3])
    torch.testing.assert_close(distances.double(), exact.values[..., :3], rtol=1e-4, atol=1e-6)


def test_memory_does_not_grow_with_the_clouds(monkeypatch):
    sizes, search = [], torch.searchsorted

    def observed(counts, ranks):
        sizes.append(counts.numel())
        return search(counts, ranks)

    monkeypatch.setattr(torch, "searchsorted", observed)
    query_ball(torch.rand(1, 40_000, 3), torch.rand(1, 600, 3), 0.05, 4)
    assert len(sizes) > 1 and max(sizes) <= pointnet2.MAX_DISTANCES


def test_half_precision_points_are_searched_in_float32():
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(sample_farthest(points, 9), sample_farthest(points.float(), 9))
    centers = points[:, :4]
    assert torch.equal(query_ball(points, centers, 0.4, 6), query_ball(points.float(), centers.float(), 0.4, 6))
