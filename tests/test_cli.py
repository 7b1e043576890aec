# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The command line: help, exit codes, and one-line errors."""

import sys

import pytest
from tiny_runs import CLASSES, TINY, write_image_folder, write_llama

from hf_frozen_llm.cli import describe_error, main, take_debug_flag
from hf_frozen_llm.tasks import TASKS


RECIPE = "quickstart/vit_tiny_cifar10.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", RECIPE, "--learning-rat", "1"],
            "Error: command line, --learning_rat: unknown key",
        ),
        (
            ["train", "quickstart/vit_tini_cifar10.yaml"],
            "Error: There is no recipe quickstart/vit_tini_cifa",
        ),
        (["train"], "Error: Missing argument"),
        (["trian"], "Error: No such command 'trian'"),
        (
            ["train", RECIPE, "--dataset_name", "./nothing", "--output_dir", "out"],
            "Error: dataset_name is './n",
        ),
        (["ablate", RECIPE], "Error: Nothing to vary"),
        (["convert", "nothing.pth", "--task", "image-classification", "--output", "out"], "Error: nothing.pth: "),
    ],
)
def test_a_mistake_is_one_line(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(*arguments)
    lines = [line for line in errors.splitlines() if line.startswith("Error")]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith(message) and errors.endswith(f"{lines[0]}\n")
    assert "Traceback" not in errors


def test_debug_shows_the_traceback(monkeypatch):
    for arguments in (["--debug", "train", RECIPE, "--lr", "1"], ["train", RECIPE, "--debug", "--lr", "1"]):
        monkeypatch.setattr(sys, "argv", ["hf-frozen-llm", *arguments])
        with pytest.raises(ValueError, match="unknown key `lr`"):
            main()
    # The field of TrainingArguments has a value.
    assert take_debug_flag(["train", "x", "--debug", "underflow_overflow"]) == (
        ["train", "x", "--debug", "underflow_overflow"],
        False,
    )


def test_exit_code_of_a_failed_run(call, tmp_path):
    assert describe_error(RuntimeError("out\nof memory")) == (
        "RuntimeError: out of memory (`hf-frozen-llm --debug …` shows the traceback)",
        1,
    )
    data, llm = write_image_folder(tmp_path / "data"), write_llama(tmp_path / "llm")
    flags = [*TINY, "--dataset_name", data, "--image_column", "image", "--llm_block.llm_name_or_path", llm]
    lost = ["--over", "llm_block.llm_revision=null", "--over", "host.name_or_path=./nowhere"]
    code, output, _ = call("ablate", RECIPE, *lost, *flags, "--max-steps", "1", "--output-dir", str(tmp_path / "out"))
    assert code == 1 and "1 of 1 runs failed" in output


def test_broken_data_is_one_line_from_workers_too(call, tmp_path):
    """The message of a data loading process is its whole traceback."""
    data, llm = write_image_folder(tmp_path / "data"), write_llama(tmp_path / "llm")
    broken = tmp_path / "data" / "train" / CLASSES[0] / "0.png"
    broken.write_bytes(b"text")
    flags = [*TINY, "--dataset-name", data, "--image-column", "image", "--llm-block.llm-name-or-path", llm]
    flags += ["--output_dir", str(tmp_path / "out"), "--max_steps", "3", "--dataloader_num_workers", "1"]
    code, _, errors = call("train", "quickstart/vit_tiny_cifar10_smollm2.yaml", *flags)
    last = errors.strip().splitlines()[-1]
    assert code == 1, "of a run that failed"
    assert last.startswith("Error: ") and f"({broken}): the image cannot be decoded" in last
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", ["train", "ablate", "evaluate"])
def test_help_lists_the_keys_by_group(call, command):
    code, output, _ = call(command, "--help")
    assert code == 0
    for task in TASKS:
        assert f"Data of {task}:" in output
    for key in ("dataset_name", "image_column", "num_segments", "num_votes", "per_device_eval_batch_size"):
        assert f"--{key}" in output
    is_training = command != "evaluate"
    for key in ("learning_rate [", "llm_block.layer_index [-1]  The decoder layer", "train_split", "mixup_alpha"):
        assert (f"--{key}" in output) == is_training
    assert max(map(len, output.splitlines())) <= 110


def test_help_without_arguments(call):
    code, output, _ = call()
    assert code == 0
    for command in ("train", "evaluate", "ablate", "layer", "info", "convert"):
        assert f"\n  {command} " in output
