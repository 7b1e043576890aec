# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Augmentation that several tasks share: random crops, and batches of clips on the device, with the same augmentation
for all frames of a clip.

kornia computes the operations; this module draws the operations, strengths and places, from one generator per batch.
(kornia's own `RandAugment` draws for every frame, and its `VideoSequential` does not accept it.)
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F


Op = Callable[[torch.Tensor, float], torch.Tensor]

# The operations of timm's "increasing" RandAugment, with its ranges: a greater strength is farther from the original.
# Factors and moves have two directions. Frames `(frames, 3, height, width)` are in 0…1, and strengths from 0 to 1.
ENHANCEMENTS = ("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
FACTORS = ("saturation", "contrast", "brightness", "sharpness")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def enhance(frames: torch.Tensor, name: str, strength: float) -> torch.Tensor:
    """Apply an operation that changes colours in one direction."""
    import kornia.enhance as K

    if name == "auto_contrast":
        return K.normalize_min_max(frames)
    if name == "equalize":
        return K.equalize(frames)
    if name == "invert":
        return 1 - frames
    if name == "posterize":
        return K.posterize(frames, 4 - int(4 * strength))
    if name == "solarize":
        return torch.where(frames < 1 - strength, frames, 1 - frames)
    return torch.where(frames < 0.5, (frames + strength * 110 / 255).clamp(max=1), frames)


def change_by_factor(frames: torch.Tensor, name: str, factor: float) -> torch.Tensor:
    """Blend with a grey, mean, black or blurred image; a factor of 1 is the original."""
    import kornia.enhance as K

    change: dict[str, Op] = {
        "saturation": K.adjust_saturation_with_gray_subtraction,
        "contrast": K.adjust_contrast_with_mean_subtraction,
        "brightness": K.adjust_brightness_accumulative,
        "sharpness": K.sharpness,
    }
    return change[name](frames, factor).clamp(0, 1)


def move(frames: torch.Tensor, name: str, amount: float, fill: torch.Tensor) -> torch.Tensor:
    """Rotate, shear or translate; `amount` is between -1 and 1. Pixels from outside have the colour `fill`."""
    import kornia.geometry.transform as K

    height, width = frames.shape[-2:]
    filled = frames - fill  # kornia fills with zeros

    def both(x: float, y: float) -> torch.Tensor:
        return frames.new_tensor([[x, y]]).expand(len(frames), 2)

    if name == "rotate":
        moved = K.rotate(filled, frames.new_full((len(frames),), 30 * amount))
    elif name == "shear_x":
        moved = K.shear(filled, both(0.3 * amount, 0))
    elif name == "shear_y":
        moved = K.shear(filled, both(0, 0.3 * amount))
    elif name == "translate_x":
        moved = K.translate(filled, both(0.45 * amount * width, 0))
    else:
        moved = K.translate(filled, both(0, 0.45 * amount * height))
    return (moved + fill).clamp(0, 1)


def rand_augment(
    clips: torch.Tensor, num_ops: int, magnitude: float, fill: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """
    Apply RandAugment ("RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS
    2020) as timm does: `rand-m{magnitude}-n{num_ops}-mstd0.5-inc1`.

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, 3, height, width)`): in 0…1.
        num_ops (`int`): operations drawn for each clip; each is applied with probability 1/2.
        magnitude (`float`): mean strength, from 0 to 10; the standard deviation is 0.5.
        fill (`torch.Tensor` of shape `(3, 1, 1)`): colour of pixels from outside.
        rng (`np.random.Generator`): generator of the random numbers.

    Returns:
        `torch.Tensor`: new clips.
    """
    augmented = []
    for frames in clips:
        for name in rng.choice([*ENHANCEMENTS, *FACTORS, *MOVES], num_ops):
            strength = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < 0.5:
                continue
            if name in ENHANCEMENTS:
                frames = enhance(frames, name, strength)
            elif name in FACTORS:
                frames = change_by_factor(frames, name, 1 + 0.9 * sign * strength)
            else:
                frames = move(frames, name, sign * strength, fill)
        augmented.append(frames)
    return torch.stack(augmented)


def draw_crop(
    image_size: tuple[int, int], scale: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """
    Draw a random crop as torchvision's `RandomResizedCrop` does.

    Args:
        image_size (`tuple[int, int]`): width and height of the image.
        scale (`Sequence[float]`): smallest and largest share of the image that the crop covers.
        rng (`np.random.Generator`): generator of the random numbers.

    Returns:
        `tuple[int, int, int, int]`: left, top, width and height.
    """
    width, height = image_size
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def draw_box(height: int, width: int, share: float, ratio: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw a box of this share of the area and this ratio of height and width, at most the image."""
    h = min(height, round(math.sqrt(share * height * width * ratio)))
    w = min(width, round(math.sqrt(share * height * width / ratio)))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return slice(top, top + h), slice(left, left + w)


def erase_randomly(clips: torch.Tensor, chance: float, rng: np.random.Generator) -> torch.Tensor:
    """
    Replace a box of normalised clips, the same one in all frames, by normal noise ("Random Erasing Data
    Augmentation", AAAI 2020; with timm's ranges: 2 % to 1/3 of the area, ratio 0.3 to 3.3).
    """
    clips = clips.clone()
    noise = torch.Generator(clips.device).manual_seed(int(rng.integers(2**62)))
    for clip in clips:
        if rng.random() < chance:
            share, ratio = rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
            rows, columns = draw_box(clip.shape[-2], clip.shape[-1], share, ratio, rng)
            part = clip[..., rows, columns]
            part.copy_(torch.randn(part.shape, generator=noise, dtype=part.dtype, device=part.device))
    return clips


def mix(
    clips: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mix every clip with the clip at the mirrored position in the batch, all with the same share, by Mixup ("mixup:
    Beyond Empirical Risk Minimization", ICLR 2018) or CutMix ("CutMix", ICCV 2019); with both, draw one of them.
    `labels` are indices `(batch,)`, or 1 for each label of a clip and 0 for the others, `(batch, num_labels)`.

    Returns:
        `tuple`: new clips, and the share of every label, of shape `(batch, num_labels)`.
    """
    shares = (labels if labels.ndim == 2 else F.one_hot(labels, num_labels)).to(clips.dtype)
    cuts = cutmix_alpha > 0 and (mixup_alpha == 0 or rng.random() < 0.5)
    alpha = cutmix_alpha if cuts else mixup_alpha
    kept = float(rng.beta(alpha, alpha))
    if cuts:
        height, width = clips.shape[-2:]
        rows, columns = draw_box(height, width, 1 - kept, height / width, rng)
        mixed = clips.clone()
        mixed[..., rows, columns] = clips.flip(0)[..., rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        mixed = kept * clips + (1 - kept) * clips.flip(0)
    return mixed, kept * shares + (1 - kept) * shares.flip(0)
