# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Pillow's image operations in PyTorch, for batches of clips on any device; an image is a clip of one frame.

Clips `(batch, frames, 3, height, width)` hold whole numbers from 0 to 255, in floating point. The operations round as
Pillow's do on bytes, and take an amount for each clip, in Pillow's unit.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F


def auto_contrast(clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Stretch each channel of a frame to 0…255; it has no amount."""
    low, high = clips.amin((-2, -1), keepdim=True), clips.amax((-2, -1), keepdim=True)
    stretched = ((clips - low) * 255 / (high - low).clamp(min=1)).floor()
    return torch.where(high > low, stretched, clips)


def equalize(clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Make the histogram of each channel of a frame flat; it has no amount."""
    values = clips.flatten(0, 2).flatten(1).long()
    histogram = torch.zeros(len(values), 256, dtype=torch.long, device=clips.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    last = histogram.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - last) // 255
    below = histogram.cumsum(1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equalized = torch.where(step > 0, table.gather(1, values), values)
    return equalized.to(clips.dtype).view_as(clips)


def invert(clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Return the negative; it has no amount."""
    return 255 - clips


def posterize(clips: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the highest bits of each number; without any, all are 0."""
    return clips - clips % 2 ** (8 - bits)


def solarize(clips: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Invert the numbers from the threshold on."""
    return torch.where(clips < thresholds, clips, 255 - clips)


def solarize_add(clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Add the amount to the numbers below 128."""
    return torch.where(clips < 128, (clips + amounts).clamp(max=255), clips)


def to_grey(clips: torch.Tensor) -> torch.Tensor:
    """Return the luma of ITU-R 601-2 with one channel."""
    red, green, blue = clips.unbind(-3)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor().unsqueeze(-3)


def grayscale(clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Take the colours away; it has no amount."""
    return to_grey(clips).expand_as(clips)


def blend(originals: torch.Tensor, changed: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return `changed` for a factor of 0, and `originals` for 1; other factors lie between, or beyond."""
    return (changed + factors * (originals - changed)).clamp(0, 255).floor()


def saturation(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return blend(clips, to_grey(clips), factors)


def contrast(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return blend(clips, (to_grey(clips).mean((-2, -1), keepdim=True) + 0.5).floor(), factors)


def brightness(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return blend(clips, torch.zeros_like(clips), factors)


def sharpness(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image, whose border is not smoothed."""
    images = clips.flatten(0, 2).unsqueeze(1)
    kernel = clips.new_ones(1, 1, 3, 3)
    kernel[..., 1, 1] = 5
    smooth = images.clone()
    if min(images.shape[-2:]) > 2:
        smooth[..., 1:-1, 1:-1] = (F.conv2d(images, kernel) / 13 + 0.5).floor()
    return blend(clips, smooth.view_as(clips), factors)


def gaussian_blur(clips: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Blur by Gaussians of these standard deviations, in pixels; pixels outside are like those at the border."""
    reach = max(1, int(3 * float(deviations.max()) + 0.5))
    offsets = torch.arange(-reach, reach + 1, device=clips.device)
    kernels = torch.exp(-(offsets**2) / (2 * deviations.view(-1, 1) ** 2))
    kernels = kernels / kernels.sum(1, keepdim=True)
    planes = clips.shape[1] * 3
    kernels = kernels.repeat_interleave(planes, 0).to(clips.dtype)
    images = clips.flatten(0, 2).unsqueeze(0)
    for shape, padding in (
        ((-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)),
        ((-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach)),
    ):
        images = F.conv2d(F.pad(images, padding, mode="replicate"), kernels.view(shape), groups=len(kernels))
    return (images.view_as(clips) + 0.5).floor()


OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "grayscale": grayscale,
    "gaussian_blur": gaussian_blur,
    "saturation": saturation,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def move(
    clips: torch.Tensor, names: Sequence[str], amounts: torch.Tensor, fill: torch.Tensor, mode: str = "bilinear"
) -> torch.Tensor:
    """
    Rotate (by degrees, counter-clockwise), shear (by a factor, about the upper left corner) or translate (by pixels,
    to the left or up).

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, 3, height, width)`): in 0…255.
        names (`Sequence[str]`): for each clip, one of `MOVES`.
        amounts (`torch.Tensor` of shape `(batch,)`): for each clip.
        fill (`torch.Tensor` of shape `(3, 1, 1)`): the colour of pixels from outside.
        mode (`str`, *optional*, defaults to `"bilinear"`): `"bilinear"`, `"bicubic"` or `"nearest"`.
    """
    height, width = clips.shape[-2:]
    # Input coordinates (x, y) of an output pixel: a matrix, and what is added.
    matrices = torch.eye(2, 3).repeat(len(clips), 1, 1)
    for matrix, name, amount in zip(matrices, names, amounts.cpu()):
        if name == "rotate":
            angle = torch.deg2rad(amount)
            matrix[:, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
            center = torch.tensor([width / 2, height / 2])
            matrix[:, 2] = center - matrix[:, :2] @ center
        else:
            matrix[int(name.endswith("_y")), 2 if name.startswith("translate") else int(name == "shear_x")] = amount
    matrices = matrices.to(clips.device)
    y, x = torch.meshgrid(
        torch.arange(height, device=clips.device) + 0.5, torch.arange(width, device=clips.device) + 0.5, indexing="ij"
    )
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    source = torch.einsum("hwk,bik->bhwi", points, matrices)
    size = source.new_tensor([width, height])
    is_inside = ((source >= 0) & (source < size)).all(-1)
    moved = F.grid_sample(
        clips.flatten(1, 2), (2 * source / size - 1).to(clips.dtype), mode, padding_mode="border", align_corners=False
    )
    moved = (moved + 1e-3).clamp(0, 255).floor()  # whole numbers that the interpolation has rounded down stay
    return torch.where(is_inside[:, None, None], moved.view_as(clips), fill.to(clips))


def apply_operations(
    clips: torch.Tensor,
    names: Sequence[str],
    amounts: Sequence[float],
    fill: torch.Tensor,
    mode: str = "bilinear",
) -> torch.Tensor:
    """
    Apply to each clip its own operation: one of `OPERATIONS` or `MOVES`, or `"identity"`.

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, 3, height, width)`): in 0…255.
        names (`Sequence[str]`): the operation of each clip.
        amounts (`Sequence[float]`): its amount.
        fill (`torch.Tensor` of shape `(3, 1, 1)`): see [`move`].
        mode (`str`, *optional*, defaults to `"bilinear"`): see [`move`].

    Returns:
        `torch.Tensor`: new clips.
    """
    clips = clips.clone()
    strengths = torch.tensor(amounts, dtype=torch.float32)
    moved = [index for index, name in enumerate(names) if name in MOVES]
    if moved:
        clips[moved] = move(clips[moved], [names[index] for index in moved], strengths[moved], fill, mode)
    for name, operation in OPERATIONS.items():
        chosen = [index for index, other in enumerate(names) if other == name]
        if chosen:
            clips[chosen] = operation(clips[chosen], strengths[chosen].to(clips.device).view(-1, 1, 1, 1, 1))
    return clips
