# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Ranks in a gallery of images and captions, in one pass over all pairs that keeps no table of their scores."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hf_frozen_llm.data.datasets import HFDataset
from hf_frozen_llm.metrics.retrieval_recall import rank_of_best_match
from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterProcessor
from hf_frozen_llm.tasks.task import Batch, Record
from hf_frozen_llm.tasks.vision_and_language import pad_texts


# scores `(images, captions)` of the images of a batch and the captions of these numbers
Score = Callable[[Batch, Sequence[int]], np.ndarray]


def list_captions(rows: HFDataset) -> tuple[list[str], np.ndarray]:
    """Return the captions of all images, and for each the number of its image; numbers ascend."""
    captions = rows["captions"][:]
    owners = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    return [text for texts in captions for text in texts], owners


def score_pairs(
    model: Any, processor: MeterProcessor, batch: Batch, texts: Sequence[torch.Tensor], pairs_per_batch: int
) -> np.ndarray:
    """Return the scores `(images, texts)` of all pairs, of at most `pairs_per_batch` at a time."""
    pixels, scores = batch["pixel_values"], []
    size = max(1, pairs_per_batch // len(pixels))
    for start in range(0, len(texts), size):
        inputs = pad_texts(texts[start : start + size], processor)
        repeated = {name: part.to(pixels.device).repeat(len(pixels), 1) for name, part in inputs.items()}
        scores.append(model(pixel_values=pixels, **repeated)["scores"].float().view(len(pixels), -1).cpu().numpy())
    return np.concatenate(scores, axis=1)


def find_matches(batch: Batch, owners: np.ndarray, score: Score) -> list[Record]:
    """Return the scores of the captions of each image."""
    records = []
    for index, row in enumerate(batch["row"].tolist()):
        image = {"pixel_values": batch["pixel_values"][index : index + 1]}
        records.append({"row": row, "scores": score(image, np.flatnonzero(owners == row).tolist())[0]})
    return records


def rank_captions(batch: Batch, owners: np.ndarray, matches: np.ndarray, score: Score) -> list[Record]:
    """
    Return for each image the rank of its best caption, and, as bits, of which captions it is `ahead`: whether it has a
    better score than the image of the caption. Of equal scores the first image is better.

    Args:
        batch (`dict`):
            Images of the gallery.
        owners (`numpy.ndarray` of shape `(captions,)`):
            The image of each caption.
        matches (`numpy.ndarray` of shape `(captions,)`):
            The score of each caption with its image.
        score (`Callable`):
            Scores images and captions.
    """
    scores = score(batch, range(len(owners)))
    records = []
    for row, of_image in zip(batch["row"].tolist(), scores):
        own = owners == row
        text_rank = int(rank_of_best_match(of_image[None], own[None])[0])
        ahead = ((of_image > matches) | ((of_image == matches) & (row < owners))) & ~own
        others = np.logaddexp.reduce(of_image[~own]) if not own.all() else -np.inf
        records.append(
            {
                "row": row,
                "text_rank": text_rank,
                "ahead": np.packbits(ahead),
                "loss": float(np.logaddexp(0, others - of_image[own]).mean()),
            }
        )
    return records


def count_better_images(records: Sequence[Record], num_captions: int) -> np.ndarray:
    """Return for each caption how many images are ahead of its own."""
    counts = np.zeros(num_captions, dtype=np.int64)
    for record in records:
        counts += np.unpackbits(record["ahead"], count=num_captions)
    return counts


def rank_texts(batch: Batch, numbers: np.ndarray, score: Score) -> list[Record]:
    """Return for each image the order of its texts, whose `numbers` are a row `(images, texts)`."""
    records = []
    for index, (row, of_image) in enumerate(zip(batch["row"].tolist(), np.sort(numbers, axis=1))):
        image = {"pixel_values": batch["pixel_values"][index : index + 1]}
        records.append(order_texts(row, of_image, score(image, of_image.tolist())[0]))
    return records


def order_texts(row: int, numbers: np.ndarray, scores: np.ndarray) -> Record:
    """Return the numbers of the texts of an image, the best first, with their scores between 0 and 1."""
    order = np.argsort(-scores, kind="stable")
    scores = torch.from_numpy(scores).sigmoid().numpy()
    return {"row": row, "texts": numbers[order].tolist(), "scores": scores[order].tolist()}
