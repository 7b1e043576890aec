# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`predict` on scenes: files of single scenes, pictures of the forecasts, the table."""

import json

import numpy as np
import pytest
from motion_cases import FORECAST_MAE, VECTORNET, traffic
from PIL import Image

from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.tasks.motion_forecasting.scene_files import read_scene_file


CPU = ["--use_cpu", "true"]


def make_scene(num_agents=3, num_lanes=2):
    """Twelve steps, the last six of which are the future."""
    scene = traffic(num_agents, num_lanes)
    steps = np.arange(12.0)
    scene["positions"] = np.stack([np.stack([steps + y, steps * y], axis=1) for y in range(num_agents)])
    scene["positions"][1, 2] = np.nan
    return {**scene, "timestamps": steps / 10, "types": ["vehicle", "cyclist", "pedestrian"][:num_agents]}


def write_scene(path, scene):
    if path.suffix == ".json":
        positions = [[[None if np.isnan(x) else x for x in point] for point in track] for track in scene["positions"]]
        path.write_text(json.dumps({**scene, "positions": positions, "timestamps": list(scene["timestamps"])}))
        return
    lanes = np.full((len(scene["lanes"]), 3, 2), np.nan)
    lanes[:, :2] = [lane["centerline"] for lane in scene["lanes"]]
    crossings = [lane["is_intersection"] for lane in scene["lanes"]]
    np.savez(path, **{**scene, "lanes": lanes, "is_intersection": crossings})


@pytest.fixture(scope="module", params=["forecast_mae", "vectornet"])
def run(request, tmp_path_factory):
    """A saved model, without a block, and its processor."""
    case = {"forecast_mae": FORECAST_MAE, "vectornet": VECTORNET}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    case.build(None).save_pretrained(folder)
    processor = case.processor()
    processor.num_history_steps, processor.num_future_steps = 6, 6
    processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(
        f"task: motion-forecasting\nmodel_type: {case.config_class.model_type}\ndataset_name: scenes\n"
        "num_history_steps: 6\n"
    )
    return folder


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_are_the_scenes(suffix, tmp_path):
    scene = make_scene()
    write_scene(tmp_path / f"a{suffix}", scene)
    ours = read_scene_file(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.array(ours["positions"], dtype=float), scene["positions"])
    assert list(ours["types"]) == scene["types"] and int(ours["target"]) == 0
    for lane, expected in zip(ours["lanes"], scene["lanes"], strict=True):
        np.testing.assert_array_equal(lane["centerline"], expected["centerline"])
        assert bool(lane["is_intersection"]) == expected["is_intersection"]


def test_files_and_pictures(run, tmp_path, capsys):
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_scene(folder / "one.json", make_scene())
    write_scene(folder / "two.npz", make_scene())
    write_scene(folder / "three.json", make_scene(2, 0))
    found = predict(str(run), folder, CPU, tmp_path / "out.jsonl", tmp_path / "scenes.png")
    assert not found.failures and [record["file"][-9:] for record in found.records] == [
        *("/one.json", "hree.json", "s/two.npz")
    ]
    one, three, two = found.records
    assert np.shape(one["trajectories"]) == (3, 6, 2) and sum(one["scores"]) == pytest.approx(1)
    np.testing.assert_allclose(one["trajectories"], two["trajectories"], atol=1e-5)
    assert np.abs(np.subtract(one["trajectories"], three["trajectories"])).max() > 1e-4
    np.testing.assert_allclose(one["truth"], make_scene()["positions"][0, 6:], atol=1e-4)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    with Image.open(tmp_path / "scenes.png") as image:
        assert image.width > 1000
    main(["predict", str(run), str(folder / "one.json"), "--plot", str(tmp_path / "one.gif"), *CPU])
    with Image.open(tmp_path / "one.gif") as image:
        assert image.n_frames == 12
    line = capsys.readouterr().out.splitlines()[-1]
    assert "one.json  trajectories 3 × 6 × 2  scores 0." in line and "truth 6 × 2" in line


def test_bad_files_are_named_and_the_others_are_predicted(run, tmp_path):
    write_scene(tmp_path / "good.json", make_scene())
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    write_scene(tmp_path / "short.json", {**make_scene(), "timestamps": [0.0, 0.1]})
    np.savez(tmp_path / "lanes.npz", **{**make_scene(), "lanes": np.zeros((2, 2))})
    found = predict(str(run), tmp_path, CPU)
    assert [record["file"] for record in found.records] == [str(tmp_path / "good.json")]
    messages = {path.rpartition("/")[2]: message for path, message in found.failures.items()}
    assert set(messages) == {"broken.json", "list.json", "broken.npz", "short.json", "lanes.npz"}
    assert "cannot be read as a scene" in messages["broken.json"] and "cannot be read" in messages["broken.npz"]
    assert "holds a list" in messages["list.json"] and "positions 12 steps" in messages["short.json"]
    assert "lanes has the shape (2, 2); it must be (lanes, points, 2)" in messages["lanes.npz"]
