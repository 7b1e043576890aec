# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Drivable area compliance as an `evaluate` metric, by path, too: `evaluate.load("…/drivable_area_compliance.py")`."""

import datasets
import evaluate
import numpy as np

from hf_frozen_llm.metrics.motion import share_on_drivable_area


class DrivableAreaCompliance(evaluate.Metric):
    """
    Share of the first k trajectories of a scene that never leave the drivable area, as Argoverse 1 counts it.

    `compute(predictions=…, references=…, rasters=…, k=(1, 6))` returns `{"DAC_1": …, "DAC_6": …}`. `predictions` are
    trajectories `(modes, steps, 2)` in city coordinates, and `references` the names of the scenes' cities; `rasters`
    gives, for each of these names, the raster `(rows, columns)`, 1 where it is drivable, and the matrix `(3, 3)` from
    city coordinates to (column, row).
    """

    def _info(self) -> evaluate.MetricInfo:
        points = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description="Share of the first k trajectories that never leave the drivable area.",
            citation="",
            inputs_description="predictions: trajectories (modes, steps, 2); references: names of cities.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(points), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, rasters=None, k=(1, 6)) -> dict[str, float]:
        rasters = rasters or {}
        if missing := sorted(set(references) - set(rasters)):
            raise ValueError(f"rasters has no drivable area of {missing}; it has {sorted(rasters)}.")
        scores = {}
        for count in k:
            shares = []
            for scene, city in zip(predictions, references):
                raster, image_from_city = rasters[city]
                shares.append(share_on_drivable_area(scene, raster, image_from_city, count))
            scores[f"DAC_{count}"] = float(np.mean(shares))
        return scores
