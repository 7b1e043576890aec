# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""MotionProcessor: mmTransformer's own pre-processing, invariance, the way back, bad scenes."""

import csv
import json
import logging
import math
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from motion_cases import FORECAST_MAE, MMTRANSFORMER, VECTORNET, traffic
from paths import shared_dir
from safetensors import safe_open
from transformers import AutoFeatureExtractor, AutoProcessor

from hf_frozen_llm import MotionProcessor
from hf_frozen_llm.modeling.motion_scenes import regress_direction


@pytest.fixture(scope="module")
def argoverse():
    """The scene of `av1_scene_dev`: (scene, ids of its tracks in their order, ids of its lanes)."""
    folder = shared_dir() / "fixtures/motion/av1_scene_dev"
    with open(folder / "1.csv") as file:
        rows = list(csv.DictReader(file))
    times = sorted({float(row["TIMESTAMP"]) for row in rows})
    tracks = sorted({row["TRACK_ID"] for row in rows})
    positions = np.full((len(tracks), len(times), 2), np.nan)
    for row in rows:
        place = tracks.index(row["TRACK_ID"]), times.index(float(row["TIMESTAMP"]))
        positions[place] = float(row["X"]), float(row["Y"])
    (target,) = {row["TRACK_ID"] for row in rows if row["OBJECT_TYPE"] == "AGENT"}
    root = ElementTree.parse(next(folder.glob("*.xml"))).getroot()
    nodes = {node.get("id"): [float(node.get("x")), float(node.get("y"))] for node in root.iter("node")}
    lanes, lane_ids = [], []
    for way in root.iter("way"):
        tags = {tag.get("k"): tag.get("v") for tag in way.iter("tag")}
        lane_ids.append(int(way.get("lane_id")))
        lanes.append(
            {
                "centerline": [nodes[nd.get("ref")] for nd in way.iter("nd")],
                "is_intersection": tags["is_intersection"] == "True",
                "turn_direction": tags["turn_direction"],
                "has_traffic_control": tags["has_traffic_control"] == "True",
            }
        )
    scene = {"positions": positions, "timestamps": times, "target": tracks.index(target), "lanes": lanes}
    return scene, tracks, lane_ids


