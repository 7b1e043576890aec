# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny data of motion forecasting in the files of Argoverse 1, of a sensor log and of ETH/UCY, and tiny models."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from tiny_runs import TINY_RUN


TINY_VECTORNET = ["--host.hidden_size", "16", "--host.decoder_hidden_size", "16", *TINY_RUN]
TINY_MMTRANSFORMER = [
    *("--host.hidden_size", "16"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "16"),
    *("--host.position_hidden_size", "8"),
    *("--host.lane_hidden_size", "8"),
    *("--host.decoder_hidden_size", "8"),
    *TINY_RUN,
]
TINY_FORECAST_MAE = [
    *("--host.hidden_size", "16"),
    *("--host.num_attention_heads", "2"),
    *("--host.num_hidden_layers", "1"),
    *("--host.intermediate_size", "16"),
    *("--host.num_history_layers", "1"),
    *("--host.history_attention_heads", "[1, 2]"),
    *("--host.history_kernel_sizes", "[3, 5]"),
    *("--host.lane_hidden_size", "8"),
    *("--host.decoder_hidden_size", "8"),
    *TINY_RUN,
]
PEDESTRIANS = ("biwi_eth", "biwi_hotel", "students001", "students003", "crowds_zara01", "crowds_zara02")
PEDESTRIANS = (*PEDESTRIANS, "crowds_zara03", "uni_examples")


def make_tracks(num_steps: int, seconds: float, seed: int, count: int = 3) -> pd.DataFrame:
    """Return agents that move straight on at their own speed, with some noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        start, velocity = rng.uniform(-10, 10, 2), rng.uniform(-2, 2, 2)
        points = start + velocity * seconds * np.arange(num_steps)[:, None] + rng.normal(0, 0.02, (num_steps, 2))
        rows += [(number + 1, step, x, y) for step, (x, y) in enumerate(points)]
    return pd.DataFrame(rows, columns=["track", "step", "x", "y"])


def write_argoverse1(folder: Path, splits: dict[str, int]) -> str:
    """Write `<split>/data/*.csv` and a vector map of four lanes."""
    number = 0
    for split, count in splits.items():
        (folder / split / "data").mkdir(parents=True)
        for _ in range(count):
            number += 1
            table = make_tracks(50, 0.1, number, count=1 + number % 3)
            pd.DataFrame(
                {
                    "TIMESTAMP": 1000 + table["step"] / 10,
                    "TRACK_ID": table["track"].map("{:08d}".format),
                    "OBJECT_TYPE": table["track"].map(lambda track: "AGENT" if track == 1 else "OTHERS"),
                    "X": table["x"],
                    "Y": table["y"],
                    "CITY_NAME": "MIA",
                }
            ).to_csv(folder / split / "data" / f"{number}.csv", index=False)
    elements = []
    for lane in range(4):
        points = [(lane * 10 + point, 20 * point - 90, 5 * lane) for point in range(10)]
        elements += [f'<node id="{node}" x="{x}" y="{y}"/>' for node, x, y in points]
        tags = {"has_traffic_control": "False", "turn_direction": "NONE", "is_intersection": "True"}
        inside = "".join(f'<tag k="{k}" v="{v}"/>' for k, v in tags.items())
        elements.append(
            f'<way lane_id="{lane}">{inside}' + "".join(f'<nd ref="{node}"/>' for node, *_ in points) + "</way>"
        )
    (folder / "map_files").mkdir()
    (folder / "map_files/pruned_argoverse_MIA_10316_vector_map.xml").write_text(f"<map>{''.join(elements)}</map>")
    return str(folder)


def write_pedestrians(folder: Path, num_steps: int = 26) -> str:
    """Write the files of ETH/UCY."""
    folder.mkdir(parents=True)
    for number, name in enumerate(PEDESTRIANS):
        table = make_tracks(num_steps, 0.4, number)
        table["step"] *= 10
        table[["step", "track", "x", "y"]].to_csv(folder / f"{name}.txt", sep="\t", header=False, index=False)
    return str(folder)


def write_log(folder: Path, num_steps: int = 140) -> str:
    """Write a sensor log of an ego vehicle that stands still, with two lanes."""
    (folder / "map").mkdir(parents=True)
    table = make_tracks(num_steps, 0.1, 0)
    still = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0}
    times = table["step"].to_numpy(np.int64) * 100_000_000
    boxes = pd.DataFrame({"timestamp_ns": times, "track_uuid": table["track"].map("track {}".format)})
    boxes.assign(
        category="REGULAR_VEHICLE", length_m=4.0, width_m=2.0, height_m=1.5, **still, tx_m=table["x"], ty_m=table["y"]
    ).assign(tz_m=0.0).to_feather(folder / "annotations.feather")
    poses = pd.DataFrame({"timestamp_ns": np.unique(times)})
    poses.assign(**still, tx_m=0.0, ty_m=0.0, tz_m=0.0).to_feather(folder / "city_SE3_egovehicle.feather")
    (folder / "map/log_map_archive_log____MIA_city_1.json").write_text(make_map())
    return str(folder)


def make_map() -> str:
    """Return the map of two lanes, in the format of Argoverse 2."""
    lanes = {
        str(lane): {
            "id": lane,
            "is_intersection": False,
            "left_lane_boundary": [{"x": -90, "y": 5 * lane + 2, "z": 0}, {"x": 90, "y": 5 * lane + 2, "z": 0}],
            "right_lane_boundary": [{"x": -90, "y": 5 * lane - 2, "z": 0}, {"x": 90, "y": 5 * lane - 2, "z": 0}],
        }
        for lane in range(2)
    }
    content = {"lane_segments": lanes, "drivable_areas": {}, "pedestrian_crossings": {}}
    return json.dumps(content)


def write_argoverse2(folder: Path, splits: dict[str, int]) -> str:
    """Write `<split>/<scenario>/scenario_<id>.parquet` and the map of each."""
    number = 0
    for split, count in splits.items():
        for _ in range(count):
            number += 1
            table = make_tracks(110, 0.1, number, count=1 + number % 3)
            scenario = folder / split / f"s{number}"
            scenario.mkdir(parents=True)
            pd.DataFrame(
                {
                    "observed": table["step"] < 50,
                    "track_id": table["track"].map(str),
                    "object_type": "vehicle",
                    "timestep": table["step"],
                    "position_x": table["x"],
                    "position_y": table["y"],
                    "heading": 0.5,
                    "velocity_x": 1.0,
                    "velocity_y": 0.0,
                    "scenario_id": scenario.name,
                    "start_timestamp": 0.0,
                    "end_timestamp": 10.9e9,
                    "num_timestamps": 110,
                    "focal_track_id": "1",
                    "city": "austin",
                }
            ).to_parquet(scenario / f"scenario_{scenario.name}.parquet")
            (scenario / f"log_map_archive_{scenario.name}.json").write_text(make_map())
    return str(folder)
