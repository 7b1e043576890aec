# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm plot`: curves of runs, of unfinished ones and of the seeds of an ablation."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from hf_frozen_llm import plot
from hf_frozen_llm.commands.plot import label_folders
from hf_frozen_llm.plotting import LINE_COLORS


HISTORY = [
    *({"step": step, "epoch": step / 10, "loss": 2.3 - step / 100, "update_ratio": 2.0} for step in (10, 20, 30)),
    {"step": 20, "epoch": 2.0, "eval_loss": 2.2, "eval_top1": 0.25},
    {"step": 30, "epoch": 3.0, "eval_loss": None, "eval_top1": 0.5},
    {"step": 30, "epoch": 3.0, "train_runtime": 3.0},
]


def write_run(folder, history=HISTORY, task="image-classification"):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"recipe": {"task": task}, "log_history": history}))
    return folder


def texts_of(file):
    return set(re.findall("<!-- (.*?) -->", file.read_text()))


def colors_of(file):
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3).astype(int)
    wanted = {color: [int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in LINE_COLORS[:-1]}
    return {color for color, rgb in wanted.items() if (np.abs(pixels - rgb).sum(-1) < 10).sum() > 20}


def test_curves_of_runs(tmp_path):
    runs = [write_run(tmp_path / "runs" / name) for name in ("plain", "llm")]
    file = plot(runs, tmp_path / "curves.svg")
    labels = {"training loss", "loss of the evaluations", "top-1 %", "training step", "plain", "llm"}
    assert file == tmp_path / "curves.svg" and labels < texts_of(file)
    assert {"25", "50"} < texts_of(file)  # percent
    plot(runs, tmp_path / "chosen.svg", ["update_ratio"], "epoch")
    assert {"update_ratio", "training epoch"} < texts_of(tmp_path / "chosen.svg")
    assert "training loss" not in texts_of(tmp_path / "chosen.svg")
    plot(runs, tmp_path / "curves.png")
    assert colors_of(tmp_path / "curves.png") == set(LINE_COLORS[:2])
    plot([write_run(tmp_path / "alone", HISTORY[:3])], tmp_path / "loss.svg")
    assert not {"loss of the evaluations", "top-1 %"} & texts_of(tmp_path / "loss.svg")
    assert not list(tmp_path.glob(".*"))


def test_seeds_of_a_variant_have_one_colour(tmp_path):
    folder = tmp_path / "study"
    for variant in ("plain_host", "frozen_LLM_layer"):
        for seed in range(3):
            write_run(folder / "runs" / variant / f"seed{seed}")
    (folder / "ablation.csv").write_text("variant\n")
    plot([folder], tmp_path / "curves.svg")
    assert {"plain_host (3 runs)", "frozen_LLM_layer (3 runs)"} < texts_of(tmp_path / "curves.svg")
    plot([folder, write_run(tmp_path / "other")], tmp_path / "curves.png")
    assert colors_of(tmp_path / "curves.png") == set(LINE_COLORS[:3])
    for file in folder.rglob("results.json"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"study has ablation\.csv, but no finished run in .*runs"):
        plot([folder], tmp_path / "curves.png")


def test_a_run_that_is_not_finished(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "recipe.json").write_text('{"task": "image-classification"}')
    with pytest.raises(ValueError, match=r"checkpoint-20 is no complete checkpoint of a run of this package"):
        plot([tmp_path / "run"], tmp_path / "curves.svg")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    plot([tmp_path / "run"], tmp_path / "curves.svg")
    assert {"run", "top-1 %"} < texts_of(tmp_path / "curves.svg")


def test_mistakes(tmp_path):
    run, file = write_run(tmp_path / "run"), tmp_path / "curves.png"
    cases = [
        (([tmp_path / "none"], file), FileNotFoundError, "none: there is no such folder"),
        (([tmp_path], file), FileNotFoundError, "has neither results.json, .* nor a checkpoint"),
        (([run, run], file), ValueError, "run: given twice"),
        (([], file), ValueError, "There is no run to plot"),
        (([run], tmp_path / "curves.txt"), ValueError, r"output is .*curves\.txt'; matplotlib writes .*\.png"),
        (([run], tmp_path / "none" / "curves.png"), FileNotFoundError, "there is no folder"),
        (
            ([run], file, ["eval_top5"]),
            ValueError,
            "No run has eval_top5; there are eval_loss, eval_top1, loss",
        ),
        (([run], file, [], "hour"), ValueError, "by is 'hour'; it must be 'step' or 'epoch'"),
        (
            ([run, write_run(tmp_path / "m", task="motion-forecasting")], file),
            ValueError,
            "several tasks: image",
        ),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            plot(*arguments)
    (run / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json does not hold the results of a run"):
        plot([run], file)
    assert not file.exists()


def test_labels_tell_the_runs_apart(tmp_path):
    names = ["a/runs/x", "a/runs/y", "b/runs/x"]
    labels = label_folders([tmp_path / name for name in names])
    assert list(labels.values()) == names
    assert list(label_folders([tmp_path / "a" / "x"]).values()) == ["x"]