def test_preprocessing_of_mmtransformer(argoverse):
    scene, tracks, lane_ids = argoverse
    with safe_open(shared_dir() / "fixtures/motion/av1_scene_dev/expected.safetensors", "np") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}
        order = json.loads(file.metadata()["agent_order"])
    processor = MotionProcessor(preset="mmtransformer")
    ours = processor.prepare(scene)
    assert [tracks[agent] for agent in ours["agents"]] == order
    assert [lane_ids[index] for index in ours["lane_indices"]] == expected["LANE_ID"].tolist()
    np.testing.assert_allclose(ours["frame"].center, expected["NORM_CENTER"], rtol=0, atol=1e-3)
    turn = (ours["frame"].angle - expected["THETA"][0] + math.pi) % (2 * math.pi) - math.pi
    assert abs(turn) < 1e-5
    np.testing.assert_allclose(ours["agent_history"], expected["HISTORY"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours["agent_positions"], expected["POS"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours["lanes"], expected["LANE"], rtol=0, atol=1e-3)
    # Its future is a mask and offsets, from padded positions; ours are the positions, and NaN where the mask is 0.
    offsets, mask = expected["FUTURE"][..., :2], expected["FUTURE"][..., 2] == 1
    assert (np.isfinite(ours["agent_futures"]).all(-1) == mask).all()
    positions = expected["POS"][:, None] + offsets.cumsum(1)
    np.testing.assert_allclose(ours["agent_futures"][mask], positions[mask], rtol=0, atol=1e-3)
    assert np.isfinite(ours["labels"]).all()
    batch = processor(scene, return_labels=True)
    assert batch["agent_history"].dtype == torch.float32 and batch["labels"].shape == (1, 30, 2)
    assert torch.equal(batch["lanes"][0], torch.from_numpy(ours["lanes"]).float())


def test_heading_rule_of_mmtransformer():
    cases = json.loads((shared_dir() / "fixtures/motion/official_heading_rule.json").read_text())["cases"]
    assert len(cases) == 19
    for case in cases:
        x, y = regress_direction(np.array(case["history"]))
        turn = math.pi / 2 - math.atan2(y, x) - case["rotation_angle_rad"]
        assert abs((turn + math.pi) % (2 * math.pi) - math.pi) < 1e-6, case["name"]


def test_real_scene_under_two_heading_rules(argoverse):
    """The CSV rounds positions to 0.1 mm, which turns the last step's 0.4 m by some 1e-4."""
    scene, _, _ = argoverse
    rules = json.loads((shared_dir() / "fixtures/motion/official_real_scene_av2_log.json").read_text())["normalised"]
    for name, rule in (("regression_mmtransformer", "regression"), ("last_step", "last_step")):
        ours = MotionProcessor(heading=rule).prepare(scene)
        angle = (ours["frame"].angle + math.pi) % (2 * math.pi) - math.pi
        assert abs(angle - rules[name]["rotation_angle_rad"]) < 1e-3
        future = ours["labels"]
        np.testing.assert_allclose(future[0], rules[name]["future_first"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(future[-1], rules[name]["future_last"], rtol=0, atol=1e-2)


@pytest.mark.parametrize("x", [-0.5, 0.0, 0.5])
def test_motion_exactly_along_y_or_none(x):
    """mmTransformer's own code stops here."""
    steps = np.arange(20.0)
    for sign in (1, -1):
        direction = regress_direction(np.stack([0 * steps + x, sign * steps], axis=1))
        np.testing.assert_allclose(direction, [0, sign], atol=1e-12)
    assert regress_direction(np.full((20, 2), x)) is None


# Invariance


def moved(scene, angle=0.0, shift=(0, 0)):
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def move(points):
        return np.asarray(points) @ rotation.T + shift

    changed = {**scene, "positions": move(scene["positions"])}
    changed["lanes"] = [{**lane, "centerline": move(lane["centerline"])} for lane in scene["lanes"]]
    if "headings" in scene:
        changed["headings"] = scene["headings"] + angle
    return changed


@pytest.mark.parametrize("format", ["agents_and_lanes", "polylines", "poses"])
@pytest.mark.parametrize("heading", ["last_step", "box_yaw"])
def test_moving_and_rotating_changes_nothing(heading, format, argoverse):
    scene = {**argoverse[0], "headings": np.full(argoverse[0]["positions"].shape[:2], 0.7)}
    processor = MotionProcessor(format=format, heading=heading)
    expected = processor(scene, return_labels=True)
    for angle, shift in ((0.0, (300.0, -20.0)), (1.234, (0, 0)), (-2.9, (5.0, 80.0))):
        ours = processor(moved(scene, angle, shift), return_labels=True)
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-4)


def test_box_rule_and_regression_depend_on_the_axes(argoverse):
    """Which is why they are not the defaults."""
    processor = MotionProcessor(preset="mmtransformer")
    ours, turned = (processor.prepare(moved(argoverse[0], angle)) for angle in (0, math.pi / 4))
    assert ours["lane_indices"] != turned["lane_indices"]


@pytest.mark.parametrize(
    "case", [MMTRANSFORMER, VECTORNET, FORECAST_MAE], ids=["mmtransformer", "vectornet", "forecast_mae"]
)
def test_model_on_a_moved_and_reordered_scene(case, block):
    """From the scene to the trajectories in its coordinates: they move with it, whatever the order."""
    model, processor = case.build(block()), case.processor()
    scene = traffic(3, 4, processor.num_history_steps)
    angle, shift = 2.2, np.array([40.0, -7.0])

    def forecast(scene):
        with torch.no_grad():
            out = model(**processor(scene))
        return processor.post_process(out, [processor.prepare(scene)["frame"]])[0]

    expected, ours = forecast(scene), forecast(moved(scene, angle, shift))
    there = moved({"positions": expected["trajectories"], "lanes": []}, angle, shift)["positions"]
    np.testing.assert_allclose(ours["trajectories"], there, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours["scores"], expected["scores"], rtol=0, atol=1e-4)
    order = [2, 0, 1]
    shuffled = {**scene, "positions": scene["positions"][order], "target": 1, "lanes": scene["lanes"][::-1]}
    np.testing.assert_allclose(forecast(shuffled)["trajectories"], expected["trajectories"], rtol=0, atol=1e-4)


# Rules


def test_velocity_changes():
    """From 1 to 2 m/s along the way, then seen no more; beside it a lane."""
    way = np.array([[0, 0], [0, 0.1], [0, 0.2], [0, 0.4]])
    scene = {"positions": way[None], "timestamps": np.arange(4) / 10, "target": 0}
    scene["lanes"] = [{"centerline": np.array([[1.0, 0.0], [1.0, 5.0]])}]
    plain, ours = (
        MotionProcessor("polylines", num_history_steps=4, num_lane_points=3, velocity_changes=changes)(scene)
        for changes in (False, True)
    )
    vectors = ours["polyline_vectors"][0]
    assert plain["polyline_vectors"].shape[-1] == 9 and vectors.shape == (2, 3, 11)
    torch.testing.assert_close(vectors[..., :9], plain["polyline_vectors"][0])
    torch.testing.assert_close(vectors[0, :, 9:], torch.tensor([[0.0, -1], [0, -1], [0, 0]]), rtol=0, atol=1e-5)
    assert (vectors[1, :, 9:] == 0).all()


def test_way_back_and_near_ends():
    processor = MotionProcessor(num_history_steps=6)
    frame = processor.prepare(traffic(1, 0))["frame"]
    there = torch.tensor([[[[0.0, 9.0]], [[0.0, 9.5]], [[3.0, 0.0]]]]).double()
    outputs = SimpleNamespace(
        trajectories=torch.from_numpy(frame.to_frame(there.numpy())), scores=torch.tensor([[0.3, 0.5, 0.2]])
    )
    (result,) = processor.post_process(outputs, [frame])
    np.testing.assert_allclose(result["trajectories"], there[0, [1, 0, 2]], atol=1e-5)
    np.testing.assert_allclose(result["scores"], [0.5, 0.3, 0.2], atol=1e-6)
    (result,) = processor.post_process(outputs, [frame], num_modes=2, min_distance=1.0)
    np.testing.assert_allclose(result["trajectories"], there[0, [1, 2]], atol=1e-5)
    np.testing.assert_allclose(result["scores"], [5 / 7, 2 / 7], atol=1e-6)
    (result,) = processor.post_process(outputs, [frame], num_modes=3, min_distance=1.0)
    np.testing.assert_allclose(result["trajectories"], there[0, [1, 2, 0]], atol=1e-5)


def scene_with(tracks, **more):
    return {"positions": np.array(tracks, dtype=float), "timestamps": np.arange(6) / 10, "target": 0, **more}


WAY = [[0, step] for step in range(6)]
UNSEEN = [np.nan, np.nan]


@pytest.mark.parametrize("format", ["agents_and_lanes", "polylines"])
def test_gaps_and_agents_seen_once(format):
    gap = [[1, 0], [1, 1], UNSEEN, [1, 3], [1, 4], [1, 5]]
    once, gone = [UNSEEN] * 5 + [[2, 5]], [[3, 3]] * 5 + [UNSEEN]
    processor = MotionProcessor(format=format, num_history_steps=6, num_lane_points=2)
    scene = scene_with([WAY, gap, once, gone])
    prepared = processor.prepare(scene)
    assert prepared["agents"] == [0, 1, 2]
    if format == "agents_and_lanes":
        assert prepared["agent_history"][1, :, 3].tolist() == [1, 0, 0, 1, 1]
        assert not prepared["agent_history"][1, 1:3, :2].any() and not prepared["agent_history"][2, :, 3].any()
        np.testing.assert_allclose(prepared["agent_positions"], [[0, 0], [1, 0], [2, 0]], atol=1e-12)
    else:
        assert prepared["vector_mask"].tolist() == [[1] * 5, [1, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
        np.testing.assert_allclose(prepared["polyline_vectors"][2, 4, :4], [2, 0, 2, 0], atol=1e-12)
        assert not prepared["polyline_vectors"][1, 1:3].any()
    strict = MotionProcessor(format=format, num_history_steps=6, keep_gaps=False, min_observed_steps=2)
    assert strict.prepare(scene)["agents"] == [0]


def test_a_target_that_stands_still():
    processor = MotionProcessor(num_history_steps=6)
    assert processor.prepare(scene_with([[[3, 4]] * 6]))["frame"].angle == 0
    standing = processor.prepare(scene_with([[[3, 4]] * 6], headings=np.zeros((1, 6))))
    assert standing["frame"].angle == math.pi / 2
    stopped = processor.prepare(scene_with([[[0, 0], [0, 0], [-1, 0], [-1, 0], [-1, 0], [-1, 0]]]))
    assert abs(stopped["frame"].angle + math.pi / 2) < 1e-12


def test_limits_keep_the_nearest_and_say_so(caplog):
    processor = MotionProcessor(num_history_steps=6, max_agents=2, max_lanes=1)
    scene = scene_with(
        [WAY, np.add(WAY, [9, 0]), np.add(WAY, [3, 0])],
        lanes=[{"centerline": [[x, 0], [x, 9]]} for x in (20, 2, 7)],
    )
    logger = logging.getLogger("hf_frozen_llm.modeling.processing_motion_forecasting")
    logger.addHandler(caplog.handler)
    prepared = processor.prepare(scene, "scene 7")
    logger.removeHandler(caplog.handler)
    assert prepared["agents"] == [0, 2] and prepared["lane_indices"] == [1]
    assert "scene 7: max_agents keeps the nearest 2 of 3 agents" in caplog.text
    assert "scene 7: max_lanes keeps the nearest 1 of 3 lanes" in caplog.text


def test_distance_to_a_lane_is_to_its_segments():
    """No point of it is near."""
    scene = scene_with([WAY], lanes=[{"centerline": [[-80, 10], [80, 10]]}, {"centerline": [[-80, 80], [80, 80]]}])
    assert MotionProcessor(num_history_steps=6).prepare(scene)["lane_indices"] == [0]
    lane = MotionProcessor(num_history_steps=6, num_lane_points=5).prepare(scene)["lanes"][0]
    np.testing.assert_allclose(lane[:, 0], [-80, -40, 0, 40, 80])


def test_batches_are_padded_and_scenes_need_no_lanes():
    processor = MotionProcessor(num_history_steps=6, num_future_steps=2)
    batch = processor([traffic(3, 4), traffic(1, 0)], return_labels=True)
    assert batch["agent_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and batch["lane_mask"].sum(1).tolist() == [4, 0]
    assert batch["lanes"].shape == (2, 4, 10, 5) and not batch["lanes"][1].any()
    assert batch["labels"].isnan().all()
    alone = processor(traffic(1, 0))
    assert alone["lanes"].shape == (1, 0, 10, 5) and alone["lane_mask"].shape == (1, 0)


@pytest.mark.parametrize("auto", [AutoFeatureExtractor, AutoProcessor, MotionProcessor])
def test_saved_beside_a_model(auto, tmp_path):
    MMTRANSFORMER.build(None).save_pretrained(tmp_path)
    processor = MotionProcessor(preset="mmtransformer", agent_radius=30, max_lanes=7, num_history_steps=6)
    processor.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is MotionProcessor and again.to_dict() == processor.to_dict()
    assert again.heading == "regression" and again.agent_radius == 30 and not again.keep_gaps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": None}, "scene 0 has no positions; it has"),
        ({"timestamps": None, "target": None}, "scene 0 has no timestamps, target"),
        ({"positions": np.zeros((6, 2))}, r"positions has the shape \(6, 2\); it must be \(agents, steps, 2\)"),
        ({"timestamps": np.arange(5)}, r"timestamps has the shape \(5,\), and positions 6 steps"),
        ({"timestamps": [0, 1, 2, 2, 3, 4]}, "timestamps do not increase at step 3; sort the rows by time"),
        ({"timestamps": [0, 1, np.nan, 2, 3, 4]}, "holds infinite numbers"),
        ({"positions": np.full((1, 6, 2), np.inf)}, "infinite numbers; a position that was not observed is NaN"),
        ({"positions": [[*WAY[:5], UNSEEN]]}, "the target, agent 0, is not seen at step 5, the last observed"),
        ({"target": 1}, "target is 1; it must be the index of one of the 1 agents"),
        ({"headings": np.zeros(6)}, r"headings has the shape \(6,\)"),
        ({"lanes": [{"centerline": [[0, 0]]}]}, r"the centerline of lane 0 has the shape \(1, 2\)"),
        ({"lanes": [{"centerline": [[0, 0], [0, np.nan]]}]}, "at least two points with finite numbers"),
        ({"lanes": [{"centerline": WAY, "turn_direction": "up"}]}, "turn_direction of lane 0 is 'up'"),
    ],
)
def test_bad_scenes(change, message):
    with pytest.raises(ValueError, match=message):
        MotionProcessor(num_history_steps=6)(
            scene_with([WAY], **change) if "positions" not in change else {**scene_with([WAY]), **change}
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "tnt"}, r"preset is 'tnt'; it must be one of \('mmtransformer', 'forecast_mae'\), or None"),
        ({"format": "raster"}, "format is 'raster'; it must be one of"),
        ({"heading": "up"}, "heading is 'up'"),
        ({"lane_rule": "all"}, "lane_rule is 'all'"),
        ({"num_history_steps": 1}, "num_history_steps is 1; it must be at least 2"),
        ({"max_agents": 0}, "max_agents is 0; it must be at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        MotionProcessor(**fields)


def test_more_that_cannot_be():
    with pytest.raises(ValueError, match="scene has 6 steps, fewer than num_history_steps, 20"):
        MotionProcessor().prepare(scene_with([WAY]))
    with pytest.raises(ValueError, match="scenes is empty"):
        MotionProcessor()([])
    with pytest.raises(ValueError, match=r"no heading of the target .* which heading='box_yaw' needs"):
        MotionProcessor(heading="box_yaw", num_history_steps=6)(scene_with([WAY]))
    many = scene_with([WAY], lanes=[{"centerline": WAY}])
    with pytest.raises(ValueError, match=r"lane 0 has 6 points, more than num_lane_points, 5\. Set resample_lanes"):
        MotionProcessor(num_history_steps=6, num_lane_points=5, resample_lanes=False)(many)
