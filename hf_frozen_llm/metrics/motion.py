# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Errors of forecast trajectories, in float64.

Sources of the rules: argoai/argoverse-api (`eval_forecasting.py`), its copy in decisionforce/mmTransformer (brier
forms), and PyPI's av2 (`motion_forecasting/eval/metrics.py`); the results of all three are tests of this module.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np


# "argoverse1": the trajectory with the smallest final error gives every metric, minADE too. "smallest": minADE is the
# smallest of all average errors.
Rule: TypeAlias = Literal["argoverse1", "smallest"]
RULES = ("argoverse1", "smallest")
# Argoverse 1: a probability counts as at least this in the logarithmic penalty.
LOWEST_PROBABILITY = 0.05


def mode_errors(forecasts: Any, truth: Any, miss_threshold: float = 2.0) -> dict[str, np.ndarray]:
    """
    Return `ade`, `fde` and `is_missed` of each trajectory.

    Args:
        forecasts (`array` of shape `(… , modes, steps, 2)`): the trajectories.
        truth (`array` of shape `(… , steps, 2)`): the true positions; NaN where they are unknown. The final error is
            that of the last known step.
        miss_threshold (`float`, *optional*, defaults to 2.0): a final error above it, in metres, is a miss.

    Raises:
        `ValueError`: for other shapes, forecasts that are not finite, or a truth of which no step is known.
    """
    forecasts, truth = np.asarray(forecasts, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if forecasts.ndim < 3 or forecasts.shape[-1] != 2 or forecasts.shape[:-3] + forecasts.shape[-2:] != truth.shape:
        raise ValueError(
            f"The forecasts have the shape {forecasts.shape} and the truth {truth.shape}; they must be (modes, steps, "
            "2) and (steps, 2), with the same number of steps."
        )
    if not np.isfinite(forecasts).all():
        raise ValueError("The forecasts hold numbers that are not finite.")
    known = np.isfinite(truth).all(axis=-1)
    if not known.any(axis=-1).all():
        raise ValueError("No step of a true trajectory is known, so that it has no error: leave it out.")
    distances = np.linalg.norm(forecasts - np.where(known[..., None], truth, 0)[..., None, :, :], axis=-1)
    weights = known[..., None, :].astype(np.float64)
    last = (known * np.arange(1, known.shape[-1] + 1)).argmax(axis=-1)[..., None, None]
    fde = np.take_along_axis(distances, np.broadcast_to(last, (*distances.shape[:-1], 1)), axis=-1)[..., 0]
    return {
        "ade": (distances * weights).sum(axis=-1) / weights.sum(axis=-1),
        "fde": fde,
        "is_missed": fde > miss_threshold,
    }


def brier_errors(errors: np.ndarray, probabilities: Any, normalize: bool = False) -> np.ndarray:
    """
    Return `error + (1 - probability) ** 2` for each trajectory.

    Args:
        errors (`np.ndarray` of shape `(modes,)`): `ade` or `fde` of [`mode_errors`].
        probabilities (`array` of shape `(modes,)`): the probabilities.
        normalize (`bool`, *optional*, defaults to `False`): whether to divide them by their sum first.
    """
    probabilities = check_probabilities(probabilities, errors.shape[-1])
    if normalize:
        probabilities = probabilities / probabilities.sum()
    return errors + (1 - probabilities) ** 2


def check_probabilities(probabilities: Any, count: int) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (count,):
        raise ValueError(f"There are {count} forecasts and probabilities of the shape {probabilities.shape}.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or probabilities.sum() == 0:
        raise ValueError(f"Probabilities must be between 0 and 1, and not all 0: {probabilities.tolist()}.")
    return probabilities


def score_forecasts(
    forecasts: Any,
    truth: Any,
    probabilities: Any = None,
    k: int = 6,
    horizon: int | None = None,
    miss_threshold: float = 2.0,
    rule: Rule = "argoverse1",
) -> dict[str, float]:
    """
    Return the metrics of one scene.

    Args:
        forecasts (`array` of shape `(modes, steps, 2)`): the trajectories.
        truth (`array` of shape `(steps, 2)`): the true positions; NaN where they are unknown.
        probabilities (`array` of shape `(modes,)`, *optional*):
            The probabilities: the k most probable trajectories count, with probabilities that are divided by their
            sum. Without them the first k count, and there are no p- and brier- metrics.
        k (`int`, *optional*, defaults to 6): number of trajectories that count, or all if there are fewer.
        horizon (`int`, *optional*): number of steps that count; all of them by default.
        miss_threshold (`float`, *optional*, defaults to 2.0): a final error above it, in metres, is a miss.
        rule (`"argoverse1"` or `"smallest"`, *optional*, defaults to `"argoverse1"`):
            Whether minADE is the average error of the trajectory with the smallest final error, or the smallest.

    Raises:
        `ValueError`: for a rule that does not exist, numbers that are too small, and as in [`mode_errors`].
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {RULES}.")
    forecasts, truth = np.asarray(forecasts, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if k < 1 or (horizon is not None and not 1 <= horizon <= truth.shape[0]):
        raise ValueError(f"k is {k} and horizon {horizon}; they must be at least 1, and horizon at most all steps.")
    if probabilities is not None:
        probabilities = check_probabilities(probabilities, len(forecasts))
        order = np.argsort(-probabilities, kind="stable")[:k]
        forecasts, probabilities = forecasts[order], probabilities[order]
        probabilities = probabilities / probabilities.sum()
    errors = mode_errors(forecasts[:k, :horizon], truth[:horizon], miss_threshold)
    best_final = int(errors["fde"].argmin())
    best_average = best_final if rule == "argoverse1" else int(errors["ade"].argmin())
    ade, fde = float(errors["ade"][best_average]), float(errors["fde"][best_final])
    is_missed = bool(errors["is_missed"][best_final])
    scores = {"minADE": ade, "minFDE": fde, "MR": float(is_missed)}
    if probabilities is not None:
        of_average, of_final = float(probabilities[best_average]), float(probabilities[best_final])
        scores["p-minADE"] = ade - np.log(max(of_average, LOWEST_PROBABILITY))
        scores["p-minFDE"] = fde - np.log(max(of_final, LOWEST_PROBABILITY))
        scores["p-MR"] = 1.0 if is_missed else 1 - of_final
        scores["brier-minADE"] = ade + (1 - of_average) ** 2
        scores["brier-minFDE"] = fde + (1 - of_final) ** 2
    return {name: float(value) for name, value in scores.items()}


def score_worlds(
    forecasts: Any, truth: Any, probabilities: Any, miss_threshold: float = 2.0, collision_threshold: float = 1.0
) -> dict[str, np.ndarray]:
    """
    Return the joint metrics of Argoverse 2: of K worlds, in each of which all actors have one trajectory.

    Args:
        forecasts (`array` of shape `(actors, worlds, steps, 2)`): the trajectories.
        truth (`array` of shape `(actors, steps, 2)`): the true positions.
        probabilities (`array` of shape `(worlds,)`): the probabilities of the worlds.
        miss_threshold (`float`, *optional*, defaults to 2.0): a final error above it, in metres, is a miss.
        collision_threshold (`float`, *optional*, defaults to 1.0): actors that come nearer than this collide.

    Returns:
        `dict`: `ade`, `fde` and `brier_fde` of shape `(worlds,)`; `is_missed` and `collides`, `(actors, worlds)`.
    """
    forecasts = np.asarray(forecasts, dtype=np.float64)
    errors = mode_errors(forecasts, truth, miss_threshold)
    between = np.linalg.norm(forecasts[:, None] - forecasts[None], axis=-1).min(axis=-1)
    between[np.arange(len(forecasts)), np.arange(len(forecasts))] = np.inf
    fde = errors["fde"].mean(axis=0)
    return {
        "ade": errors["ade"].mean(axis=0),
        "fde": fde,
        "brier_fde": brier_errors(fde, probabilities),
        "is_missed": errors["is_missed"],
        "collides": between.min(axis=1) < collision_threshold,
    }


def share_on_drivable_area(forecasts: Any, raster: np.ndarray, image_from_city: Any, k: int = 6) -> float:
    """
    Return the share of the first k trajectories of a scene that never leave the drivable area, as Argoverse 1 counts.

    Args:
        forecasts (`array` of shape `(modes, steps, 2)`): the trajectories, in city coordinates.
        raster (`np.ndarray` of shape `(rows, columns)`): 1 where it is drivable; row 0 and column 0 count as outside.
        image_from_city (`array` of shape `(3, 3)`): the matrix from city coordinates to (column, row).
        k (`int`, *optional*, defaults to 6): number of trajectories, in their given order.
    """
    points = np.round(np.asarray(forecasts, dtype=np.float64)[:k])
    matrix = np.asarray(image_from_city, dtype=np.float64)
    columns, rows = np.moveaxis((points @ matrix[:2, :2].T + matrix[:2, 2]).astype(np.int64), -1, 0)
    is_inside = (rows > 0) & (rows < raster.shape[0]) & (columns > 0) & (columns < raster.shape[1])
    is_drivable = raster[np.where(is_inside, rows, 0), np.where(is_inside, columns, 0)] == 1
    return float((is_inside & is_drivable).all(axis=-1).mean())


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over all scenes."""
    return {name: float(np.mean([of_scene[name] for of_scene in scores])) for name in scores[0]}
