# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A resumed run is the uninterrupted one, its results included; a finished run is left alone; one run in a folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY, write_image_folder
from transformers import TrainerCallback

from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.lock import LOCK_FILE


# In the middle of an epoch, with checkpoints.
FOUR = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "3", "--eval_strategy", "no"]
EPOCHS = ["--num_train_epochs", "2", "--save_steps", "4", "--logging_steps", "3"]
WORKERS = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
TIMES = ("runtime", "per_second", "time", "seconds", "data_wait_share")


def run(recipe, output_dir, *overrides):
    main(["train", str(recipe), *TINY, "--output_dir", str(output_dir), *overrides])
    return read(output_dir)


def read(output_dir):
    return json.loads((Path(output_dir) / "results.json").read_text())


def without_times(entry):
    return {name: value for name, value in entry.items() if not name.endswith(TIMES)}


def assert_same(one, other):
    """The same weights and the same results, except for times."""
    weights, same = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    results = [read(folder) for folder in (one, other)]
    assert without_times(results[0]["metrics"]) == without_times(results[1]["metrics"])
    history = [[without_times(entry) for entry in result["log_history"]] for result in results]
    assert history[0] == history[1]
    assert results[0]["throughput"]["examples"] == results[1]["throughput"]["examples"]


def copy_checkpoints(source, target, last):
    """Copy the files of a run that was killed after the step `last`."""
    for folder in source.glob("checkpoint-*"):
        if int(folder.name.partition("-")[2]) <= last:
            shutil.copytree(folder, target / folder.name)


