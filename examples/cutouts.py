# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Make pictures whose objects have exact masks: cut-out pictures on background pictures, for `hf-frozen-llm analyze`.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python examples/cutouts.py stamps/usr/share/tuxpaint/stamps backgrounds cutouts --classes animals vehicles

The cut-outs are the PNG files with transparent corners in a folder; its sub-folders are their classes. The stamps of
Tux Paint, in Debian, have 786 of them. The new folder holds `images/<class>`, `masks/<class>` (255 = object) and
`sources.csv`. The same arguments make the same pictures.
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


BACKGROUNDS = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
# Longer side of the object in shares of the picture.
SMALLEST, LARGEST = 0.35, 0.75


class CutoutError(ValueError):
    """A folder that holds no fitting pictures."""


def find_cutouts(folder: Path, classes: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Return the pictures with transparent corners and opaque pixels, by the sub-folder of `folder` they are in."""
    known = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    wanted = known if classes is None else list(classes)
    if unknown := sorted(set(wanted) - set(known)):
        raise CutoutError(f"{folder} has no sub-folder {', '.join(unknown)}; it has {', '.join(known) or 'none'}.")
    found = {}
    for name in wanted:
        files = [file for file in sorted((folder / name).rglob("*.png")) if is_cutout(file)]
        if files:
            found[name] = files
    if not found:
        raise CutoutError(f"{folder} has no sub-folders with PNG files that have transparent corners.")
    return found


def open_picture(file: Path) -> Image.Image:
    try:
        picture = Image.open(file)
        picture.load()
    except OSError as error:
        raise CutoutError(f"{file} is no picture: {error}") from error
    return picture


def is_cutout(file: Path) -> bool:
    alpha = np.asarray(open_picture(file).convert("RGBA"))[..., 3]
    return bool((alpha[[0, 0, -1, -1], [0, -1, 0, -1]] < 128).all() and (alpha >= 128).mean() > 0.05)


def crop_square(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a random square of a picture, as large as possible, in `size` x `size` pixels."""
    side = min(picture.size)
    left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
    box = (left, top, left + side, top + side)
    return picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box)


def paste(cutout: Image.Image, background: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Paste a cut-out at a random place and size, mirrored half of the time; return the picture and its mask."""
    size = background.width
    opaque = cutout.getchannel("A").point(lambda value: 255 * (value >= 128))
    cutout = cutout.crop(opaque.getbbox())
    longer = rng.uniform(SMALLEST, LARGEST) * size
    width, height = (max(1, round(longer * length / max(cutout.size))) for length in cutout.size)
    cutout = cutout.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    place = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    picture, mask = background.copy(), Image.new("L", background.size)
    alpha = cutout.getchannel("A")
    picture.paste(cutout.convert("RGB"), place, alpha)
    mask.paste(alpha.point(lambda value: 255 * (value >= 128)), place)
    return picture, mask


def make_pictures(
    cutouts: dict[str, list[Path]], backgrounds: Path, output: Path, count: int, size: int, seed: int
) -> None:
    """
    Write the folder of pictures and masks, in one step.

    Args:
        cutouts (`dict[str, list[Path]]`): the cut-outs of each class; the classes have equally many pictures.
        backgrounds (`Path`): a folder of pictures, searched with its sub-folders.
        output (`Path`): a new folder.
        count (`int`): number of pictures.
        size (`int`): their side in pixels.
        seed (`int`): seed of all random choices; each picture depends on it and on its own number alone.
    """
    scenes = [file for file in sorted(backgrounds.rglob("*")) if file.suffix.lower() in BACKGROUNDS]
    if not scenes:
        raise CutoutError(f"{backgrounds} holds no background pictures ({', '.join(sorted(BACKGROUNDS))}).")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=output.parent) as made:
        folder = Path(made) / output.name
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            name = list(cutouts)[number % len(cutouts)]
            cutout, scene = (files[int(rng.integers(len(files)))] for files in (cutouts[name], scenes))
            background = crop_square(open_picture(scene), size, rng)
            pictures = paste(open_picture(cutout).convert("RGBA"), background, rng)
            file = f"{name}/{number:05}.png"
            for kind, picture in zip(("images", "masks"), pictures):
                (folder / kind / name).mkdir(parents=True, exist_ok=True)
                picture.save(folder / kind / file)
            rows.append((f"images/{file}", cutout.name, scene.name))
        with (folder / "sources.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("image", "cutout", "background"), *rows])
        os.replace(folder, output)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python examples/cutouts.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cutouts", type=Path, help="a folder of classes of PNG files")
    parser.add_argument("backgrounds", type=Path, help="a folder of pictures")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--classes", nargs="+", help="sub-folders of the cut-outs; all by default")
    parser.add_argument("--count", type=int, default=1000, help="number of pictures (1000)")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels (224)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"cutouts: {args.output} exists already; give a new folder.")
    try:
        cutouts = find_cutouts(args.cutouts, args.classes)
        make_pictures(cutouts, args.backgrounds, args.output, args.count, args.size, args.seed)
    except CutoutError as error:
        sys.exit(f"cutouts: {error}")
    print(f"{args.count:,} pictures of {sum(map(len, cutouts.values())):,} cut-outs: {args.output}")


if __name__ == "__main__":
    main()
