# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Single scenes in files of their own, as `predict` takes them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


SUFFIXES = (".json", ".npz")
LANE_ATTRIBUTES = ("is_intersection", "turn_direction", "has_traffic_control")


def read_scene_file(file: str | Path) -> dict[str, Any]:
    """
    Return the scene of a file.

    Args:
        file (`str` or `Path`):
            A `.json` file that holds the dictionary which [`MotionProcessor`] describes, `null` where an agent was not
            seen; or a `.npz` file of its arrays, in which `lanes` is an array `(lanes, points, 2)`, NaN after a lane's
            last point, and attributes of lanes are arrays `(lanes,)` of their names.

    Raises:
        `ValueError`: if the file cannot be read, or does not hold a scene.
    """
    path = Path(file)
    try:
        if path.suffix.lower() == ".json":
            scene = json.loads(path.read_text(encoding="utf-8"))
        else:
            with np.load(path, allow_pickle=False) as arrays:
                scene = {name: arrays[name] for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a scene: {error}") from error
    if not isinstance(scene, dict):
        raise ValueError(
            f"{file} holds a {type(scene).__name__}; a scene is a dictionary, as MotionProcessor takes it."
        )
    lanes = scene.get("lanes")
    if isinstance(lanes, np.ndarray):
        if lanes.ndim != 3 or lanes.shape[-1] != 2:
            raise ValueError(f"{file}: lanes has the shape {lanes.shape}; it must be (lanes, points, 2).")
        attributes = {name: scene[name] for name in LANE_ATTRIBUTES if name in scene}
        scene["lanes"] = [
            {"centerline": lane[np.isfinite(lane).all(axis=-1)], **{name: of[i] for name, of in attributes.items()}}
            for i, lane in enumerate(lanes)
        ]
    return scene


__all__ = ["SUFFIXES", "read_scene_file"]
