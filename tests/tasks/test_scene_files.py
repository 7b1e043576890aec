# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes out of files: real ones of Argoverse 1 and 2, a sensor log, pedestrians; CSV of one's own; bad files."""

import json
import logging
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from paths import shared_dir
from safetensors import safe_open

from hf_frozen_llm import MotionProcessor
from hf_frozen_llm.tasks.motion_forecasting.arguments import MotionDataArguments
from hf_frozen_llm.tasks.motion_forecasting.maps import read_argoverse1_map
from hf_frozen_llm.tasks.motion_forecasting.readers import FEATURES, read_scenes, scene_sizes


FIXTURES = shared_dir() / "fixtures/motion"
SCENARIO = "0a1e6f0a-1817-4a98-b02e-db8c9327d151"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(path, split="train", with_targets=True, **keys):
    return read_scenes(MotionDataArguments(dataset_name=str(path), **keys), split, with_targets)


def write_argoverse1(root, table=None, with_map=True, split="train"):
    """Write `<split>/data/1.csv` and `map_files`; `table` replaces the content of the first."""
    source = FIXTURES / "av1_scene_dev"
    (root / split / "data").mkdir(parents=True)
    (root / "map_files").mkdir(exist_ok=True)
    table = pd.read_csv(source / "1.csv") if table is None else table
    table.to_csv(root / split / "data" / "1.csv", index=False)
    if with_map:
        shutil.copy(next(source.glob("*.xml")), root / "map_files")
    return root


# Argoverse 1


def test_argoverse_1_as_mmtransformer_prepares_it(tmp_path):
    with safe_open(FIXTURES / "av1_scene_dev/expected.safetensors", "np") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}
        order = json.loads(file.metadata()["agent_order"])
    rows = read(write_argoverse1(tmp_path), preset="mmtransformer")
    assert rows.features == FEATURES and len(rows) == 1
    (row,) = rows
    ours = MotionProcessor(preset="mmtransformer").prepare(row)
    assert [row["track_ids"][agent] for agent in ours["agents"]] == order
    assert [int(row["lanes"][lane]["id"]) for lane in ours["lane_indices"]] == expected["LANE_ID"].tolist()
    np.testing.assert_allclose(ours["agent_history"], expected["HISTORY"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours["agent_positions"], expected["POS"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours["lanes"], expected["LANE"], rtol=0, atol=1e-3)
    assert row["scene_id"] == "1" and row["city"] == "MIA" and row["types"][row["target"]] == "AGENT"
    assert np.shape(row["positions"])[1:] == (50, 2) and row["headings"] is None
    near = np.linalg.norm(np.array(row["positions"])[:, 19] - ours["frame"].center, axis=-1) <= 56
    assert 1 < near.sum() < len(row["track_ids"])
    assert scene_sizes(rows, 56.0) == [near.sum() + len(row["lanes"])]


def test_rows_of_argoverse_1_may_be_in_any_order(tmp_path):
    table = pd.read_csv(FIXTURES / "av1_scene_dev/1.csv")
    (expected,) = read(write_argoverse1(tmp_path / "sorted", table))
    (ours,) = read(write_argoverse1(tmp_path / "shuffled", table.sample(frac=1, random_state=0)))
    np.testing.assert_array_equal(ours["positions"], expected["positions"])


def test_argoverse_1_without_a_future_or_lanes(tmp_path):
    table = pd.read_csv(FIXTURES / "av1_scene_dev/1.csv")
    observed = table[table["TIMESTAMP"] <= table["TIMESTAMP"].unique()[19]]
    root = write_argoverse1(tmp_path, observed, with_map=False, split="test_obs")
    (row,) = read(root, "test_obs", with_targets=False, use_lanes=False)
    assert np.shape(row["positions"])[1:] == (20, 2) and row["lanes"] == []
    prepared = MotionProcessor().prepare(row)
    assert prepared["lanes"].shape[0] == 0 and np.isnan(prepared["labels"]).all()


def drop_agent(table):
    return table[table["OBJECT_TYPE"] != "AGENT"]


def add_agent(table):
    other = table["TRACK_ID"].iloc[0]
    return table.assign(OBJECT_TYPE=table["OBJECT_TYPE"].mask(table["TRACK_ID"] == other, "AGENT"))


def hide_agent(table):
    last = table["TIMESTAMP"].unique()[19]
    return table[(table["OBJECT_TYPE"] != "AGENT") | (table["TIMESTAMP"] != last)]


def at_half_the_rate(table):
    return table[table["TIMESTAMP"].isin(table["TIMESTAMP"].unique()[::2])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_agent, r"1\.csv has 0 tracks of the type AGENT; it must have one"),
        (add_agent, r"1\.csv has 2 tracks of the type AGENT \(.*\); it must have one"),
        (hide_agent, r"the target is not seen at step 19, the last observed one"),
        (lambda table: table.assign(CITY_NAME="ATX"), r"CITY_NAME is ATX; it must be one of PIT, MIA"),
        (
            lambda table: table.assign(X=table["X"].mask(table.index == 7)),
            r"row 7: X is nan; .* Remove rows of agents",
        ),
        (lambda table: table.astype({"Y": object}).replace({"Y": {table["Y"][3]: "?"}}), r"row 3: Y is \?"),
        (lambda table: pd.concat([table, table.tail(1)]), "has two positions at"),
        (lambda table: table.drop(columns="CITY_NAME"), "has no column CITY_NAME; it has TIMESTAMP"),
        (lambda table: table.head(0), "has no rows"),
        (lambda table: table.assign(TIMESTAMP=table["TIMESTAMP"] * 0.35), r"apart, and step_seconds is 0\.1 s"),
        (lambda table: table[table["TIMESTAMP"].isin(table["TIMESTAMP"].unique()[:9])], "has 9 steps, fewer than"),
    ],
)
def test_bad_files_of_argoverse_1(change, message, tmp_path):
    table = change(pd.read_csv(FIXTURES / "av1_scene_dev/1.csv"))
    with pytest.raises(ValueError, match=message):
        read(write_argoverse1(tmp_path, table))


