# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scenes out of the files of data sets: found by the names of the files, read in parallel, and cached in parts, so that
an interrupted reading is resumed.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.fingerprint import Hasher
from datasets.utils import tqdm
from transformers.utils import logging

from hf_frozen_llm.data.datasets import Row, TransformedDataset, find_local
from hf_frozen_llm.data.folders import take_slices
from hf_frozen_llm.tasks.motion_forecasting.argoverse import (
    MapSettings,
    find_argoverse1,
    find_argoverse2,
    find_drivable_area,
    find_sensor_logs,
    read_argoverse1,
    read_argoverse2,
    read_sensor_log,
)
from hf_frozen_llm.tasks.motion_forecasting.arguments import MotionDataArguments
from hf_frozen_llm.tasks.motion_forecasting.scenarionet import find_scenarios, read_scenario
from hf_frozen_llm.tasks.motion_forecasting.tracks import WindowSettings, find_eth_ucy, read_csv, read_eth_ucy


logger = logging.get_logger(__name__)

NUMBER, NUMBERS = datasets.Value("float64"), datasets.List(datasets.Value("float64"))
LANE = {
    "id": datasets.Value("string"),
    "centerline": datasets.List(NUMBERS),
    "is_intersection": datasets.Value("bool"),
    "turn_direction": datasets.Value("string"),
    "has_traffic_control": datasets.Value("bool"),
}
# The schema of scenes; MotionProcessor describes its parts. `scene_id`, `track_id` (of the target), `city`,
# `track_ids` and `types` (of all agents) are for people, files and figures; `agent_distances` (from the target, at the
# last observed step) and `num_lanes` for the sizes of batches.
FEATURES = datasets.Features(
    {
        "scene_id": datasets.Value("string"),
        "track_id": datasets.Value("string"),
        "city": datasets.Value("string"),
        "track_ids": datasets.List(datasets.Value("string")),
        "types": datasets.List(datasets.Value("string")),
        "positions": datasets.List(datasets.List(NUMBERS)),
        "timestamps": NUMBERS,
        "target": datasets.Value("int64"),
        "headings": datasets.List(NUMBERS),
        "velocities": datasets.List(datasets.List(NUMBERS)),
        "lanes": datasets.List(LANE),
        "agent_distances": NUMBERS,
        "num_lanes": datasets.Value("int64"),
    }
)
USED_COLUMNS = ("positions", "timestamps", "target", "headings", "velocities", "types", "lanes")
# Files that are read and cached together.
FILES_PER_PART = 2000
# Change it when a reader returns other rows for the same files.
VERSION = 2


def read_scenes(args: MotionDataArguments, split: str, with_targets: bool = True) -> datasets.Dataset | None:
    """
    Return the scenes of a split out of the files of a data set, or `None` if `dataset_name` has none that are known.

    Args:
        args ([`MotionDataArguments`]): names the folder or CSV file, and says how to cut windows.
        split (`str`): the split.
        with_targets (`bool`, *optional*, defaults to `True`): whether the future must be known.

    Raises:
        `ValueError`: for a split without files, and files that cannot be read.
        `FileNotFoundError`: for missing maps.
    """
    root = find_local(args)
    if root is None or root.suffix.lower() == ".parquet":
        return None
    windows = WindowSettings(
        num_history_steps=args.num_history_steps,
        num_future_steps=args.future_steps,
        stride=args.window_stride,
        step_seconds=args.step_seconds,
        min_motion=args.min_motion,
        with_targets=with_targets,
    )
    if (root / "biwi_eth.txt").is_file():
        files, windows = find_eth_ucy(root, split, args.dataset_config_name, windows, args.train_share)
        return read_files(args, split, files, partial(read_eth_ucy, settings=windows))
    if root.is_file():
        if split != "train":
            raise ValueError(f"{root} [{split}]: Unknown split. A single CSV file is the split train.")
        return read_files(args, split, [root], partial(read_csv, settings=windows))
    if (file := root / f"{split}.csv").is_file():
        return read_files(args, split, [file], partial(read_csv, settings=windows))
    maps = MapSettings(find_map_folders(args, root), args.map_radius, args.use_lanes)
    if any(root.glob("annotations*.feather")):
        if split not in ("train", "val"):
            raise ValueError(f"{root} [{split}]: Unknown split. A single log has train and val, by time.")
        share = args.train_share
        windows = replace(windows, part=(0.0, share) if split == "train" else (share, 1.0))
        return read_files(args, split, [root], partial(read_sensor_log, settings=windows, maps=maps))
    for find, read in (
        (find_argoverse1, read_argoverse1),
        (find_argoverse2, read_argoverse2),
        (find_sensor_logs, read_sensor_log),
        (find_scenarios, read_scenario),
    ):
        found = {folder.name: list(find(root, folder.name)) for folder in sorted(root.iterdir()) if folder.is_dir()}
        if found := {name: files for name, files in found.items() if files}:
            files = take_slices(split, found)
            return read_files(args, split, files, partial(read, settings=windows, maps=maps))
    return None


