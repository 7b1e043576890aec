# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The moving average of the weights: by its definition, on two processes, resumed, evaluated, saved, loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY
from torch import nn

from hf_frozen_llm import ViTWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main
from hf_frozen_llm.training.ema import WeightAverage, decay_at
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.resume import find_defect
from hf_frozen_llm.training.run import build_run


FOUR = ["--max_steps", "4", "--save_steps", "1", "--logging_steps", "1", "--eval_strategy", "steps"]
FOUR += ["--eval_steps", "2", "--host.drop_path_rate", "0.2", "--per_device_train_batch_size", "4"]
EMA = ["--ema_decay", "0.8", "--ema_warmup", "true"]


def train(recipe, output_dir, *flags):
    main(["train", str(recipe), *TINY, *FOUR, "--output_dir", str(output_dir), *flags])
    return output_dir


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def average_of(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "ema.safetensors")


def assert_average_by_definition(folder):
    """Compute the average in float64 from the weights of all steps."""
    expected = {}
    for step in (1, 2, 3, 4):
        weights = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        decay = [0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 1 - 4 ** (-2 / 3)][step - 1]
        found = average_of(folder, step)
        assert found.keys() == weights.keys()  # a checkpoint has all but the LLM layer
        for name, tensor in weights.items():
            expected[name] = decay * expected.get(name, 0) + (1 - decay) * tensor.double()
            torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def averaged(recipe, tmp_path_factory):
    return train(recipe, tmp_path_factory.mktemp("averaged") / "run", *EMA)


def test_decay():
    """That of timm's ModelEmaV3 with its default gamma 1 and power 2/3."""
    assert [decay_at(step, 0.9999, False) for step in (1, 2, 3)] == [0, 0.9999, 0.9999]
    for step in range(2, 2000, 7):
        of_timm = min(1 - (1 + (step - 1) / 1.0) ** -(2 / 3), 0.99)
        assert decay_at(step, 0.99, True) == pytest.approx(of_timm, rel=1e-12)
    assert decay_at(1, 0.99, True) == 0 and decay_at(10**9, 0.99, True) == 0.99


def test_average_by_its_definition(averaged):
    assert_average_by_definition(averaged)
    last = average_of(averaged, 4)
    assert any(
        not torch.equal(last[name], t) for name, t in load_file(averaged / "model.safetensors").items() if name in last
    )


def test_training_is_the_same_without_it(averaged, recipe, tmp_path):
    plain = train(recipe, tmp_path / "run")
    weights, same = load_file(averaged / "model.safetensors"), load_file(plain / "model.safetensors")
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    expected, metrics = results_of(plain)["metrics"], results_of(averaged)["metrics"]
    assert {n: metrics[n] for n in ("eval_loss", "eval_top1", "train_loss")} == {
        n: expected[n] for n in ("eval_loss", "eval_top1", "train_loss")
    }
    assert not (plain / "ema").exists() and not list(plain.rglob("ema.safetensors"))


