# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from tiny_runs import TINY
from torch.nn import functional as F
from transformers import SwinConfig, TrainingArguments

from hf_frozen_llm import (
    LLMBlockConfig,
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.tasks.classification import ClassificationLoss
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.training.optimizer import scale_learning_rates
from hf_frozen_llm.training.trainer import TaskTrainer


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "image": (ViTWithLLMBlockForImageClassification, ViTWithLLMBlockConfig, {"image_size": 16, "patch_size": 8}),
    "video": (
        VideoMAEWithLLMBlockForVideoClassification,
        VideoMAEWithLLMBlockConfig,
        {"image_size": 16, "patch_size": 8, "num_frames": 4},
    ),
    "points": (PointBertWithLLMBlockForPointCloudClassification, PointBertWithLLMBlockConfig, {}),
}


def optimizer_of(model, layer_decay=1.0, scales=None):
    """Learning rates are 1 unless scaled; only matrices have weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    scale_learning_rates(optimizer, model, layer_decay, scales or {})
    return optimizer


def build_model(task, llm):
    model_class, config_class, fields = MODELS[task]
    return model_class(config_class(**SIZES, **fields, llm_block=LLMBlockConfig(llm_name_or_path=llm)))


def rates(optimizer, model):
    """Learning rate and weight decay of each parameter, by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("task", list(MODELS))
def test_layers_learn_at_their_rates(task, llm):
    model = build_model(task, llm)
    before = rates(optimizer_of(model), model)
    optimizer = optimizer_of(model, 0.5, {"projections": 0.1})
    after = rates(optimizer, model)
    assert after.keys() == before.keys()
    assert {name: decay for name, (_, decay) in after.items()} == {name: decay for name, (_, decay) in before.items()}
    for name, (rate, _) in after.items():
        if "embeddings" in name:
            expected = 0.5**4
        elif ".layer" in name and not name.startswith("llm_block") and "layernorm." not in name.replace("layer.", ""):
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            expected = 0.5 ** (3 - layer)
        else:
            expected = 0.1 if "projection" in name else 1.0
        assert rate == pytest.approx(expected), name
    # A scheduler keeps the proportions.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    optimizer.step()
    scheduler.step()
    scaled = rates(optimizer, model)
    assert {round(scaled[name][0] / after[name][0], 6) for name in after} == {0.9}


def test_groups_of_parameters(llm):
    model = build_model("image", llm)
    scales = {"host": 2.0, "embeddings": 3.0, "projections": 5.0, "head": 7.0, r"\.layers?\.1\.": 11.0}
    for name, (rate, _) in rates(optimizer_of(model, scales=scales), model).items():
        if name.startswith("llm_block."):
            expected = 5.0
        elif name.startswith("classifier."):
            expected = 7.0
        elif "embeddings" in name:
            expected = 2.0 * 3.0
        else:
            expected = 2.0 * 11.0 if ".layer.1." in name or ".layers.1." in name else 2.0
        assert rate == expected, name
    with pytest.raises(ValueError, match=r"'heads' fits no trained parameter. Give one of host, embeddings, proj"):
        optimizer_of(model, scales={"heads": 2.0})


@pytest.mark.parametrize("has_layer", [True, False])
def test_update_ratio_is_logged(has_layer, llm, tmp_path):
    """Of a few tokens of the last step; nothing stays on the model."""
    model = build_model("image", llm)
    if not has_layer:
        model.llm_block.config.kind = "projections"
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = TaskTrainer(
        model, args, task=find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    )
    entered = []
    model.llm_block.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with trainer._keeping_block_tokens():
        model(**model.dummy_inputs)
    assert len(model.llm_block._forward_pre_hooks) == 1
    trainer.log({"loss": 1.0})
    trainer.log({"eval_loss": 1.0})
    logged = [entry.get("update_ratio") for entry in trainer.state.log_history]
    ratio = model.llm_block.update_ratio(entered[0][:1, :32]) if has_layer else 0.0
    assert (logged[0] or 0.0) == pytest.approx(ratio, rel=1e-3) and logged[1] is None


