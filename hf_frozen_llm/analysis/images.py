# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""All measures and scores of one image model on images with masks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .activations import TokenLayout, tap_points, token_activations, token_layout
from .curves import area_under_curve, deletion_and_insertion
from .masks import MaskedImage
from .measures import (
    effective_rank,
    filtering_ratio,
    frequency,
    gradient_coherence,
    linear_cka,
    magnitude,
    min_max,
    token_similarity,
    update_ratio,
)
from .scores import auroc, held_out_iou, ious, oracle_iou, pointing_game


MEASURES = {"magnitude": magnitude, "frequency": frequency}
CKA_TOKENS = 2048
# Tap point, measure ("" for one of tokens or of the model) and score.
Key = tuple[str, str, str]


@dataclass
class ImageAnalysis:
    """
    What [`analyze_images`] found about a model.

    Args:
        values (`dict[tuple[str, str, str], numpy.ndarray]`):
            By tap point, measure and score, a number for each image, NaN where it is not defined.
        totals (`dict[tuple[str, str, str], float]`):
            Scores that are one number for all images.
        maps (`dict[tuple[str, str], numpy.ndarray]`):
            By tap point and measure, maps from 0 to 1 of shape `(images, rows, columns)`.
        curves (`dict[tuple[str, str, str], numpy.ndarray]`):
            By tap point, measure and `deletion` or `insertion`, curves of the first images.
    """

    values: dict[Key, np.ndarray] = field(default_factory=dict)
    totals: dict[Key, float] = field(default_factory=dict)
    maps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    curves: dict[Key, np.ndarray] = field(default_factory=dict)


def find_grid(model: Any, processor: Any, image: MaskedImage) -> tuple[int, int]:
    """Return rows and columns of a model's tokens, by running it on one image."""
    inputs = next(_batches(model, processor, [image], 1))
    tokens = token_activations(model, inputs, at=["host"]).states["host"]
    rows, columns = token_layout(model, inputs, tokens.shape[1]).shape
    return rows, columns


