# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Corruptions of evaluation images ("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019), with the definitions and constants of its published sets: `ImageNet-C/create_c/make_cifar_c.py` and
`make_imagenet_c.py` of github.com/hendrycks/robustness. Only `frost` differs, as it blends a made texture instead of
photographs.

A corruption is a function of an image of shape `(height, width, 3)` and type uint8, of its constant at one severity,
and of a generator of random numbers; it returns another such image.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
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


def shot_noise(pixels: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Count photons: white are `photons` of them in the mean."""
    return to_uint8(rng.poisson(pixels / 255 * photons) / photons)


def impulse_noise(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Replace this share of all values, half by 0 and half by 255."""
    is_replaced, is_white = rng.random((2, *pixels.shape)) <= np.reshape([share, 0.5], (2, 1, 1, 1))
    return np.where(is_replaced, np.where(is_white, 255, 0), pixels).astype(np.uint8)


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


def gaussian_blur(image: np.ndarray, std: float) -> np.ndarray:
    """Blur each channel as `skimage.filters.gaussian` does: border pixels continue beyond the border."""
    return import_ndimage().gaussian_filter(image, (std, std, 0), mode="nearest", truncate=4)


def import_ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("This corruption needs scipy: pip install 'hf_frozen_llm[robust]'") from error
    return ndimage


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel with a square kernel of odd side. The image is mirrored at its outermost pixels."""
    (height, width), reach = image.shape[:2], len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size).conj()[..., None]
    return np.fft.irfft2(spectrum, size, axes=(0, 1))[:height, :width]


def glass_blur(pixels: np.ndarray, glass: tuple[float, int, int], rng: np.random.Generator) -> np.ndarray:
    """
    Blur, move pixels and blur again; `glass` has the standard deviation of both blurs, the largest distance of a move
    and the number of rounds. In a round each pixel, from the last one on, becomes a random neighbour. (The published
    code is written as a swap, but its second assignment reads what the first one wrote.)
    """
    std, reach, rounds = glass
    blurred = to_uint8(gaussian_blur(pixels / 255, std))
    height, width = pixels.shape[:2]
    sources = list(range(height * width))
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    targets = (rows[:, None] * width + columns).ravel()
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (2, len(targets)))
        for target, source in zip(targets.tolist(), (targets + width * moves[0] + moves[1]).tolist()):
            sources[target] = sources[source]
    moved = blurred.reshape(-1, 3)[sources].reshape(pixels.shape)
    return to_uint8(gaussian_blur(moved / 255, std))


def motion_blur(pixels: np.ndarray, motion: tuple[int, float], rng: np.random.Generator) -> np.ndarray:
    """Blur in a direction within 45 degrees of the horizontal; for `motion` see [`move`]."""
    return move(pixels, *motion, rng.uniform(-45, 45))


def move(pixels: np.ndarray, radius: int, std: float, angle: float) -> np.ndarray:
    """
    Blur in one direction, as ImageMagick's MotionBlurImage: a mean of the `2 * radius + 1` pixels in the direction of
    `angle` (in degrees, clockwise), weighted by a half of a normal density. Border pixels continue beyond the border.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * std**2))
    direction = np.deg2rad(angle)
    down, right = (np.ceil(steps * side - 0.5).astype(int) for side in (np.sin(direction), np.cos(direction)))
    reach, (height, width) = len(steps), pixels.shape[:2]
    edges = [(reach, reach), (reach, reach), *([(0, 0)] * (pixels.ndim - 2))]
    padded = np.pad(pixels.astype(float), edges, mode="edge")
    moved = np.zeros(pixels.shape)
    for weight, y, x in zip(weights / weights.sum(), down + reach, right + reach):
        moved += weight * padded[y : y + height, x : x + width]
    return (moved + 0.5).astype(np.uint8)


