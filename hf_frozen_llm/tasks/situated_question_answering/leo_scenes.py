# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scenes of ScanNet as LEO and 3D-VisTA distribute them, which need no preparation of ScanNet's scans.

Source: github.com/embodied-generalist/embodied-generalist (`data/datasets.py`) for the files and for poses.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_frozen_llm.modeling.checkpoint_files import UNPICKLING_ERRORS


CLOUDS = Path("scan_data", "pcd_with_global_alignment")
ALIGNMENTS = "axisAlignment.pth"
NO_OBJECTS = (0, 1, 2, 22)  # not annotated, wall, floor, ceiling
# What arrays and numbers of numpy are rebuilt with; its versions 1 and 2 name the functions differently.
REBUILD = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
ARRAY_PARTS: list[Any] = [
    *(bytes, np.ndarray, np.dtype),
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")},
    *(
        (function, f"numpy.{module}.multiarray.{name}")
        for module in ("core", "_core")
        for name, function in REBUILD.items()
    ),
]


def load_arrays(file: Path) -> Any:
    """Load what `torch.save` wrote, arrays of numpy included, without executing code in it."""
    try:
        with torch.serialization.safe_globals(ARRAY_PARTS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise ValueError(
            f"{file} cannot be read as arrays. It is damaged, or it holds other objects, whose code is not executed."
        ) from error


def read_matrices(folder: Path) -> dict[str, np.ndarray]:
    """Return the rotation of each scene in `axisAlignment.pth`; none if there is no such file."""
    file = folder / ALIGNMENTS
    if not file.is_file():
        return {}
    content = load_arrays(file)
    if not isinstance(content, dict) or any(np.shape(matrix) not in ((3, 3), (4, 4)) for matrix in content.values()):
        raise ValueError(f"{file} does not hold a matrix of each scene, (3, 3) or (4, 4); it is no file of LEO's.")
    return {str(scene): np.asarray(matrix, dtype=np.float64)[:3, :3] for scene, matrix in content.items()}


def read_cloud(folder: Path, scene_id: str) -> dict[str, np.ndarray]:
    """
    Return the `points` of a scene `(points, 6)`, with colours from 0 to 255, the number of NYU40 of each point
    (`semantic`), the number of its object, from 1 (`instances`), and the `boxes` of the objects' points.
    """
    file = folder / CLOUDS / f"{scene_id}.pth"
    content = load_arrays(file)
    if not isinstance(content, (tuple, list)) or len(content) < 4:
        raise ValueError(
            f"{file} holds {len(content) if isinstance(content, (tuple, list)) else type(content).__name__}; it must "
            "hold four arrays: points, colours, numbers of NYU40, numbers of objects."
        )
    xyz, colors, semantic, instances = (np.asarray(content[index]) for index in (0, 1, 2, -1))
    lengths = [len(xyz), len(colors), len(semantic), len(instances)]
    if len(set(lengths)) > 1 or xyz.shape[1:] != (3,) or colors.shape[1:] != (3,):
        raise ValueError(f"{file}: points, colours and both numbers have {lengths} rows; all must have the same.")
    # Points that are not annotated have negative numbers.
    semantic, instances = np.maximum(semantic, 0).astype(np.int64), np.maximum(instances + 1, 0).astype(np.int64)
    boxes = []
    for number in np.unique(instances[instances > 0]):
        of_object = xyz[instances == number]
        kinds, counts = np.unique(semantic[instances == number], return_counts=True)
        kind = kinds[counts.argmax()]
        if kind not in NO_OBJECTS:
            low, high = of_object.min(axis=0), of_object.max(axis=0)
            boxes.append([*(low + high) / 2, *(high - low), kind, number - 1])
    return {
        "points": np.concatenate([xyz, colors], axis=1).astype(np.float32),
        "semantic": semantic,
        "instances": instances,
        "boxes": np.array(boxes, dtype=np.float64).reshape(-1, 8),
    }