def test_folder_of_the_average(averaged, capsys):
    model = ViTWithLLMBlockForImageClassification.from_pretrained(averaged / "ema")
    tensors = model.state_dict()
    for name, tensor in average_of(averaged, 4).items():
        assert torch.equal(tensors[name], tensor), name
    raw = ViTWithLLMBlockForImageClassification.from_pretrained(averaged)
    for name, tensor in raw.llm_block._named_llm_tensors().items():
        assert torch.equal(model.llm_block._named_llm_tensors()[name], tensor)
    metrics = results_of(averaged)["metrics"]
    assert metrics["eval_ema_loss"] != metrics["eval_loss"]
    logged = [entry for entry in results_of(averaged)["log_history"] if "eval_ema_loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 4] and logged[-1]["eval_ema_loss"] == metrics["eval_ema_loss"]
    main(["evaluate", str(averaged / "ema"), "--use_cpu", "true"])
    found = json.loads((averaged / "ema" / "eval_results.json").read_text())["metrics"]
    assert found["eval_loss"] == pytest.approx(metrics["eval_ema_loss"], rel=1e-6)
    assert found["eval_top1"] == metrics["eval_ema_top1"] == results_of(averaged / "ema")["metrics"]["eval_top1"]


def test_resumed_average_is_the_uninterrupted_one(averaged, recipe, tmp_path):
    shutil.copytree(averaged / "checkpoint-2", tmp_path / "checkpoint-2")
    train(recipe, tmp_path, *EMA, "--resume")
    assert results_of(tmp_path)["resumed_from_checkpoint"] == "checkpoint-2"
    for step in (3, 4):
        one, other = average_of(averaged, step), average_of(tmp_path, step)
        assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = results_of(averaged)["metrics"], results_of(tmp_path)["metrics"]
    assert one["eval_ema_loss"] == other["eval_ema_loss"]


def test_checkpoint_without_its_average_is_no_checkpoint(averaged, tmp_path):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(averaged / "checkpoint-2", folder)
    assert find_defect(folder) is None
    (folder / "ema.safetensors").write_bytes(b"cut off")
    assert "ema.safetensors cannot be read" in find_defect(folder)
    (folder / "ema.safetensors").unlink()
    assert "ema.safetensors cannot be read" in find_defect(folder)


def test_best_model_by_the_average(recipe, tmp_path):
    best = ["--load_best_model_at_end", "--metric_for_best_model", "ema_top1", "--save_steps", "2"]
    folder = train(recipe, tmp_path / "run", *EMA, *best)
    results = results_of(folder)
    scores = {e["step"]: e["eval_ema_top1"] for e in results["log_history"] if "eval_ema_top1" in e}
    step = max(scores, key=lambda step: (scores[step], -step))
    assert results["saved_step"] == step and results["metrics"]["eval_ema_top1"] == scores[step]
    tensors = load_file(folder / "ema" / "model.safetensors")
    average = average_of(folder, step)
    assert torch.equal(tensors["classifier.weight"], average["classifier.weight"])


def test_two_processes(recipe, tmp_path):
    """Each keeps the same average, by its definition, and saves it once."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "hf_frozen_llm", "train", str(recipe), *TINY, *FOUR, *EMA, "--ddp_backend", "gloo"]
    command += ["--output_dir", str(tmp_path), "--per_device_train_batch_size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert_average_by_definition(tmp_path)
    results = results_of(tmp_path)
    assert results["num_processes"] == 2
    main(["evaluate", str(tmp_path / "ema"), "--use_cpu", "true", "--ddp_backend", "null"])
    found = json.loads((tmp_path / "ema" / "eval_results.json").read_text())["metrics"]
    assert found["eval_loss"] == pytest.approx(results["metrics"]["eval_ema_loss"], rel=1e-5)


def test_frozen_layers_have_no_copy(recipe, tmp_path):
    """Only tensors that the training changes; the others are the model's own."""
    model = build_run(read_recipe(recipe, [*TINY, "--output_dir", str(tmp_path / "run")])).model
    average = WeightAverage(model, 0.9, False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert average.tensors.keys() == trained and not trained & model._llm_keys()
    layer = {name: tensor.data_ptr() for name, tensor in model.llm_block._named_llm_tensors().items()}
    with average.applied():
        assert {name: tensor.data_ptr() for name, tensor in model.llm_block._named_llm_tensors().items()} == layer
    sizes = [sum(t.numel() for t in tensors) for tensors in (average.tensors.values(), model.parameters())]
    assert sizes[0] == model.num_parameters(only_trainable=True) < sizes[1]


def test_statistics_of_batch_norms_are_averaged():
    """As in timm: numbers are averaged, counters are copied."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.75, False)
    state = type("State", (), {"global_step": 5})
    before = model[1].running_mean.clone()
    model.train()(torch.randn(4, 2))
    average.on_step_end(None, state, None)
    expected = 0.75 * before + 0.25 * model[1].running_mean
    torch.testing.assert_close(average.tensors["1.running_mean"], expected)
    assert average.tensors["1.num_batches_tracked"] == 1
    raw = model[1].running_mean.clone()
    with average.applied():
        torch.testing.assert_close(model[1].running_mean, expected)
    assert torch.equal(model[1].running_mean, raw)


def test_what_has_no_average(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"fsdp and deepspeed shard them\. Remove it, or train with DDP"):
        WeightAverage(nn.Linear(1, 1), 0.9, False, is_sharded=True)
    for flags, message in (
        (["--ema_decay", "1"], r"ema_decay is 1\.0; it must lie in \[0, 1\)"),
        (["--ema_warmup"], "ema_warmup is set, but ema_decay is not"),
        (["--ema_decay", "0.9", "--lora.r", "2"], "ema_decay does not average the adapters of lora"),
        (["--metric_for_best_model", "ema_top1"], "metric_for_best_model is 'ema_top1', which is not computed"),
    ):
        with pytest.raises(ValueError, match=message):
            build_run(read_recipe(recipe, [*TINY, "--output_dir", str(Path(tmp_path, "run")), *flags]))
