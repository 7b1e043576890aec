# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The augmentation of batches of images, beside a training step of a plain ViT-S on the same images.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Prints a table in Markdown. Seconds are those of the processor, not of the clock; the images are smooth noise. Patches
have 16 pixels at 224 pixels, and 4 at 32.
"""

import argparse
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_frozen_llm.data.augmentation import BatchAugmentation
from hf_frozen_llm.tasks.image_classification import ImageDataArguments


PROCESSOR = SimpleNamespace(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
CONFIG = SimpleNamespace(num_labels=1000)
CASES = {
    "none (only normalised)": {},
    "deit": {"augmentation": "deit"},
    "deit3": {"augmentation": "deit3"},
    "deit, TrivialAugment": {"augmentation": "deit", "rand_augment_ops": 0, "trivial_augment": True},
}


def measure(function, repeats):
    """Return the median seconds of the processor that a call takes, after a first call."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def build_step(images, patch_size):
    """Return a function that trains a plain ViT-S for a step."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    config = ViTConfig(**sizes, image_size=images.shape[-1], patch_size=patch_size, num_labels=CONFIG.num_labels)
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels, labels = images.float() / 255, torch.arange(len(images))

    def step():
        optimizer.zero_grad()
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16, help="images of a batch that is augmented")
    parser.add_argument("--step-size", type=int, default=4, help="images of a training step")
    parser.add_argument("--repeats", type=int, default=10, help="batches of each preset; a fifth as many steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| pixels | augmentation | ms an image | images/s | share of a step of ViT-S |")
    print("|---|---|---:|---:|---:|")
    for side, patch_size in ((224, 16), (32, 4)):
        noise = torch.rand(args.batch_size, 3, side // 4, side // 4)
        images = (255 * torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")).byte()
        few = images[: args.step_size]
        step = measure(build_step(few, patch_size), max(1, args.repeats // 5)) / len(few)
        print(f"| {side} | training step | {1000 * step:.1f} | {1 / step:,.0f} | |", flush=True)
        for name, keys in CASES.items():
            augmentation = BatchAugmentation(ImageDataArguments("x", **keys), PROCESSOR, CONFIG)
            batch = (images[:, None], torch.arange(len(images)), np.random.default_rng(0), "bicubic", False)
            seconds = measure(partial(augmentation, *batch), args.repeats) / len(images)
            share = 100 * seconds / step
            print(f"| {side} | {name} | {1000 * seconds:.2f} | {1 / seconds:,.0f} | {share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
