# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Activation maps of a single input of any task: their values, and a picture of the input to draw them on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from hf_frozen_llm.data.datasets import evenly_spaced
from hf_frozen_llm.modeling.modeling_point_bert_with_llm_block import group_points

from .activations import tap_points, token_activations, token_layout
from .figures import COLOR_MAP, draw_image
from .measures import frequency, magnitude, min_max


MEASURES = {"magnitude": magnitude, "frequency": frequency}
NUM_FRAMES = 4
COLOR_SCALE = {"cmap": COLOR_MAP, "vmin": 0, "vmax": 1}
# As pixels in an SVG, too: thousands of points would make a large file.
IN_SPACE: dict[str, Any] = {"depthshade": False, "rasterized": True}
# Of scenes of traffic, on a black ground: cividis is dark at its low end.
LANE, AGENT, TARGET = "0.45", "#56b4e9", "#e69f00"


@dataclass(frozen=True)
class Picture:
    """
    How an input and maps on it are drawn.

    Args:
        draw (`Callable`): takes a map, or `None` for the input itself, and matplotlib's axis.
        cell (`tuple[float, float]`): width and height, in inches.
        projection (`str`, *optional*): that of the axis.
    """

    draw: Callable[[np.ndarray | None, Any], None]
    cell: tuple[float, float] = (1.15, 1.15)
    projection: str | None = None


def find_maps(
    model: Any, inputs: Mapping[str, torch.Tensor], at: Sequence[str] = ()
) -> tuple[dict[str, dict[str, np.ndarray]], Any]:
    """
    Return the maps of one input, by measure and tap point, and the model's outputs. Padding counts for nothing, and is
    NaN in the maps; the attention is the last map of each measure.

    Args:
        model (`PreTrainedModel`): a model of this package, of any task.
        inputs (`Mapping[str, torch.Tensor]`): the arguments of its forward, of a single example.
        at (`Sequence[str]`, *optional*): tap points; all of them by default. Those that the model lacks are left out.

    Returns:
        `tuple`: the maps, numbers from 0 to 1 of the shape of [`token_layout`], and the outputs.

    Raises:
        `ValueError`: if the model has none of the tap points.
    """
    if not (taps := [tap for tap in tap_points(model) if not at or tap in at]):
        raise ValueError(f"The model has no tap point {' or '.join(at)}; it has {', '.join(tap_points(model))}.")
    block = model._get_llm_block()
    found = token_activations(model, inputs, taps, attention=block is not None and len(block.llm_layers) > 0)
    layout = token_layout(model, inputs, next(iter(found.states.values())).shape[1])
    places = torch.Size(layout.shape).numel()
    is_token = torch.ones(places, dtype=torch.bool)
    if found.mask is not None:
        is_token = layout.take(found.mask)[0].bool().cpu()

    def to_map(values: torch.Tensor) -> np.ndarray:
        values_of_all = np.full(places, np.nan, np.float32)
        values_of_all[is_token.numpy()] = min_max(values.float().cpu())[0].numpy()
        return values_of_all.reshape(layout.shape)

    tokens = {tap: layout.take(of_tap)[:, is_token] for tap, of_tap in found.states.items()}
    maps = {
        name: {tap: to_map(compute(of_tap)) for tap, of_tap in tokens.items()} for name, compute in MEASURES.items()
    }
    if found.attention is not None:
        attention = to_map(layout.query(found.attention).sum(1)[:, is_token])
        maps = {name: {**of_measure, "attention scores": attention} for name, of_measure in maps.items()}
    return maps, found.outputs


def find_picture(model: Any, processor: Any, inputs: Mapping[str, torch.Tensor], outputs: Any) -> Picture:
    """
    Return how one input of a model is drawn: frames of a video, a point cloud, a scene of traffic, the picture of a
    question, or a room with its objects.

    Args:
        model (`PreTrainedModel`): the model.
        processor: its processor.
        inputs (`Mapping[str, torch.Tensor]`): the arguments of its forward, of a single example.
        outputs (`ModelOutput`): its outputs.

    Raises:
        `ValueError`: for models whose inputs cannot be drawn.
    """
    kind, arrays = model.config.model_type, {name: value[0].float().cpu().numpy() for name, value in inputs.items()}
    if kind == "videomae_with_llm_block":
        frames = to_colors(arrays["pixel_values"], processor)[:: model.config.tubelet_size]
        chosen = evenly_spaced(len(frames), NUM_FRAMES)
        return Picture(partial(draw_frames, frames, chosen), cell=(1.15, 1.15 * len(chosen)))
    if kind == "meter_with_llm_block":
        return Picture(partial(draw_image, to_colors(arrays["pixel_values"], processor.image_processor)))
    if kind == "point_bert_with_llm_block":
        _, centers = group_points(inputs["points"].float().cpu(), model.config.num_groups, model.config.group_size)
        draw = partial(draw_points, arrays["points"], centers[0].numpy())
        return Picture(draw, cell=(1.5, 1.5), projection="3d")
    if kind == "vectornet_with_llm_block":
        vectors = arrays["polyline_vectors"]
        mask = arrays.get("vector_mask", np.ones(vectors.shape[:2]))
        return Picture(partial(draw_traffic, vectors, mask.astype(bool)), cell=(1.5, 1.5))
    if kind == "sqa3d_with_llm_block" and "points" in arrays:
        centers = outputs.get("box_centers", inputs.get("object_centers"))
        draw = partial(draw_room, arrays["points"][:, :3], centers[0].float().cpu().numpy())
        return Picture(draw, cell=(1.7, 1.3), projection="3d")
    raise ValueError(f"The inputs of this {type(model).__name__} cannot be drawn.")


