# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from hf_frozen_llm import PointBertWithLLMBlockConfig, PointBertWithLLMBlockModel, PointCloudProcessor
from hf_frozen_llm.modeling.point_groups import sample_farthest_points
from hf_frozen_llm.modeling.processing_point_bert_with_llm_block import read_points


CUBE_OFF = "OFF\n8 12 0\n" + "\n".join(
    [f"{x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    + [f"3 {a} {b} {c}" for a, b, c in [
        (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
        (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
    ]]
)  # fmt: skip


def cloud(num_points=50, seed=0):
    return np.random.default_rng(seed).normal(size=(num_points, 3))


def write(path, points):
    """Write one point cloud as a file of each format."""
    rows = [" ".join(f"{value:.6f}" for value in row) for row in points.reshape(-1, 3)]
    match path.suffix:
        case ".npy":
            np.save(path, points)
        case ".txt":
            path.write_text("\n".join(row.replace(" ", ",") + ",0,0,1" for row in rows))
        case ".off":
            path.write_text("\n".join(["OFF", f"{len(rows)} 0 0", *rows]))
        case ".obj":
            path.write_text("\n".join(f"v {row}" for row in rows))
        case ".ply":
            properties = [f"property float {axis}" for axis in "xyz"]
            header = ["ply", "format ascii 1.0", f"element vertex {len(rows)}", *properties, "end_header"]
            path.write_text("\n".join([*header, *rows]) + "\n")
        case ".h5":
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                file["data"] = points
    return path


def test_points_are_the_farthest_of_the_normalised_cloud():
    points = 5 + 3 * cloud()
    inputs = PointCloudProcessor(num_points=20)(points)
    assert list(inputs) == ["points"] and inputs["points"].dtype == torch.float32
    centred = points - points.mean(0)
    expected = torch.from_numpy(centred / np.linalg.norm(centred, axis=1).max()).float()
    chosen = sample_farthest_points(expected[None], 20)[0]
    torch.testing.assert_close(inputs["points"], expected[chosen][None])
    raw = PointCloudProcessor(num_points=50, do_normalize=False)(points)["points"][0]
    assert sorted(raw.tolist()) == sorted(torch.from_numpy(points).float().tolist())


def test_far_from_the_origin_nothing_is_lost():
    points = cloud()
    here, there = (PointCloudProcessor(num_points=20)(points + far)["points"] for far in (0.0, 1e6))
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6)


def test_forms_of_input(tmp_path):
    processor, points = PointCloudProcessor(num_points=20), cloud()
    expected = processor(points)["points"]
    for same in (torch.from_numpy(points), points.tolist(), [points], points[None], [points.tolist()]):
        assert torch.equal(processor(same)["points"], expected)
    two = processor([points, cloud(70, seed=1)])["points"]
    assert two.shape == (2, 20, 3) and torch.equal(two[:1], expected)
    assert isinstance(processor(points, return_tensors="np")["points"], np.ndarray)
    assert processor(write(tmp_path / "two.npy", np.stack([points, points])))["points"].shape == (2, 20, 3)


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".h5", ".ply", ".off", ".obj"])
def test_files(tmp_path, suffix):
    if suffix in (".ply", ".off", ".obj"):
        pytest.importorskip("trimesh")
    points = cloud()
    points[3] = points[2]  # two points in one place stay two
    file = write(tmp_path / f"cloud{suffix}", points)
    np.testing.assert_allclose(read_points(file), points, atol=1e-6)
    processor = PointCloudProcessor(num_points=20)
    torch.testing.assert_close(processor(str(file))["points"], processor(points)["points"], rtol=0, atol=1e-5)
    assert processor([file, str(file)])["points"].shape == (2, 20, 3)