def test_every_second_step_of_argoverse_1_is_not_seen(tmp_path):
    """A recording with missing times keeps its rate: these steps are unknown."""
    table = at_half_the_rate(pd.read_csv(FIXTURES / "av1_scene_dev/1.csv"))
    with pytest.raises(ValueError, match="the target is not seen at step 19"):
        read(write_argoverse1(tmp_path, table))


def test_missing_maps(tmp_path):
    root = write_argoverse1(tmp_path / "data", with_map=False)
    with pytest.raises(FileNotFoundError, match=r"no vector map of MIA, .* Set map_folder .* or use_lanes to false"):
        read(root)
    pittsburgh = pd.read_csv(FIXTURES / "av1_scene_dev/1.csv").assign(CITY_NAME="PIT")
    with pytest.raises(FileNotFoundError, match="no vector map of PIT"):
        read(write_argoverse1(tmp_path / "city", pittsburgh))
    elsewhere = tmp_path / "maps"
    elsewhere.mkdir()
    shutil.copy(next((FIXTURES / "av1_scene_dev").glob("*.xml")), elsewhere)
    assert len(read(root, map_folder=str(elsewhere))[0]["lanes"]) > 10


def test_lanes_of_the_wrong_place_are_none(tmp_path, caplog):
    """A scene far from all lanes has none, and a warning says so."""
    table = pd.read_csv(FIXTURES / "av1_scene_dev/1.csv")
    logger = logging.getLogger("hf_frozen_llm.tasks.motion_forecasting.readers")
    logger.addHandler(caplog.handler)
    rows = read(write_argoverse1(tmp_path, table.assign(X=table["X"] + 9000)))
    logger.removeHandler(caplog.handler)
    assert rows[0]["lanes"] == []
    assert "1 of 1 scenes have no lane within map_radius, 100 m, of their target" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><map>&a;</map>', "declares a document type or entities"),
        ("<map><way", "is not XML"),
        ("<map/>", "has no lanes"),
        ('<map><way lane_id="1"/></map>', "is no vector map of Argoverse 1: an element lacks 'is_intersection'"),
        ('<map><node id="0" x="1"/></map>', "an element lacks 'y'"),
    ],
)
def test_bad_vector_maps(content, message, tmp_path):
    file = tmp_path / "map.xml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_argoverse1_map(str(file))


# Argoverse 2


@pytest.fixture
def scenario(tmp_path):
    """A folder of the split val, and the table of its scenario, as functions of the change."""
    source = FIXTURES / "av2_forecasting_scenario" / SCENARIO

    def write(change=lambda table: table, with_map=True):
        folder = tmp_path / "val" / SCENARIO
        folder.mkdir(parents=True)
        if with_map:
            shutil.copy(next(source.glob("*.json")), folder)
        change(pd.read_parquet(next(source.glob("*.parquet")))).to_parquet(folder / f"scenario_{SCENARIO}.parquet")
        return tmp_path

    return write


