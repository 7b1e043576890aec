# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Processor time of an example of an image classifier, with and without `cache_decoded`, in one process.

    OMP_NUM_THREADS=1 python benchmarks/decoded_cache.py
"""

import argparse
import io
import tempfile
import time

import datasets
import numpy as np
from PIL import Image

from hf_frozen_llm import ViTWithLLMBlockConfig
from hf_frozen_llm.tasks.image_classification import ImageClassification, ImageDataArguments


# Of the images, their format, and the model.
CASES = {"500 x 375, JPEG, model 224": ((500, 375), "JPEG", 224), "32 x 32, PNG, model 32": ((32, 32), "PNG", 32)}


def make_rows(count: int, size: tuple[int, int], kind: str) -> datasets.Dataset:
    """Return images of large shapes with a little noise; those of 500 x 375 pixels have about 60 kB."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(shapes) + rng.normal(0, 8, (size[1], size[0], 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind, quality=90)
        images.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": [0] * count}, features=features)


def measure(rows: datasets.Dataset, image_size: int, training: bool, cached: bool) -> tuple[float, float]:
    """Return milliseconds of processor time: of an example, in batches of 32, and of an image that is cached."""
    config = ViTWithLLMBlockConfig(image_size=image_size, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    args = ImageDataArguments("images", augmentation="deit" if training else "none", cache_decoded=cached)
    task = ImageClassification(args, ImageClassification.build_processor(args, {}, config), config)
    start = time.process_time()
    dataset = task.dataset(rows, "train", training=training)
    task.prepare(dataset)
    filled = time.process_time()
    for first in range(0, len(rows), 32):
        dataset.__getitems__(list(range(first, min(first + 32, len(rows)))))
    read = time.process_time()
    return 1000 * (read - filled) / len(rows), 1000 * (filled - start) / len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    print("| images | examples | ms | ms, cached | ratio | ms to cache an image |\n|---|---|---:|---:|---:|---:|")
    for name, (size, kind, image_size) in CASES.items():
        rows = make_rows(args.images, size, kind)
        size_kb = sum(len(image["bytes"]) for image in rows["image"]) / len(rows) / 1000
        for training in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                datasets.config.HF_DATASETS_CACHE = folder
                plain, _ = measure(rows, image_size, training, cached=False)
                cached, filling = measure(rows, image_size, training, cached=True)
            kind_of_example = "training, random crops" if training else "evaluation"
            cells = [f"{name} ({size_kb:.0f} kB)", kind_of_example, f"{plain:.2f}", f"{cached:.2f}"]
            print(f"| {' | '.join([*cells, f'{plain / cached:.1f}', f'{filling:.2f}'])} |", flush=True)


if __name__ == "__main__":
    main()
