# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Errors of trajectories as an `evaluate` metric. Also loads by path: `evaluate.load("…/trajectory_errors.py")`."""

import datasets
import evaluate

from hf_frozen_llm.metrics.motion import mean_scores, score_forecasts


class TrajectoryErrors(evaluate.Metric):
    """
    minADE, minFDE and miss rate, and with probabilities their p- and brier- forms, as Argoverse defines them.

    `compute(predictions=…, references=…, probabilities=…, k=(1, 6))` returns `{"minADE_1": …, "minFDE_6": …, …}`:
    means over the scenes. `predictions` are trajectories `(modes, steps, 2)` of each scene and `references` the true
    positions `(steps, 2)`, with NaN where they are unknown. `horizons=(10, 20)` adds the metrics of the first steps
    alone, such as `minADE_6@10`. `rule="smallest"` takes the smallest average error as minADE; the default,
    `"argoverse1"`, the average error of the trajectory with the smallest final error. `miss_threshold` is in metres.
    """

    def _info(self) -> evaluate.MetricInfo:
        points = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description="minADE, minFDE, miss rate, and their p- and brier- forms, of forecast trajectories.",
            citation="",
            inputs_description="predictions: trajectories (modes, steps, 2); references: true positions (steps, 2).",
            features=datasets.Features({"predictions": datasets.Sequence(points), "references": points}),
        )

    def _compute(
        self,
        predictions,
        references,
        probabilities=None,
        k=(1, 6),
        horizons=(),
        miss_threshold=2.0,
        rule="argoverse1",
    ) -> dict[str, float]:
        if probabilities is not None and len(probabilities) != len(predictions):
            raise ValueError(f"There are {len(predictions)} scenes, and probabilities of {len(probabilities)}.")
        probabilities = [None] * len(predictions) if probabilities is None else probabilities
        scores: dict[str, float] = {}
        for horizon in (None, *horizons):
            for count in k:
                means = mean_scores(
                    [
                        score_forecasts(*scene, k=count, horizon=horizon, miss_threshold=miss_threshold, rule=rule)
                        for scene in zip(predictions, references, probabilities)
                    ]
                )
                suffix = f"_{count}" if horizon is None else f"_{count}@{horizon}"
                scores |= {f"{name}{suffix}": value for name, value in means.items()}
        return scores
