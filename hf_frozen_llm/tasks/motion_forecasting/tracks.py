# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tracks of recordings: their table, their rate, and the windows that are scenes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


# A time that is farther than this share of a step from the regular times is at no regular rate.
TOLERANCE = 0.3


@dataclass(frozen=True)
class WindowSettings:
    """
    How recordings become scenes.

    Args:
        num_history_steps (`int`): number of observed steps.
        num_future_steps (`int`): number of future steps.
        stride (`int`, *optional*, defaults to 1): steps between the starts of two windows.
        step_seconds (`float`, *optional*): time between two steps; by default that of the recording.
        min_motion (`float`, *optional*, defaults to 0.0): targets move at least this far while they are observed.
        part (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): share of the recording's time to read.
        with_targets (`bool`, *optional*, defaults to `True`): whether the future must be known.
    """

    num_history_steps: int
    num_future_steps: int
    stride: int = 1
    step_seconds: float | None = None
    min_motion: float = 0.0
    part: tuple[float, float] = (0.0, 1.0)
    with_targets: bool = True


@dataclass
class Recording:
    """
    Tracks at a regular rate.

    Args:
        name (`str`): of the recording.
        track_ids (`Sequence[str]`): of the tracks, in their order.
        types (`Sequence[str]`): kind of each agent.
        positions (`np.ndarray` of shape `(tracks, steps, 2)`): NaN where an agent was not seen.
        timestamps (`np.ndarray` of shape `(steps,)`): seconds.
        headings (`np.ndarray` of shape `(tracks, steps)`, *optional*): radians.
        velocities (`np.ndarray` of shape `(tracks, steps, 2)`, *optional*): metres per second.
        is_target (`np.ndarray` of shape `(tracks,)`, *optional*): which tracks are forecast; all of them by default.
    """

    name: str
    track_ids: Sequence[str]
    types: Sequence[str]
    positions: np.ndarray
    timestamps: np.ndarray
    headings: np.ndarray | None = None
    velocities: np.ndarray | None = None
    is_target: np.ndarray | None = None


def read_table(file: Path, columns: Mapping[str, type], location: str) -> pd.DataFrame:
    """
    Return the columns of a CSV file, checked.

    Raises:
        `ValueError`: for missing columns, no rows, texts instead of numbers, and numbers that are not finite.
    """
    try:
        table = pd.read_csv(file, dtype={name: str for name, kind in columns.items() if kind is str})
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{location} cannot be read as CSV: {error}") from error
    check_table(table, columns, location)
    return table


def check_table(table: pd.DataFrame, columns: Mapping[str, type], location: str) -> None:
    """Refuse a table without these columns, or with texts or infinite numbers where there are numbers."""
    if missing := [name for name in columns if name not in table]:
        raise ValueError(
            f"{location} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}."
        )
    if table.empty:
        raise ValueError(f"{location} has no rows.")
    for name, kind in columns.items():
        if kind is float:
            numbers = pd.to_numeric(table[name], errors="coerce")
            if not np.isfinite(numbers).all():
                row = int(np.argmin(np.isfinite(numbers)))
                raise ValueError(
                    f"{location}, row {row}: {name} is {table[name].iloc[row]}; it must be a finite number. Remove "
                    "rows of agents that were not seen."
                )
            table[name] = numbers
        elif table[name].isna().any():
            raise ValueError(f"{location}, row {int(np.argmax(table[name].isna()))}: {name} is empty.")


def find_steps(times: np.ndarray, step_seconds: float | None, location: str) -> tuple[np.ndarray, float]:
    """
    Return the number of the step of each of the sorted distinct times, and the time between two steps: by default the
    median. Steps at which nothing was recorded are counted, too.

    Raises:
        `ValueError`: for times at another or at no regular rate.
    """
    if len(times) < 2:
        return np.zeros(len(times), dtype=int), step_seconds or 1.0
    differences = np.diff(times)
    seconds = float(np.median(differences)) if step_seconds is None else step_seconds
    steps = np.rint(differences / seconds)
    is_off = (np.abs(differences / seconds - steps) > TOLERANCE) | (steps < 1)
    if is_off.any():
        first = int(is_off.argmax())
        wanted = "most steps take" if step_seconds is None else "step_seconds is"
        raise ValueError(
            f"{location}: the times {times[first]:.10g} and {times[first + 1]:.10g} are {differences[first]:.4g} s "
            f"apart, and {wanted} {seconds:.4g} s. Resample the tracks to a regular rate, or set step_seconds to a "
            "multiple of their own."
        )
    return np.concatenate([[0], steps.cumsum()]).astype(int), seconds


