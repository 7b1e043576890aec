# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A tiny data set, a tiny LLM and tiny sizes, for tests that train."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tiny_llms import tiny_config, tiny_llm, write_llm


CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox"]

# Settings and sizes at which a recipe's run takes seconds on one core: for a ViT, and for other hosts.
TINY_RUN = [
    *("--per_device_train_batch_size", "8"),
    *("--per_device_eval_batch_size", "16"),
    *("--dataloader_num_workers", "0"),
    *("--dataloader_persistent_workers", "false"),
    *("--use_cpu", "true"),
    *("--bf16", "false"),
    *("--disable_tqdm", "true"),
]
TINY = [
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.intermediate_size", "32"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "8"),
    *TINY_RUN,
]
TINY_DINOV2 = [
    *("--model_type", "vision_with_llm_block"),
    *("--host.model_type", "dinov2"),
    *("--host.hidden_size", "16"),
    *("--host.num_hidden_layers", "2"),
    *("--host.num_attention_heads", "2"),
    *("--host.mlp_ratio", "2"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "8"),
    *TINY_RUN,
]
TINY_SWIN = [
    *("--model_type", "vision_with_llm_block"),
    *("--host.model_type", "swin"),
    *("--host.embed_dim", "8"),
    *("--host.depths", "[1, 1]"),
    *("--host.num_heads", "[2, 2]"),
    *("--host.window_size", "2"),
    *("--host.image_size", "16"),
    *("--host.patch_size", "4"),
    *TINY_RUN,
]


def make_images(count: int, seed: int = 0) -> tuple[list[Image.Image], list[int]]:
    """Noise, brighter from class to class."""
    rng = np.random.default_rng(seed)
    labels = [index % len(CLASSES) for index in range(count)]
    pixels = [rng.integers(0, 100, (20, 24, 3)) + 25 * label for label in labels]
    return [Image.fromarray(array.astype(np.uint8)) for array in pixels], labels


def make_split(count: int, seed: int = 0, image: str = "image", label: str = "label") -> datasets.Dataset:
    images, labels = make_images(count, seed)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=CLASSES)})
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def write_parquet(folder: Path, sizes: dict[str, int] | None = None, **columns: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((sizes or {"train": 60, "test": 30}).items()):
        make_split(count, seed, **columns).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def write_image_folder(folder: Path, sizes: dict[str, int] | None = None) -> str:
    for seed, (split, count) in enumerate((sizes or {"train": 18, "test": 12}).items()):
        for index, (image, label) in enumerate(zip(*make_images(count, seed))):
            (folder / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            image.save(folder / split / CLASSES[label] / f"{index}.png")
    return str(folder)


def write_llama(folder: Path) -> str:
    write_llm(tiny_llm(tiny_config("llama")), folder)
    return str(folder)