STEPS = {"num_history_steps": 50, "num_future_steps": 60}


def test_argoverse_2_as_its_own_reader_reads_it(scenario):
    expected = json.loads((FIXTURES / "official_av2_forecasting_scenario.json").read_text())
    (row,) = read(scenario(), "val", map_radius=1000, **STEPS)
    assert row["scene_id"] == expected["scenario_id"] and row["city"] == expected["city"]
    assert row["track_id"] == expected["focal_track_id"] == row["track_ids"][row["target"]]
    positions = np.array(row["positions"])
    assert positions.shape == (expected["tracks"], 110, 2)
    assert np.isfinite(positions).all(-1).sum() == expected["rows"]
    assert np.isfinite(positions[:, :50]).all(-1).sum() == expected["observed_rows"]
    counts = {kind: row["types"].count(kind) for kind in set(row["types"])}
    assert counts == expected["tracks_by_type"]
    focal, track = expected["focal"], positions[row["target"]]
    for step, name in ((0, "first"), (49, "last_observed"), (50, "first_future"), (109, "last")):
        np.testing.assert_allclose(track[step], focal[name], rtol=0, atol=1e-5)
    assert row["headings"][row["target"]][49] == pytest.approx(focal["heading_at_49"], abs=1e-6)
    table = pd.read_parquet(next((FIXTURES / "av2_forecasting_scenario" / SCENARIO).glob("*.parquet")))
    table = table[table["track_id"] == row["track_id"]].sort_values("timestep")
    velocities = np.array(row["velocities"][row["target"]], dtype=float)
    np.testing.assert_array_equal(velocities[table["timestep"]], table[["velocity_x", "velocity_y"]])
    prepared = MotionProcessor(num_history_steps=50, num_future_steps=60, heading="box_yaw").prepare(row)
    for ours, name in ((prepared["labels"][0], "first_future"), (prepared["labels"][-1], "last")):
        np.testing.assert_allclose(ours, expected["focal_normalised"][name], rtol=0, atol=1e-5)
    assert len(row["lanes"]) == expected["lanes"]
    lane = next(lane for lane in row["lanes"] if lane["id"] == str(expected["centreline"]["lane"]))
    assert len(lane["centerline"]) == expected["centreline"]["api_points"]
    ends = [lane["centerline"][0], lane["centerline"][-1]]
    np.testing.assert_allclose(ends, expected["centreline"]["api_first_last"], rtol=0, atol=1e-6)
    first, last = expected["timestamps_first_last_ns"]
    assert row["timestamps"][-1] == pytest.approx((last - first) / 1e9, abs=1e-6)


def test_scenario_without_a_future(scenario):
    (row,) = read(scenario(lambda table: table[table["observed"]]), "val", False, **STEPS)
    assert np.shape(row["positions"])[1] == len(row["timestamps"]) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(focal_track_id="nobody"), "the focal track nobody has no rows"),
        (lambda table: table.assign(timestep=table["timestep"] + 1), "timestep must be a whole number from 0 to 109"),
        (lambda table: table.assign(end_timestamp=table["start_timestamp"] + 1e9), r"has a step each 0\.009174 s"),
        (lambda table: table.drop(columns="heading"), "has no column heading"),
        (lambda table: table.assign(position_x=np.nan), "row 0: position_x is nan"),
        (lambda table: table.assign(city=table["track_id"]), "city must be the same in all rows"),
    ],
)
def test_bad_scenarios(change, message, scenario):
    with pytest.raises(ValueError, match=message):
        read(scenario(change), "val", **STEPS)


def test_scenario_without_a_map(scenario):
    root = scenario(with_map=False)
    with pytest.raises(FileNotFoundError, match=r"has no map, log_map_archive_….json. Set use_lanes to false"):
        read(root, "val", **STEPS)
    assert read(root, "val", use_lanes=False, **STEPS)[0]["lanes"] == []
    with pytest.raises(ValueError, match="Unknown split"):
        read(root, "train", **STEPS)


# A sensor log


