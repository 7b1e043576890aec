# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Augmentation of images and videos: random crops, and batches on the device. A batch is one of clips `(batch, frames, 3,
height, width)`, with the same augmentation for all frames of a clip; an image is a clip of one frame.

All numbers are drawn from one generator per batch. Those of a policy are drawn clip by clip; then each operation runs
once for all of its clips.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_frozen_llm.data.augmentation_arguments import AugmentationArguments
from hf_frozen_llm.data.datasets import RepeatedSampler, TransformedDataset
from hf_frozen_llm.data.image_operations import apply_operations


# The operations of timm's "increasing" RandAugment, where a greater strength is farther from the original.
ENHANCEMENTS = ("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
FACTORS = ("saturation", "contrast", "brightness", "sharpness")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# Those of torchvision's TrivialAugmentWide, with the largest amount of those that have two directions.
WIDE = {
    "identity": 0.0,
    "shear_x": 0.99,
    "shear_y": 0.99,
    "translate_x": 32.0,
    "translate_y": 32.0,
    "rotate": 135.0,
    "brightness": 0.99,
    "saturation": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
    "posterize": 0.0,
    "solarize": 0.0,
    "auto_contrast": 0.0,
    "equalize": 0.0,
}
WIDE_BINS = 31
BLUR = (0.1, 2.0)

Drawn = tuple[list[str], list[float]]  # an operation and its amount for each clip


def find_amount(name: str, strength: float, sign: int, height: int, width: int) -> float:
    """Return the amount of an operation of RandAugment, as timm does, for a strength from 0 to 1."""
    if name in FACTORS:
        return max(0.1, 1 + 0.9 * sign * strength)
    largest = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45 * width, "translate_y": 0.45 * height}
    if name in MOVES:
        return sign * strength * largest[name]
    if name == "posterize":
        return 4 - int(4 * strength)
    if name == "solarize":
        return 256 - int(256 * strength)
    return min(128, int(110 * strength))


def rand_augment(
    clips: torch.Tensor,
    num_ops: int,
    magnitude: float,
    fill: torch.Tensor,
    rng: np.random.Generator,
    mode: str = "bilinear",
) -> torch.Tensor:
    """
    Apply RandAugment ("RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS
    2020) as timm does: `rand-m{magnitude}-n{num_ops}-mstd0.5-inc1`.

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, 3, height, width)`): in 0…255.
        num_ops (`int`): operations drawn for each clip; each is applied with probability 1/2.
        magnitude (`float`): mean strength, from 0 to 10; the standard deviation is 0.5.
        fill (`torch.Tensor` of shape `(3, 1, 1)`): colour of pixels from outside.
        rng (`np.random.Generator`): generator of the random numbers.
        mode (`str`, *optional*, defaults to `"bilinear"`): how moved pixels are interpolated.

    Returns:
        `torch.Tensor`: new clips.
    """
    height, width = clips.shape[-2:]
    rounds: list[Drawn] = [([], []) for _ in range(num_ops)]
    for _ in range(len(clips)):
        names = rng.choice([*ENHANCEMENTS, *FACTORS, *MOVES], num_ops)
        for (chosen, amounts), name in zip(rounds, map(str, names)):
            strength = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
            sign = 1 if rng.random() < 0.5 else -1
            chosen.append("identity" if rng.random() < 0.5 else name)
            amounts.append(find_amount(name, strength, sign, height, width))
    for chosen, amounts in rounds:
        clips = apply_operations(clips, chosen, amounts, fill, mode)
    return clips


def trivial_augment(clips: torch.Tensor, rng: np.random.Generator, mode: str = "bilinear") -> torch.Tensor:
    """
    Change each clip by one operation of random strength ("TrivialAugment: Tuning-free Yet State-of-the-Art Data
    Augmentation", ICCV 2021), as torchvision's TrivialAugmentWide does. Pixels from outside are black.
    """
    names: list[str] = []
    amounts: list[float] = []
    for _ in range(len(clips)):
        name, place = str(rng.choice(list(WIDE))), int(rng.integers(WIDE_BINS)) / (WIDE_BINS - 1)
        signed = (1 if rng.random() < 0.5 else -1) * place * WIDE[name]
        names.append(name)
        if name == "posterize":
            amounts.append(8 - round(6 * place))
        elif name == "solarize":
            amounts.append(255 * (1 - place))
        elif name in FACTORS:
            amounts.append(1 + signed)
        else:
            amounts.append(int(signed) if name.startswith("translate") else signed)
    return apply_operations(clips, names, amounts, clips.new_zeros(3, 1, 1), mode)


def three_augment(clips: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change each clip to grey, solarise or blur it: 3-Augment of "DeiT III: Revenge of the ViT" (ECCV 2022)."""
    names = [str(name) for name in rng.choice(["grayscale", "solarize", "gaussian_blur"], len(clips))]
    amounts = [float(rng.uniform(*BLUR)) if name == "gaussian_blur" else 128.0 for name in names]
    return apply_operations(clips, names, amounts, clips.new_zeros(3, 1, 1))


def jitter_colors(clips: torch.Tensor, largest: float, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast and saturation of each clip, in random order, as torchvision's ColorJitter does."""
    orders = [rng.permutation(["brightness", "contrast", "saturation"]).tolist() for _ in range(len(clips))]
    factors = rng.uniform(max(0.0, 1 - largest), 1 + largest, (len(clips), 3))
    for place in range(3):
        names = [order[place] for order in orders]
        clips = apply_operations(clips, names, factors[:, place].tolist(), clips.new_zeros(3, 1, 1))
    return clips


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


def draw_box(
    height: int, width: int, share: float, ratio: float, rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Draw a box of this share of the area and this ratio of height and width; `None` if it is not in the image."""
    h, w = round(math.sqrt(share * height * width * ratio)), round(math.sqrt(share * height * width / ratio))
    if h >= height or w >= width:
        return None
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return slice(top, top + h), slice(left, left + w)


def erase_randomly(clips: torch.Tensor, chance: float, rng: np.random.Generator) -> torch.Tensor:
    """
    Replace a box of normalised clips, the same one in all frames, by normal noise ("Random Erasing Data
    Augmentation", AAAI 2020), as timm does in its mode `pixel`: 2 % to 1/3 of the area, ratio 0.3 to 1/0.3.
    """
    clips = clips.clone()
    noise = torch.Generator(clips.device).manual_seed(int(rng.integers(2**62)))
    limit = math.log(0.3)
    for clip in clips:
        if rng.random() >= chance:
            continue
        for _ in range(10):
            share, ratio = rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(limit, -limit))
            box = draw_box(clip.shape[-2], clip.shape[-1], share, ratio, rng)
            if box is not None:
                part = clip[..., box[0], box[1]]
                part.copy_(torch.randn(part.shape, generator=noise, dtype=part.dtype, device=part.device))
                break
    return clips


def draw_cut(height: int, width: int, kept: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw CutMix's box of the share `1 - kept`, about a point anywhere in the image, so far as the image has it."""
    sides = []
    for side in (height, width):
        half, middle = int(side * math.sqrt(1 - kept)) // 2, int(rng.integers(side))
        sides.append(slice(max(0, middle - half), min(side, middle + half)))
    return sides[0], sides[1]


def mix(
    clips: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    rng: np.random.Generator,
    switch_prob: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mix every clip with the clip at the mirrored position in the batch, all with the same share, by Mixup ("mixup:
    Beyond Empirical Risk Minimization", ICLR 2018) or CutMix ("CutMix", ICCV 2019); with both, draw one of them,
    CutMix with `switch_prob`. `labels` are indices `(batch,)`, or 1 for each label of a clip and 0 for the others,
    `(batch, num_labels)`.

    Returns:
        `tuple`: new clips, and the share of every label, of shape `(batch, num_labels)`.
    """
    shares = (labels if labels.ndim == 2 else F.one_hot(labels, num_labels)).to(clips.dtype)
    cuts = cutmix_alpha > 0 and (mixup_alpha == 0 or rng.random() < switch_prob)
    alpha = cutmix_alpha if cuts else mixup_alpha
    kept = float(rng.beta(alpha, alpha))
    if cuts:
        height, width = clips.shape[-2:]
        rows, columns = draw_cut(height, width, kept, rng)
        mixed = clips.clone()
        mixed[..., rows, columns] = clips.flip(0)[..., rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        mixed = kept * clips + (1 - kept) * clips.flip(0)
    return mixed, kept * shares + (1 - kept) * shares.flip(0)


class BatchAugmentation:
    """
    The augmentation of batches of bytes, and their normalisation.

    Args:
        args ([`AugmentationArguments`]): the recipe keys.
        processor (`Any`): the image processor, which has `image_mean` and `image_std`, in 0…1.
        config (`PreTrainedConfig`): that of the model, for the number of classes.
    """

    def __init__(self, args: AugmentationArguments, processor: Any, config: Any):
        self.args, self.processor, self.config = args, processor, config
        self.epoch = torch.zeros((), dtype=torch.long)  # that of the training data

    @property
    def mean(self) -> torch.Tensor:
        return torch.tensor(self.processor.image_mean).view(3, 1, 1)

    @property
    def std(self) -> torch.Tensor:
        return torch.tensor(self.processor.image_std).view(3, 1, 1)

    def sampler(self, dataset: TransformedDataset, batch_size: int, seed: int) -> RepeatedSampler | None:
        """Follow the epoch of the training data; return their order if they are repeated, see `Task.sampler`."""
        self.epoch = dataset.epoch
        repeats: Any = self.args.repeated_augmentation
        return RepeatedSampler(dataset, repeats, batch_size, seed) if repeats > 1 else None

    def normalize(self, clips: torch.Tensor) -> torch.Tensor:
        return (clips - self.mean.to(clips.device)) / self.std.to(clips.device)

    def change(self, clips: torch.Tensor, rng: np.random.Generator, mode: str) -> torch.Tensor:
        """Change colours and shapes of clips in 0…255."""
        args: Any = self.args
        if args.rand_augment_ops > 0:
            fill = (255 * self.mean).round().clamp(max=255)
            clips = rand_augment(clips, args.rand_augment_ops, args.rand_augment_magnitude, fill, rng, mode)
        elif args.trivial_augment:
            clips = trivial_augment(clips, rng, mode)
        elif args.three_augment:
            clips = three_augment(clips, rng)
        return jitter_colors(clips, args.color_jitter, rng) if args.color_jitter > 0 else clips

    def __call__(
        self, clips: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator, mode: str, mirrors: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return augmented and normalised clips, and their labels; if they were mixed, the share of every label.

        Args:
            clips (`torch.Tensor` of shape `(batch, frames, 3, height, width)`): bytes.
            labels (`torch.Tensor`): see [`mix`].
            rng (`np.random.Generator`): generator of the random numbers.
            mode (`str`): how moved pixels are interpolated.
            mirrors (`bool`): whether half of the clips are mirrored.
        """
        args: Any = self.args
        clips = self.change(clips.float(), rng, mode)
        if mirrors:
            is_flipped = torch.from_numpy(rng.random(len(clips)) < 0.5).to(clips.device)
            clips = torch.where(is_flipped.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
        clips = self.normalize(clips / 255)
        if args.random_erasing > 0:
            clips = erase_randomly(clips, args.random_erasing, rng)
        is_over = args.mixup_off_epoch is not None and int(self.epoch) >= args.mixup_off_epoch
        if args.is_mixing and not is_over and (args.mixup_prob == 1 or rng.random() < args.mixup_prob):
            alphas = (args.mixup_alpha, args.cutmix_alpha)
            clips, labels = mix(clips, labels, self.config.num_labels, *alphas, rng, args.mixup_switch_prob)
        return clips, labels
