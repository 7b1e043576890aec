# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The settings of a recipe reach the data, the transform and the optimizer of its run."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, TINY, make_images, write_image_folder
from transformers import TrainingArguments

from hf_frozen_llm.data.augmentation import draw_crop
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run, build_training_arguments, resolve


@pytest.fixture
def build(recipe, tmp_path):
    """`build("--key", "value", …)`: the run of the recipe with these flags."""
    return lambda *flags: build_run(read_recipe(recipe, [*TINY, "--output_dir", str(tmp_path / "run"), *flags]))


def rates_of(run):
    trainer = run.trainer()
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_layer_decay_and_the_scale_of_the_projections(build):
    rates = rates_of(build("--layer_decay", "0.5", "--projection_learning_rate_scale", "0.1"))
    assert rates["classifier.weight"] == pytest.approx(1e-3)
    assert rates["llm_block.input_projection.weight"] == pytest.approx(1e-4)
    assert rates["vit.embeddings.cls_token"] == pytest.approx(1e-3 * 0.5**3)
    assert rates["vit.layers.1.mlp.fc1.weight"] == pytest.approx(1e-3 * 0.5)


def test_base_learning_rate_counts_the_processes(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 3))
    (tmp_path / "recipe.yaml").write_text(recipe.read_text().replace("learning_rate: 1e-3\n", ""))
    flags = [
        "--base_learning_rate",
        "0.5",
        "--gradient_accumulation_steps",
        "2",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    settings = resolve(read_recipe(tmp_path / "recipe.yaml", [*TINY, *flags]))
    assert build_training_arguments(settings).learning_rate == pytest.approx(0.5 * 8 * 2 * 3 / 512)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_images_are_cropped_and_resized_as_the_recipe_says(name, build):
    flags = ["--interpolation", name, "--random_crop_scale", "[0.2, 0.3]", "--random_flip", "false"]
    run = build(*flags)
    resample = Image.Resampling[name.upper()]
    (image, *_), _ = make_images(1)
    left, top, width, height = draw_crop(image.size, [0.2, 0.3], np.random.default_rng((42, 0, 0)))
    crop = image.resize((16, 16), resample, box=(left, top, left + width, top + height))
    assert crop.tobytes() != image.resize((16, 16), resample).tobytes()
    crop = image.crop((left, top, left + width, top + height)).resize((16, 16), resample)
    for dataset, shown in ((run.train_dataset, crop), (run.eval_dataset, None)):
        shown = shown or make_images(1, seed=1)[0][0].resize((16, 16), resample)
        mean, std = (np.array(figures) for figures in (run.task.processor.image_mean, run.task.processor.image_std))
        expected = torch.from_numpy((np.asarray(shown) / 255 - mean) / std).permute(2, 0, 1).float()
        torch.testing.assert_close(dataset[0]["pixel_values"], expected, rtol=1e-5, atol=1e-5)


def test_each_split_has_its_own_numbers_of_the_classes(build, tmp_path):
    """A folder without some classes counts the others from 0; the labels are those of the training data."""
    write_image_folder(tmp_path)
    for name in ("ant", "bee", "dog"):
        shutil.rmtree(tmp_path / "test" / name)
    run = build("--dataset_name", str(tmp_path))
    labels = [run.eval_dataset[index]["labels"] for index in range(len(run.eval_dataset))]
    assert sorted(set(labels)) == [CLASSES.index(name) for name in ("cat", "elk", "fox")]
