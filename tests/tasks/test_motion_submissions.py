# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Files for the leaderboards of Argoverse: equal to those that the official writers make of the same forecasts."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from motion_cases import VECTORNET, traffic
from paths import shared_dir
from tiny_traffic import write_argoverse1

from hf_frozen_llm import MotionProcessor
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.tasks.motion_forecasting.submissions import (
    write_argoverse1_submission,
    write_argoverse2_submission,
)


@pytest.fixture(scope="module")
def official():
    return shared_dir() / "fixtures/motion/submission_examples"


@pytest.fixture(scope="module")
def inputs(official):
    return json.loads((official / "inputs.json").read_text())


@pytest.mark.parametrize(
    ("name", "has_probabilities"), [("av1_submission", True), ("av1_submission_without_probabilities", False)]
)
def test_argoverse_1(name, has_probabilities, official, inputs, tmp_path):
    h5py = pytest.importorskip("h5py")
    given = inputs["av1"]
    probabilities = {int(key): values for key, values in given["probabilities"].items()}
    trajectories = {int(key): values for key, values in given["trajectories"].items()}
    write_argoverse1_submission(tmp_path / "a.h5", trajectories, probabilities if has_probabilities else None)
    with h5py.File(tmp_path / "a.h5") as ours, h5py.File(official / f"{name}.h5") as theirs:
        assert list(ours) == list(theirs) == ["argoverse_forecasting"]
        ours, theirs = ours["argoverse_forecasting"], theirs["argoverse_forecasting"]
        for part in ("shape", "dtype", "chunks", "compression", "compression_opts"):
            assert getattr(ours, part) == getattr(theirs, part)
        assert np.array_equal(ours[:], theirs[:])


def test_argoverse_2(official, inputs, tmp_path):
    given = inputs["av2"]["predictions"]
    trajectories = {name: scenario["tracks"] for name, scenario in given.items()}
    probabilities = {name: scenario["probabilities"] for name, scenario in given.items()}
    write_argoverse2_submission(tmp_path / "a.parquet", trajectories, probabilities)
    files = [
        pyarrow.parquet.ParquetFile(path) for path in (tmp_path / "a.parquet", official / "av2_submission.parquet")
    ]
    ours, theirs = (file.schema_arrow for file in files)
    assert ours.equals(theirs, check_metadata=False)
    ours, theirs = (file.read() for file in files)
    assert ours.equals(theirs) and ours.num_rows == 7
    columns = pd.read_parquet(tmp_path / "a.parquet").columns
    assert list(columns) == inputs["av2"]["columns"]


GOOD = np.zeros((2, 30, 2))


@pytest.mark.parametrize(
    ("trajectories", "probabilities", "message"),
    [
        ({}, None, "trajectories is empty"),
        ({3: GOOD[:, :20]}, None, r"sequence 3: trajectories has the shape \(2, 20, 2\); it must be .* 30, 2\)"),
        ({3: GOOD[:0]}, None, r"\(0, 30, 2\)"),
        ({3: GOOD + np.nan}, None, "sequence 3: trajectories holds infinite numbers or NaN"),
        ({3: GOOD}, {4: [0.5, 0.5]}, "sequence 3 has no probabilities; give one for each of its 2"),
        ({3: GOOD}, {3: [0.5]}, r"sequence 3: probabilities is \[0\.5\]; give one from 0 to 1 for each of its 2"),
        ({3: GOOD}, {3: [1.5, -0.5]}, r"probabilities is \[1\.5, -0\.5\]"),
    ],
)
def test_what_argoverse_1_refuses(trajectories, probabilities, message, tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(ValueError, match=message):
        write_argoverse1_submission(tmp_path / "a.h5", trajectories, probabilities)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("trajectories", "probabilities", "message"),
    [
        ({"s": {}}, {"s": [1.0]}, "trajectories is empty"),
        ({"s": {"t": GOOD}}, {"s": [0.5, 0.5]}, r"scenario s, track t: trajectories has the shape \(2, 30, 2\)"),
        ({"s": {"t": np.zeros((2, 60, 2))}}, {"s": [0.5, 0.4]}, r"the sum of the probabilities is 0\.9; it must be 1"),
        ({"s": {"t": np.zeros((1, 60, 2))}}, {"s": [0.5, 0.5]}, "give one from 0 to 1 for each of its 1"),
        ({"s": {"t": np.zeros((1, 60, 2))}}, {}, "scenario s, track t has no probabilities"),
    ],
)
def test_what_argoverse_2_refuses(trajectories, probabilities, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_argoverse2_submission(tmp_path / "a.parquet", trajectories, probabilities)
    assert not (tmp_path / "a.parquet").exists()


@pytest.fixture
def saved(tmp_path):
    """A model without training, and a function that predicts the three scenes of a split into a submission."""
    folder = tmp_path / "model"
    VECTORNET.build(None, num_future_steps=30).save_pretrained(folder)
    MotionProcessor(format="polylines", num_lane_points=6).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(
        "task: motion-forecasting\nmodel_type: vectornet_with_llm_block\ndataset_name: scenes\n"
    )
    split = ["--dataset_name", write_argoverse1(tmp_path / "data", {"val": 3}), "--split", "val", "--use_cpu"]
    return folder, lambda submission: predict(str(folder), (), split, submission=submission)


def test_predict_writes_a_submission(saved, tmp_path):
    h5py = pytest.importorskip("h5py")
    found = saved[1](tmp_path / "a.h5").records
    with h5py.File(tmp_path / "a.h5") as file:
        table = file["argoverse_forecasting"][:].reshape(3, 3, 30, 4)
    np.testing.assert_array_equal(table[..., 0], np.arange(1, 4)[:, None, None] + np.zeros((3, 3, 30)))
    np.testing.assert_allclose(table[..., 1:3], [record["trajectories"] for record in found], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(table[..., 0, 3], [record["scores"] for record in found])


def test_submissions_that_cannot_be_written(saved, tmp_path):
    folder, predict_split = saved
    with pytest.raises(ValueError, match=r"a\.csv'; it must end in \.h5"):
        predict_split(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"scenario 1, track 00000001: .* \(3, 30, 2\); .* \(1 or more, 60, 2\)"):
        predict_split(tmp_path / "a.parquet")
    scene = {name: value if name == "lanes" else np.asarray(value).tolist() for name, value in traffic(1, 0).items()}
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    with pytest.raises(ValueError, match="there is no column scene_id or track_id"):
        predict(str(folder), tmp_path / "scene.json", ["--use_cpu"], submission=tmp_path / "a.h5")
    assert not list(tmp_path.glob("*a.*"))
