# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What `evaluate` records, and what it refuses."""

import json
import time

import pytest
from tiny_runs import TINY

from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.info import describe_checkpoint


@pytest.fixture(scope="module")
def frozen_host_run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen_host") / "run"
    few = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--freeze_host", "true"]
    main(["train", str(recipe), *TINY, "--output_dir", str(folder), *few])
    return folder


def read(file):
    return json.loads(file.read_text())


def test_settings_are_recorded(frozen_host_run, capsys):
    """Beside the metrics; results of other settings are kept under another name."""
    folder = frozen_host_run
    trained = read(folder / "results.json")
    assert "total_flos" not in trained["metrics"]
    main(["evaluate", str(folder)])
    first = read(folder / "eval_results.json")
    assert first["num_eval_rows"] == 30 and first["parameters"] == trained["parameters"]
    assert first["settings"]["image_column"] == "image" and first["settings"]["corruption"] is None
    assert first["settings"]["per_device_eval_batch_size"] == 16
    main(["evaluate", str(folder)])
    assert not (folder / "eval_results_1.json").exists()
    capsys.readouterr()
    main(["evaluate", str(folder), "--max_eval_samples", "12"])
    assert "held the results of other settings; they are now in" in capsys.readouterr().out
    assert read(folder / "eval_results.json")["num_eval_rows"] == 12
    assert read(folder / "eval_results_1.json")["metrics"]["eval_loss"] == first["metrics"]["eval_loss"]
    main(["evaluate", str(folder)])
    assert read(folder / "eval_results_2.json")["num_eval_rows"] == 12


@pytest.mark.parametrize("name", ["{}/typo", "./typo", "typo", "../some/other/typo"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "info"])
def test_missing_folders_are_not_sought_on_the_hub(tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    name, start = name.format("runs"), time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"typo is neither a folder .*: there is no such folder"):
        describe_checkpoint(name) if command == "info" else main([command, name])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": 3}', "{}"])
def test_broken_results_are_refused(finished_run, tmp_path, content):
    (tmp_path / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json does not hold the results of a run of this package: delete"):
        main(["evaluate", str(tmp_path)])
