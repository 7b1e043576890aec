# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Scenes of Argoverse 1, of Argoverse 2, and of sensor logs of Argoverse 2."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from hf_frozen_llm.tasks.motion_forecasting.maps import LaneMap, read_argoverse1_map, read_argoverse2_map
from hf_frozen_llm.tasks.motion_forecasting.tracks import (
    WindowSettings,
    build_recording,
    check_one_agent,
    check_table,
    cut_windows,
    read_table,
)


STEP_SECONDS = 0.1
CITIES = ("PIT", "MIA")
ARGOVERSE1_COLUMNS = {"TIMESTAMP": float, "TRACK_ID": str, "OBJECT_TYPE": str, "X": float, "Y": float}
ARGOVERSE2_COLUMNS = {"timestep": float, "track_id": str, "position_x": float, "position_y": float, "heading": float}
ARGOVERSE2_CONSTANTS = ("scenario_id", "focal_track_id", "city", "start_timestamp", "end_timestamp", "num_timestamps")
BOX_COLUMNS = {"timestamp_ns": float, "track_uuid": str, "category": str}
POSE_COLUMNS = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
# What never moves is no target.
IMMOBILE = {
    *("BOLLARD", "CONSTRUCTION_BARREL", "CONSTRUCTION_CONE", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_SIGN"),
    *("SIGN", "STOP_SIGN", "TRAFFIC_LIGHT_TRAILER"),
}


@dataclass(frozen=True)
class MapSettings:
    """
    Where the lanes of scenes are.

    Args:
        folders (`tuple[str, ...]`): folders that may have the vector maps of Argoverse 1.
        radius (`float`): keep lanes whose box comes this near to the target, along each axis.
        use_lanes (`bool`, *optional*, defaults to `True`): whether scenes have lanes.
    """

    folders: tuple[str, ...]
    radius: float
    use_lanes: bool = True

    def near(self, lane_map: LaneMap | None, center: np.ndarray) -> list[dict[str, Any]]:
        return [] if lane_map is None else lane_map.near(center, self.radius)


# Argoverse 1


@lru_cache(maxsize=8)
def find_city_map(folders: tuple[str, ...], city: str) -> LaneMap:
    for folder in folders:
        for file in sorted(Path(folder).glob(f"*_{city}_*_vector_map.xml")):
            return read_argoverse1_map(str(file))
    raise FileNotFoundError(
        f"There is no vector map of {city}, `pruned_argoverse_{city}_…_vector_map.xml`, in {' or '.join(folders)}. "
        "Set map_folder to the folder map_files of Argoverse 1, or use_lanes to false to do without lanes."
    )


def find_drivable_area(folders: tuple[str, ...], city: str) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Return the raster of a city's drivable area, 1 where it is drivable, and the matrix from city coordinates to its
    (column, row); `None` if no folder has the files. Source of their names: github.com/argoverse/argoverse-api
    (`map_api.py`).

    Raises:
        `ValueError`: for files with arrays of other shapes.
    """
    for folder in folders:
        rasters = sorted(Path(folder).glob(f"{city}_*_driveable_area_mat_*.npy"))
        matrices = sorted(Path(folder).glob(f"{city}_*_npyimage_to_city_se2_*.npy"))
        if rasters and matrices:
            raster, matrix = (np.load(found[0], allow_pickle=False) for found in (rasters, matrices))
            if raster.ndim != 2 or matrix.shape != (3, 3):
                raise ValueError(
                    f"{rasters[0]} has the shape {raster.shape} and {matrices[0].name} {matrix.shape}; they must be "
                    "(rows, columns) and (3, 3)."
                )
            return raster, matrix
    return None


def read_argoverse1(file: str, settings: WindowSettings, maps: MapSettings) -> Iterator[dict[str, Any]]:
    """
    Yield the scene of a CSV file of Argoverse 1's forecasting data, whose target is the track AGENT.

    Raises:
        `ValueError`: for no or several tracks AGENT, several cities or an unknown one, other steps than 10 a second,
            and fewer steps than needed.
    """
    table = read_table(Path(file), {**ARGOVERSE1_COLUMNS, "CITY_NAME": str}, file)
    cities = table["CITY_NAME"].unique().tolist()
    if len(cities) != 1 or cities[0] not in CITIES:
        raise ValueError(f"{file}: CITY_NAME is {', '.join(cities)}; it must be one of {', '.join(CITIES)}.")
    names = {"TIMESTAMP": "t", "TRACK_ID": "track", "X": "x", "Y": "y", "OBJECT_TYPE": "type"}
    recording = build_recording(table.rename(columns=names), Path(file).stem, file, None, STEP_SECONDS)
    target = check_one_agent(recording, file)
    history = settings.num_history_steps
    check_target_is_seen(recording.positions[target], history, file)
    lane_map = find_city_map(maps.folders, cities[0]) if maps.use_lanes else None
    steps = slice(0, history + settings.num_future_steps)
    yield {
        "scene_id": recording.name,
        "track_id": recording.track_ids[target],
        "city": cities[0],
        "track_ids": recording.track_ids,
        "types": recording.types,
        "positions": recording.positions[:, steps],
        "timestamps": (recording.timestamps - recording.timestamps[0])[steps],
        "target": target,
        "headings": None,
        "velocities": None,
        "lanes": maps.near(lane_map, recording.positions[target, history - 1]),
    }


def check_target_is_seen(positions: np.ndarray, num_history_steps: int, location: str) -> None:
    if len(positions) < num_history_steps:
        raise ValueError(f"{location} has {len(positions)} steps, fewer than num_history_steps, {num_history_steps}.")
    if not np.isfinite(positions[num_history_steps - 1]).all():
        raise ValueError(f"{location}: the target is not seen at step {num_history_steps - 1}, the last observed one.")


# Argoverse 2


def read_argoverse2(file: str, settings: WindowSettings, maps: MapSettings) -> Iterator[dict[str, Any]]:
    """
    Yield the scene of a scenario of Argoverse 2's forecasting data, whose target is the focal track.

    Raises:
        `ValueError`: for missing columns, several scenarios, a focal track that is not there, and steps that are not
            among those that num_timestamps says.
    """
    table = read_arrow(pd.read_parquet, file)
    check_table(table, {**ARGOVERSE2_COLUMNS, **dict.fromkeys(ARGOVERSE2_CONSTANTS, str)}, file)
    first = table.iloc[0]
    if varying := [name for name in ARGOVERSE2_CONSTANTS if table[name].nunique() > 1]:
        raise ValueError(f"{file}: {', '.join(varying)} must be the same in all rows.")
    steps, num_steps = table["timestep"], int(first["num_timestamps"])
    if not ((steps == steps.round()) & (steps >= 0) & (steps < num_steps)).all() or steps.min() > 0:
        raise ValueError(f"{file}: timestep must be a whole number from 0 to {num_steps - 1}, and begin at 0.")
    # Timestamps are those of av2: at equal distances between the first and the last.
    seconds = np.linspace(0, (first["end_timestamp"] - first["start_timestamp"]) / 1e9, num_steps)
    if num_steps > 1 and not 0.5 < seconds[1] / STEP_SECONDS < 1.5:
        raise ValueError(f"{file} has a step each {seconds[1]:.4g} s; Argoverse 2 has one each {STEP_SECONDS} s.")
    names = {"track_id": "track", "position_x": "x", "position_y": "y", "object_type": "type"}
    rows = table.rename(columns=names).assign(t=steps)
    recording = build_recording(rows, str(first["scenario_id"]), file, None, 1.0)
    if first["focal_track_id"] not in recording.track_ids:
        raise ValueError(f"{file}: the focal track {first['focal_track_id']} has no rows.")
    target, history = recording.track_ids.index(first["focal_track_id"]), settings.num_history_steps
    check_target_is_seen(recording.positions[target], history, file)
    lane_map = None
    if maps.use_lanes:
        found = sorted(Path(file).parent.glob("log_map_archive_*.json"))
        if not found:
            raise FileNotFoundError(
                f"{Path(file).parent} has no map, log_map_archive_….json. Set use_lanes to false to do without lanes."
            )
        lane_map = read_argoverse2_map(str(found[0]))
    kept = slice(0, history + settings.num_future_steps)
    yield {
        "scene_id": recording.name,
        "track_id": recording.track_ids[target],
        "city": str(first["city"]),
        "track_ids": recording.track_ids,
        "types": recording.types,
        "positions": recording.positions[:, kept],
        "timestamps": seconds[: recording.positions.shape[1]][kept],
        "target": target,
        "headings": None if recording.headings is None else recording.headings[:, kept],
        "velocities": None if recording.velocities is None else recording.velocities[:, kept],
        "lanes": maps.near(lane_map, recording.positions[target, history - 1]),
    }


def read_arrow(read: Any, file: str) -> pd.DataFrame:
    try:
        return read(file)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file} cannot be read: {error}") from error


# Sensor logs of Argoverse 2


def read_sensor_log(folder: str, settings: WindowSettings, maps: MapSettings) -> Iterator[dict[str, Any]]:
    """
    Yield windows of a sensor log of Argoverse 2: its boxes, which are in the frame of the ego vehicle, in the city's
    coordinates by the pose at the same time. Signs, cones and the like
    are no targets.
    """
    root = Path(folder)
    boxes = read_arrow(pd.read_feather, str(next(iter(sorted(root.glob("annotations*.feather"))))))
    check_table(boxes, {**BOX_COLUMNS, **dict.fromkeys(POSE_COLUMNS, float)}, folder)
    poses_file = root / "city_SE3_egovehicle.feather"
    if not poses_file.is_file():
        raise FileNotFoundError(f"{folder} has no {poses_file.name}, the poses of its ego vehicle.")
    poses = read_arrow(pd.read_feather, str(poses_file)).drop_duplicates("timestamp_ns").set_index("timestamp_ns")
    times = boxes["timestamp_ns"].to_numpy(np.int64)
    if not np.isin(times, poses.index).all():
        raise ValueError(
            f"{poses_file} lacks the pose at {times[~np.isin(times, poses.index)][0]}, the time of a box."
        )
    ego = poses.loc[times]
    rotation = to_rotations(ego)
    positions = np.einsum("nij,nj->ni", rotation, boxes[["tx_m", "ty_m", "tz_m"]].to_numpy())
    positions += ego[["tx_m", "ty_m", "tz_m"]].to_numpy()
    forward = np.einsum("nij,njk->nik", rotation, to_rotations(boxes))[:, :, 0]
    table = pd.DataFrame(
        {
            "track": boxes["track_uuid"].astype(str),
            "type": boxes["category"],
            "t": (times - times.min()) / 1e9,
            "x": positions[:, 0],
            "y": positions[:, 1],
            "heading": np.arctan2(forward[:, 1], forward[:, 0]),
        }
    )
    step_seconds = settings.step_seconds or STEP_SECONDS
    recording = build_recording(table, root.name, folder, step_seconds, STEP_SECONDS)
    recording.is_target = np.array([kind not in IMMOBILE for kind in recording.types])
    lane_map, city = find_log_map(root, maps)
    for scene in cut_windows(recording, settings):
        center = scene["positions"][scene["target"], settings.num_history_steps - 1]
        yield {**scene, "city": city, "lanes": maps.near(lane_map, center)}


def find_log_map(root: Path, maps: MapSettings) -> tuple[LaneMap | None, str]:
    """Return the map of a log, and its city, which the file names: `log_map_archive_<log>____<city>_city_<n>.json`."""
    found = sorted(root.glob("map/log_map_archive_*.json"))
    if not found and maps.use_lanes:
        raise FileNotFoundError(
            f"{root / 'map'} has no log_map_archive_….json. Set use_lanes to false to do without lanes."
        )
    city = found[0].stem.partition("____")[2].partition("_city")[0] if found else ""
    return (read_argoverse2_map(str(found[0])) if maps.use_lanes else None), city


def to_rotations(table: pd.DataFrame) -> np.ndarray:
    """Return the rotation matrices `(rows, 3, 3)` of quaternions."""
    quaternions = table[["qw", "qx", "qy", "qz"]].to_numpy(np.float64)
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def find_argoverse1(root: Path, split: str) -> list[Path]:
    """Return the files of a split: `<split>/data/*.csv` or `<split>/*.csv`."""
    return sorted([*(root / split).glob("data/*.csv"), *(root / split).glob("*.csv")], key=lambda file: file.name)


def find_argoverse2(root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob("*/scenario_*.parquet"))


def find_sensor_logs(root: Path, split: str) -> Sequence[Path]:
    return sorted({file.parent for file in (root / split).glob("*/annotations*.feather")})