def score_maps(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """
    Return all scores of maps against masks, by their names.

    Args:
        maps (`numpy.ndarray` of shape `(images, tokens)`): from 0 to 1.
        masks (`numpy.ndarray` of shape `(images, tokens)`): see [`mask_of_tokens`].
    """
    of_thresholds = ious(maps, masks)
    scores = {"miou_oracle": oracle_iou(of_thresholds)}
    if len(maps) > 1:
        scores["miou"] = held_out_iou(of_thresholds)
    return {**scores, "pointing_game": pointing_game(maps, masks), "auroc": auroc(maps, masks)}


def analyze_images(
    model: Any,
    processor: Any,
    images: Sequence[MaskedImage],
    masks: np.ndarray,
    at: Sequence[str] | None = None,
    batch_size: int = 32,
    num_curves: int = 32,
) -> ImageAnalysis:
    """
    Compute the activation maps, the scores and the measures of tokens of a model.

    Args:
        model (`PreTrainedModel`):
            An image classifier of this package.
        processor (`BaseImageProcessor`):
            Its processor.
        images (`Sequence[MaskedImage]`):
            The images.
        masks (`numpy.ndarray` of shape `(images, tokens)`):
            Their masks, each with an object and with background, see [`mask_of_tokens`].
        at (`Sequence[str]`, *optional*):
            Names of [`tap_points`]; all of the model by default.
        batch_size (`int`, *optional*, defaults to 32):
            Images in a forward.
        num_curves (`int`, *optional*, defaults to 32):
            Deletion and insertion, and the coherence of gradients, are computed for this many of the first images.

    Returns:
        [`ImageAnalysis`]: the results.
    """
    taps = tap_points(model) if at is None else [tap for tap in tap_points(model) if tap in at]
    # Ratios compare with these, whether or not they are wanted.
    needed = {*taps, "host", *_ends_of_layers(model)}
    ordered = [tap for tap in tap_points(model) if tap in needed]
    has_attention = model.llm_block is None or len(model.llm_block.llm_layers) > 0
    found: dict[Any, list[torch.Tensor]] = defaultdict(list)
    samples: dict[str, list[torch.Tensor]] = defaultdict(list)
    for number, inputs in enumerate(_batches(model, processor, images, batch_size)):
        batch = token_activations(model, inputs, ordered, attention=has_attention)
        layout = token_layout(model, inputs, batch.states["host"].shape[1])
        is_object = torch.from_numpy(masks[number * batch_size :][: len(batch.states["host"])])
        _measure(batch.states, layout, is_object, taps, _ends_of_layers(model), found)
        if batch.attention is not None:
            found[_tap_of_attention(model), "attention", "map"].append(
                layout.query(batch.attention).sum(1).float().cpu()
            )
        stride = max(1, len(images) * layout.take(batch.states["host"]).shape[1] // CKA_TOKENS)
        for tap in {*taps, "host"}:
            samples[tap].append(layout.take(batch.states[tap]).flatten(0, 1)[::stride].float().cpu())

    result = ImageAnalysis()
    for (tap, measure, score), parts in found.items():
        values = torch.cat(parts)
        if score != "map":
            result.values[tap, measure, score] = values.numpy()
            continue
        scaled = min_max(values).numpy()
        result.maps[tap, measure] = scaled.reshape(len(scaled), *layout.shape)
        result.values |= {(tap, measure, name): v for name, v in score_maps(scaled, masks).items()}
    host = torch.cat(samples["host"])
    for tap in taps:
        result.totals[tap, "", "cka_to_host"] = linear_cka(host, torch.cat(samples[tap]))
    if num_curves > 0:
        _explain(model, processor, images[:num_curves], batch_size, result)
    return result


def _layers(model: Any) -> list[str]:
    return [tap for tap in tap_points(model) if tap.startswith(("attention", "feed_forward"))]


def _tap_of_attention(model: Any) -> str:
    """Return the tap point that the attention probabilities are shown at."""
    layers = _layers(model)
    return (["host", *layers[-1:], *(tap for tap in layers if tap.startswith("attention"))])[-1]


def _ends_of_layers(model: Any) -> list[str]:
    """Return the tap points of the input of the LLM layers, and of the output of the first and of the last one."""
    layers = [tap for tap in _layers(model) if tap.startswith("feed_forward")]
    return ["input_projection", layers[0], layers[-1]] if layers else []


def _measure(
    states: dict[str, torch.Tensor],
    layout: TokenLayout,
    is_object: torch.Tensor,
    taps: Sequence[str],
    ends: Sequence[str],
    found: dict[Any, list[torch.Tensor]],
) -> None:
    """Append the measures of a batch to those found before."""
    tokens = {tap: layout.take(of_tap) for tap, of_tap in states.items()}
    for measure, compute in MEASURES.items():
        maps = {tap: compute(of_tap).float().cpu() for tap, of_tap in tokens.items()}
        for tap in taps:
            found[tap, measure, "map"].append(maps[tap])
            if tap != "host":
                found[tap, measure, "filtering_ratio"].append(filtering_ratio(maps["host"], maps[tap], is_object))
        if ends:
            ratio = filtering_ratio(maps[ends[0]], maps[ends[-1]], is_object)
            found[ends[-1], measure, "filtering_ratio_of_layer"].append(ratio)
    for tap in taps:
        found[tap, "", "effective_rank"].append(effective_rank(tokens[tap]).cpu())
        found[tap, "", "token_similarity"].append(token_similarity(tokens[tap]).cpu())
    if ends:
        # Of all tokens, as `LLMBlock.update_ratio`.
        found[ends[1], "", "update_ratio"].append(update_ratio(states[ends[0]], states[ends[1]]).cpu())


def _explain(
    model: Any, processor: Any, images: Sequence[MaskedImage], batch_size: int, result: ImageAnalysis
) -> None:
    """Add deletion and insertion curves by every map, and the coherence of the gradients of the host."""

    def predict(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixel_values).logits

    model.eval()
    batches = [inputs["pixel_values"] for inputs in _batches(model, processor, images, batch_size)]
    curves: dict[Key, list[torch.Tensor]] = defaultdict(list)
    for number, pixel_values in enumerate(batches):
        for (tap, measure), maps in result.maps.items():
            part = torch.from_numpy(maps[number * batch_size :][: len(pixel_values)]).to(pixel_values.device)
            both = deletion_and_insertion(predict, pixel_values, part)
            for name, curve in zip(("deletion", "insertion"), both):
                curves[tap, measure, name].append(curve.float().cpu())
    for key, parts in curves.items():
        result.curves[key] = torch.cat(parts).numpy()
        result.values[key] = area_under_curve(torch.cat(parts)).numpy()
    pixel_values = torch.cat(batches)

    def loss_of(index: int) -> torch.Tensor:
        logits = predict(pixel_values[index : index + 1])
        return F.cross_entropy(logits, logits.argmax(-1))

    host = getattr(model, model.base_model_prefix)
    result.totals["host", "", "gradient_coherence"] = gradient_coherence(loss_of, len(images), host.parameters())


def _batches(
    model: Any, processor: Any, images: Sequence[MaskedImage], batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(images), batch_size):
        pictures = [image.read()[0] for image in images[start : start + batch_size]]
        pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixel_values.to(model.device, model.dtype)}