def to_colors(pixels: np.ndarray, processor: Any) -> np.ndarray:
    """Return normalised pixels `(…, 3, height, width)` as colours from 0 to 1, `(…, height, width, 3)`."""
    mean, std = (np.asarray(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return np.moveaxis(pixels * std + mean, -3, -1).clip(0, 1)


def draw_frames(frames: np.ndarray, chosen: list[int], values: np.ndarray | None, axis: Any) -> None:
    """Draw frames of a video below each other, the first at the top."""
    height = frames.shape[1]
    draw_image(np.concatenate(frames[chosen]), None if values is None else np.concatenate(values[chosen]), axis)
    for number in range(1, len(chosen)):
        axis.axhline(number * height, color="white", linewidth=2)


def draw_points(points: np.ndarray, centers: np.ndarray, values: np.ndarray | None, axis: Any) -> None:
    """Draw a point cloud; each point has the activation of the nearest centre of a group."""
    color: dict[str, Any] = {"c": "0.35"}
    if values is not None:
        color = {"c": values[np.square(points[:, None] - centers).sum(-1).argmin(1)], **COLOR_SCALE}
    axis.scatter(*points.T, s=3, linewidths=0, **color, **IN_SPACE)
    show_space(axis, points, elevation=25, zoom=1.35)


def draw_room(points: np.ndarray, centers: np.ndarray, values: np.ndarray | None, axis: Any) -> None:
    """Draw a room with the centres of its objects."""
    axis.computed_zorder = False  # the centres are above all points
    axis.scatter(*points.T, s=2, linewidths=0, c="0.5" if values is None else "0.75", **IN_SPACE)
    if values is not None:
        kept = np.argsort(values)[: np.isfinite(values).sum()]  # padding, NaN, is last
        axis.scatter(*centers[kept].T, s=22, c=values[kept], edgecolors="black", lw=0.4, **COLOR_SCALE, **IN_SPACE)
    show_space(axis, points, elevation=50, zoom=1.6)


def show_space(axis: Any, points: np.ndarray, elevation: float, zoom: float) -> None:
    axis.set_box_aspect(np.maximum(np.ptp(points, axis=0), 0.1), zoom=zoom)
    axis.view_init(elevation, -60)
    axis.set_axis_off()


def draw_traffic(vectors: np.ndarray, mask: np.ndarray, values: np.ndarray | None, axis: Any) -> None:
    """Draw lanes and the tracks of agents, the target's with a star at its end; its heading is upwards."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    axis.set_facecolor("black")
    is_lane = vectors[:, 0, 4] > 0
    is_drawn = mask.any(1) & (True if values is None else ~np.isnan(values))
    lanes, agents = (np.flatnonzero(of_kind & is_drawn) for of_kind in (is_lane, ~is_lane))
    for chosen, width in ((lanes, 0.8), (agents[::-1], 2.0)):  # the target, the first agent, is on top
        numbers = np.repeat(chosen, mask[chosen].sum(1))
        if values is not None:
            colors: Any = colormaps[COLOR_MAP](values[numbers])
        else:
            colors = [LANE if is_lane[number] else AGENT if number else TARGET for number in numbers]
        parts = vectors[chosen][mask[chosen]][:, :4].reshape(-1, 2, 2)
        # As pixels in an SVG, too: thousands of lines would make a large file.
        axis.add_collection(LineCollection(list(parts), colors=colors, linewidths=width, rasterized=True))
    if len(agents) and agents[0] == 0:
        color = TARGET if values is None else colormaps[COLOR_MAP](values[0])
        axis.plot(*vectors[0][mask[0]][-1, 2:4], "*", color=color, markersize=7)
    axis.set_aspect("equal", adjustable="datalim")
    axis.autoscale_view()
