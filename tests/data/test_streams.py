# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Streams and subsets of data."""

import datasets
from torch.utils.data import DataLoader

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import StreamingTransformedDataset, take_samples


def show_keys(rows, keys):
    return [{"id": row["id"], "key": key} for row, key in zip(rows, keys)]


def test_random_numbers_of_a_stream_depend_on_epoch_worker_and_row():
    """Equal keys would give two examples the same augmentation."""
    rows = datasets.Dataset.from_dict({"id": range(12)}).to_iterable_dataset(num_shards=2)
    stream = iter(StreamingTransformedDataset(rows, show_keys, repeat=True))
    assert [next(stream)["key"] for _ in range(36)] == [(epoch, 0, row) for epoch in range(3) for row in range(12)]
    loader = DataLoader(StreamingTransformedDataset(rows, show_keys, repeat=True), batch_size=None, num_workers=2)
    examples = [example for example, _ in zip(loader, range(48))]
    keys = [tuple(example["key"]) for example in examples]
    assert sorted(keys) == [(epoch, worker, row) for epoch in range(4) for worker in range(2) for row in range(6)]


def test_subsets_of_sorted_rows_are_drawn_at_random():
    rows = datasets.Dataset.from_dict({"label": sorted(list(range(10)) * 20)})
    for limit in (20, 50):
        drawn = take_samples(DataArguments("x"), rows, limit)
        assert len(drawn) == limit and len(set(drawn["label"])) > 6
