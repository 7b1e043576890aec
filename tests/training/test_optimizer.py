# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The parameters that decay, and the learning rate at every step, by their definitions."""

import math

import pytest
import torch
from model_cases import FORECAST_MAE, POINT_BERT, SQA3D, VIDEOMAE, VIT
from tiny_hosts import vision_model
from tiny_runs import TINY
from torch import nn
from transformers import TrainingArguments

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.training.optimizer import Schedule, names_of_decayed
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


@pytest.fixture
def trainer(recipe, tmp_path):
    """`trainer("--key", "value", …)`: the trainer of the recipe's run with these flags; 8 steps are an epoch."""
    text = recipe.read_text().replace("warmup_steps: 0.1\n", "")
    text = text.replace("cosine_with_min_lr", "cosine").replace("lr_scheduler_kwargs: {min_lr: 1e-5}\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    flags = [*TINY, "--output_dir", str(tmp_path / "run")]
    return lambda *more: build_run(read_recipe(tmp_path / "recipe.yaml", [*flags, *more])).trainer()


def rates_of(scheduler, num_steps):
    """The learning rates of each group at every step."""
    found = []
    for _ in range(num_steps):
        found.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(*factors):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1 * f} for f in factors or [1]], lr=0.1)


# Weight decay

LAYER = {f"attention.{name}_proj" for name in "qkvo"} | {"mlp.fc1", "mlp.fc2"}


def test_decayed_parameters_of_a_vit(llm):
    model = VIT.build(LLMBlockConfig(llm_name_or_path=llm))
    matrices = {"vit.embeddings.patch_embeddings.projection", "classifier"}
    matrices |= {f"vit.layers.{index}.{name}" for index in range(3) for name in LAYER}
    matrices |= {"llm_block.input_projection", "llm_block.output_projection"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = trained & set(names_of_decayed(model))
    assert decayed == {f"{name}.weight" for name in matrices}
    spared = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    assert {name for name in trained - decayed if not name.endswith("bias") and "norm" not in name} == spared


SPARED = {
    "VideoMAE": (lambda: VIDEOMAE.build(None), set()),
    "Point-BERT": (lambda: POINT_BERT.build(None), {"cls_token", "cls_position"}),
    "Forecast-MAE": (
        lambda: FORECAST_MAE.build(None),
        {"agent_type_embeddings", "lane_embedding", "relative_bias"},
    ),
    "SQA3D": (lambda: SQA3D.build(None), set()),  # its LSTMs' matrices decay
    "DINOv2": (
        lambda: vision_model("dinov2", None),
        {"cls_token", "mask_token", "position_embeddings", "lambda1"},
    ),
    "DINOv3": (lambda: vision_model("dinov3_vit", None), {"cls_token", "mask_token", "register_tokens", "lambda1"}),
    "BEiT": (
        lambda: vision_model("beit", None),
        {"cls_token", "relative_position_bias_table", "lambda_1", "lambda_2"},
    ),
    "Swin": (lambda: vision_model("swin", None), {"relative_position_bias_table"}),
    "CLIP": (lambda: vision_model("clip", None), {"class_embedding", "weight of Embedding"}),
    "SigLIP": (lambda: vision_model("siglip", None), {"probe", "weight of Embedding"}),
}


@pytest.mark.parametrize("name", SPARED)
def test_only_tokens_positions_and_embeddings_are_spared_beside_norms_and_biases(name):
    build, expected = SPARED[name]
    model = build()
    decayed, spared = set(names_of_decayed(model)), set()
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(path, recurse=False):
            leaf = key.rpartition(".")[2]
            is_bias = parameter.ndim == 1 and "bias" in leaf
            if is_bias or "norm" in type(module).__name__.lower():
                assert key not in decayed
            elif key not in decayed:
                spared.add("weight of Embedding" if isinstance(module, nn.Embedding) else leaf)
            else:
                assert parameter.ndim > 1
    assert spared == expected


def test_rule_reaches_the_optimizer(trainer):
    def undecayed(rule):
        run = trainer("--weight_decay_rule", rule, "--weight_decay", "0.1")
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        groups = run.create_optimizer().param_groups
        assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
        return {names[p] for group in groups if group["weight_decay"] == 0 for p in group["params"]}

    more = undecayed("timm") - undecayed("trainer")
    assert more == {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    assert undecayed("trainer") < undecayed("timm")


# Schedules


def cosine(step, warmup, last, peak, first, floor):
    """The rate of a step: a line to the peak, half a cosine to the floor, the floor."""
    if step < warmup:
        return first + (peak - first) * step / (warmup - 1)
    if step >= last:
        return floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup + 1) / (last - warmup))) / 2