def test_surfaces_are_sampled(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "cube.off").write_text(CUBE_OFF)
    points = read_points(tmp_path / "cube.off")
    assert points.shape == (8192, 3) and np.array_equal(points, read_points(tmp_path / "cube.off"))
    is_on_face = (np.isclose(points, 0) | np.isclose(points, 1)).any(1)
    assert is_on_face.all() and points.min() >= 0 and points.max() <= 1
    for axis in range(3):  # all six faces
        assert 0.1 < np.isclose(points[:, axis], 0).mean() < 0.24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:10], r"points has 10 points, fewer than num_points, 20\. Set num_points lower"),
        (
            lambda p: np.hstack([p, p]),
            r"points has the shape \(50, 6\); a point cloud is \(points, 3\).*points\[:, :3\]",
        ),
        (lambda p: p[:, :2], r"shape \(50, 2\)"),
        (lambda p: p[0], r"shape \(3,\)"),
        (lambda p: [], "points is empty"),
        (lambda p: np.where(p == p[7], np.nan, p), r"point 7 is \[nan, nan, nan\]; coordinates must be finite"),
        (lambda p: np.where(p == p[7], np.inf, p), "must be finite numbers"),
        (lambda p: [p, p[:, :2]], r"cloud 1 has the shape \(50, 2\)"),
        (lambda p: np.stack([p, np.full_like(p, 2.0)]), "cloud 1: all points are in one place"),
    ],
)
def test_wrong_clouds(change, message):
    with pytest.raises(ValueError, match=message):
        PointCloudProcessor(num_points=20)(change(cloud()))


def test_wrong_files(tmp_path):
    processor = PointCloudProcessor(num_points=20)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*cloud\.npy"):
        processor(str(tmp_path / "cloud.npy"))
    (tmp_path / "cloud.csv").write_text("1,2,3")
    with pytest.raises(ValueError, match=r"unsupported point-cloud format; supported: \.ply, \.off"):
        processor(str(tmp_path / "cloud.csv"))
    for suffix in (".npy", ".txt", ".h5", ".ply"):
        (tmp_path / f"cloud{suffix}").write_text("not a cloud")
        with pytest.raises(ValueError, match=rf"cloud\{suffix} cannot be read as a point cloud: "):
            processor(str(tmp_path / f"cloud{suffix}"))
    short = write(tmp_path / "short.txt", cloud(5))
    with pytest.raises(ValueError, match=r"short\.txt has 5 points"):
        processor(short)


def test_num_points_must_be_positive():
    with pytest.raises(ValueError, match="num_points is 0"):
        PointCloudProcessor(num_points=0)


@pytest.mark.parametrize("auto", [AutoFeatureExtractor, AutoProcessor, PointCloudProcessor])
def test_saved_beside_a_model(tmp_path, auto):
    config = PointBertWithLLMBlockConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_groups=4, group_size=4
    )
    PointBertWithLLMBlockModel(config).save_pretrained(tmp_path)
    processor = PointCloudProcessor(num_points=33, do_normalize=False)
    processor.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert isinstance(loaded, PointCloudProcessor)
    assert loaded.num_points == 33 and loaded.do_normalize is False
    assert loaded.to_dict() == processor.to_dict()


def test_nothing_optional_is_imported():
    code = "import sys, hf_frozen_llm; assert not {'h5py', 'trimesh', 'av', 'kornia'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_travels_to_the_hub(tmp_path):
    """Its files, copied to a model's folder, load without this package."""
    save = (
        "from hf_frozen_llm import PointCloudProcessor\n"
        "PointCloudProcessor.register_for_auto_class('AutoFeatureExtractor')\n"
        f"PointCloudProcessor(num_points=7).save_pretrained({str(tmp_path)!r})\n"
    )
    load = (
        "import sys\n"
        "import numpy as np\n"
        "from transformers import AutoFeatureExtractor\n"
        f"processor = AutoFeatureExtractor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "assert processor(np.random.rand(9, 3))['points'].shape == (1, 7, 3)\n"
        "assert 'hf_frozen_llm' not in sys.modules\n"
    )
    for code in (save, load):
        subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "point_groups.py").is_file()