def test_windows_of_a_sensor_log():
    """One window is the real scene of the fixture."""
    expected = json.loads((FIXTURES / "official_real_scene_av2_log.json").read_text())
    rows = read(shared_dir() / "data/argoverse2_log", train_share=0.7, window_stride=4, map_radius=50.0)
    kept = rows.filter(lambda row: row["track_id"] == expected["target_track"] and row["scene_id"].endswith(" 52"))
    (row,) = kept
    assert len(row["track_ids"]) <= expected["tracks_in_window"] and row["city"] == "MIA"
    track, points = np.array(row["positions"][row["target"]]), expected["city_points"]
    for step, name in ((0, "history_first"), (19, "history_last"), (20, "future_first"), (49, "future_last")):
        np.testing.assert_allclose(track[step], points[name], rtol=0, atol=1e-5)
    assert row["headings"][row["target"]][19] == pytest.approx(expected["box_yaw_city_rad"], abs=1e-6)
    rules = {"regression": "regression_mmtransformer", "last_step": "last_step", "box_yaw": "box_yaw"}
    for rule, name in rules.items():
        prepared = MotionProcessor(heading=rule, lane_radius=50).prepare(row)
        turn = prepared["frame"].angle - expected["normalised"][name]["rotation_angle_rad"]
        assert abs((turn + math.pi) % (2 * math.pi) - math.pi) < 1e-5
        np.testing.assert_allclose(
            prepared["labels"][-1], expected["normalised"][name]["future_last"], rtol=0, atol=1e-4
        )
        lanes = sorted(int(row["lanes"][lane]["id"]) for lane in prepared["lane_indices"])
        assert lanes == sorted(expected["lane_ids_l2_centerline_segments"])


def test_targets_of_a_log_move_and_parts_do_not_overlap():
    root = shared_dir() / "data/argoverse2_log"
    keys = {"train_share": 0.6, "window_stride": 5, "min_motion": 1.0}
    train, val = (read(root, split, **keys) for split in ("train", "val"))
    steps = {
        split: [int(name.rpartition(" ")[2]) for name in rows["scene_id"]]
        for split, rows in (("train", train), ("val", val))
    }
    assert max(steps["train"]) + 50 <= min(steps["val"])
    for row in train:
        track = np.array(row["positions"][row["target"]])
        assert np.linalg.norm(track[19] - track[0]) >= 1 and row["types"][row["target"]] != "BOLLARD"
    with pytest.raises(ValueError, match=r"Unknown split\. A single log has train and val, by time"):
        read(root, "test")


def test_a_log_lacks_a_part(tmp_path):
    source = shared_dir() / "data/argoverse2_log"
    log = tmp_path / "train" / "log"
    log.mkdir(parents=True)
    shutil.copy(source / "annotations_with_ego.feather", log / "annotations.feather")
    with pytest.raises(FileNotFoundError, match=r"has no city_SE3_egovehicle\.feather"):
        read(tmp_path)
    poses = pd.read_feather(source / "city_SE3_egovehicle.feather")
    times = pd.read_feather(log / "annotations.feather")["timestamp_ns"]
    poses[~poses["timestamp_ns"].isin(times[:1])].to_feather(log / "city_SE3_egovehicle.feather")
    with pytest.raises(ValueError, match="lacks the pose at 315971916960141000, the time of a box"):
        read(tmp_path)
    poses.to_feather(log / "city_SE3_egovehicle.feather")
    with pytest.raises(FileNotFoundError, match="no log_map_archive"):
        read(tmp_path)
    assert len(read(tmp_path, use_lanes=False, window_stride=50)) > 10


# Pedestrians


PEDESTRIANS = {"num_history_steps": 8, "num_future_steps": 12}


def forecast_errors(rows):
    """Average and final errors of constant velocity."""
    errors = []
    for row in rows:
        track = np.array(row["positions"][row["target"]])
        forecast = track[7] + np.arange(1, 13)[:, None] * (track[7] - track[6])
        distances = np.linalg.norm(forecast - track[8:], axis=-1)
        errors.append((distances.mean(), distances[-1]))
    return np.array(errors)


