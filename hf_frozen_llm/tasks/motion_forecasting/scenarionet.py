# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scenes of ScenarioNet's databases: pickles of plain containers and arrays, which are loaded without executing code.

Source of the layout: `ScenarioDescription` of github.com/metadriverse/metadrive.
"""

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_frozen_llm.tasks.motion_forecasting.argoverse import MapSettings
from hf_frozen_llm.tasks.motion_forecasting.maps import LaneMap
from hf_frozen_llm.tasks.motion_forecasting.tracks import Recording, WindowSettings, cut_windows


BUILTINS = (bool, dict, float, int, list, set, str, tuple)
# All that a scenario may hold, besides arrays; old pickles name Python 2's module.
CONTAINERS = {
    ("__builtin__", "long"): int,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(module, kind.__name__): kind for kind in BUILTINS for module in ("builtins", "__builtin__")},
}
# Arrays of any version of numpy; `_codecs.encode` makes the bytes of old pickles.
ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
KEYS = ("tracks", "map_features", "metadata")
# ScenarioNet's kinds of agents by Argoverse 2's names; others are `unknown`.
TYPES = {
    "VEHICLE": "vehicle",
    "PEDESTRIAN": "pedestrian",
    "CYCLIST": "cyclist",
    "TRAFFIC_CONE": "construction",
    "TRAFFIC_BARRIER": "static",
}


class ScenarioUnpickler(pickle.Unpickler):
    """Loads arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if (module, name) in ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is neither an array nor a plain container")


def load_scenario(file: str) -> dict[str, Any]:
    """
    Load the pickle of a scenario.

    Raises:
        `ValueError`: for damaged files, for those with other objects, whose code is never executed, and for those
            that are no scenario.
    """
    try:
        with open(file, "rb") as opened:
            scenario = ScenarioUnpickler(opened).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a scenario of ScenarioNet: {error}.") from error
    if not isinstance(scenario, dict) or not set(KEYS) <= set(scenario):
        raise ValueError(f"{file} is no scenario of ScenarioNet, a dictionary with {', '.join(KEYS)}.")
    return scenario


def find_scenarios(root: Path, split: str) -> list[Path]:
    """Return the scenarios of a split, `<split>/**/sd_*.pkl` or, as ScenarioNet also names them, of digits only."""
    files = (root / split).rglob("*.pkl")
    return sorted(file for file in files if file.stem.startswith("sd_") or file.stem.isdecimal())


def read_scenario(file: str, settings: WindowSettings, maps: MapSettings) -> Iterator[dict[str, Any]]:
    """
    Yield windows of a scenario. The targets are its `tracks_to_predict` or, without any, its own vehicle, `sdc_id`.

    Raises:
        `ValueError`: for tracks without a part or of another length, times that do not increase, and scenarios
            without a target.
    """
    scenario = load_scenario(file)
    metadata, tracks = scenario["metadata"], scenario["tracks"]
    timestamps = np.asarray(metadata.get("ts", ()), dtype=np.float64)
    if timestamps.ndim != 1 or not (np.diff(timestamps) > 0).all():
        raise ValueError(f"{file}: ts of the metadata must be times that increase.")
    num_steps = len(timestamps)
    parts: dict[str, list[np.ndarray]] = {"position": [], "heading": [], "velocity": []}
    shapes = {"position": (num_steps, 2), "heading": (num_steps,), "velocity": (num_steps, 2)}
    for name, track in tracks.items():
        state = track.get("state", {})
        valid = np.asarray(state.get("valid", np.ones(num_steps)), dtype=bool)
        for part, of_tracks in parts.items():
            value = np.array(state.get(part, ()), dtype=np.float64)
            value = value[:, :2] if value.ndim == 2 else value
            if value.shape != shapes[part] or valid.shape != (num_steps,):
                raise ValueError(
                    f"{file}, track {name}: {part} has the shape {value.shape} and valid {valid.shape}; the scenario "
                    f"has {num_steps} steps."
                )
            value[~valid] = np.nan
            of_tracks.append(value)
    ids = [str(name) for name in tracks]
    targets = {str(name) for name in metadata.get("tracks_to_predict") or [metadata.get("sdc_id")]}
    if not targets & set(ids):
        raise ValueError(f"{file} has no target: neither tracks_to_predict nor sdc_id of the metadata is a track.")
    positions, headings, velocities = (np.array(of_tracks) for of_tracks in parts.values())
    recording = Recording(
        name=str(scenario.get("id", Path(file).stem)),
        track_ids=ids,
        types=[TYPES.get(track.get("type"), "unknown") for track in tracks.values()],
        positions=positions,
        timestamps=timestamps,
        headings=headings,
        velocities=velocities,
        is_target=np.array([name in targets for name in ids]),
    )
    lane_map = read_lanes(scenario) if maps.use_lanes else None
    for scene in cut_windows(recording, settings):
        center = scene["positions"][scene["target"], settings.num_history_steps - 1]
        yield {**scene, "city": str(metadata.get("map", "")), "lanes": maps.near(lane_map, center)}


def read_lanes(scenario: dict[str, Any]) -> LaneMap:
    """Return the lanes of a scenario; those with a traffic light are controlled, unstructured ones intersections."""
    lights = scenario.get("dynamic_map_states", {}).values()
    controlled = {str(light.get("lane")) for light in lights if light.get("type") == "TRAFFIC_LIGHT"}
    lanes = []
    for name, feature in scenario["map_features"].items():
        points = np.asarray(feature.get("polyline", ()), dtype=np.float64)
        if str(feature.get("type", "")).startswith("LANE_") and points.ndim == 2 and len(points) > 1:
            lanes.append(
                {
                    "id": str(name),
                    "centerline": points[:, :2],
                    "is_intersection": feature["type"] == "LANE_SURFACE_UNSTRUCTURE",
                    "turn_direction": "none",
                    "has_traffic_control": str(name) in controlled,
                }
            )
    return LaneMap(lanes)