class Disturb(TrainerCallback):
    """Move the generator of dropout between the steps, as loaders do."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.rand(3)

    def on_evaluate(self, args, state, control, **kwargs):
        torch.rand(5)


@pytest.fixture(scope="module")
def epochs(recipe, tmp_path_factory):
    """Two epochs of 8 steps with checkpoints at their ends too, logs that do not fit to them, and loader processes."""
    output_dir = tmp_path_factory.mktemp("epochs") / "run"
    run(recipe, output_dir, *EPOCHS, *WORKERS)
    return output_dir


@pytest.mark.parametrize(("step", "workers"), [(4, []), (8, []), (8, WORKERS), (16, [])])
def test_resumed_run_is_the_uninterrupted_one(epochs, recipe, tmp_path, step, workers):
    """From the middle and the end of an epoch, and from the last step; with another number of loader processes."""
    copy_checkpoints(epochs, tmp_path, step)
    results = run(recipe, tmp_path, *EPOCHS, *workers, "--resume")
    assert results["resumed_from_checkpoint"] == f"checkpoint-{step}"
    assert_same(epochs, tmp_path)
    assert results["metrics"]["train_runtime"] == pytest.approx(results["train_time_seconds"], abs=0.5)
    steps = results["metrics"]["train_steps_per_second"]
    assert steps == pytest.approx(16 / results["metrics"]["train_runtime"], rel=0.02)


def test_time_of_earlier_sessions_counts(epochs, recipe, tmp_path):
    copy_checkpoints(epochs, tmp_path, 8)
    file = tmp_path / "checkpoint-8" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["RunProgress"]["attributes"]["earlier_seconds"] = 5000.0
    file.write_text(json.dumps(state))
    results = run(recipe, tmp_path, *EPOCHS, "--resume")
    assert 5000 < results["train_time_seconds"] < 6000 and 5000 < results["metrics"]["train_runtime"] < 6000


def test_dropout_does_not_depend_on_other_draws(epochs, recipe, tmp_path, monkeypatch):
    task = next(iter(TASKS.values()))
    monkeypatch.setattr(task, "callbacks", lambda self: [Disturb()])
    run(recipe, tmp_path, *EPOCHS)
    assert_same(epochs, tmp_path)


def test_finished_run_is_left_alone(recipe, tmp_path, capsys):
    first = run(recipe, tmp_path, *FOUR)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(recipe, tmp_path, *FOUR, "--resume", "--dataloader_num_workers", "1") == first
    assert "has already finished; it is left as it is" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="was trained with max_steps 4, the recipe now says 6"):
        run(recipe, tmp_path, *FOUR, "--max_steps", "6", "--resume")
    longer = run(recipe, tmp_path, *FOUR, "--max_steps", "6", "--resume", "--resume_changes", "max_steps")
    assert longer["resumed_from_checkpoint"] == "checkpoint-4"


@pytest.mark.parametrize("flags", [["--save_strategy", "no"], ["--save_only_model", "true"]])
def test_finished_run_without_checkpoints_is_left_alone(recipe, tmp_path, flags):
    first = run(recipe, tmp_path, *FOUR, *flags)
    assert run(recipe, tmp_path, *FOUR, *flags, "--resume") == first
    with pytest.raises(ValueError, match=r"was trained with learning_rate 0\.001, the recipe now says 0\.002"):
        run(recipe, tmp_path, *FOUR, *flags, "--resume", "--learning_rate", "2e-3")
    changes = ["--learning_rate", "2e-3", "--resume_changes", "learning_rate"]
    with pytest.raises(ValueError, match="no checkpoint from which it could resume with another learning_rate"):
        run(recipe, tmp_path, *FOUR, *flags, "--resume", *changes)
    assert read(tmp_path) == first


def test_run_killed_in_its_last_evaluation(recipe, tmp_path):
    """In the middle of an epoch: no step is trained again, and the losses are those of the whole run."""
    run(recipe, tmp_path / "whole", *FOUR)
    copy_checkpoints(tmp_path / "whole", tmp_path / "resumed", 4)
    results = run(recipe, tmp_path / "resumed", *FOUR, "--resume")
    assert_same(tmp_path / "whole", tmp_path / "resumed")
    assert max(entry["step"] for entry in results["log_history"]) == 4


def test_checkpoints_of_models_alone_are_not_resumed(recipe, tmp_path):
    run(recipe, tmp_path, *FOUR, "--save_only_model", "true")
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 was saved with save_only_model, which leaves out"):
        run(recipe, tmp_path, *FOUR, "--save_only_model", "true", "--resume")


@pytest.mark.parametrize("saves", [[], ["--save_strategy", "no"]])
def test_other_classes_are_refused(recipe, tmp_path, saves):
    """A renamed folder would change the classes that the labels mean."""
    pictures = tmp_path / "pictures"
    flags = ["--dataset_name", write_image_folder(pictures), *FOUR, *saves]
    run(recipe, tmp_path / "run", *flags)
    for split in ("train", "test"):
        (pictures / split / "ant").rename(pictures / split / "zebra")
    with pytest.raises(ValueError, match=r"6 classes \(label2id\), the data now has 6, without ant and with zebra"):
        run(recipe, tmp_path / "run", *flags, "--resume")


def test_stream_in_another_order_is_refused(recipe, tmp_path):
    stream = ["--streaming", "true", *FOUR]
    run(recipe, tmp_path, *stream)
    with pytest.raises(ValueError, match="was trained with dataloader_num_workers 0, the recipe now says 2"):
        run(recipe, tmp_path, *stream, "--resume", "--dataloader_num_workers", "2")


def test_sharded_runs_are_not_resumed(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` does
    with pytest.raises(ValueError, match="resume supports the checkpoints of one process and of DDP, not those of"):
        run(recipe, tmp_path, *FOUR, "--resume")


def test_two_runs_in_one_folder(recipe, tmp_path):
    program = (
        "import sys; from hf_frozen_llm.training.lock import open_locked\n"
        "file = open_locked(__import__('pathlib').Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=f"is in use by process {other.pid} on .*choose another output_dir"):
            run(recipe, tmp_path, *FOUR)
        other.kill()
    assert (tmp_path / LOCK_FILE).is_file()
    run(recipe, tmp_path, *FOUR)
    assert not (tmp_path / LOCK_FILE).exists()


def test_folder_that_cannot_be_written_to(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir is '.*run', but it cannot be written to: Not a directory"):
        run(recipe, tmp_path / "file" / "run", *FOUR, "--dataset_name", str(tmp_path / "missing.parquet"))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        run(recipe, tmp_path / "run", *FOUR, "--dataset_name", str(tmp_path / "missing.parquet"))
    assert not (tmp_path / "run").exists(), "a run that has not begun leaves no folder"
