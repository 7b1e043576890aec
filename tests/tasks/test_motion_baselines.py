# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Baselines, the drivable area, batches of similar scenes, and the commands on files of scenes."""

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from tiny_runs import write_llama
from tiny_traffic import TINY_VECTORNET, write_argoverse1, write_argoverse2, write_pedestrians

from hf_frozen_llm import MotionProcessor, VectorNetWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.motion_forecasting.baselines import BASELINES, filter_velocity, forecast_baselines


TASK = TASKS["motion-forecasting"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


TIMES = np.arange(6) / 10
STRAIGHT = np.stack([2 * np.arange(6.0), -np.arange(6.0)], axis=1)
AHEAD = np.stack([10 + 2 * np.arange(1, 4.0), -5 - np.arange(1, 4.0)], axis=1)


def test_forecasts_of_an_agent_that_moves_straight_on():
    forecasts = forecast_baselines(STRAIGHT, TIMES, 3)
    np.testing.assert_allclose(forecasts["standing still"], [[[10, -5]] * 3])
    np.testing.assert_allclose(forecasts["constant velocity"], [AHEAD])
    np.testing.assert_allclose(forecasts["Kalman filter"], [AHEAD], atol=0.1)
    fan = forecasts["constant velocity, six directions"]
    np.testing.assert_allclose(fan[0], AHEAD)
    np.testing.assert_allclose(fan[5], STRAIGHT[-1] + (AHEAD - STRAIGHT[-1]) / 2)
    way = AHEAD[-1] - STRAIGHT[-1]
    turned = fan[1, -1] - STRAIGHT[-1]
    assert math.atan2(way[0] * turned[1] - way[1] * turned[0], way @ turned) == pytest.approx(math.radians(12.5))


def test_unseen_steps_and_one_position():
    history = STRAIGHT.copy()
    history[[0, 3, 4]] = np.nan
    np.testing.assert_allclose(forecast_baselines(history, TIMES, 3)["constant velocity"], [AHEAD])
    once = np.full((6, 2), np.nan)
    once[-1] = 4, 5
    for forecast in forecast_baselines(once, TIMES, 3).values():
        np.testing.assert_allclose(forecast, np.broadcast_to([4, 5], forecast.shape))


def test_filter_is_that_of_the_textbook():
    """State x, y, vx, vy, predicted and updated with whole matrices."""
    rng = np.random.default_rng(0)
    history, times = STRAIGHT + rng.normal(0, 0.3, STRAIGHT.shape), np.array([0, 0.1, 0.2, 0.35, 0.4, 0.5])
    history[2] = np.nan
    state, covariance = np.array([*history[0], 0, 0]), np.diag([0.01, 0.01, 100, 100])
    observe = np.eye(2, 4)
    for step in range(1, 6):
        dt = times[step] - times[step - 1]
        move = np.eye(4) + dt * np.eye(4, k=2)
        push = np.concatenate([np.eye(2) * dt**2 / 2, np.eye(2) * dt])
        state, covariance = move @ state, move @ covariance @ move.T + push @ push.T
        if step != 2:
            gain = covariance @ observe.T @ np.linalg.inv(observe @ covariance @ observe.T + 0.01 * np.eye(2))
            state = state + gain @ (history[step] - observe @ state)
            covariance = (np.eye(4) - gain @ observe) @ covariance
    expected = state[:2] + 0.1 * np.arange(1, 4)[:, None] * state[2:]
    np.testing.assert_allclose(filter_velocity(history, times, 3), expected, atol=1e-9)


def make_task(data, **keys):
    args = TASK.arguments(dataset_name=data, num_history_steps=8, num_future_steps=12, **keys)
    config = VectorNetWithLLMBlockConfig(**TASK.config_fields(args, None))
    return TASK(args, TASK.build_processor(args, {}, config), config)


def test_batches_of_similar_scenes(tmp_path):
    """As many agents in a batch as possible are real."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(200):
        positions = rng.normal(size=(rng.integers(1, 20), 20, 2)).cumsum(axis=1)
        rows.append({"positions": positions.tolist(), "timestamps": list(range(20)), "target": 0})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    shares = {}
    for grouped in (True, False):
        task = make_task(str(tmp_path / "train.parquet"), group_by_size=grouped, agent_radius=1e6)
        dataset = task.dataset(task.read(task.args, "train"), "train", training=True)
        sampler = task.sampler(dataset, 8, 0)
        assert (sampler is not None) == grouped
        order = list(range(200)) if sampler is None else list(sampler)
        assert sorted(order) == list(range(200))
        masks = [task.collate(dataset.__getitems__(order[i : i + 8]))["polyline_mask"] for i in range(0, 200, 8)]
        shares[grouped] = 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)
    assert shares[True] < 0.15 < 0.35 < shares[False]


def test_scenes_as_arrays_are_those_as_lists(tmp_path):
    """Nested numbers are read without a Python object for each: the same examples."""
    data = write_argoverse1(tmp_path / "data", {"train": 4})
    args = TASK.arguments(dataset_name=data)
    config = VectorNetWithLLMBlockConfig()
    task = TASK(args, TASK.build_processor(args, {}, config), config)
    rows = task.read(args, "train")
    dataset = task.dataset(rows.select([3, 1, 2]), "train")
    for row, example in zip(rows.select([3, 1, 2]), dataset.__getitems__([0, 1, 2])):
        prepared = task.processor.prepare(row)
        assert len(row["lanes"]) == 4
        for name in task.processor.input_parts:
            np.testing.assert_array_equal(example[name], prepared[name])


def test_steps_of_files_are_those_of_the_model(tmp_path):
    data = write_pedestrians(tmp_path / "eth_ucy")
    task = make_task(data, dataset_config_name="eth")
    assert task.config.num_future_steps == 12
    other = TASK.arguments(dataset_name=data, dataset_config_name="eth", num_history_steps=4, num_future_steps=4)
    with pytest.raises(ValueError, match=r"is 4 and num_future_steps 4, but the model has 8 and 12\. Set the first"):
        task.__class__(other, task.processor, task.config).dataset(TASK.read(other, "test"), "test")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_share": 1.0}, r"train_share is 1\.0; it is a share of the time"),
        ({"step_seconds": 0.0}, r"step_seconds is 0\.0; it must be above 0"),
        ({"lane_radius": 150.0}, r"lane_radius is 150\.0, and only lanes within map_radius, 100\.0, are read"),
        ({"window_stride": 0}, "window_stride is 0; it must be at least 1"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        TASK.arguments(dataset_name="x", **keys)


def test_results_have_the_baselines(tmp_path, capsys):
    data, llm = write_pedestrians(tmp_path / "eth_ucy"), write_llama(tmp_path / "llm")
    flags = [*TINY_VECTORNET, "--dataset_name", data, "--llm_block.llm_name_or_path", llm, "--max_steps", "2"]
    folder = tmp_path / "run"
    main(["check", "motion_forecasting/tiny.yaml", *flags, "--output_dir", str(folder)])
    main(["train", "motion_forecasting/tiny.yaml", *flags, "--output_dir", str(folder)])
    results = json.loads((folder / "results.json").read_text())
    table = {row["baseline"]: row for row in results["baselines"]}
    assert set(table) == set(BASELINES)
    # The tiny pedestrians move straight on.
    assert table["constant velocity"]["minFDE_1"] < 1 < table["standing still"]["minFDE_1"]
    assert table["constant velocity"]["minFDE_1@6"] < table["constant velocity"]["minFDE_1"]
    assert table["constant velocity, six directions"]["minFDE_6"] <= table["constant velocity"]["minFDE_6"]
    main(["evaluate", str(folder), "--dataset_config_name", "hotel"])
    evaluated = json.loads((folder / "eval_results.json").read_text())
    assert evaluated["settings"]["dataset_config_name"] == "hotel"
    assert evaluated["baselines"] != results["baselines"] and len(evaluated["baselines"]) == 4
    main(
        [
            "predict",
            str(folder),
            "--dataset_name",
            data,
            "--dataset_config_name",
            "zara1",
            "--split",
            "test",
            "--num_history_steps",
            "8",
            "--num_future_steps",
            "12",
            "--output",
            str(tmp_path / "p.jsonl"),
        ]
    )
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    # Windows without a known future are predicted, too.
    assert len(records) > results["num_eval_rows"] and set(records[-1]) == {"row", "trajectories", "scores"}
    assert np.shape(records[0]["trajectories"]) == (6, 12, 2) and "baselines" not in records[0]
    main(["info", str(folder)])
    assert "VectorNetWithLLMBlockForMotionForecasting" in capsys.readouterr().out
    assert MotionProcessor.from_pretrained(folder).num_future_steps == 12


@pytest.mark.parametrize("write", [write_argoverse1, write_argoverse2])
def test_drivable_area_compliance(write, tmp_path):
    """Where a raster of the city is beside the maps of Argoverse 1; cities of Argoverse 2 have other coordinates."""
    data = write(tmp_path / "data", {"val": 1})
    maps = tmp_path / "maps"
    maps.mkdir()
    for file in Path(data).glob("map_files/*.xml"):
        shutil.copy(file, maps)
    task = make_task(data, map_folder=str(maps))
    rows = TASK.read(task.args, "val")
    # Drivable where x < 50; the image's columns are those of the city, moved by 200 m.
    inside, outside = np.full((12, 2), 10.0).tolist(), np.linspace([10, 10], [90, 10], 12).tolist()
    record = {"row": 0, "trajectories": [inside, outside], "scores": [0.7, 0.3], "truth": inside, "loss": 0.0}
    record["baselines"] = {name: [outside] for name in BASELINES}
    assert "DAC_1" not in task.metrics([record], rows)
    image_from_city = np.array([[1.0, 0, 200], [0, 1, 200], [0, 0, 1]])
    raster = np.zeros((400, 400), np.uint8)
    raster[:, :250] = 1
    for city in ("MIA", "austin"):
        np.save(maps / f"{city}_10316_driveable_area_mat_2019_05_28.npy", raster)
        np.save(maps / f"{city}_10316_npyimage_to_city_se2_2019_05_28.npy", image_from_city)
    results = task.metrics([record], rows)
    if write is write_argoverse2:
        assert "DAC_1" not in results
        return
    assert (results["DAC_1"], results["DAC_6"]) == (1, 0.5)
    assert {row["DAC_1"] for row in results["baselines"]} == {0}
    np.save(maps / "MIA_10316_npyimage_to_city_se2_2019_05_28.npy", np.eye(2))
    with pytest.raises(ValueError, match=r"npyimage_to_city_se2_2019_05_28\.npy \(2, 2\); they must be"):
        task.metrics([record], rows)