def build_recording(
    table: pd.DataFrame, name: str, location: str, step_seconds: float | None, native_seconds: float | None = None
) -> Recording:
    """
    Return the tracks of a table with the columns `track`, `t`, `x`, `y`, and, if there are any, `type`, `heading`,
    `velocity_x` and `velocity_y`, in any order of its rows. Of a recording that is faster than `step_seconds`, every
    n-th step is kept.

    Raises:
        `ValueError`: for two positions of a track at the same time, and as [`find_steps`].
    """
    if (repeated := table.duplicated(["track", "t"])).any():
        row = table[repeated].iloc[0]
        raise ValueError(f"{location}: track {row['track']} has two positions at {row['t']:.10g} s. Remove one.")
    times, time_of_row = np.unique(table["t"].to_numpy(np.float64), return_inverse=True)
    steps, seconds = find_steps(times, native_seconds, location)
    every = 1
    if step_seconds is not None and len(times) > 1:
        every = max(1, round(step_seconds / seconds))
        if abs(every * seconds - step_seconds) > 0.05 * step_seconds:
            raise ValueError(
                f"{location} has a step each {seconds:.4g} s, and step_seconds is {step_seconds:g}, which is no "
                "multiple of it. Resample the tracks, or change step_seconds."
            )
    ids, track_of_row = np.unique(table["track"].to_numpy(dtype=str), return_inverse=True)
    step_of_row = steps[time_of_row]
    positions = np.full((len(ids), steps[-1] + 1, 2), np.nan)
    positions[track_of_row, step_of_row] = table[["x", "y"]].to_numpy(np.float64)
    headings = None
    if "heading" in table:
        headings = np.full(positions.shape[:2], np.nan)
        headings[track_of_row, step_of_row] = table["heading"]
        headings = headings[:, ::every]
    velocities = None
    if {"velocity_x", "velocity_y"} <= set(table):
        velocities = np.full(positions.shape, np.nan)
        velocities[track_of_row, step_of_row] = table[["velocity_x", "velocity_y"]].to_numpy(np.float64)
        velocities = velocities[:, ::every]
    types = np.full(len(ids), "", dtype=object)
    if "type" in table:
        types[track_of_row] = table["type"].fillna("").astype(str)
    timestamps = np.interp(np.arange(steps[-1] + 1), steps, times)
    positions, timestamps = positions[:, ::every], timestamps[::every]
    return Recording(name, ids.tolist(), types.tolist(), positions, timestamps, headings, velocities)


def cut_windows(recording: Recording, settings: WindowSettings) -> Iterator[dict[str, Any]]:
    """
    Yield a scene for each window and each target in it: a target is seen at every step of the window, the others at
    some observed step. Without targets, only the observed steps count.
    """
    seen = np.isfinite(recording.positions).all(axis=-1)
    num_steps, history = seen.shape[1], settings.num_history_steps
    needed = history + settings.num_future_steps * settings.with_targets
    first, last = (round(share * num_steps) for share in settings.part)
    for start in range(first, last - needed + 1, settings.stride):
        window = slice(start, min(start + history + settings.num_future_steps, last))
        inside = seen[:, window]
        agents = np.flatnonzero(inside[:, :history].any(axis=1)).tolist()
        is_target = inside[agents, :needed].all(axis=1)
        if recording.is_target is not None:
            is_target &= recording.is_target[agents]
        positions = recording.positions[agents, window]
        if settings.min_motion > 0:
            motion = np.linalg.norm(positions[:, history - 1] - positions[:, 0], axis=-1)
            is_target &= motion >= settings.min_motion
        scene = {
            "scene_id": f"{recording.name}, step {start}",
            "city": "",
            "track_ids": [recording.track_ids[agent] for agent in agents],
            "types": [recording.types[agent] for agent in agents],
            "positions": positions,
            "timestamps": recording.timestamps[window] - recording.timestamps[start],
            "headings": None if recording.headings is None else recording.headings[agents, window],
            "velocities": None if recording.velocities is None else recording.velocities[agents, window],
            "lanes": [],
        }
        for target in np.flatnonzero(is_target).tolist():
            yield {**scene, "target": target, "track_id": scene["track_ids"][target]}


