# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Each operation against Pillow's on the same bytes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from hf_frozen_llm.data.image_operations import MOVES, OPERATIONS, apply_operations, move


FILL = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
COLOR = (124, 116, 104)
SIZE = (23, 31)  # height and width


def make_images(number=6, size=SIZE):
    """Return bytes: soft pictures with a narrow or wide range, one of noise, and one with a plain channel."""
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(number, 3, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(soft, size, mode="bicubic").clamp(0, 1)
    images = images * torch.linspace(0.3, 1, number).view(-1, 1, 1, 1) * 255
    images[-1] = 255 * torch.rand(3, *size, generator=generator)
    images[-2, 1] = 77
    return images.round()


def to_pil(image):
    return Image.fromarray(image.byte().permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def factor_of(kind):
    return lambda image, factor: kind(image).enhance(factor)


PILLOW = {
    "auto_contrast": (lambda image, amount: ImageOps.autocontrast(image), [0.0]),
    "equalize": (lambda image, amount: ImageOps.equalize(image), [0.0]),
    "invert": (lambda image, amount: ImageOps.invert(image), [0.0]),
    "posterize": (lambda image, bits: ImageOps.posterize(image, int(bits)), [1.0, 2.0, 4.0, 7.0, 8.0]),
    "solarize": (lambda image, threshold: ImageOps.solarize(image, threshold), [0.0, 26.0, 128.0, 212.5, 256.0]),
    "solarize_add": (
        lambda image, add: image.point([min(255, i + int(add)) if i < 128 else i for i in range(256)] * 3),
        [0.0, 55.0, 110.0],
    ),
    "grayscale": (lambda image, amount: image.convert("L").convert("RGB"), [0.0]),
    "saturation": (factor_of(ImageEnhance.Color), [0.1, 0.7, 1.0, 1.81, 1.9]),
    "contrast": (factor_of(ImageEnhance.Contrast), [0.1, 0.7, 1.0, 1.81, 1.9]),
    "brightness": (factor_of(ImageEnhance.Brightness), [0.1, 0.7, 1.0, 1.81, 1.9]),
    "sharpness": (factor_of(ImageEnhance.Sharpness), [0.1, 0.7, 1.0, 1.81, 1.9]),
}


@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_exactly_those_of_pillow(name):
    pillow, amounts = PILLOW[name]
    images = make_images()
    for amount in amounts:
        ours = OPERATIONS[name](images[:, None], torch.full((len(images), 1, 1, 1, 1), amount))[:, 0]
        theirs = torch.stack([from_pil(pillow(to_pil(image), amount)) for image in images])
        # Pillow computes the table of autocontrast in floating point, and may fall just below a whole number.
        tolerance = 1 if name == "auto_contrast" else 0
        assert (ours - theirs).abs().max() <= tolerance, (name, amount)
        assert (ours != theirs).float().mean() < 0.02


def test_all_operations_are_compared():
    assert {*PILLOW, "gaussian_blur"} == set(OPERATIONS)


@pytest.mark.parametrize("radius", [0.1, 0.7, 2.0])
def test_blur_is_close_to_that_of_pillow(radius):
    """Pillow approximates Gaussians by three box filters."""
    images = make_images(5, (40, 48))
    ours = OPERATIONS["gaussian_blur"](images[:, None], torch.full((5, 1, 1, 1, 1), radius))[:, 0]
    theirs = torch.stack([from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(radius))) for image in images])
    inner = (ours - theirs)[..., 6:-6, 6:-6].abs()  # Pillow treats the border otherwise
    assert (ours - theirs).abs().mean() < 1.5 and inner.max() <= 13
    reach = max(1, int(3 * radius + 0.5))
    exact = ndimage.gaussian_filter(images.double().numpy(), radius, mode="nearest", radius=reach, axes=(-2, -1))
    assert np.abs(ours.numpy() - exact).max() < 0.51  # rounded
    impulse = torch.zeros(1, 1, 3, 21, 21)
    impulse[..., 10, 10] = 255
    blurred = OPERATIONS["gaussian_blur"](impulse, torch.full((1, 1, 1, 1, 1), radius))[0, 0, 0]
    offsets = np.arange(-10, 11)
    line = np.exp(-(offsets**2) / (2 * radius**2))
    line /= line.sum()
    assert np.abs(blurred.numpy() - 255 * np.outer(line, line)).max() < 1


def pillow_move(image, name, amount, resample):
    """What timm's RandAugment calls."""
    if name == "rotate":
        return image.rotate(amount, resample, fillcolor=COLOR)
    matrix = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=COLOR)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_those_of_pillow(name, mode):
    images = make_images()
    for amount in {"rotate": [27.0, -13.0], "shear_x": [0.27, -0.9]}.get(name, [0.3, 6.3, -4.0]):
        ours = move(images[:, None], [name] * len(images), torch.full((len(images),), amount), FILL, mode)[:, 0]
        resample = Image.Resampling[mode.upper()]
        theirs = torch.stack([from_pil(pillow_move(to_pil(image), name, amount, resample)) for image in images])
        soft = (ours - theirs)[:-1].abs()  # not the noise
        # Pillow's cubic has the parameter -1, PyTorch's -0.75
        assert soft.quantile(0.99) <= (6 if mode == "bicubic" else 1), (name, amount)
        assert soft.mean() < (0.6 if mode == "bicubic" else 0.1)
        if mode == "bilinear":
            assert (ours - theirs).abs().quantile(0.98) <= 1


def test_each_clip_has_its_own_operation():
    clips = make_images(6)[:, None].repeat(1, 2, 1, 1, 1)
    names = ["identity", "rotate", "solarize", "shear_y", "identity", "solarize"]
    amounts = [0.0, 20.0, 100.0, 0.2, 0.0, 200.0]
    before = clips.clone()
    changed = apply_operations(clips, names, amounts, FILL)
    assert torch.equal(clips, before)
    for index, (name, amount) in enumerate(zip(names, amounts)):
        alone = apply_operations(clips[index : index + 1], [name], [amount], FILL)[0]
        assert torch.equal(changed[index], alone)
        assert torch.equal(changed[index, 0], changed[index, 1])  # frames of a still clip
        assert torch.equal(alone, clips[index]) == (name == "identity")


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
@pytest.mark.parametrize("name", [*OPERATIONS, *MOVES])
def test_images_of_few_pixels(name, size):
    clips = make_images(3, size)[:, None]
    changed = apply_operations(clips, [name] * 3, [2.0] * 3, FILL)
    assert changed.shape == clips.shape and changed.min() >= 0 and changed.max() <= 255
    assert torch.equal(changed, changed.round())