def zoom_blur(pixels: np.ndarray, factors: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Take the mean of the image and of its middle, magnified by all factors."""
    rgb = pixels / 255
    return to_uint8((rgb + sum(magnify(rgb, factor) for factor in factors)) / (len(factors) + 1))


def magnify(image: np.ndarray, factor: float) -> np.ndarray:
    """Magnify the middle of an image, as `scipy.ndimage.zoom` of order 1 does, and cut it to the image's own size."""
    for axis, size in enumerate(image.shape[:2]):
        cut = math.ceil(size / factor)
        start, large = (size - cut) // 2, round(cut * factor)
        places = (np.arange(size) + (large - size) // 2) * (cut - 1) / max(large - 1, 1)
        weights = np.maximum(1 - np.abs(places[:, None] - np.arange(cut)), 0)  # linear interpolation
        middle = np.moveaxis(image, axis, 0)[start : start + cut]
        image = np.moveaxis(np.tensordot(weights, middle, 1), 0, axis)
    return image


def snow(pixels: np.ndarray, weather: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """
    Whiten the image, and add flakes and the same flakes turned by 180 degrees. `weather` has the flakes' mean,
    standard deviation, magnification and threshold, the radius and standard deviation of their motion blur, and the
    share of the image that is not whitened.
    """
    mean, std, factor, threshold, radius, blur, share = weather
    flakes = magnify(rng.normal(mean, std, pixels.shape[:2]), factor)
    flakes = to_uint8(np.where(flakes < threshold, 0, flakes))
    flakes = move(flakes, int(radius), blur, rng.uniform(-135, -45))[..., None] / 255
    rgb = pixels / 255
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    white = np.maximum(rgb, grey[..., None] * 1.5 + 0.5)
    return to_uint8(share * rgb + (1 - share) * white + flakes + np.rot90(flakes, 2, axes=(0, 1)))


def frost(pixels: np.ndarray, shares: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """
    Add a texture of ice; `shares` has the weights of the image and of the texture. The published sets take a crop of
    one of five photographs; here, the texture is a random field with the mean colour and the deviation of one of
    them, and with their spectrum.
    """
    colour, std = FROST_PICTURES[rng.integers(len(FROST_PICTURES))]
    height, width = pixels.shape[:2]
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * frequencies**-0.75, (height, width))
    texture = np.array(colour) + std * (field / max(field.std(), 1e-9))[..., None]
    return (shares[0] * pixels + shares[1] * texture.clip(0, 255)).clip(0, 255).astype(np.uint8)


def fog(pixels: np.ndarray, haze: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Add clouds, and scale to the image's own maximum; `haze` has their strength and the decay of their detail."""
    strength, decay = haze
    height, width = pixels.shape[:2]
    clouds = make_clouds(2 ** math.ceil(math.log2(max(height, width, 2))), decay, rng)[:height, :width, None]
    rgb = pixels / 255
    largest = rgb.max()
    return to_uint8((rgb + strength * clouds) * largest / (largest + strength))


def make_clouds(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """
    Return a fractal landscape with heights in 0…1, by the diamond-square algorithm on a torus. `side` is a power of 2;
    `decay` divides the scale of the random numbers, squared in the heights, after each halving of the distances.
    """
    heights, scale, step = np.zeros((side, side)), 100.0, side

    def vary(total: np.ndarray) -> np.ndarray:
        return total / 4 + scale * rng.uniform(-scale, scale, total.shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = vary(pairs + np.roll(pairs, -1, axis=1))
        heights[half::step, half::step] = centres
        for axis, edges in ((0, heights[::step, half::step]), (1, heights[half::step, ::step])):
            pairs = centres + np.roll(centres, 1, axis) + corners
            edges[:] = vary(pairs + np.roll(corners, -1, 1 - axis))
        step, scale = half, scale / decay
    heights -= heights.min()
    return heights / heights.max()


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


def elastic_transform(pixels: np.ndarray, rubber: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """
    Distort the image by an affine map, and by a smooth field of moves. `rubber` has the factor of the moves, the
    standard deviation of their blur, and the largest move of the three points that determine the affine map, all in
    pixels.
    """
    factor, std, affine = rubber
    ndimage = import_ndimage()
    height, width = pixels.shape[:2]
    # Points are (x, y); as published, the middle is (height // 2, width // 2).
    middle, arm = np.array([height // 2, width // 2], float), max(min(height, width) // 3, 1)
    points = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-affine, affine, points.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # from (x, y, 1) of the new image to the old
    rows, columns = np.indices((height, width), float)
    old_columns, old_rows = (columns * back[0, i] + rows * back[1, i] + back[2, i] for i in (0, 1))
    rgb = np.moveaxis(pixels / 255, -1, 0)
    turned = [ndimage.map_coordinates(channel, [old_rows, old_columns], order=1, mode="mirror") for channel in rgb]
    right, down = (
        factor * ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), std, mode="reflect", truncate=3)
        for _ in range(2)
    )
    places = [rows + down, columns + right]
    channels = [ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in turned]
    return to_uint8(np.stack(channels, axis=-1))


def pixelate(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Make the image smaller, to this share of its sides, and large again, each by the mean of an area."""
    height, width = pixels.shape[:2]
    small = (max(int(width * share), 1), max(int(height * share), 1))
    resized = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.array(resized.resize((width, height), Image.Resampling.BOX))


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


# Mean colour and standard deviation of the five photographs of frost in the published code.
FROST_PICTURES = (
    ((78, 149, 166), 20),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 28),
    ((112, 123, 135), 43),
)

CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Corruption(
        motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    ),
    "zoom_blur": Corruption(
        zoom_blur,
        tuple(tuple(np.arange(1, end, 0.01).tolist()) for end in (1.06, 1.11, 1.16, 1.21, 1.26)),
        tuple(
            tuple(np.arange(1, end, step).tolist())
            for end, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ),
    ),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(
        frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        elastic_transform,
        tuple(
            tuple(32 * share for share in shares)
            for shares in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
        ),
        tuple(
            tuple(244 * share for share in shares)  # 244 is the published code's, though its images have 224 pixels
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
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