def find_map_folders(args: MotionDataArguments, root: Path) -> tuple[str, ...]:
    """Return the folders that may have the maps of Argoverse 1, for data in the folder `root`."""
    folders = [args.map_folder] if args.map_folder else [root / "map_files", root.parent / "map_files", root]
    return tuple(map(str, folders))


def read_drivable_areas(args: MotionDataArguments, rows: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Return the drivable areas of the cities of rows, as [`DrivableAreaCompliance`] takes them. It is empty if the rows
    are not scenes of Argoverse 1, or a city's area is in no folder of maps.
    """
    root = find_local(args)
    if root is None or not {"scene_id", "city"} <= set(rows.column_names or ()) or args.streaming:
        return {}
    if not all(scene.isdecimal() for scene in rows["scene_id"][:]):  # Argoverse 2 has other coordinates in its cities
        return {}
    areas = {}
    for city in sorted(set(rows["city"][:]) - {None}):
        area = find_drivable_area(find_map_folders(args, root), city)
        if area is None:
            return {}
        areas[city] = area
    return areas


def read_files(args: MotionDataArguments, split: str, files: Sequence[Path], read: partial) -> datasets.Dataset:
    """Return the rows of all files, of which each part is cached."""
    location = f"{args.dataset_name} [{split}]"
    if not files:
        raise ValueError(f"{location} has no files.")
    files = [file.resolve() for file in files]
    parts = [files[start : start + FILES_PER_PART] for start in range(0, len(files), FILES_PER_PART)]
    rows = []
    for part in tqdm(parts, desc=f"Reading {location}", unit="part", disable=len(parts) == 1 or None):
        rows.append(read_part(part, read, args.preprocessing_num_workers))
    scenes: datasets.Dataset = datasets.concatenate_datasets([part for part in rows if len(part)] or rows[:1])
    if len(scenes) == 0:
        raise ValueError(
            f"{location}: no track is seen at all {args.num_history_steps} + {args.future_steps} steps of a window of "
            f"{len(files):,} files. Lower num_history_steps or num_future_steps, or change step_seconds."
        )
    without = scenes["num_lanes"][:].count(0)
    if "maps" in read.keywords and args.use_lanes and without:
        logger.warning(
            f"{location}: {without:,} of {len(scenes):,} scenes have no lane within map_radius, {args.map_radius:g} "
            "m, of their target, and are used without lanes. Is it the map of their city?"
        )
    return scenes


def read_part(files: Sequence[Path], read: partial, num_workers: int | None) -> datasets.Dataset:
    # A log is a folder, with its map; a scenario's map lies beside it, and those of cities in folders of their own.
    contents = [path for file in files for path in (file, *file.glob("*.feather"), *file.glob("map/*.json"))]
    scenarios = [file for file in files if file.suffix == ".parquet"]
    contents += [path for file in scenarios for path in sorted(file.parent.glob("log_map_archive_*.json"))]
    folders = read.keywords["maps"].folders if "maps" in read.keywords else ()
    contents += [path for folder in folders for path in sorted(Path(folder).glob("*_vector_map.xml"))]
    stamps = [(str(path), stat.st_size, stat.st_mtime_ns) for path in contents for stat in [path.stat()]]
    settings = {name: vars(value) for name, value in read.keywords.items()}
    key = Hasher.hash([VERSION, FEATURES, read.func.__name__, settings, stamps])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "motion_forecasting"
    folder.mkdir(parents=True, exist_ok=True)
    listed = datasets.Dataset.from_dict({"file": [str(file) for file in files]})
    return listed.map(
        partial(read_batch, read=read),
        batched=True,
        batch_size=1,
        remove_columns=["file"],
        features=FEATURES,
        cache_file_name=str(folder / f"{key}.arrow"),
        num_proc=None if num_workers is None else min(num_workers, len(files)),
        new_fingerprint=key,
        desc="Reading scenes",
    )


def read_batch(batch: dict[str, list[str]], read: partial) -> dict[str, list[Any]]:
    """Return the scenes of a file as columns."""
    scenes = [scene for file in batch["file"] for scene in read(file)]
    last = read.keywords["settings"].num_history_steps - 1
    for scene in scenes:
        positions = scene["positions"][:, last]
        distances = np.linalg.norm(positions - positions[scene["target"]], axis=-1)
        scene |= {"agent_distances": distances, "num_lanes": len(scene["lanes"])}
    return {name: [scene[name] for scene in scenes] for name in FEATURES}


class SceneDataset(TransformedDataset):
    """Examples of scenes; their nested numbers become arrays without a Python object for each, which takes longer."""

    def read_rows(self, indices: list[int]) -> list[Row]:
        names = [name for name in USED_COLUMNS if name in self.rows.column_names]
        table = self.rows.select_columns(names).with_format("arrow")[indices]
        columns = [[to_arrays(value) for value in table[name]] for name in names]
        return [dict(zip(names, values)) for values in zip(*columns)]


def to_arrays(value: Any) -> Any:
    """Return an arrow scalar as Python objects, lists of numbers of any depth as an array."""
    depth, kind, values = 0, value.type, value
    while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    if not value.is_valid or depth == 0 or not (pyarrow.types.is_floating(kind) or pyarrow.types.is_struct(kind)):
        return value.as_py()
    values = value.values
    if pyarrow.types.is_struct(kind):
        fields = [[to_arrays(item) for item in values.field(number)] for number in range(kind.num_fields)]
        return [dict(zip((field.name for field in kind), items)) for items in zip(*fields)]
    shape = [len(values)]
    while depth > 1:
        lengths = values.value_lengths().to_numpy(zero_copy_only=False)
        if len(set(lengths.tolist())) != 1:
            return value.as_py()
        values, depth = values.flatten(), depth - 1
        shape.append(int(lengths[0]))
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def scene_sizes(rows: datasets.Dataset, agent_radius: float) -> list[int]:
    """Return the number of agents within a radius and of lanes of each scene; of rows of scenes, of all agents."""
    if "agent_distances" in rows.column_names:
        columns = rows.select_columns(["agent_distances", "num_lanes"]).with_format("arrow")[:]
        lengths = pyarrow.compute.list_value_length(columns["agent_distances"]).to_numpy()
        is_near = pyarrow.compute.list_flatten(columns["agent_distances"]).to_numpy() <= agent_radius
        counts = np.add.reduceat(is_near, np.concatenate([[0], lengths.cumsum()[:-1]]), dtype=np.int64)
        return (counts + columns["num_lanes"].to_numpy()).tolist()
    names = [name for name in ("positions", "lanes") if name in rows.column_names]
    return [sum(len(value or ()) for value in row.values()) for row in rows.select_columns(names)]
