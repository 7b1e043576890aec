# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Recipes whose host is another vision encoder than a ViT."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_hosts import HOSTS
from tiny_runs import CLASSES, TINY_DINOV2, TINY_RUN, TINY_SWIN, write_image_folder
from transformers import AutoModelForImageClassification, SwinConfig, SwinForImageClassification
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_frozen_llm.cli import main


ANY_HOST = ["--model_type", "vision_with_llm_block"]
SHORT = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
STEPS = ["--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no"]
TRAINED_WITH_FROZEN_HOST = {
    "llm_block.input_projection.weight",
    "llm_block.output_projection.weight",
    "classifier.weight",
    "classifier.bias",
}


def run(recipe, output_dir, *flags):
    main(["train", str(recipe), "--output_dir", str(output_dir), *flags])
    return json.loads((Path(output_dir) / "results.json").read_text())


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture
def dinov2(tmp_path):
    """A published DINOv2: configured for 24 pixels, with an image processor that crops to 16."""
    HOSTS["dinov2"].published(image_size=24).save_pretrained(tmp_path / "dinov2")
    size = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    BitImageProcessorPil(**size, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def test_swin_from_scratch(recipe, tmp_path, capsys):
    results = run(recipe, tmp_path / "run", *TINY_SWIN, "--num_train_epochs", "1")
    assert "VisionWithLLMBlockForImageClassification: parameters: " in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.vision_config.depths == [1, 1]
    assert model.config.pooling == "mean"
    assert model.config.label2id == {name: index for index, name in enumerate(CLASSES)}
    counts = results["parameters"]
    assert counts["total"] == model.num_parameters()
    assert counts["frozen"] == sum(p.numel() for p in model.llm_block.parameters() if not p.requires_grad) > 0
    assert results["recipe"]["host"]["model_type"] == results["config"]["vision_config"]["model_type"] == "swin"

    main(["evaluate", str(tmp_path / "run")])
    evaluated = json.loads((tmp_path / "run" / "eval_results.json").read_text())["metrics"]
    for name in ("eval_loss", "eval_top1", "eval_top5"):
        assert evaluated[name] == results["metrics"][name]


def test_baseline_is_the_plain_host(recipe, tmp_path, capsys):
    results = run(recipe, tmp_path, *TINY_SWIN, "--llm_block", "null", *SHORT)
    assert "no LLM block" in capsys.readouterr().out
    assert results["parameters"]["frozen"] == 0
    trained = AutoModelForImageClassification.from_pretrained(tmp_path)
    plain_config = SwinConfig(**{**trained.config.vision_config.to_dict(), "num_labels": len(CLASSES)})
    plain = SwinForImageClassification.from_pretrained(tmp_path, config=plain_config)
    pixel_values = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(plain(pixel_values).logits, trained(pixel_values).logits)


def test_frozen_swin_and_resume(recipe, tmp_path):
    frozen = [*TINY_SWIN, *STEPS, "--freeze_host", "true"]
    results = run(recipe, tmp_path, *frozen)
    before, after = weights(tmp_path / "checkpoint-2"), weights(tmp_path / "checkpoint-4")
    assert {name for name in after if not torch.equal(before[name], after[name])} == TRAINED_WITH_FROZEN_HOST
    assert results["parameters"]["trainable"] == sum(after[name].numel() for name in TRAINED_WITH_FROZEN_HOST)

    shutil.rmtree(tmp_path / "checkpoint-4")
    (tmp_path / "results.json").unlink()
    assert run(recipe, tmp_path, *frozen, "--resume")["resumed_from_checkpoint"] == "checkpoint-2"
    resumed = weights(tmp_path / "checkpoint-4")
    assert all(torch.equal(after[name], resumed[name]) for name in after)

    other_vit = ["--model_type", "vit_with_llm_block", "--host", "null", *TINY_RUN]
    for flags, message in (
        ([*TINY_SWIN, "--host.hidden_act", "relu"], r"was trained with host.hidden_act 'gelu', the recipe now says"),
        ([*TINY_SWIN, "--pooling", "mean", "--host.depths", "[1, 2]"], r"was trained with host.depths \[1, 1\]"),
        (TINY_DINOV2, r"was trained with pooling 'mean', the recipe now says 'cls'"),
        (
            [*TINY_DINOV2, "--pooling", "mean"],
            r"was trained with host.model_type 'swin', the recipe now says 'dinov2'",
        ),
        (other_vit, r"was trained with model_type 'vision_with_llm_block', the recipe now says 'vit_with_llm_block'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(recipe, tmp_path, *STEPS, "--freeze_host", "true", *flags, "--resume")


def test_published_dinov2(recipe, dinov2, tmp_path):
    host = AutoModelForImageClassification.from_pretrained(dinov2).dinov2.state_dict()
    start = [*ANY_HOST, *TINY_RUN, "--host", "null", "--host.name_or_path", str(dinov2), "--pooling", "cls_mean"]
    results = run(recipe, tmp_path / "run", *start, "--max_steps", "2", "--freeze_host", "true")
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert trained.classifier.in_features == 48
    assert trained.classifier.out_features == len(CLASSES)
    assert all(torch.equal(host[name], tensor) for name, tensor in trained.dinov2.state_dict().items())
    assert results["parameters"]["trainable"] == sum(
        tensor.numel() for name, tensor in trained.state_dict().items() if name in TRAINED_WITH_FROZEN_HOST
    )
    # Images as its own processor makes them, and those of an evaluation, which does not need the host
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16}
    assert processor["image_mean"] == [0.4] * 3
    assert processor["image_std"] == [0.3] * 3
    shutil.rmtree(dinov2)
    main(["evaluate", str(tmp_path / "run")])
    evaluated = json.loads((tmp_path / "run" / "eval_results.json").read_text())["metrics"]
    assert evaluated["eval_loss"] == results["metrics"]["eval_loss"]


def test_fine_tuning_recipe(llm, tmp_path):
    """The recipe that starts from a published ViT, on a folder of pictures; its sizes are the checkpoint's."""
    HOSTS["vit"].published(image_size=24).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    pictures = write_image_folder(tmp_path / "pictures", {"train": 24, "test": 12})
    flags = ["--dataset_name", pictures, "--host.name_or_path", str(tmp_path / "vit"), "--use_cpu", "true"]
    flags += ["--llm_block.llm_name_or_path", llm, "--num_train_epochs", "2", "--per_device_train_batch_size", "8"]
    results = run("quickstart/vit_base_finetuned_smollm2.yaml", tmp_path / "run", *flags)
    assert results["metrics"]["epoch"] == 2
    trained, host = weights(tmp_path / "run"), weights(tmp_path / "vit")
    names = [name for name in host if name.startswith("vit.")]
    assert len(names) > 20
    # Six steps of AdamW at no more than 5e-5
    assert all(torch.allclose(trained[name], host[name], rtol=0, atol=3e-4) for name in names)
    assert any(not torch.equal(trained[name], host[name]) for name in names)


def test_fields_of_a_published_host(recipe, dinov2, tmp_path):
    start = [*ANY_HOST, *TINY_RUN, "--host.name_or_path", str(dinov2), *SHORT]
    config = run(recipe, tmp_path / "dropout", *start)["config"]
    assert config["vision_config"]["hidden_dropout_prob"] == 0.1  # says the recipe
    with pytest.raises(ValueError, match=r"dinov2 has no fitting weights for \d+ tensors of the host: dinov2\."):
        run(recipe, tmp_path / "wide", *start, "--host.hidden_size", "32")
    with pytest.raises(ValueError, match=r"host.model_type is 'swin', but host.name_or_path .*dinov2' is a dinov2"):
        run(recipe, tmp_path / "swin", *start, "--host.model_type", "swin")
    run(recipe, tmp_path / "same", *start, "--host.model_type", "dinov2")


def test_fields_of_the_image_half_of_a_published_clip(recipe, tmp_path):
    HOSTS["clip"].published().save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path / "clip")
    start = [*ANY_HOST, *TINY_RUN, "--host", "null", "--host.name_or_path", str(tmp_path / "clip"), *SHORT]
    results = run(recipe, tmp_path / "run", *start, "--host.attention_dropout", "0.25")
    assert results["config"]["vision_config"]["model_type"] == "clip_vision_model"
    assert results["config"]["vision_config"]["attention_dropout"] == 0.25
    assert results["config"]["vision_config"]["hidden_size"] == HOSTS["clip"].fields["hidden_size"]
    with pytest.raises(ValueError, match=r"Input image size \(24\*24\) doesn't match model"):
        run(recipe, tmp_path / "other", *start, "--image_size", "24")


def test_image_size_is_the_recipes(recipe, tmp_path):
    run(recipe, tmp_path, *TINY_DINOV2, *SHORT, "--image_size", "24")
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.image_size == 16
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 24, "width": 24}


def test_two_processes_with_parameters_that_are_not_used(recipe, tmp_path):
    """DINOv2's mask token has no gradient in a classifier."""
    steady = [*TINY_DINOV2, *SHORT, "--host.hidden_dropout_prob", "0", "--logging_steps", "1"]
    one = run(recipe, tmp_path / "one", *steady)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    halves = ["--ddp_backend", "gloo", "--per_device_train_batch_size", "4"]
    command = ["train", str(recipe), *steady, *halves, "--output_dir", str(tmp_path / "two")]
    subprocess.run(
        [*launcher, "-m", "hf_frozen_llm", *command],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["num_processes"] == 2
    for step in (0, 1):
        assert two["log_history"][step]["loss"] == pytest.approx(one["log_history"][step]["loss"], rel=1e-4)
    assert two["metrics"]["eval_top1"] == one["metrics"]["eval_top1"]
