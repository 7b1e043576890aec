# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Make short videos of moving CIFAR-10 images, whose class is the motion, for `video_classification/tiny.yaml`:
`python examples/moving_pictures.py --output moving_pictures`.

No single frame shows the class, as in Something-Something's templates. The videos are MPEG-4 files in one folder for
each split and class.
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
from downloads import find_dataset
from PIL import Image


MOTIONS = ("down", "grows", "left", "right", "shrinks", "turns left", "turns right", "up")
SIDE = 64
FRAMES = 24


def make_frames(picture: Image.Image, motion: str, rng: np.random.Generator) -> list[Image.Image]:
    """
    Move an image over a plain background; its start, size and speed are random.

    Args:
        picture (`Image.Image`): of any size.
        motion (`str`): one of `MOTIONS`.
        rng (`np.random.Generator`): the source of randomness.

    Returns:
        `list[Image.Image]`: 24 frames of 64 x 64 pixels.
    """
    background = tuple(int(value) for value in rng.integers(0, 256, 3))
    side, angle, speed = rng.uniform(24, 40), rng.uniform(-20, 20), rng.uniform(0.6, 1.0)
    center = rng.uniform(26, 38, 2)
    frames = []
    for progress in np.linspace(-0.5, 0.5, FRAMES) * speed:
        x, y = center
        turn, scale = angle, 1.0
        if motion in ("left", "right"):
            x += 32 * progress * (1 if motion == "right" else -1)
        elif motion in ("up", "down"):
            y += 32 * progress * (1 if motion == "down" else -1)
        elif motion in ("grows", "shrinks"):
            scale = 2.0 ** (1.6 * progress * (1 if motion == "grows" else -1))
        else:
            turn += 90 * progress * (1 if motion == "turns left" else -1)
        size = max(1, round(side * scale))
        shape = picture.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
        shape = shape.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        frame = Image.new("RGB", (SIDE, SIDE), background)
        frame.paste(shape, (round(x - shape.width / 2), round(y - shape.height / 2)), shape)
        frames.append(frame)
    return frames


def write_video(path: Path, frames: list[Image.Image]) -> None:
    """Write an MPEG-4 file of 12 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def make_videos(output: Path, pictures: str, sizes: dict[str, int], seed: int = 0) -> None:
    """
    Write `output/<split>/<motion>/<number>.mp4`.

    Args:
        output (`Path`): a new folder.
        pictures (`str`): Hub id or folder of CIFAR-10; each split takes its images from the split of the same name.
        sizes (`dict[str, int]`): videos of each split.
        seed (`int`, *optional*, defaults to 0): the seed of all random choices.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; give a new folder.")
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, (split, size) in enumerate(sizes.items()):
        rng = np.random.default_rng((seed, number))
        images = datasets.load_dataset(pictures, split=split)["img"]
        for index, chosen in enumerate(rng.permutation(len(images))[:size]):
            motion = MOTIONS[index % len(MOTIONS)]
            folder = unfinished / split / motion
            folder.mkdir(parents=True, exist_ok=True)
            write_video(folder / f"{index:05}.mp4", make_frames(images[int(chosen)].convert("RGB"), motion, rng))
    unfinished.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/moving_pictures.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("moving_pictures"), help="a new folder")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path("~/.cache/hf_frozen_llm/quickstart"), help="where CIFAR-10 is kept"
    )
    parser.add_argument("--dataset", help="another copy of CIFAR-10: Hub id or folder of parquet files")
    parser.add_argument("--train", type=int, default=4000, help="videos to train on")
    parser.add_argument("--test", type=int, default=800, help="videos to test on")
    args = parser.parse_args()
    if importlib.util.find_spec("av") is None:
        sys.exit("moving_pictures: PyAV is not installed; run `pip install 'hf_frozen_llm[video]'`.")
    pictures = args.dataset or find_dataset(args.cache_dir.expanduser())
    make_videos(args.output, pictures, {"train": args.train, "test": args.test})
    print(f"{args.train} + {args.test} videos in {args.output}")


if __name__ == "__main__":
    main()
