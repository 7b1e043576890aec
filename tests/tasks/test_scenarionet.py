# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes of ScenarioNet's pickles, in the layout of its `ScenarioDescription`, and files that are refused."""

import copy
import pickle
from collections import defaultdict
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_frozen_llm import MotionProcessor
from hf_frozen_llm.tasks.motion_forecasting.arguments import MotionDataArguments
from hf_frozen_llm.tasks.motion_forecasting.readers import FEATURES, read_scenes


STEPS = {"num_history_steps": 11, "num_future_steps": 80}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def make_track(kind, start, velocity, first=0, num_steps=91):
    valid = np.arange(num_steps) >= first
    position = np.array([*start, 0.5]) + 0.1 * np.arange(num_steps)[:, None] * np.array([*velocity, 0.0])
    state = {
        "position": position * valid[:, None],
        "heading": np.arctan2(velocity[1], velocity[0]) * valid,
        "velocity": np.array(velocity) * valid[:, None],
        "valid": valid,
        "length": np.full(num_steps, 4.5),
    }
    return {
        "type": kind,
        "state": {name: value.astype(value.dtype if name == "valid" else np.float32) for name, value in state.items()},
        "metadata": {"type": kind, "track_length": num_steps, "object_id": kind},
    }


def make_scenario():
    """A Waymo-like scenario: 1.1 s observed, 8 s to forecast."""
    counts = defaultdict(int)
    counts["VEHICLE"] += 1
    street = np.stack([np.linspace(0, 60, 30), np.zeros(30), np.zeros(30)], axis=1).astype(np.float32)
    return {
        "id": "waymo-7",
        "version": "v1",
        "length": 91,
        "metadata": {
            "ts": np.arange(91, dtype=np.float32) / 10,
            "metadrive_processed": False,
            "coordinate": "waymo",
            "sdc_id": "1",
            "tracks_to_predict": {"2": {"track_index": 1, "difficulty": np.int64(0)}},
            "number_summary": {"num_objects_each_type": counts, "object_types": {"VEHICLE"}},
        },
        "tracks": {
            "1": make_track("VEHICLE", (0, 0), (5, 0)),
            "2": make_track("CYCLIST", (10, 4), (3, 1)),
            "3": make_track("TRAFFIC_CONE", (12, 0), (0, 0), first=5),
            "4": make_track("PEDESTRIAN", (8, 8), (0, -1), first=20),
        },
        "dynamic_map_states": {"9": {"type": "TRAFFIC_LIGHT", "state": {}, "lane": "31", "metadata": {}}},
        "map_features": {
            "30": {"type": "LANE_SURFACE_STREET", "polyline": street},
            "31": {"type": "LANE_SURFACE_UNSTRUCTURE", "polyline": street + 3},
            "32": {"type": "LANE_FREEWAY", "polyline": street + 1000},
            "33": {"type": "ROAD_EDGE_BOUNDARY", "polyline": street},
            "34": {"type": "CROSSWALK", "polygon": street[:4]},
        },
    }


def write(folder, scenario, name="sd_waymo_v1_7.pkl", protocol=4):
    file = folder / "validation" / "waymo_0" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(scenario, protocol=protocol))
    (folder / "validation" / "dataset_summary.pkl").write_bytes(b"never opened")
    return folder


def read(folder, split="validation", with_targets=True, **keys):
    return read_scenes(MotionDataArguments(dataset_name=str(folder), **{**STEPS, **keys}), split, with_targets)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_scenario(protocol, tmp_path):
    rows = read(write(tmp_path, make_scenario(), protocol=protocol))
    assert rows.features == FEATURES and len(rows) == 1
    (row,) = rows
    assert row["scene_id"] == "waymo-7, step 0" and row["track_id"] == "2" and row["track_ids"] == ["1", "2", "3"]
    assert row["types"] == ["vehicle", "cyclist", "construction"] and row["target"] == 1
    positions = np.array(row["positions"], dtype=float)
    assert positions.shape == (3, 91, 2)
    np.testing.assert_allclose(positions[1, 90], [37, 13], atol=1e-4)
    assert np.isnan(positions[2, :5]).all() and np.isfinite(positions[2, 5:]).all()
    np.testing.assert_allclose(row["velocities"][0][10], [5, 0])
    assert row["headings"][1][10] == pytest.approx(np.arctan2(1, 3))
    lanes = {lane["id"]: lane for lane in row["lanes"]}
    assert list(lanes) == ["30", "31"] and np.shape(lanes["30"]["centerline"]) == (30, 2)
    assert [lanes[name]["is_intersection"] for name in lanes] == [False, True]
    assert [lanes[name]["has_traffic_control"] for name in lanes] == [False, True]
    prepared = MotionProcessor(**STEPS).prepare(row)
    np.testing.assert_allclose(prepared["labels"][-1], [0, 8 * 10**0.5], atol=1e-3)


def test_windows_without_a_list_of_targets(tmp_path):
    """The own vehicle is the target."""
    scenario = make_scenario()
    del scenario["metadata"]["tracks_to_predict"]
    rows = read(write(tmp_path, scenario, "0.pkl"), num_future_steps=30, window_stride=25, use_lanes=False)
    assert rows["scene_id"][:] == ["waymo-7, step 0", "waymo-7, step 25", "waymo-7, step 50"]
    assert set(rows["track_id"]) == {"1"} and rows[0]["lanes"] == []
    assert rows[1]["track_ids"] == ["1", "2", "3", "4"] and rows[1]["timestamps"][0] == 0


class Touch:
    """An object whose loading would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def change(path, value):
    scenario = copy.deepcopy(make_scenario())
    *parents, last = path
    part = scenario
    for name in parents:
        part = part[name]
    part[last] = value
    return scenario


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (["a list"], "is no scenario of ScenarioNet, a dictionary with tracks, map_features, metadata"),
        (change(["metadata", "ts"], np.zeros(91)), "must be times that increase"),
        (
            change(["tracks", "2", "state", "position"], np.zeros((90, 3))),
            r"track 2: position has the shape \(90, 2\) and valid \(91,\); the scenario has 91 steps",
        ),
        (change(["tracks", "1", "state"], {}), r"track 1: position has the shape \(0,\)"),
        (change(["metadata", "tracks_to_predict"], {"77": {}}), "has no target: neither tracks_to_predict nor sdc_id"),
        (change(["metadata", "map"], Path("x")), r"cannot be read .*pathlib.*neither an array nor a plain container"),
    ],
)
def test_bad_scenarios(scenario, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, scenario))


def test_code_in_a_pickle_does_not_run(tmp_path):
    folder = write(tmp_path, change(["metadata", "map"], Touch(tmp_path / "ran")))
    with pytest.raises(ValueError, match="neither an array nor a plain container"):
        read(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "validation/waymo_0/sd_waymo_v1_7.pkl").write_bytes(pickle.dumps(make_scenario())[:-50])
    with pytest.raises(ValueError, match="cannot be read as a scenario"):
        read(folder)
    with pytest.raises(ValueError, match="Unknown split"):
        read(folder, "train")