# Plain CSV


def read_csv(file: str, settings: WindowSettings) -> Iterator[dict[str, Any]]:
    """
    Yield the scenes of a CSV file with the columns `scene`, `track`, `t` (seconds), `x`, `y` (metres), and `type` if
    there are any. If some type is `AGENT`, each scene must have one such track, the target; otherwise every track is
    one. Rows may be in any order.

    Raises:
        `ValueError`: for a scene without a target or with two, and as in [`build_recording`].
    """
    table = read_table(Path(file), {"scene": str, "track": str, "t": float, "x": float, "y": float}, file)
    has_agents = "type" in table and (table["type"] == "AGENT").any()
    for name, rows in table.groupby("scene", sort=False):
        location = f"{file}, scene {name}"
        recording = build_recording(rows, str(name), location, settings.step_seconds)
        if has_agents:
            recording.is_target = np.array(recording.types) == "AGENT"
            check_one_agent(recording, location)
        yield from cut_windows(recording, settings)


def check_one_agent(recording: Recording, location: str) -> int:
    """Return the index of the only track of the type AGENT."""
    agents = [index for index, kind in enumerate(recording.types) if kind == "AGENT"]
    if len(agents) != 1:
        names = "".join(f" ({recording.track_ids[index]})" for index in agents[:3])
        raise ValueError(
            f"{location} has {len(agents)} tracks of the type AGENT{names}; it must have one, the target."
        )
    return agents[0]


# ETH/UCY

# The files of each scene; those of the last one are in no test set.
ETH_UCY = {
    "eth": ("biwi_eth",),
    "hotel": ("biwi_hotel",),
    "univ": ("students001", "students003"),
    "zara1": ("crowds_zara01",),
    "zara2": ("crowds_zara02",),
    "": ("crowds_zara03", "uni_examples"),
}
ETH_UCY_FRAME_SECONDS = 0.04
ETH_UCY_STEP_SECONDS = 0.4


def find_eth_ucy(
    root: Path, split: str, left_out: str | None, settings: WindowSettings, train_share: float
) -> tuple[list[Path], WindowSettings]:
    """Return the files of a split, and the part of their time: `test` is the scene that is left out."""
    scenes = [name for name in ETH_UCY if name]
    if left_out not in scenes:
        raise ValueError(
            f"dataset_config_name is {left_out!r}; for ETH/UCY it names the scene that is left out of the training "
            f"and tested on: {', '.join(scenes)}."
        )
    if split == "test":
        names = ETH_UCY[left_out]
    elif split in ("train", "val"):
        names = tuple(file for scene, files in ETH_UCY.items() if scene != left_out for file in files)
        settings = replace(settings, part=(0.0, train_share) if split == "train" else (train_share, 1.0))
    else:
        raise ValueError(f"{root} [{split}]: Unknown split. ETH/UCY has train, val and test.")
    files = [root / f"{name}.txt" for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{root} has no {', '.join(missing)}, which {split} needs.")
    return files, settings


def read_eth_ucy(file: str, settings: WindowSettings) -> Iterator[dict[str, Any]]:
    """Yield the scenes of a file with frame, pedestrian, x and y on each line; 25 frames are a second."""
    try:
        table = pd.read_csv(file, sep=r"\s+", header=None, names=["t", "track", "x", "y"], usecols=range(4))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error} A line is frame, pedestrian, x and y.") from error
    check_table(table, {"t": float, "track": float, "x": float, "y": float}, file)
    table["t"] *= ETH_UCY_FRAME_SECONDS
    # Sorted as numbers.
    table["track"] = table["track"].map(lambda number: f"{number:08.1f}" if number % 1 else f"{int(number):06d}")
    table["type"] = "pedestrian"
    seconds = settings.step_seconds or ETH_UCY_STEP_SECONDS
    recording = build_recording(table, Path(file).stem, file, seconds, ETH_UCY_STEP_SECONDS)
    yield from cut_windows(recording, settings)
