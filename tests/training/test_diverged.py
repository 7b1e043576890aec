# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A run stops at the first loss or gradient that is not finite; files hold strict JSON; nothing is not trained."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY
from transformers import TrainingArguments

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.training.results import to_json, write_json
from hf_frozen_llm.training.trainer import MAX_SKIPPED_STEPS, TaskTrainer


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def run(recipe, output_dir, *overrides):
    main(["train", str(recipe), *TINY, "--output_dir", str(output_dir), *overrides])


def read_strictly(file):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(file.read_text(), parse_constant=refuse)


@pytest.fixture
def trainer(llm, tmp_path):
    config = ViTWithLLMBlockConfig(
        **SIZES, image_size=16, patch_size=8, llm_block=LLMBlockConfig(llm_name_or_path=llm)
    )
    model = ViTWithLLMBlockForImageClassification(config)
    args = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, learning_rate=2.0)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    return TaskTrainer(model, args, task=task)


def test_diverged_run_stops(recipe, tmp_path):
    """At the step whose loss is NaN; the good checkpoint before it stays, and no model or results are written."""
    steps = ["--max_steps", "6", "--save_steps", "1", "--warmup_steps", "0", "--max_grad_norm", "0"]
    rates = ["--lr_scheduler_type", "constant_with_warmup", "--lr_scheduler_kwargs", "null", "--eval_strategy", "no"]
    message = r"diverged at step 2: the loss is .*The last good checkpoint is"
    with pytest.raises(FloatingPointError, match=message) as error:
        run(recipe, tmp_path, *steps, *rates, "--learning_rate", "1e30")
    for part in ("checkpoint-1", "learning_rate is 1e+30", "max_grad_norm is 0", "hf-frozen-llm check"):
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_loss_that_is_not_finite_is_no_model(recipe, tmp_path):
    """After the only step, which the next step would have noticed."""
    one = ["--max_steps", "1", "--warmup_steps", "0", "--max_grad_norm", "0", "--weight_decay", "1e10"]
    rates = ["--lr_scheduler_type", "constant_with_warmup", "--lr_scheduler_kwargs", "null"]
    with pytest.raises(FloatingPointError, match=r"at step 1: .*(tensors|evaluation).*There is no checkpoint"):
        run(recipe, tmp_path, *one, *rates, "--learning_rate", "1e30")
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_gradients_that_are_not_finite(trainer, number):
    next(trainer.model.classifier.parameters()).grad = torch.full_like(trainer.model.classifier.weight, number)
    with pytest.raises(FloatingPointError, match="diverged at step 1: the loss is 0, and the norm of the gradient"):
        trainer._get_grad_norm(trainer.model, torch.tensor(number))
    trainer.last_loss = torch.tensor(number)
    with pytest.raises(FloatingPointError, match=rf"the loss is {number}, and the norm of the gradient 1\."):
        trainer._get_grad_norm(trainer.model, torch.tensor(1.0))


def test_skipped_steps_are_no_fault(trainer):
    """The scaler of fp16 skips a step whose gradients are not finite; a run of which it skips all has diverged."""
    trainer.accelerator.scaler = object()
    infinite = torch.tensor(math.inf)
    for _ in range(3):
        for _ in range(MAX_SKIPPED_STEPS - 1):
            assert trainer._get_grad_norm(trainer.model, infinite) == infinite
        trainer._get_grad_norm(trainer.model, torch.tensor(1.0))
    for _ in range(MAX_SKIPPED_STEPS - 1):
        trainer._get_grad_norm(trainer.model, infinite)
    with pytest.raises(FloatingPointError, match="the norm of the gradient inf"):
        trainer._get_grad_norm(trainer.model, infinite)
    trainer.last_loss = infinite
    with pytest.raises(FloatingPointError, match="the loss is inf"):  # a step with such a loss is not skipped
        trainer._get_grad_norm(trainer.model, torch.tensor(1.0))


def test_weights_that_are_not_finite_are_not_saved(trainer, tmp_path):
    trainer.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with torch.no_grad():
        trainer.model.classifier.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"1 of \d+ trained tensors are not finite"):
        trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_json_is_strict(trainer, tmp_path):
    assert to_json({"a": [math.nan, 1.5, {"b": -math.inf}], "c": (1, "NaN")}) == (
        '{"a": [null, 1.5, {"b": null}], "c": [1, "NaN"]}'
    )
    write_json(tmp_path / "file.json", {"loss": math.nan})
    assert read_strictly(tmp_path / "file.json") == {"loss": None}
    trainer.log({"loss": 1.0, "grad_norm": math.inf})
    trainer.args.metric_for_best_model = "top1"
    trainer._determine_best_metric({"eval_top1": math.nan}, None)
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    state = read_strictly(tmp_path / "trainer_state.json")
    assert state["log_history"][0]["grad_norm"] is None and state["best_metric"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--per_device_train_batch_size", "61", "--dataloader_drop_last", "true", "--eval_split", "null"],
            "60 rows to train on, fewer than the 61 of a batch, and dataloader_drop_last leaves none",
        ),
        (["--num_train_epochs", "0"], "num_train_epochs is 0.*above 0"),
        (["--num_train_epochs", "nan"], "num_train_epochs is nan.*above 0"),
        (["--host.num_attention_heads", "3"], "host.hidden_size is 16, which host.num_attention_heads 3 does not"),
        (["--eval_split", "validation"], r"eval_split is 'validation': .*nknown split.*Set eval_split to one of them"),
    ],
)
def test_nothing_is_not_trained(recipe, tmp_path, flags, message):
    flags = ["--eval_strategy", "no", *flags]
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
