# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A disk that is full while a model is saved, or while a run writes its checkpoints, costs no more than that write."""

import json

import pytest
import torch
from full_disk import full_disk
from safetensors.torch import load_file
from saved_models import Classifier, assert_same, build
from tiny_runs import TINY

from hf_frozen_llm.cli import main


SHORT = [*TINY, "--max_steps", "4", "--save_steps", "2", "--save_strategy", "steps", "--eval_strategy", "no"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_saving_to_a_full_disk_leaves_the_old_model(share, llm, tmp_path):
    old, new = build(llm, seed=1), build(llm, seed=2)
    old.save_pretrained(tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    message = r"model could not be written, and is as before: .*too large"
    with full_disk(int(share * size)), pytest.raises(OSError, match=message):
        new.save_pretrained(tmp_path / "model")
    assert_same(old, Classifier.from_pretrained(tmp_path / "model"))
    assert not [path.name for path in (tmp_path / "model").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_run_on_a_full_disk_is_resumed(share, recipe, tmp_path):
    main(["train", str(recipe), *SHORT, "--output_dir", str(tmp_path / "whole")])
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    command = ["train", str(recipe), *SHORT, "--output_dir", str(tmp_path / "full"), "--resume", "true"]
    message = r"checkpoint-2 could not be written in .*full: .* Is the disk full\?"
    with full_disk(int(share * largest)), pytest.raises(OSError, match=message):
        main(command)
    assert not (tmp_path / "full" / "results.json").exists()
    main(command)
    whole, resumed = (tmp_path / name for name in ("whole", "full"))
    tensors = load_file(resumed / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensor, tensors[name])
    losses = [
        json.loads((folder / "results.json").read_text())["metrics"]["train_loss"] for folder in (whole, resumed)
    ]
    assert losses[0] == losses[1]
