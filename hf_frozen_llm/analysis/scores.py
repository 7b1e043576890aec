# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Scores of activation maps against masks, one for each image.

Maps have the shape `(images, tokens)` and values from 0 to 1; masks have the same shape: 1 = object, 0 = background,
NaN = neither, which does not count.
"""

import numpy as np


THRESHOLDS = np.arange(1, 10) / 10


def ious(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """
    Return the intersection over union of masks and pseudo-masks, which are `maps > threshold`.

    Source: "Frozen Transformers in Language Models Are Effective Visual Encoder Layers" (ICLR 2024), appendix A.3.

    Args:
        maps (`numpy.ndarray` of shape `(images, tokens)`): the maps.
        masks (`numpy.ndarray` of shape `(images, tokens)`): the masks, each with an object.
        thresholds (`numpy.ndarray` of shape `(thresholds,)`, *optional*): by default 0.1, 0.2, …, 0.9.

    Returns:
        `numpy.ndarray` of shape `(images, thresholds)`: from 0 to 1.
    """
    found = maps[:, None, :] > thresholds[None, :, None]
    is_object, counts = (masks == 1)[:, None], ~np.isnan(masks)[:, None]
    return (found & is_object).sum(-1) / ((found & counts) | is_object).sum(-1)


def oracle_iou(of_thresholds: np.ndarray) -> np.ndarray:
    """
    Return each image's IoU at its own best threshold, as the paper does. This threshold is chosen by the mask itself,
    so the score is too high: a map of noise has one, too.

    Args:
        of_thresholds (`numpy.ndarray` of shape `(images, thresholds)`): the result of [`ious`].
    """
    return of_thresholds.max(1)


def held_out_iou(of_thresholds: np.ndarray, seed: int = 0) -> np.ndarray:
    """
    Return each image's IoU at one threshold for all: that with the best mean on the other half of the images.

    Args:
        of_thresholds (`numpy.ndarray` of shape `(images, thresholds)`): the result of [`ious`], of 2 images or more.
        seed (`int`, *optional*, defaults to 0): of the two random halves.
    """
    count = len(of_thresholds)
    if count < 2:
        raise ValueError("A threshold for held-out images needs 2 images or more.")
    order = np.random.default_rng(seed).permutation(count)
    halves = order[: count // 2], order[count // 2 :]
    scores = np.empty(count)
    for half, other in (halves, halves[::-1]):
        scores[half] = of_thresholds[half, of_thresholds[other].mean(0).argmax()]
    return scores


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """
    Return 1 if the token with the highest activation is of the object, and 0 if not; of several highest tokens, the
    share. Tokens that are neither object nor background are left out.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016).

    Args:
        maps (`numpy.ndarray` of shape `(images, tokens)`): the maps.
        masks (`numpy.ndarray` of shape `(images, tokens)`): the masks.
    """
    known = np.where(np.isnan(masks), -np.inf, maps)
    is_highest = known == known.max(1, keepdims=True)
    return (is_highest & (masks == 1)).sum(1) / is_highest.sum(1)


def auroc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """
    Return the probability that a token of the object has a higher activation than one of the background, plus half
    of that of equal ones: the area under the ROC curve. 0.5 is chance.

    Source: Fawcett, "An introduction to ROC analysis" (Pattern Recognition Letters 2006).

    Args:
        maps (`numpy.ndarray` of shape `(images, tokens)`): the maps.
        masks (`numpy.ndarray` of shape `(images, tokens)`): the masks; NaN for one without object or background.
    """
    scores = np.full(len(maps), np.nan)
    for index, (values, mask) in enumerate(zip(maps, masks)):
        of_object, of_background = values[mask == 1], np.sort(values[mask == 0])
        if len(of_object) and len(of_background):
            below, up_to = (np.searchsorted(of_background, of_object, side) for side in ("left", "right"))
            scores[index] = (below + up_to).mean() / (2 * len(of_background))
    return scores
