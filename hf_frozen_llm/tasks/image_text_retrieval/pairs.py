# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Pairs of images and texts: merged images, false texts, METER's losses."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F

from hf_frozen_llm.data.datasets import Example, Row
from hf_frozen_llm.modeling.meter_heads import contrastive_loss
from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterProcessor
from hf_frozen_llm.tasks.image_text_retrieval.galleries import list_captions
from hf_frozen_llm.tasks.vision_and_language import ImageTextTransform


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.image_text_retrieval import RetrievalArguments

HASHED_ROWS = 256


def merge_images(
    images: datasets.Dataset, captions: Sequence[list[str]]
) -> tuple[datasets.Dataset, list[list[str]], int]:
    """Return each image once, with the different captions of all of its rows, and the number of the other rows."""
    first: dict[Any, int] = {}
    merged: dict[int, dict[str, None]] = {}
    number = 0
    for batch in images.iter(HASHED_ROWS):
        for encoded in batch["image"]:
            content = encoded["bytes"] if encoded else None
            key = encoded and (encoded["path"] if content is None else hashlib.blake2b(content).digest())
            row = number if key is None else first.setdefault(key, number)
            merged.setdefault(row, {}).update(dict.fromkeys(captions[number]))
            number += 1
    if len(merged) < number:
        images = images.select(list(merged))
    return images, [list(texts) for texts in merged.values()], number - len(merged)


class GalleryTransform(ImageTextTransform):
    """Turn rows into images."""

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        return [{"pixel_values": image} for image in self.encode_images(rows, [key[-1] for key in keys])]


class PairTransform(ImageTextTransform):
    """
    Turn pairs, the numbers of an image and of its caption, into the image, the caption and false texts: captions of
    other images, drawn at random. See [`ImageTextTransform`] for the other arguments.

    Args:
        images (`datasets.Dataset`):
            Images with their captions.
        seed (`int`):
            The false texts of an example depend only on this seed, the epoch and the pair.
    """

    def __init__(
        self,
        args: "RetrievalArguments",
        processor: MeterProcessor,
        location: str,
        images: datasets.Dataset,
        seed: int,
    ):
        super().__init__(args, processor, location)
        self.num_false_texts = args.num_false_texts
        self.images, self.seed = images, seed
        self.captions, self.owners = list_captions(images)
        if len(images) < 2:
            raise ValueError(f"{location} has {len(images)} image; false texts are captions of other images.")

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        numbers = [row["image"] for row in rows]
        images = self.encode_images([self.images[number] for number in numbers], numbers)
        return [
            {"pixel_values": image, "texts": self.encode_texts([self.captions[n] for n in self.draw(row, key)])}
            for image, row, key in zip(images, rows, keys)
        ]

    def draw(self, row: Row, key: tuple[int, ...]) -> list[int]:
        """Return the numbers of the caption and of its false texts."""
        start, end = np.searchsorted(self.owners, [row["image"], row["image"] + 1])
        others = len(self.owners) - (end - start)
        false = np.random.default_rng((self.seed, *key)).integers(others, size=self.num_false_texts)
        return [row["caption"], *np.where(false < start, false, false + end - start).tolist()]


class RetrievalLoss:
    """
    METER's losses of images with their caption and false texts, added: the cross-entropy of the `scores` of an image's
    texts, of which the first is right, and the cross-entropy of the match head on one pair of each image: in half of
    the batch the right one, in the other half a false one. METER draws a false image for a text here, which gives
    pairs of the same distribution; it also freezes the match head.

    Args:
        hard_negatives (`bool`): whether the false pair is that of the best score, not the first one.
        contrastive_weight (`float`, *optional*, defaults to 0.0): weight of the loss of a model's embeddings, in which
            the captions are compared with all images of the batch, and the images with all of its texts.
    """

    def __init__(self, hard_negatives: bool, contrastive_weight: float = 0.0):
        self.hard_negatives, self.contrastive_weight = hard_negatives, contrastive_weight

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        scores, match_logits = outputs["scores"].float().view_as(labels), outputs["match_logits"].float()
        if self.hard_negatives:
            is_false = (labels == 0).any(1, keepdim=True)
            hardest = 1 + scores[:, 1:].detach().argmax(1, keepdim=True)
            hard = torch.full_like(labels, -100).scatter(1, hardest, 0)
            labels = torch.where(is_false, hard, labels)
        first = labels.new_zeros(len(labels))
        loss = F.cross_entropy(scores, first, reduction="sum")
        loss = loss + F.cross_entropy(match_logits, labels.flatten(), ignore_index=-100, reduction="sum")
        if self.contrastive_weight > 0:
            is_match = torch.zeros_like(scores)
            is_match[:, 0] = 1
            loss = loss + self.contrastive_weight * contrastive_loss(outputs["logits_per_image"], is_match.flatten())
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
