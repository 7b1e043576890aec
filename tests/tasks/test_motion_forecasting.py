# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Motion forecasting from rows in the documented schema: train, evaluate, predict."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from motion_cases import FORECAST_MAE, MMTRANSFORMER, VECTORNET, traffic
from tiny_runs import write_llama

from hf_frozen_llm import MotionProcessor
from hf_frozen_llm.cli import main
from hf_frozen_llm.metrics.motion import score_forecasts
from hf_frozen_llm.tasks import TASKS, find_task


TASK = TASKS["motion-forecasting"]
HOSTS = {"vectornet": VECTORNET, "mmtransformer": MMTRANSFORMER, "forecast_mae": FORECAST_MAE}
every_host = pytest.mark.parametrize("host", HOSTS)


def make_rows(count, seed=0, steps=12):
    """Agents of constant velocity; the first one's future is partly unknown."""
    rng, rows = np.random.default_rng(seed), []
    for index in range(count):
        num_agents = 1 + index % 3
        starts, speeds = rng.normal(scale=20, size=(2, num_agents, 1, 2))
        positions = starts + speeds / 20 * np.arange(steps)[:, None]
        if index == 0:
            positions[0, 8:] = np.nan
        scene = traffic(1, 2 * (index % 2))
        scene |= {"positions": positions.tolist(), "timestamps": (np.arange(steps) / 10).tolist()}
        rows.append(scene)
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 12), ("test", 5)):
        datasets.Dataset.from_list(make_rows(count, seed=count)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def make_task(host, data, **keys):
    case = HOSTS[host]
    args = TASK.arguments(dataset_name=data, num_history_steps=6, **keys)
    config = case.config_class(**case.fields)
    return TASK(args, TASK.build_processor(args, {}, config), config), case


def test_task_of_the_models():
    assert find_task("vectornet_with_llm_block") is find_task("mmtransformer_with_llm_block") is TASK
    assert not TASK.main_metric.greater_is_better


@every_host
def test_rows_to_records(host, data):
    """The predictions of the model on each scene alone, in the coordinates of the scene."""
    task, case = make_task(host, data, horizons=[2], metric_rule="smallest")
    model = case.build(None)
    rows = task.read(task.args, "test")
    examples = task.dataset(rows, "test").__getitems__([0, 1, 2, 3, 4])
    with torch.no_grad():
        records = task.predict(model, task.collate(examples))
    assert [record["row"] for record in records] == [0, 1, 2, 3, 4]
    for row, record in zip(rows, records):
        prepared = task.processor.prepare(row)
        inputs = task.processor.collate([prepared])
        with torch.no_grad():
            (alone,) = task.processor.post_process(model(**inputs), [prepared["frame"]])
        np.testing.assert_allclose(record["trajectories"], alone["trajectories"], rtol=0, atol=1e-4)
        for step, point in enumerate(record["truth"], start=6):
            true = np.array(row["positions"][0][step], dtype=float)
            assert (point is None) == np.isnan(true).any()
            if point is not None:
                np.testing.assert_allclose(point, true, rtol=0, atol=1e-4)
    assert records[0]["truth"][2:] == [None] * 4 and json.dumps(records)
    # A scene of which only two future steps are known has no error at any other.
    metrics = task.metrics(records, rows)
    assert {"loss", "minADE_1", "minFDE_6", "MR_6", "brier-minFDE_6@2"} <= set(metrics)
    truths = [[point or [np.nan] * 2 for point in record["truth"]] for record in records]
    scores = [
        score_forecasts(record["trajectories"], truth, record["scores"], rule="smallest")
        for record, truth in zip(records, truths)
    ]
    assert metrics["minADE_6"] == pytest.approx(np.mean([score["minADE"] for score in scores]))


def test_scenes_without_a_future_are_predicted_and_have_no_metrics(data):
    task, case = make_task("vectornet", data)
    row = make_rows(1, steps=6)[0]
    (example,) = task.example_transform(None, "test", False, 0)([row], [(0, 0)])
    with torch.no_grad():
        (record,) = task.predict(case.build(None), task.collate([{**example, "row": 0}]))
    assert set(record) == {"row", "trajectories", "scores"} and np.isfinite(record["trajectories"]).all()
    with pytest.raises(ValueError, match="No scene has a known future"):
        task.metrics([record], None)


def test_fewer_predictions(data):
    task, case = make_task("mmtransformer", data, num_predictions=2, suppression_distance=0.5)
    (example,) = task.dataset(task.read(task.args, "test"), "test").__getitems__([1])
    with torch.no_grad():
        (record,) = task.predict(case.build(None), task.collate([example]))
    assert np.shape(record["trajectories"]) == (2, 6, 2) and sum(record["scores"]) == pytest.approx(1)
    assert task.args.evaluation_changes() == {"suppression_distance": 0.5}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_agents": 0}, "max_agents is 0; it must be at least 1"),
        ({"suppression_distance": -1.0}, r"suppression_distance is -1\.0"),
        ({"miss_threshold": 0.0}, r"miss_threshold 0\.0; they are distances in metres"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        TASK.arguments(dataset_name="x", **keys)


def test_rows_of_something_else(tmp_path):
    datasets.Dataset.from_dict({"x": [1.0]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"has no column positions, target, timestamps; it has \['x'\]"):
        TASK.read(TASK.arguments(dataset_name=str(tmp_path / "train.parquet")), "train")


@every_host
def test_train_and_evaluate(host, data, tmp_path):
    case, llm = HOSTS[host], write_llama(tmp_path / "llm")
    fields = "\n".join(f"  {name}: {value}" for name, value in case.fields.items())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""task: motion-forecasting
model_type: {case.config_class.model_type}
dataset_name: {data}
num_history_steps: 6
eval_split: test
output_dir: {tmp_path}/out
max_steps: 3
eval_strategy: steps
eval_steps: 3
per_device_train_batch_size: 4
report_to: none
use_cpu: true
host:
{fields}
llm_block:
  llm_name_or_path: {llm}
  layer_index: -1
"""
    )
    main(["train", str(recipe)])
    folder = tmp_path / "out"
    written = json.loads((folder / "results.json").read_text())
    results = written["metrics"]
    assert math.isfinite(results["eval_minFDE_6"]) and written["num_eval_rows"] == 5
    assert type(MotionProcessor.from_pretrained(folder)) is MotionProcessor
    main(["evaluate", str(folder), "--horizons", "[2]", "--use_cpu", "true"])
    evaluated = json.loads((folder / "eval_results.json").read_text())["metrics"]
    assert evaluated["eval_minFDE_6"] == pytest.approx(results["eval_minFDE_6"])
    assert evaluated["eval_minFDE_6@2"] < evaluated["eval_minFDE_6"]
