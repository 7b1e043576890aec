# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Encoded images as PIL images."""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Folders may also hold the rarer formats that `datasets` reads from them.
FOLDER_SUFFIXES = tuple(sorted({*IMAGE_SUFFIXES, *ImageFolder.EXTENSIONS} - {".mpeg", ".mpg"}))

DECODER = datasets.Image()


def decode_image(encoded: Any, location: str) -> tuple[Image.Image, str]:
    """
    Decode an image; return it, and `location` with the name of its file.

    Args:
        encoded (`dict`):
            The value of an image column that is not decoded.
        location (`str`):
            Named in errors.
    """
    name = f" ({encoded['path']})" if isinstance(encoded, dict) and encoded.get("path") else ""
    try:
        image: Any = DECODER.decode_example(encoded)
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{location}{name}: the image cannot be decoded: {error}") from error
    if image is None:
        raise ValueError(f"{location}: the image is missing.")
    return image, f"{location}{name}"


def to_rgb(image: Image.Image, pixel_range: Sequence[float] | None, location: str) -> Image.Image:
    """
    Convert an image to 8 bits in each of three channels.

    Args:
        image (`Image.Image`):
            An image of any mode.
        pixel_range (`Sequence[float]`, *optional*):
            The values of black and white in images of one channel and more than 8 bits. By default those of the file's
            type; images that do not fit it are refused, because they would become black.
        location (`str`):
            Named in errors.
    """
    if image.mode != "I" and image.mode != "F" and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    pixels = np.asarray(image).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{location}: the image has pixels that are not finite.")
    black, white = pixel_range or find_range(image, low, high, location)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white
        black, white = white, black
    pixels = ((pixels - black) / (white - black)).clip(0, 1)
    return Image.fromarray((255 * pixels).round().astype(np.uint8)).convert("RGB")


def find_range(image: Image.Image, low: float, high: float, location: str) -> tuple[float, float]:
    """Return the values of black and white that the type of an image states, if `low` and `high` fit to it."""
    fix = "Set pixel_range to the values of black and white, such as [0, 4095] for 12 bits."
    if image.mode == "F":
        if 0 <= low and high <= 1:
            return 0, 1
        raise ValueError(f"{location}: the pixels are numbers from {low:g} to {high:g}, not from 0 to 1. {fix}")
    # Pillow reads files of PNG and PGM with 16 bits in either mode.
    bits = 16 if image.mode != "I" or image.format in ("PNG", "PPM") else None
    if image.mode != "I" and isinstance(image, TiffImageFile):
        bits = image.tag_v2[BITSPERSAMPLE][0]
    if bits is None:
        raise ValueError(f"{location}: the pixels are integers of 32 bits, from {low:g} to {high:g}. {fix}")
    if bits == 16 and low < high < 4096:
        raise ValueError(
            f"{location}: the pixels have 16 bits, but values from {low:g} to {high:g} alone, as with 12 bits. {fix}"
        )
    return 0, 2**bits - 1
