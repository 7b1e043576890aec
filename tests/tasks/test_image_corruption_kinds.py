# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Noise, blurs, weather and distortions of images, compared with naive implementations of their definitions."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS, FROST_PICTURES, corrupt


SMALL, LARGE = (28, 28), (70, 70)
# by corruption: severity 1 to 5 of make_cifar_c.py and of make_imagenet_c.py in github.com/hendrycks/robustness
PUBLISHED = {
    "shot_noise": ([500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
    "impulse_noise": ([0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27]),
    "glass_blur": (
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion_blur": (
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom_blur": (
        [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)],
        [np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.02), np.arange(1, 1.26, 0.02)]
        + [np.arange(1, 1.31, 0.03)],
    ),
    "snow": (
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "frost": (
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    "fog": (
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    "elastic_transform": (
        [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
        [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
    ),
    "pixelate": ([0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
}


def make_pixels(size):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.integers(-20, 21, (*size, 3)), 0, 255).astype(np.uint8)


def random_numbers(pixels):
    return np.random.default_rng(list(hashlib.sha256(pixels.tobytes()).digest()))


def cut(values):
    return np.floor(255 * np.clip(values, 0, 1)).astype(np.uint8)


def blur(image, std, reach, mode):
    """Convolve the rows, and then the columns, of an image without channels with a normal density."""
    places = np.arange(-reach, reach + 1)
    weights = np.exp(-(places**2) / (2 * std**2)) if std > 0 else (places == 0).astype(float)
    for _ in range(2):
        padded = np.pad(image, ((reach, reach), (0, 0)), mode=mode)
        image = np.stack([np.convolve(column, weights / weights.sum(), "valid") for column in padded.T])
    return image


def blur_channels(image, std):
    channels = [blur(image[..., channel], std, int(4 * std + 0.5), "edge") for channel in range(3)]
    return np.stack(channels, axis=-1)


def move(image, radius, std, angle):
    """Follow ImageMagick's MotionBlurImage pixel by pixel."""
    width = 2 * radius + 1
    kernel = [math.exp(-(i * i) / (2 * std * std)) for i in range(width)]
    y, x = width * math.sin(math.radians(angle)), width * math.cos(math.radians(angle))
    output = np.zeros(image.shape)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            for i, weight in enumerate(kernel):
                down, right = (math.ceil(i * side / math.hypot(x, y) - 0.5) for side in (y, x))
                place = min(max(row + down, 0), image.shape[0] - 1), min(max(column + right, 0), image.shape[1] - 1)
                output[row, column] += weight / sum(kernel) * image[place]
    return np.round(output)


def magnify(image, factor):
    side = len(image)
    part = math.ceil(side / factor)
    start = (side - part) // 2
    large = ndimage.zoom(image[start : start + part, start : start + part], (factor, factor), order=1)
    start = (len(large) - side) // 2
    return large[start : start + side, start : start + side]


def direct_glass(pixels, constants, rng):
    std, reach, rounds = constants
    image = cut(blur_channels(pixels / 255, std))
    height, width = pixels.shape[:2]
    for _ in range(rounds):
        places = [(h, w) for h in range(height - reach, reach, -1) for w in range(width - reach, reach, -1)]
        for (h, w), (down, right) in zip(places, rng.integers(-reach, reach, (2, len(places))).T):
            # as published: the right side holds views
            image[h, w], image[h + down, w + right] = image[h + down, w + right], image[h, w]
    return cut(blur_channels(image / 255, std))


def direct_motion(pixels, constants, rng):
    return move(pixels.astype(float), *constants, rng.uniform(-45, 45))


def direct_zoom(pixels, factors, rng):
    images = [
        np.stack([magnify(channel / 255, factor) for channel in np.moveaxis(pixels, -1, 0)]) for factor in factors
    ]
    return cut(np.moveaxis(sum(images) + np.moveaxis(pixels, -1, 0) / 255, 0, -1) / (len(factors) + 1))


def direct_snow(pixels, constants, rng):
    mean, std, factor, threshold, radius, blur_std, share = constants
    flakes = magnify(mean + std * rng.standard_normal(pixels.shape[:2]), factor)
    flakes[flakes < threshold] = 0
    flakes = move(cut(flakes).astype(float), radius, blur_std, rng.uniform(-135, -45)) / 255
    image = pixels / 255
    grey = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    white = np.maximum(image, (grey * 1.5 + 0.5)[..., None])
    return cut(share * image + (1 - share) * white + (flakes + flakes[::-1, ::-1])[..., None])


def direct_fog(pixels, constants, rng):
    strength, decay = constants
    side = 32 if max(pixels.shape) <= 32 else 128
    heights, scale, step = np.zeros((side, side)), 100, side
    while step > 1:
        half = step // 2
        for places, moves in (
            ([(half, half)], [(-half, -half), (-half, half), (half, -half), (half, half)]),
            ([(0, half)], [(-half, 0), (half, 0), (0, -half), (0, half)]),
            ([(half, 0)], [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            (first,) = places
            cells = [(y, x) for y in range(first[0], side, step) for x in range(first[1], side, step)]
            noise = rng.uniform(-scale, scale, (side // step, side // step)).ravel()
            for (y, x), value in zip(cells, noise):
                around = [heights[(y + down) % side, (x + right) % side] for down, right in moves]
                heights[y, x] = sum(around) / 4 + scale * value
        step, scale = half, scale / decay
    clouds = (heights - heights.min()) / np.ptp(heights)
    image = pixels / 255
    clouds = clouds[: len(image), : len(image), None]
    return cut((image + strength * clouds) * image.max() / (image.max() + strength))


def direct_elastic(pixels, constants, rng):
    factor, std, largest = constants
    side = len(pixels)
    middle, arm = side // 2, side // 3
    points = np.array(
        [[middle + arm, middle + arm], [middle + arm, middle - arm], [middle - arm, middle - arm]], float
    )
    moved = points + rng.uniform(-largest, largest, (3, 2))
    # (x, y) -> matrix @ (x, y, 1) takes each point to its moved one
    matrix = np.vstack([np.linalg.solve(np.column_stack([points, np.ones(3)]), moved).T, [0, 0, 1]])
    back = np.linalg.inv(matrix)[:2, [1, 0, 2]][::-1]  # from (row, column, 1) of the new image to those of the old one
    right, down = (
        factor * blur(rng.uniform(-1, 1, (side, side)), std, int(3 * std + 0.5), "symmetric") for _ in range(2)
    )
    channels = []
    for channel in np.moveaxis(pixels / 255, -1, 0):
        turned = ndimage.affine_transform(channel, back[:, :2], back[:, 2], order=1, mode="mirror")
        rows, columns = np.mgrid[:side, :side]
        channels.append(ndimage.map_coordinates(turned, [rows + down, columns + right], order=1, mode="reflect"))
    return cut(np.stack(channels, axis=-1))


DIRECT = {
    "glass_blur": direct_glass,
    "motion_blur": direct_motion,
    "zoom_blur": direct_zoom,
    "snow": direct_snow,
    "fog": direct_fog,
    "elastic_transform": direct_elastic,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_constants_are_the_published_ones(name):
    corruption = CORRUPTIONS[name]
    for constants, published in zip((corruption.cifar, corruption.imagenet), PUBLISHED[name], strict=True):
        for constant, expected in zip(constants, published, strict=True):
            assert np.allclose(constant, expected) and np.size(constant) == np.size(expected)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", DIRECT)
def test_pixels_are_those_of_the_definition(name, size):
    pixels = make_pixels(size)
    severities = range(1, 6) if size == SMALL or name not in ("motion_blur", "snow", "glass_blur") else (1, 5)
    for severity in severities:
        constant = PUBLISHED[name][size == LARGE][severity - 1]
        corrupted = np.asarray(corrupt(Image.fromarray(pixels), name, severity)).astype(int)
        difference = np.abs(corrupted - DIRECT[name](pixels, constant, random_numbers(pixels)))
        # Fractions are cut off, so that values next to an integer can differ by one.
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02, severity
        assert np.abs(corrupted - pixels.astype(int)).mean() > 0.5


@pytest.mark.parametrize("side", [64, 72])
def test_shot_noise_counts_photons(side):
    grey = np.full((side, side, 3), 102, np.uint8)
    for severity, photons in enumerate(PUBLISHED["shot_noise"][side > 64], start=1):
        values = np.asarray(corrupt(Image.fromarray(grey), "shot_noise", severity)).ravel()
        if photons > 100:  # several counts become the same byte
            assert values.std() / 255 == pytest.approx(math.sqrt(0.4 / photons), rel=0.03)
        share = 1.0
        for count in range(photons if photons <= 60 else 0):
            chance = math.exp(-0.4 * photons) * (0.4 * photons) ** count / math.factorial(count)
            assert np.mean(values == math.floor(255 * (count / photons))) == pytest.approx(chance, abs=0.015)
            share -= chance
        assert photons > 60 or np.mean(values == 255) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("side", [64, 72])
def test_impulse_noise_replaces_a_share(side):
    pixels = make_pixels((side, side)).clip(1, 254)
    for severity, share in enumerate(PUBLISHED["impulse_noise"][side > 64], start=1):
        values = np.asarray(corrupt(Image.fromarray(pixels), "impulse_noise", severity))
        replaced = values != pixels
        assert replaced.mean() == pytest.approx(share, abs=0.012) and set(values[replaced]) == {0, 255}
        assert (values[replaced] == 255).mean() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("size", [(48, 60), (96, 80)])
def test_frost_is_a_texture_like_its_pictures(size):
    black = np.zeros((*size, 3), np.uint8)
    shares = [share for _, share in PUBLISHED["frost"][max(size) > 64]]
    textures = [
        np.asarray(corrupt(Image.fromarray(black), "frost", severity)) / share
        for severity, share in enumerate(shares, start=1)
    ]
    for texture in textures:
        assert np.abs(texture - textures[0]).max() < 255 / 50  # the same one, up to the bytes
        fits = [
            np.abs(texture.mean((0, 1)) - colour).max() < 6 and abs(texture[..., 0].std() - std) < 6
            for colour, std in FROST_PICTURES
        ]
        assert any(fits)
    grey = np.full((*size, 3), 40, np.uint8)
    share, weight = PUBLISHED["frost"][max(size) > 64][4]
    frosted = np.asarray(corrupt(Image.fromarray(grey), "frost", 5)).astype(float)
    assert np.abs((frosted - share * 40) / weight - np.clip((frosted - share * 40) / weight, 0, 256)).max() < 2


def test_pixelate_takes_means_of_areas():
    pixels = make_pixels((72, 80))
    corrupted = np.asarray(corrupt(Image.fromarray(pixels), "pixelate", 2)).astype(float)
    means = pixels.reshape(36, 2, 40, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(corrupted - means).max() <= 1  # rounded twice
    small = np.asarray(corrupt(Image.fromarray(make_pixels(SMALL)), "pixelate", 5))
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= 18 * 18