def test_update_ratio_in_bf16(recipe, tmp_path):
    """Tokens in bfloat16 enter a block in float32."""
    flags = ["--bf16", "true", "--use_cpu", "true", "--logging_steps", "1", "--max_steps", "2"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--output_dir", str(tmp_path / "run")]
    main(["train", str(recipe), *TINY, *flags])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(0 < entry["update_ratio"] < 1000 for entry in results["log_history"] if "loss" in entry)


def test_trainer_scales_its_optimizer(llm, tmp_path):
    """With its own groups: no decay of biases and norms."""
    model = build_model("image", llm)
    args = TrainingArguments(str(tmp_path), learning_rate=1.0, weight_decay=0.1, report_to="none", use_cpu=True)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    trainer = TaskTrainer(model, args, task=task, layer_decay=0.5, learning_rate_scales={"projections": 0.1})
    found = rates(trainer.create_optimizer(), model)
    assert found["llm_block.input_projection.weight"] == (0.1, 0.1)
    assert found["classifier.bias"] == (1.0, 0.0)
    assert found["vit.embeddings.cls_token"][0] == 0.5**4


def test_learning_rate_drops_after_epochs(llm, tmp_path):
    model = build_model("image", llm)
    kwargs = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 4}
    args = TrainingArguments(str(tmp_path), lr_scheduler_type="constant", learning_rate=1.0, **kwargs)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    trainer = TaskTrainer(model, args, task=task, train_dataset=range(10), learning_rate_drops=[1, 2])
    scheduler = trainer.create_scheduler(9, optimizer_of(model))
    found = []
    for _ in range(8):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])  # three steps an epoch
    with pytest.raises(ValueError, match=r"learning_rate_drops is set, and lr_scheduler_type is linear\. Set it to"):
        TaskTrainer(model, TrainingArguments(str(tmp_path), **kwargs), task=task, learning_rate_drops=[1])


def test_gradients_are_clipped_by_value(llm, tmp_path):
    model = build_model("image", llm)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    trainer = TaskTrainer(model, args, task=task, clip_grad_value=0.5)
    weight = model.classifier.weight
    weight.grad = torch.linspace(-3, 3, weight.numel()).view_as(weight)
    expected = weight.grad.clamp(-0.5, 0.5)
    norm = weight.grad.norm().item()
    assert float(trainer._get_grad_norm(model)) == pytest.approx(norm, rel=1e-4)  # that before
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_settings_are_saved_in_checkpoints_alone(llm, tmp_path):
    """`Trainer.push_to_hub` saves the model by the same internal call, without naming a folder."""
    model = build_model("image", llm)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, model.config)
    trainer = TaskTrainer(model, args, task=task, settings={"seed": 1})
    trainer.save_model(_internal_call=True)
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    trainer.save_model(str(tmp_path / "model"))
    assert [path.parent.name for path in tmp_path.rglob("recipe.json")] == ["checkpoint-1"]
    assert (tmp_path / "model.safetensors").is_file()


def test_layer_decay_needs_layers_one_after_the_other():
    swin = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    model = VisionWithLLMBlockForImageClassification(VisionWithLLMBlockConfig(vision_config=swin))
    with pytest.raises(ValueError, match=r"layer_decay needs a host with layers one after the other, unlike swin"):
        optimizer_of(model, layer_decay=0.5)


def test_loss_of_shared_labels():
    logits, shares = torch.randn(4, 3), torch.rand(4, 3).softmax(-1)
    loss = ClassificationLoss(0.2)({"logits": logits}, shares)
    smoothed = 0.8 * shares + 0.2 / 3
    torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(-1)).sum() / 4)


def test_evaluation_losses_are_not_smoothed():
    """The losses are of single examples, so that their mean is the same for any batch size and number of processes."""
    task = find_task("vit_with_llm_block")(ImageDataArguments("x"), None, ViTWithLLMBlockConfig(num_labels=3))
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    batch = {"row": torch.arange(4), "pixel_values": logits, "labels": labels}
    records = task.predict(lambda pixel_values: {"logits": pixel_values}, batch)
    losses = torch.tensor([record["loss"] for record in records])
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"))
    metrics = task.metrics(records, None)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert metrics["top1"] == (logits.argmax(-1) == labels).float().mean().item()
    assert set(metrics) == {"loss", "top1"}, "three classes are always among the best five"
    unlabelled = task.predict(lambda pixel_values: {"logits": pixel_values}, {**batch, "labels": None})
    assert all(set(record) == {"row", "labels", "probabilities"} for record in unlabelled)
    assert "labels" in batch, "a batch is left as it is"


def test_labels_are_smoothed_in_training_only():
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    loss = ClassificationLoss(0.1)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(loss({"logits": logits}, labels), smoothed)
    assert torch.allclose(loss({"logits": logits}, labels, num_items_in_batch=12), smoothed / 2)