@pytest.mark.parametrize("cooldown", [0, 1.5])
def test_cosine_by_its_definition(cooldown, trainer):
    flags = ["--warmup_epochs", "2", "--warmup_learning_rate", "1e-6", "--min_learning_rate", "1e-5"]
    run = trainer(*flags, "--cooldown_epochs", str(cooldown), "--num_train_epochs", "10")
    run.create_optimizer()
    found = [rates[0] for rates in rates_of(run.create_scheduler(80), 80)]
    last = 80 - int(8 * cooldown)
    assert found == pytest.approx([cosine(step, 16, last, 1e-3, 1e-6, 1e-5) for step in range(80)], rel=1e-9)
    assert found[0] == pytest.approx(1e-6) and found[15] == pytest.approx(1e-3)
    assert found[-1] == found[last - 1] == pytest.approx(1e-5)


def test_groups_keep_their_proportions():
    args = TrainingArguments("x", learning_rate=0.1, lr_scheduler_type="cosine", use_cpu=True, report_to="none")
    schedule = Schedule(warmup_epochs=1, warmup_learning_rate=0.01, min_learning_rate=0.02, cooldown_epochs=1)
    for first, second in rates_of(schedule.create(optimizer(1, 0.5), args, 30, 5), 30):
        assert second == pytest.approx(0.5 * first)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_warm_up_in_epochs_is_that_in_steps(name):
    options = {"learning_rate": 0.1, "lr_scheduler_type": name, "use_cpu": True, "report_to": "none"}
    in_steps = Schedule().create(optimizer(), TrainingArguments("x", warmup_steps=7, **options), 30, 14)
    in_epochs = Schedule(warmup_epochs=0.5).create(optimizer(), TrainingArguments("x", **options), 30, 14)
    assert rates_of(in_steps, 30) == rates_of(in_epochs, 30)


def test_drops_after_a_warm_up_in_epochs(trainer):
    run = trainer(
        *("--warmup_epochs", "0.5", "--learning_rate_drops", "[2]", "--lr_scheduler_type", "constant_with_warmup")
    )
    run.create_optimizer()
    found = [rates[0] for rates in rates_of(run.create_scheduler(24), 24)]
    assert found == pytest.approx([1e-3 * min(1, s / 4) * (0.1 if s >= 16 else 1) for s in range(24)])


def test_schedules_that_contradict_themselves(trainer):
    with pytest.raises(ValueError, match="need lr_scheduler_type: cosine, and it is linear"):
        trainer("--lr_scheduler_type", "linear", "--min_learning_rate", "1e-5")
    with pytest.raises(ValueError, match="warmup_epochs and warmup_steps are both set"):
        trainer("--warmup_epochs", "1", "--warmup_steps", "3")
    with pytest.raises(ValueError, match=r"min_learning_rate is -1\.0; it must be finite, and not negative"):
        trainer("--min_learning_rate", "-1")
    run = trainer("--warmup_epochs", "2", "--cooldown_epochs", "1")
    run.create_optimizer()
    with pytest.raises(ValueError, match=r"The warm-up takes 16 steps, and the cool-down 8, of 24\. Shorten"):
        run.create_scheduler(24)
