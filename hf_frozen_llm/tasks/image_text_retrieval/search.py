# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Search in large galleries: find candidates by the embeddings of images and of texts, without comparing all pairs."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterProcessor
from hf_frozen_llm.tasks.task import Batch, Record
from hf_frozen_llm.tasks.vision_and_language import pad_texts


Backend = Literal["torch", "faiss"]
# Similarities that are in memory at a time: 64 MiB.
MAX_SIMILARITIES = 2**24


class PackedTexts(Sequence[torch.Tensor]):
    """
    The tokens of many texts in one array: 4 bytes a token, where a tensor of each text takes some hundred bytes.

    Args:
        texts (`Iterator[torch.Tensor]`): the tokens of each text.
    """

    def __init__(self, texts: Iterator[torch.Tensor]):
        parts = [ids.numpy().astype(np.int32) for ids in texts]
        self.ends = np.cumsum([0, *map(len, parts)])
        self.tokens = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return torch.from_numpy(self.tokens[self.ends[index] : self.ends[index + 1]].astype(np.int64))


def embed_images(model: Any, batch: Batch) -> list[Record]:
    """Return the embedding of each image of a batch."""
    embeddings = find_embedding_model(model).get_image_features(batch["pixel_values"]).pooler_output
    numbers = batch["row"].tolist()
    return [{"row": row, "embedding": part} for row, part in zip(numbers, to_finite_array(embeddings))]


def embed_texts(
    model: Any, processor: MeterProcessor, texts: Sequence[torch.Tensor], texts_per_batch: int
) -> np.ndarray:
    """Return the embeddings `(texts, projection_dim)` of tokens."""
    inner, parts = find_embedding_model(model), []
    for start in range(0, len(texts), texts_per_batch):
        inputs = pad_texts(texts[start : start + texts_per_batch], processor)
        inputs = {name: part.to(inner.device) for name, part in inputs.items()}
        with torch.no_grad():
            parts.append(to_finite_array(inner.get_text_features(**inputs).pooler_output))
    return np.concatenate(parts)


def find_embedding_model(model: Any) -> Any:
    """Return the model itself, without the wrapper of several processes: only `forward` is wrapped."""
    return getattr(model, "module", model)


def to_finite_array(embeddings: torch.Tensor) -> np.ndarray:
    if not embeddings.isfinite().all():
        raise ValueError("Embeddings are not finite; the model has diverged.")
    return embeddings.float().cpu().numpy()


def find_nearest(
    queries: np.ndarray, gallery: np.ndarray, count: int, backend: Backend = "torch", device: Any = "cpu"
) -> np.ndarray:
    """
    Return for each query the numbers `(queries, count)` of the most similar items of a gallery, the best first; of
    equal ones the first in the gallery is better. The search is exact.

    Memory of a million pairs (images and their captions, embeddings of 256 numbers, 100 candidates) in an evaluation,
    which finds the candidates of each image and of each caption:

    * embeddings: 2 · 10⁶ · 256 · 4 bytes = 2.0 GB
    * candidates: 2 · 10⁶ · 100 · 4 bytes = 0.8 GB; their order by image: 10⁸ · 8 bytes = 0.8 GB
    * scores of the candidates of the captions: 10⁸ · 4 bytes = 0.4 GB
    * tokens of captions, 20 each: 0.1 GB; similarities at a time: 0.06 GB

    That is 4.2 GB, and grows with the pairs times the candidates; a table of all scores would take 4 TB. The whole
    model compares at most 2 · 10⁸ pairs instead of 10¹². The gallery alone, 1.0 GB, has a copy on `device` if this is
    no CPU.

    Args:
        queries (`numpy.ndarray` of shape `(queries, projection_dim)`):
            Embeddings, float32.
        gallery (`numpy.ndarray` of shape `(items, projection_dim)`):
            Embeddings, float32.
        count (`int`):
            Items to find; at most all.
        backend (`str`, *optional*, defaults to `"torch"`):
            `"torch"` computes all similarities, a part at a time; `"faiss"` leaves the search to FAISS
            (`IndexFlatIP`), which does not promise the order of equal items.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device of the search by torch.
    """
    count = min(count, len(gallery))
    if backend == "faiss":
        return find_nearest_by_faiss(queries, gallery, count)
    found = np.empty((len(queries), count), dtype=np.int32)
    for start, similarities in compute_similarities(queries, gallery, device):
        found[start : start + len(similarities)] = first_best(similarities, count).cpu().numpy()
    return found


def compute_similarities(queries: np.ndarray, gallery: np.ndarray, device: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of a query, and the similarities `(some queries, items)` from this one on."""
    items = torch.from_numpy(gallery).to(device)
    size = max(1, MAX_SIMILARITIES // len(gallery))
    for start in range(0, len(queries), size):
        yield start, torch.from_numpy(queries[start : start + size]).to(device) @ items.T


def first_best(similarities: torch.Tensor, count: int) -> torch.Tensor:
    """Return the columns of the greatest values of each row, in the order of a stable sort, but without sorting."""
    best, columns = similarities.topk(count, dim=1)
    # Of several values equal to the last one, `topk` takes any.
    is_tied = (similarities >= best[:, -1:]).sum(dim=1) > count
    columns[is_tied] = similarities[is_tied].argsort(dim=1, descending=True, stable=True)[:, :count]
    columns = columns.sort(dim=1).values
    order = similarities.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)


def find_nearest_by_faiss(queries: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "candidate_search is faiss, which is not installed: pip install 'hf_frozen_llm[retrieval]', or set "
            "candidate_search to torch."
        ) from error
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    return index.search(queries, count)[1].astype(np.int32)


def rank_by_similarity(
    queries: np.ndarray, gallery: np.ndarray, starts: np.ndarray, ends: np.ndarray, device: Any = "cpu"
) -> np.ndarray:
    """
    Return the rank of each query's most similar match, from 1; the matches of a query are the items of the gallery
    from its `starts` up to its `ends`. Of equal items the first is better.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for first, similarities in compute_similarities(queries, gallery, device):
        for row, values in enumerate(similarities, start=first):
            match = int(starts[row] + values[starts[row] : ends[row]].argmax())
            before = (values > values[match]).sum() + (values[:match] == values[match]).sum()
            ranks[row] = 1 + int(before)
    return ranks
