# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`report_to` with the trackers of the extra `tracking`; skipped where they are not installed."""

import json
import sqlite3

import pytest
from tiny_runs import TINY

from hf_frozen_llm.cli import main


def train(recipe, folder, *flags):
    main(
        ["train", str(recipe), *TINY, "--output_dir", str(folder), "--project", "frozen", "--run_name", "tiny", *flags]
    )
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_tensorboard(recipe, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = train(recipe, tmp_path / "run", "--report_to", "tensorboard")
    (folder,) = {file.parent for file in (tmp_path / "run" / "runs").rglob("events*")}
    log = events.EventAccumulator(str(folder))
    log.Reload()
    assert {"train/loss", "train/update_ratio", "eval/top1", "train/train_loss"} <= set(log.Tags()["scalars"])
    assert log.Scalars("eval/top1")[-1].value == pytest.approx(metrics["eval_top1"])
    (config,) = log.Tensors("model_config/text_summary")
    assert b"llm_block" in config.tensor_proto.string_val[0]


def test_trackio(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    metrics = train(recipe, tmp_path / "run", "--report_to", "trackio")
    trackio.finish()  # as at the end of the process; the last evaluation comes after the training
    connection = sqlite3.connect(tmp_path / "trackio" / "frozen.db")
    rows = connection.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {"tiny"}
    scores = [json.loads(row)["eval/top1"] for _, row in rows if "eval/top1" in json.loads(row)]
    assert len(scores) == 4 and scores[-1] == pytest.approx(metrics["eval_top1"])
    ((config,),) = connection.execute("select config from configs").fetchall()
    assert json.loads(config)["llm_block"]["layer_index"] == -1
