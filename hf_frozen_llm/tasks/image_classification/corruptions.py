# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Corruptions of evaluation images ("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019), with the definitions and constants of its published sets: `ImageNet-C/create_c/make_cifar_c.py` and
`make_imagenet_c.py` of github.com/hendrycks/robustness.

A corruption is a function of an image of shape `(height, width, 3)` and type uint8, of its constant at one severity,
and of a generator of random numbers; it returns another such image.
"""

import hashlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


SEVERITIES = (1, 2, 3, 4, 5)
# Longest side, in pixels, of images that get the constants of CIFAR-10-C.
SMALL_SIDE = 64


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image in 0…1. The published sets cut the fractions off, too."""
    return (image.clip(0, 1) * 255).astype(np.uint8)


def gaussian_noise(pixels: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add independent normal noise to every value."""
    return to_uint8(pixels / 255 + rng.normal(0, std, pixels.shape))


def defocus_blur(pixels: np.ndarray, disk: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Blur by a disk; `disk` has its radius and the blur of its edge."""
    blurred = correlate(pixels / 255, disk_kernel(*disk))
    return to_uint8(blurred + 1e-9)  # so that rounding errors of the Fourier transform do not decide on an integer


def disk_kernel(radius: float, edge_blur: float) -> np.ndarray:
    """
    Return a disk that is smoothed by a Gaussian of 3 or, above a radius of 8 pixels, 5 pixels a side. The Gaussian
    mirrors the disk at the border of the kernel, so that kernels of radius 8 and 10 add up to slightly more than 1.
    """
    reach, gaussian_reach = (8, 1) if radius <= 8 else (int(radius), 2)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(float)
    gaussian = np.exp(-(np.arange(-gaussian_reach, gaussian_reach + 1) ** 2) / (2 * edge_blur**2))
    gaussian /= gaussian.sum()
    return correlate((disk / disk.sum())[..., None], np.outer(gaussian, gaussian))[..., 0]


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel with a square kernel of odd side. The image is mirrored at its outermost pixels."""
    (height, width), reach = image.shape[:2], len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size).conj()[..., None]
    return np.fft.irfft2(spectrum, size, axes=(0, 1))[:height, :width]


def brightness(pixels: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Add to the value of HSV. Hue and saturation stay, so each channel stays below it by the same share."""
    rgb = pixels / 255
    value = rgb.max(-1, keepdims=True)
    share = np.divide(value - rgb, value, out=np.zeros_like(rgb), where=value > 0)  # black becomes grey
    return to_uint8(np.minimum(value + amount, 1) * (1 - share))


def contrast(pixels: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the difference from the mean of each channel."""
    rgb = pixels / 255
    mean = rgb.mean((0, 1))
    return to_uint8(mean + factor * (rgb - mean))


def jpeg_compression(pixels: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode as JPEG."""
    with BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.array(Image.open(file))


class Corruption(NamedTuple):
    """A function, and its constants at severity 1 to 5 in CIFAR-10-C and in ImageNet-C."""

    function: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    cifar: tuple[Any, ...]
    imagenet: tuple[Any, ...]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "defocus_blur": Corruption(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}


def is_small(image: Image.Image) -> bool:
    return max(image.size) <= SMALL_SIDE


def corrupt(image: Image.Image, name: str, severity: int) -> Image.Image:
    """
    Corrupt an image as in CIFAR-10-C if it is small, else as in ImageNet-C.

    Args:
        image (`Image.Image`): an RGB image.
        name (`str`): a key of `CORRUPTIONS`.
        severity (`int`): from 1 to 5.

    Returns:
        `Image.Image`: a new image of the same size.
    """
    pixels, corruption = np.asarray(image), CORRUPTIONS[name]
    constants = corruption.cifar if is_small(image) else corruption.imagenet
    # The pixels are the seed: row numbers depend on `max_eval_samples` and, in streams, on the number of workers.
    rng = np.random.default_rng(list(hashlib.sha256(pixels.tobytes()).digest()))
    return Image.fromarray(corruption.function(pixels, constants[severity - 1], rng))
