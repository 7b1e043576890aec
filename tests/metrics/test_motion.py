# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of trajectories: those of Argoverse's own code, and hand-made cases."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
from paths import shared_dir

from hf_frozen_llm.metrics import DrivableAreaCompliance, TrajectoryErrors, motion, trajectory_errors
from hf_frozen_llm.metrics.motion import brier_errors, mode_errors, score_forecasts, score_worlds


@pytest.fixture(scope="module")
def official():
    return {
        name: json.loads((shared_dir() / f"fixtures/motion/official_metrics_{name}.json").read_text())
        for name in ("av1", "av2")
    }


def test_argoverse_1(official):
    assert len(official["av1"]["cases"]) == 13
    for case in official["av1"]["cases"]:
        results = case["results_by_k"]
        scores = TrajectoryErrors().compute(
            predictions=case["forecasts"],
            references=case["ground_truth"],
            probabilities=case["probabilities"],
            k=[int(count) for count in results],
            horizons=[case["horizon"]],
            miss_threshold=case["miss_threshold"],
        )
        for count, expected in results.items():
            for name, value in expected.items():
                assert scores[f"{name}_{count}@{case['horizon']}"] == pytest.approx(value, abs=1e-6), case["name"]
        assert ("brier-minFDE_6" in scores) == (case["probabilities"] is not None)


def test_drivable_area_of_argoverse_1(official):
    area = official["av1"]["dac"]
    raster = np.zeros((area["raster_rows"], area["raster_columns"]))
    for top, bottom, left, right in area["ones"]:
        raster[top:bottom, left:right] = 1
    for case in area["cases"]:
        scores = DrivableAreaCompliance().compute(
            predictions=[case["forecasts"]],
            references=["PIT"],
            rasters={"PIT": (raster, area["npyimage_from_city"])},
            k=[case["k"]],
        )
        assert scores == {f"DAC_{case['k']}": pytest.approx(case["dac"], abs=1e-6)}, case["name"]
    with pytest.raises(ValueError, match=r"no drivable area of \['PIT'\]; it has \['MIA'\]"):
        DrivableAreaCompliance().compute(predictions=[[[[0, 0]]]], references=["PIT"], rasters={"MIA": None})


def test_argoverse_2(official):
    for case in official["av2"]["cases"]:
        errors = mode_errors(case["forecasts"], case["ground_truth"], case["miss_threshold"])
        for name in ("ade", "fde"):
            np.testing.assert_allclose(errors[name], case[name], rtol=0, atol=1e-6)
            for normalize in (True, False):
                expected = case[f"brier_{name}_normalize_{normalize}"]
                if expected == "ValueError":
                    with pytest.raises(ValueError, match="between 0 and 1"):
                        brier_errors(errors[name], case["probabilities"], normalize)
                else:
                    ours = brier_errors(errors[name], case["probabilities"], normalize)
                    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
        assert errors["is_missed"].tolist() == case["is_missed"], case["name"]


def test_worlds_of_argoverse_2(official):
    for case in official["av2"]["world"]:
        scores = score_worlds(
            case["forecasts"],
            case["ground_truth"],
            case["probabilities"],
            collision_threshold=case["collision_threshold_m"],
        )
        for name in ("ade", "fde", "brier_fde"):
            np.testing.assert_allclose(scores[name], case[f"world_{name}"], rtol=0, atol=1e-6)
        assert scores["is_missed"].tolist() == case["world_misses"]
        assert scores["collides"].tolist() == case["world_collisions"]


# One trajectory ends nearest to the truth, the other is nearer on average.
TRUTH = np.stack([np.arange(4.0), np.zeros(4)], axis=1)
ENDS_NEAR = TRUTH + [[0, 3], [0, 3], [0, 3], [0, 1]]
IS_NEAR = TRUTH + [[0, 0], [0, 0], [0, 0], [0, 2]]


def test_rules_by_name():
    scenes = {"predictions": [[ENDS_NEAR, IS_NEAR]], "references": [TRUTH], "probabilities": [[0.25, 0.75]]}
    scores = TrajectoryErrors().compute(**scenes, k=[2])
    assert scores["minADE_2"] == 2.5 and scores["minFDE_2"] == 1 and scores["MR_2"] == 0
    assert scores["brier-minADE_2"] == 2.5 + 0.75**2 and scores["brier-minFDE_2"] == 1 + 0.75**2
    scores = TrajectoryErrors().compute(**scenes, k=[2], rule="smallest")
    assert scores["minADE_2"] == 0.5 and scores["minFDE_2"] == 1
    assert scores["brier-minADE_2"] == 0.5 + 0.25**2 and scores["brier-minFDE_2"] == 1 + 0.75**2
    assert scores["p-minADE_2"] == pytest.approx(0.5 - np.log(0.75))
    assert scores["p-MR_2"] == 0.75
    # Of k = 1, the more probable one.
    assert TrajectoryErrors().compute(**scenes, k=[1])["minFDE_1"] == 2


def test_shorter_horizons():
    scores = TrajectoryErrors().compute(predictions=[[IS_NEAR]], references=[TRUTH], k=[1], horizons=[1, 3])
    assert scores["minFDE_1"] == 2 and scores["minFDE_1@3"] == scores["minADE_1@1"] == 0
    assert set(scores) == {f"{name}_1{suffix}" for name in ("minADE", "minFDE", "MR") for suffix in ("", "@1", "@3")}


def test_unknown_steps_do_not_count():
    truth = TRUTH.copy()
    truth[1] = truth[3] = np.nan
    errors = mode_errors([ENDS_NEAR, IS_NEAR], truth)
    assert errors["ade"].tolist() == [3, 0] and errors["fde"].tolist() == [3, 0]
    scores = TrajectoryErrors().compute(predictions=[[ENDS_NEAR, IS_NEAR]], references=[truth], k=[2])
    assert scores["minFDE_2"] == 0


def test_by_path():
    metric = evaluate.load(str(Path(trajectory_errors.__file__)))
    for scene in (ENDS_NEAR, IS_NEAR):
        metric.add_batch(predictions=[[scene]], references=[TRUTH])
    assert metric.compute(k=[1])["minFDE_1"] == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forecasts": TRUTH}, r"\(4, 2\) and the truth \(4, 2\); they must be \(modes, steps, 2\)"),
        ({"forecasts": [TRUTH[:3]]}, "with the same number of steps"),
        ({"forecasts": [TRUTH * np.nan]}, "not finite"),
        ({"truth": TRUTH * np.nan}, "No step of a true trajectory is known"),
        ({"probabilities": [1.0, 0.0]}, r"There are 1 forecasts and probabilities of the shape \(2,\)"),
        ({"probabilities": [-0.1]}, r"between 0 and 1, and not all 0: \[-0\.1\]"),
        ({"probabilities": [0.0]}, "not all 0"),
        ({"rule": "best"}, r"rule is 'best'; it must be one of \('argoverse1', 'smallest'\)"),
        ({"k": 0}, "k is 0"),
        ({"horizon": 5}, "horizon 5; they must be at least 1, and horizon at most all steps"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        score_forecasts(**{"forecasts": [TRUTH], "truth": TRUTH, **change})
    with pytest.raises(ValueError, match="There are 1 scenes, and probabilities of 2"):
        TrajectoryErrors().compute(predictions=[[TRUTH]], references=[TRUTH], probabilities=[[1.0], [1.0]])
    assert motion.RULES == ("argoverse1", "smallest")
