# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Decoded pictures of a data set in the cache of `datasets`: files that are mapped into memory, in parts."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher
from datasets.utils import tqdm
from PIL import Image


# Rows that are decoded and kept together: an interrupted run goes on after the last whole part.
ROWS_PER_PART = 5000
# Rows that a process holds in memory.
ROWS_PER_BATCH = 100
# Change it when the pixels of the same files become others.
VERSION = 1
PICTURE = {"bytes": datasets.Value("binary"), "height": datasets.Value("int32"), "width": datasets.Value("int32")}


def cache_pictures(
    rows: datasets.Dataset,
    column: str,
    read: Callable[[Any, int], Image.Image],
    settings: Any,
    num_workers: int | None,
    location: str,
) -> datasets.Dataset:
    """
    Return rows whose pictures are decoded. What is in the cache is used again for the same files, or bytes, and
    settings.

    Args:
        rows (`datasets.Dataset`):
            The rows.
        column (`str`):
            The column of encoded images, which becomes one of `PICTURE`.
        read (`Callable[[Any, int], Image.Image]`):
            Decodes the value of a row, with its number for errors, to an RGB image.
        settings (`Any`):
            All on which the pixels depend beside the encoded images.
        num_workers (`int`, *optional*):
            Processes that decode.
        location (`str`):
            Named by the progress bar.
    """
    encoded = rows.select_columns([column])
    starts = range(0, len(rows), ROWS_PER_PART)
    parts = []
    for start in tqdm(starts, desc=f"Decoded pictures of {location}", unit="part", disable=len(starts) == 1 or None):
        part = encoded.select(range(start, min(start + ROWS_PER_PART, len(rows))))
        parts.append(
            cache_part(part, column, partial(read_batch, column=column, read=read, start=start), settings, num_workers)
        )
    return datasets.concatenate_datasets([rows.remove_columns([column]), datasets.concatenate_datasets(parts)], axis=1)


def cache_part(
    part: datasets.Dataset, column: str, read: Callable, settings: Any, num_workers: int | None
) -> datasets.Dataset:
    features = datasets.Features({column: PICTURE})
    key = Hasher.hash([VERSION, features, settings, [find_stamp(row[column]) for row in part]])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "decoded_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return part.map(
        read,
        batched=True,
        batch_size=ROWS_PER_BATCH,
        writer_batch_size=ROWS_PER_BATCH,
        with_indices=True,
        features=features,
        cache_file_name=str(folder / f"{key}.arrow"),
        num_proc=None if num_workers is None else min(num_workers, len(part)),
        new_fingerprint=key,
        desc="Decoding pictures",
    )


def find_stamp(encoded: dict[str, Any]) -> Any:
    """Return what changes when an encoded image does: the digest of its bytes, or size and time of its file."""
    if encoded["bytes"] is not None:
        return hashlib.sha256(encoded["bytes"]).hexdigest()
    stat = Path(encoded["path"]).stat()
    return encoded["path"], stat.st_size, stat.st_mtime_ns


def read_batch(
    batch: dict[str, list[Any]], indices: list[int], column: str, read: Callable[[Any, int], Image.Image], start: int
) -> dict[str, list[dict[str, Any]]]:
    images = [read(encoded, start + index) for encoded, index in zip(batch[column], indices)]
    return {column: [{"bytes": image.tobytes(), "height": image.height, "width": image.width} for image in images]}


def load_picture(cached: dict[str, Any]) -> Image.Image:
    """Return a picture that [`cache_pictures`] has decoded."""
    return Image.frombytes("RGB", (cached["width"], cached["height"]), cached["bytes"])
