# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Accumulated gradients are those of the large batch, for each kind of loss."""

import datasets
import pytest
import torch
from tiny_runs import (
    CLASSES,
    TINY,
    TINY_METER,
    TINY_VIDEOMAE,
    make_images,
    write_parquet,
    write_shapes,
    write_video_folder,
)
from tiny_traffic import TINY_VECTORNET, write_pedestrians
from torch import nn

from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


# One step of plain gradient descent: the change of the weights is the gradient.
ONE_STEP = ["--max_steps", "1", "--optim", "sgd", "--learning_rate", "1", "--max_grad_norm", "0"]
ONE_STEP += ["--lr_scheduler_type", "constant", "--warmup_steps", "0", "--weight_decay", "0"]
ONE_STEP += ["--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", "1"]
PARTS = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]


def write_multi_label(folder):
    images, labels = make_images(24)
    columns = {"image": images, "label": [[CLASSES[label], CLASSES[(label + 1) % 6]] for label in labels]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=CLASSES))}
    )
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


IMAGES = ["image_classification/tiny.yaml", *TINY, "--eval_split", "null", "--image_column", "image"]
CASES = {
    "cross entropy": (IMAGES, write_parquet),
    "smoothed and weighted": (
        [*IMAGES, "--label_smoothing_factor", "0.1", "--class_weights", "balanced"],
        write_parquet,
    ),
    "binary cross entropy": (
        [*IMAGES, "--problem_type", "multi_label_classification", "--label_smoothing_factor", "0"],
        write_multi_label,
    ),
    "videos": (
        ["video_classification/tiny.yaml", *TINY_VIDEOMAE, "--mixup_alpha", "0", "--cutmix_alpha", "0"],
        lambda folder: write_video_folder(folder, {"train": 24, "test": 12}),
    ),
    "answers, by the model": (
        ["visual_question_answering/tiny.yaml", *TINY_METER, "--min_answer_count", "1"],
        lambda folder: write_shapes(folder, {"train.small": 24, "val": 12}),
    ),
    "trajectories, by the model": (["motion_forecasting/tiny.yaml", *TINY_VECTORNET], write_pedestrians),
}


def gradients(flags, output_dir):
    """Return the loss and the gradients of the first step, computed in float64 without dropout."""
    run = build_run(read_recipe(flags[0], [*flags[1:], *ONE_STEP, "--output_dir", str(output_dir)]))
    for module in run.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    run.model.double()
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    trainer = run.trainer()
    trainer.train()
    changes = {name: before[name] - parameter.detach() for name, parameter in trained.items()}
    return trainer.state.log_history[0]["loss"], changes


@pytest.mark.parametrize("case", CASES)
def test_step_of_accumulated_batches_is_that_of_the_large_one(case, llm, tmp_path):
    flags, write = CASES[case]
    block = ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    flags = [*flags, "--dataset_name", write(tmp_path / "data"), *block]
    loss, whole = gradients([*flags, "--per_device_train_batch_size", "8"], tmp_path / "whole")
    same_loss, parts = gradients([*flags, *PARTS], tmp_path / "parts")
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert max(change.abs().max() for change in whole.values()) > 1e-3
    for name, change in whole.items():
        # The loss of classification is computed in float32.
        torch.testing.assert_close(parts[name], change, rtol=1e-5, atol=1e-6 * change.abs().max().item() + 1e-9)