@pytest.mark.parametrize(
    "scene", ["eth", "hotel", "zara1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zara2", "univ"))]
)
def test_constant_velocity_on_eth_ucy(scene):
    expected = json.loads((FIXTURES / "eth_ucy_constant_velocity.json").read_text())["scenes"][scene]
    rows = read(shared_dir() / "data/eth_ucy", "test", dataset_config_name=scene, **PEDESTRIANS)
    assert len(rows) == expected["all"]["agent_windows"]
    errors = forecast_errors(rows)
    np.testing.assert_allclose(
        errors.mean(axis=0), [expected["all"]["cv_ADE"], expected["all"]["cv_FDE"]], rtol=0, atol=6e-5
    )
    first = expected["first_window"]
    ids = [int(row["track_id"]) for row in rows.select(range(len(first["agent_ids"])))]
    assert ids == first["agent_ids"]
    np.testing.assert_allclose(errors[: len(ids), 1], first["cv_FDE"], rtol=0, atol=1e-6)


def test_splits_of_eth_ucy(tmp_path):
    """Two recordings of ten frames; the first 6 of the training one are `train`."""
    for name in ("biwi_eth", "biwi_hotel", "students001", "students003", "crowds_zara01", "crowds_zara02"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{10 * i}\t1.0\t{i / 2}\t0\n" for i in range(10)))
    for name in ("crowds_zara03", "uni_examples"):
        (tmp_path / f"{name}.txt").write_text("0\t1\t0\t0\n10\t1\t1\t0\n")
    keys = {"dataset_config_name": "hotel", "num_history_steps": 2, "num_future_steps": 2, "train_share": 0.6}
    names = {split: read(tmp_path, split, **keys)["scene_id"][:] for split in ("train", "val", "test")}
    assert names["test"] == [f"biwi_hotel, step {step}" for step in range(7)]
    of_eth = {split: [name for name in names[split] if "eth" in name] for split in ("train", "val")}
    assert of_eth["train"] == [f"biwi_eth, step {step}" for step in range(3)] and of_eth["val"] == ["biwi_eth, step 6"]
    assert not any("hotel" in name for name in names["train"] + names["val"])
    with pytest.raises(ValueError, match="dataset_config_name is None; for ETH/UCY it names the scene that is left"):
        read(tmp_path, **PEDESTRIANS)
    with pytest.raises(ValueError, match=r"Unknown split\. ETH/UCY has train, val and test"):
        read(tmp_path, "validation", **keys)
    (tmp_path / "biwi_hotel.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no biwi_hotel\.txt, which test needs"):
        read(tmp_path, "test", **keys)
    (tmp_path / "biwi_eth.txt").write_text("frame,pedestrian\n")
    with pytest.raises(ValueError, match=r"biwi_eth\.txt"):
        read(tmp_path, "train", **keys)


# Tracks of one's own


def tracks(*named, scene="a", seconds=0.5):
    """Rows of tracks: name, first step, last step, type."""
    rows = []
    for number, (name, first, last, *kind) in enumerate(named):
        for step in range(first, last + 1):
            row = {"scene": scene, "track": name, "t": step * seconds, "x": float(step), "y": float(number)}
            rows.append({**row, **({"type": kind[0]} if kind else {})})
    return pd.DataFrame(rows)


SHORT = {"num_history_steps": 2, "num_future_steps": 2}


def write_csv(folder, table, name="train.csv"):
    table.to_csv(folder / name, index=False)
    return folder


def test_every_whole_track_is_a_target(tmp_path):
    table = tracks(("one", 0, 5), ("two", 1, 4), ("once", 2, 2))
    rows = read(write_csv(tmp_path, table), **SHORT)
    assert [(row["scene_id"], row["track_id"]) for row in rows] == [
        ("a, step 0", "one"),
        ("a, step 1", "one"),
        ("a, step 1", "two"),
        ("a, step 2", "one"),
    ]
    row = rows[1]
    assert row["track_ids"] == ["once", "one", "two"] and row["timestamps"] == [0, 0.5, 1, 1.5]
    assert np.isnan(row["positions"][0]).all(-1).tolist() == [True, False, True, True]
    assert len(read(tmp_path, window_stride=2, **SHORT)) == 2
    # Without a future, every agent that is seen to the end is predicted.
    assert [row["scene_id"] for row in read(tmp_path, with_targets=False, **SHORT)][-1] == "a, step 4"
    # A single file is the split train.
    assert len(read(tmp_path / "train.csv", **SHORT)) == 4
    with pytest.raises(ValueError, match=r"Unknown split\. A single CSV file is the split train"):
        read(tmp_path / "train.csv", "test", **SHORT)


def test_a_slower_rate(tmp_path):
    rows = read(write_csv(tmp_path, tracks(("one", 0, 9))), step_seconds=1.0, **SHORT)
    assert [point[0] for point in rows[0]["positions"][0]] == [0, 2, 4, 6] and len(rows) == 2
    with pytest.raises(ValueError, match=r"a step each 0\.5 s, and step_seconds is 0\.7, which is no multiple"):
        read(tmp_path, step_seconds=0.7, **SHORT)


def test_agents_of_a_csv(tmp_path):
    table = pd.concat([tracks(("one", 0, 3, "AGENT"), ("two", 0, 3, "car"), scene=name) for name in ("a", "b")])
    rows = read(write_csv(tmp_path, table), **SHORT)
    assert [row["track_id"] for row in rows] == ["one", "one"] and rows[0]["types"] == ["AGENT", "car"]
    for kinds, count in ((("AGENT", "AGENT"), 2), (("car", "car"), 0)):
        other = tracks(*((name, 0, 3, kind) for name, kind in zip(("one", "two"), kinds)), scene="b")
        write_csv(tmp_path, pd.concat([table[table["scene"] == "a"], other]))
        with pytest.raises(ValueError, match=f"scene b has {count} tracks of the type AGENT"):
            read(tmp_path, **SHORT)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (tracks(("one", 0, 5)).assign(x=np.nan), "row 0: x is nan; it must be a finite number"),
        (tracks(("one", 0, 5)).assign(y=np.inf), "row 0: y is inf"),
        (tracks(("one", 0, 5)).assign(track=""), "row 0: track is empty"),
        (tracks(("one", 0, 5)).drop(columns="t"), "has no column t; it has scene, track, x, y"),
        (pd.concat([tracks(("one", 0, 5))] * 2), "scene a: track one has two positions at 0 s. Remove one"),
        (tracks(("one", 0, 5)).assign(t=[0, 1, 2, 3.4, 5, 6]), r"the times 2 and 3\.4 are 1\.4 s apart, and most"),
        (tracks(("one", 0, 2)), r"no track is seen at all 2 \+ 2 steps of a window"),
    ],
)
def test_bad_csv(table, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(write_csv(tmp_path, table), **SHORT)


def test_rows_out_of_order_are_sorted_and_gaps_are_unknown(tmp_path):
    table = tracks(("one", 0, 5), ("two", 0, 5)).sample(frac=1, random_state=1)
    missing = table[(table["track"] == "two") & (table["t"] == 1.0)].index
    rows = read(write_csv(tmp_path, table.drop(missing)), **SHORT)
    assert [row["scene_id"] for row in rows if row["track_id"] == "one"] == [f"a, step {step}" for step in range(3)]
    assert not any(row["track_id"] == "two" for row in rows)
    assert np.isnan(rows[-1]["positions"][1][0]).all()


# Reading


def test_reading_is_cached_and_resumed(tmp_path, monkeypatch):
    """The parts that an interrupted reading wrote are not read again; a changed file is."""
    from hf_frozen_llm.tasks.motion_forecasting import readers

    monkeypatch.setattr(readers, "FILES_PER_PART", 1)
    table = pd.read_csv(FIXTURES / "av1_scene_dev/1.csv")
    root = write_argoverse1(tmp_path, table)
    bad = root / "train/data/2.csv"
    drop_agent(table).to_csv(bad, index=False)
    with pytest.raises(ValueError, match=r"2\.csv has 0 tracks of the type AGENT"):
        read(root)
    cache = Path(datasets.config.HF_DATASETS_CACHE, "motion_forecasting")
    (first,) = cache.glob("*.arrow")
    written = first.stat().st_mtime_ns
    shutil.copy(root / "train/data/1.csv", bad)
    rows = read(root)
    assert rows["scene_id"][:] == ["1", "2"] and first.stat().st_mtime_ns == written
    assert len(list(cache.glob("*.arrow"))) == 2
    assert read(root, preprocessing_num_workers=2)["scene_id"][:] == ["1", "2"]
    assert len(list(cache.glob("*.arrow"))) == 2


def test_several_processes_read_the_same(tmp_path):
    root = write_argoverse1(tmp_path)
    shutil.copy(root / "train/data/1.csv", root / "train/data/2.csv")
    rows = read(root, preprocessing_num_workers=2)
    assert rows["scene_id"][:] == ["1", "2"]
    np.testing.assert_array_equal(rows[0]["positions"], rows[1]["positions"])
    assert len(read(root, "train[:50%]")) == 1
