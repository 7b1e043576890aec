# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Ranks in a large gallery: the whole model compares only the candidates that embeddings find, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_frozen_llm.metrics.retrieval_recall import rank_of_best_match
from hf_frozen_llm.tasks.image_text_retrieval.galleries import Score
from hf_frozen_llm.tasks.image_text_retrieval.search import rank_by_similarity
from hf_frozen_llm.tasks.task import Batch, Record


@dataclass
class Candidates:
    """
    Candidates in both directions, by their numbers.

    Args:
        captions (`numpy.ndarray` of shape `(images, count)`): the captions that are candidates of each image.
        images (`numpy.ndarray` of shape `(captions, count)`): the images that are candidates of each caption.
        owners (`numpy.ndarray` of shape `(captions,)`): the image of each caption, ascending.
    """

    captions: np.ndarray
    images: np.ndarray
    owners: np.ndarray

    def __post_init__(self):
        numbers = np.arange(len(self.captions))
        flat = self.images.ravel()
        # The places in `images` that hold an image: those between its two bounds, in this order.
        self.places = np.argsort(flat, kind="stable")
        self.bounds = np.searchsorted(flat, np.arange(len(numbers) + 1), sorter=self.places)
        self.starts, self.ends = (np.searchsorted(self.owners, numbers, side) for side in ("left", "right"))

    def compare(self, batch: Batch, score: Score) -> list[Record]:
        """
        Return for each image of a batch the rank of its best caption among its candidates, `None` if these are all
        wrong; and its scores in the `places` where it is a candidate of a caption.
        """
        records = []
        for index, row in enumerate(batch["row"].tolist()):
            places = self.places[self.bounds[row] : self.bounds[row + 1]]
            own = np.arange(self.starts[row], self.ends[row])
            captions = places // self.images.shape[1]
            needed = np.unique(np.concatenate([own, self.captions[row], captions]))
            image = {"pixel_values": batch["pixel_values"][index : index + 1]}
            scores = score(image, needed.tolist())[0]
            if np.isnan(scores).any():
                raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN; the model has diverged.")
            compared = np.isin(needed, self.captions[row])
            is_own = (self.owners[needed] == row) & compared
            others = np.logaddexp.reduce(scores[self.owners[needed] != row], initial=-np.inf)
            text_rank = rank_of_best_match(scores[None, compared], is_own[None, compared])[0] if is_own.any() else None
            records.append(
                {
                    "row": row,
                    "text_rank": None if text_rank is None else int(text_rank),
                    "places": places,
                    "scores": scores[np.searchsorted(needed, captions)],
                    "loss": float(np.logaddexp(0, others - scores[np.searchsorted(needed, own)]).mean()),
                }
            )
        return records

    def rank(
        self, records: Sequence[Record], images: np.ndarray, texts: np.ndarray, device: Any
    ) -> dict[str, np.ndarray]:
        """
        Return the ranks of the matches: `image` of the image of each caption, `text` of the best caption of each
        image. Items that are no candidates follow in the order of their similarity.

        Args:
            records (`Sequence[dict]`): the records of all images.
            images (`numpy.ndarray` of shape `(images, projection_dim)`): the embeddings of the images.
            texts (`numpy.ndarray` of shape `(captions, projection_dim)`): the embeddings of the captions.
            device (`torch.device`): device of the search.
        """
        table = np.empty(self.images.shape, dtype=np.float32)
        for record in records:
            table.flat[record["places"]] = record["scores"]
        owners = self.owners[:, None]
        is_own = self.images == owners
        own = np.where(is_own, table, -np.inf).max(axis=1)[:, None]
        image_ranks = 1 + ((table > own) | ((table == own) & (self.images < owners))).sum(axis=1)
        lost = np.flatnonzero(~is_own.any(axis=1))
        starts = self.owners[lost]
        image_ranks[lost] = rank_by_similarity(texts[lost], images, starts, starts + 1, device)
        text_ranks = np.array([record["text_rank"] or 0 for record in records])
        lost = np.flatnonzero(text_ranks == 0)
        text_ranks[lost] = rank_by_similarity(images[lost], texts, self.starts[lost], self.ends[lost], device)
        return {"image": image_ranks, "text": text_ranks}
