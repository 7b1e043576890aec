# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""FGSM and PGD by captum, compared with naive implementations, on a ViT with an LLM block."""

import pytest
import torch
from saved_models import build
from torch.nn import functional as F
from vision_cases import VIT

from hf_frozen_llm.tasks.image_classification.attacks import ATTACKS, EPSILON, attack


MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
STEPS = {"fgsm": [1 / 255], "pgd": [0.5 / 255] * 5}


@pytest.fixture(scope="module")
def model(llm):
    return build(llm)


@pytest.fixture(scope="module")
def images(model):
    """Images with black and white pixels, and their labels."""
    torch.manual_seed(0)
    pixels = (1.4 * torch.rand(VIT.inputs(4)["pixel_values"].shape) - 0.2).clamp(0, 1)
    return pixels, torch.arange(4) % model.config.num_labels


def losses(model, pixels, labels):
    return F.cross_entropy(model(pixel_values=(pixels - mean) / std)["logits"], labels, reduction="none")


def direct(name, model, pixels, labels):
    """Ascend each image's loss by the sign of its gradient, within 1/255 of the image and within 0…1."""
    changed = []
    for image, label in zip(pixels.split(1), labels.split(1)):
        now = image.clone()
        for step in STEPS[name]:
            now.requires_grad_(True)
            (gradient,) = torch.autograd.grad(losses(model, now, label).sum(), now)
            now = (now + step * gradient.sign()).detach()
            now = torch.min(torch.max(now, image - 1 / 255), image + 1 / 255).clamp(0, 1)
        changed.append(now)
    return torch.cat(changed)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_the_definition(model, images, name):
    pixels, labels = images
    with torch.no_grad():
        attacked = attack(name, model, (pixels - mean) / std, labels, MEAN, STD) * std + mean
        after = losses(model, attacked, labels)
        before = losses(model, pixels, labels)
    expected = direct(name, model, pixels, labels)
    # A gradient of almost 0 may have the other sign in a batch.
    assert ((attacked - expected).abs() < 1e-6).float().mean() > 0.999
    assert (attacked - pixels).abs().max() <= EPSILON + 1e-6 and EPSILON == 1 / 255
    assert attacked.min() > -1e-6 and attacked.max() < 1 + 1e-6
    assert ((attacked - pixels).abs() > 1e-4).float().mean() > 0.8
    assert (after > before).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_it_sees_the_fast_path_and_the_plain_one_alike(model, images, name):
    pixels, labels = images
    attacked = []
    for fast in (True, False):
        model.llm_block.config.fast = fast
        attacked.append(attack(name, model, (pixels - mean) / std, labels, MEAN, STD))
    model.llm_block.config.fast = True
    assert ((attacked[0] - attacked[1]).abs() < 1e-5).float().mean() > 0.99


def test_it_is_not_fooled_by_small_gradients(llm, images):
    """A model that is almost certain has gradients far below 1e-6."""
    pixels, labels = images
    confident = build(llm)
    confident.classifier.weight.data.zero_()
    confident.classifier.weight.data[:, 0] = 1e-7 * torch.arange(confident.config.num_labels)
    for name in ATTACKS:
        attacked = attack(name, confident, (pixels - mean) / std, labels, MEAN, STD) * std + mean
        assert ((attacked - pixels).abs() > 1e-4).float().mean() > 0.8
