# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Adversarial attacks on images by captum (the extra `robust`), which is imported where it is used."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


# In pixel values between 0 and 1, of the largest change of a value: the norm of both attacks is L-infinity.
EPSILON = 1 / 255
PGD_STEPS = 5
PGD_STEP_SIZE = 0.5 / 255
ATTACKS = {
    "fgsm": "L-inf, epsilon 1/255 of pixels in 0..1",
    "pgd": "L-inf, epsilon 1/255 of pixels in 0..1, 5 steps of 0.5/255, no random start",
}


def check_captum() -> None:
    try:
        import captum.robust  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The suites fgsm and pgd need captum: pip install 'hf_frozen_llm[robust]', or, to keep the installed "
            "torch as it is, pip install --no-deps captum"
        ) from error


def attack(
    name: str,
    model: nn.Module,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    image_mean: list[float],
    image_std: list[float],
) -> torch.Tensor:
    """
    Change images so that the cross-entropy of a model rises.

    Args:
        name (`str`):
            A key of `ATTACKS`.
        model (`nn.Module`):
            A model with `logits` in its output, in evaluation mode; its parameters get no gradients.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
            The normalised images.
        labels (`torch.Tensor` of shape `(batch,)`):
            Their true labels.
        image_mean (`list[float]`):
            Mean that was subtracted from pixel values in 0…1.
        image_std (`list[float]`):
            Deviation by which these were divided.

    Returns:
        `torch.Tensor`: the changed images, normalised: each pixel value is within `EPSILON` of its own, and in 0…1.
    """
    from captum.robust import FGSM, PGD

    mean, std = (
        torch.tensor(values, dtype=pixel_values.dtype, device=pixel_values.device)[:, None, None]
        for values in (image_mean, image_std)
    )

    def find_logits(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=(pixels - mean) / std)["logits"].float()

    def find_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    kind: Any = {"fgsm": FGSM, "pgd": PGD}[name]
    attacker = kind(find_logits, find_losses, lower_bound=0.0, upper_bound=1.0)
    # captum leaves values with a gradient below 1e-6 as they are, which would spare images of confident models.
    getattr(attacker, "fgsm", attacker).zero_thresh = 0.0
    pixels = (pixel_values * std + mean).clamp(0, 1)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of images that need no gradients otherwise
        if name == "fgsm":
            changed = attacker.perturb(pixels, EPSILON, target=labels)
        else:
            changed = attacker.perturb(pixels, EPSILON, PGD_STEP_SIZE, PGD_STEPS, target=labels)
    return ((changed - mean) / std).detach()
