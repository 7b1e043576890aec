# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The lanes of Argoverse's maps."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np

from hf_frozen_llm.modeling.motion_scenes import sample_polyline


Lane: TypeAlias = dict[str, Any]

# A lane of Argoverse 1 is 3.8 m wide: its box reaches this far beyond its centreline.
LANE_MARGIN = 2.0
NUM_CENTERLINE_POINTS = 10


class LaneMap:
    """
    The lanes of a map, in the order of its file.

    Args:
        lanes (`list[dict]`): as in a scene, with the lane's `id`.
    """

    def __init__(self, lanes: list[Lane]):
        self.lanes = lanes
        points = [np.asarray(lane["centerline"]) for lane in lanes]
        self.lows = np.array([of_lane.min(axis=0) for of_lane in points]).reshape(-1, 2)
        self.highs = np.array([of_lane.max(axis=0) for of_lane in points]).reshape(-1, 2)

    def near(self, center: np.ndarray, radius: float) -> list[Lane]:
        """Return the lanes whose box overlaps the square of that half side around a point."""
        reach = radius + LANE_MARGIN
        is_near = (self.lows <= center + reach).all(axis=1) & (self.highs >= center - reach).all(axis=1)
        return [self.lanes[index] for index in np.flatnonzero(is_near)]


@lru_cache(maxsize=8)
def read_argoverse1_map(file: str) -> LaneMap:
    """
    Return the lanes of a vector map of Argoverse 1: `node` and `way` elements.

    Raises:
        `ValueError`: for other XML, such as a file with declarations of entities, which is never expanded.
    """
    content = Path(file).read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError(f"{file} declares a document type or entities, which no vector map of Argoverse 1 does.")
    try:
        root = ElementTree.fromstring(content)
        nodes = {node.get("id"): (float(node.attrib["x"]), float(node.attrib["y"])) for node in root.iter("node")}
        lanes = [read_way(way, nodes) for way in root.iter("way")]
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is not XML: {error}") from error
    except KeyError as error:
        raise ValueError(f"{file} is no vector map of Argoverse 1: an element lacks {error}.") from error
    if not lanes:
        raise ValueError(f"{file} has no lanes (elements `way`).")
    return LaneMap(lanes)


def read_way(way: ElementTree.Element, nodes: Mapping[str | None, tuple[float, float]]) -> Lane:
    tags = {tag.attrib["k"]: tag.attrib["v"] for tag in way.iter("tag")}
    return {
        "id": way.attrib["lane_id"],
        "centerline": [nodes[nd.get("ref")] for nd in way.iter("nd")],
        "is_intersection": tags["is_intersection"] == "True",
        "turn_direction": tags["turn_direction"].lower(),
        "has_traffic_control": tags["has_traffic_control"] == "True",
    }


@lru_cache(maxsize=8)
def read_argoverse2_map(file: str) -> LaneMap:
    """
    Return the lanes of a map of Argoverse 2. As in its own reader, a centreline is the mean of both boundaries, each
    resampled to ten points. These maps have neither turns nor traffic control.
    """
    try:
        segments = json.loads(Path(file).read_text(encoding="utf-8"))["lane_segments"]
        lanes = [
            {
                "id": str(segment["id"]),
                "centerline": np.mean(
                    [
                        sample_polyline(np.array([[p["x"], p["y"]] for p in segment[side]]), NUM_CENTERLINE_POINTS)
                        for side in ("left_lane_boundary", "right_lane_boundary")
                    ],
                    axis=0,
                ).tolist(),
                "is_intersection": bool(segment["is_intersection"]),
                "turn_direction": "none",
                "has_traffic_control": False,
            }
            for segment in segments.values()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no map of Argoverse 2: {type(error).__name__} {error}.") from error
    return LaneMap(lanes)
