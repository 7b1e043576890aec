# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Small cut-out pictures, for tests of pictures with masks."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_cutouts(folder: Path, count: int) -> None:
    """Write green discs with transparent corners, 20 x 30 pixels; every second one has half-transparent edges."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1:1:30j, -1:1:20j]
    for number in range(count):
        pixels = np.zeros((30, 20, 4), np.uint8)
        pixels[..., 1] = 200
        inside = np.hypot(x, y)
        pixels[..., 3] = np.where(inside < 0.9, 255, 100 * (number % 2) * (inside < 1))
        Image.fromarray(pixels).save(folder / f"{number}.png")
