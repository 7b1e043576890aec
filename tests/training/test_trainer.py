# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
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
from hf_frozen_llm.training.trainer import ClassificationLoss, ClassificationTrainer


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


def trainer(task, llm, tmp_path, **kwargs):
    model_class, config_class, fields = MODELS[task]
    model = model_class(config_class(**SIZES, **fields, llm_block=LLMBlockConfig(llm_name_or_path=llm)))
    args = TrainingArguments(str(tmp_path), learning_rate=1.0, weight_decay=0.1, report_to="none", use_cpu=True)
    return ClassificationTrainer(model, args, **kwargs)


def rates(optimizer, model):
    """Learning rate and weight decay of each parameter, by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("task", list(MODELS))
def test_layers_learn_at_their_rates(task, llm, tmp_path):
    plain = trainer(task, llm, tmp_path)
    before = rates(plain.create_optimizer(), plain.model)
    decayed = trainer(task, llm, tmp_path, layer_decay=0.5, projection_learning_rate_scale=0.1)
    after = rates(decayed.create_optimizer(), decayed.model)
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
    # The scheduler keeps the proportions.
    decayed.create_scheduler(10)
    decayed.optimizer.step()
    decayed.lr_scheduler.step()
    scaled = rates(decayed.optimizer, decayed.model)
    assert {round(scaled[name][0] / after[name][0], 6) for name in after} == {0.9}


def test_layer_decay_needs_layers_one_after_the_other(llm, tmp_path):
    swin = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    model = VisionWithLLMBlockForImageClassification(VisionWithLLMBlockConfig(vision_config=swin))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match=r"layer_decay needs a host with layers one after the other, unlike swin"):
        ClassificationTrainer(model, args, layer_decay=0.5).create_optimizer()


def test_loss_of_shared_labels():
    logits, shares = torch.randn(4, 3), torch.rand(4, 3).softmax(-1)
    loss = ClassificationLoss(0.2)({"logits": logits}, shares)
    smoothed = 0.8 * shares + 0.2 / 3
    torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(-1)).sum() / 4)
    labels = torch.tensor([0, 2, 1, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            ClassificationLoss(0.2)({"logits": logits}, labels), F.cross_entropy(logits, labels)
        )
