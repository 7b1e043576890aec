# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The augmentation of the image task: what loaders do, what batches get, and the order of repeated examples."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from tiny_runs import CLASSES, class_fields, write_parquet
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader
from transformers import ViTConfig

from hf_frozen_llm.data.datasets import RepeatedSampler
from hf_frozen_llm.tasks.classification import ClassificationLoss
from hf_frozen_llm.tasks.image_classification import ImageClassification, ImageDataArguments
from hf_frozen_llm.tasks.image_classification.data import Augmentation, build_image_processor


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"), image="img")


def load(parquet, **keys):
    """Return the task, and its training data."""
    args = ImageDataArguments(parquet, image_column="img", **keys)
    config = ViTConfig(**class_fields({name: index for index, name in enumerate(CLASSES)}))
    task = ImageClassification(args, build_image_processor(args, 16, None), config)
    dataset = task.dataset(task.read(args, "train"), "train", training=True, seed=3)
    return task, dataset


def first_batch(parquet, number=12, **keys):
    task, dataset = load(parquet, **keys)
    batch = task.collate([dataset[index] for index in range(number)])
    return batch, task.augment(batch, np.random.default_rng(0))


def test_light_is_crops_and_flips(parquet):
    """Loaders do all of it, and normalise: the keys that recipes had before there were presets."""
    batch, augmented = first_batch(parquet, augmentation="light")
    _, same = first_batch(parquet, random_crop_scale=[0.08, 1.0], random_flip=True)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(augmented["pixel_values"], batch["pixel_values"])
    assert torch.equal(augmented["pixel_values"], same["pixel_values"])


def test_bytes_are_normalised_as_the_processor_does(parquet):
    """With batch augmentation, loaders give the same crops as bytes."""
    _, light = first_batch(parquet, augmentation="light")
    batch, augmented = first_batch(parquet, augmentation="light", random_erasing=1e-9)
    assert batch["pixel_values"].dtype == torch.uint8
    torch.testing.assert_close(augmented["pixel_values"], light["pixel_values"], rtol=0, atol=1e-5)
    assert torch.equal(augmented["labels"], light["labels"])


@pytest.mark.parametrize("preset", ["deit", "deit3"])
def test_batches_of_presets(parquet, preset):
    task, dataset = load(parquet, augmentation=preset)
    batch = task.collate([dataset[index] for index in range(12)])
    results = []
    for seed in (0, 1, 0):
        torch.manual_seed(len(results))
        results.append(task.augment(batch, np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(len(results) - 1).get_state())
    assert results[0]["pixel_values"].shape == (12, 3, 16, 16)
    assert results[0]["pixel_values"].isfinite().all()
    torch.testing.assert_close(results[0]["labels"].sum(1), torch.ones(12))
    for name in ("pixel_values", "labels"):
        assert torch.equal(results[0][name], results[2][name])
        assert not torch.equal(results[0][name], results[1][name])


def test_mixing_ends_with_its_epoch(parquet):
    task, dataset = load(parquet, mixup_alpha=0.8, mixup_off_epoch=2)
    assert task.sampler(dataset, 12, 0) is None
    batch = task.collate([dataset[index] for index in range(12)])
    dimensions = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        dimensions.append(task.augment(batch, np.random.default_rng(0))["labels"].ndim)
    assert dimensions == [2, 2, 1, 1]


def test_share_of_mixed_batches(parquet):
    task, dataset = load(parquet, cutmix_alpha=1.0, mixup_prob=0.3)
    batch = task.collate([dataset[index] for index in range(4)])
    mixed = [task.augment(batch, np.random.default_rng(seed))["labels"].ndim == 2 for seed in range(300)]
    assert 65 < sum(mixed) < 115


def test_padded_crops():
    """As torchvision's RandomCrop(8, padding=2): each place as often as the others, black around."""
    pixels = np.arange(1, 65, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(np.stack([pixels] * 3, axis=-1))
    padded = np.pad(pixels, 2)
    crops = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    crop = Augmentation((8, 8), None, False, Image.Resampling.BICUBIC, padding=2)
    rng = np.random.default_rng(0)
    places = Counter(crops[np.asarray(crop(image, rng))[..., 0].tobytes()] for _ in range(2500))
    assert len(places) == 25 and all(60 < number < 145 for number in places.values())
    whole = Augmentation((8, 8), None, False, Image.Resampling.BICUBIC, padding=0)
    assert np.array_equal(np.asarray(whole(image, rng)), np.asarray(image))
    larger = Augmentation((4, 6), None, False, Image.Resampling.BICUBIC, padding=1)
    assert larger(image, rng).size == (6, 4)


def test_copies_of_an_example_differ(parquet):
    """The first is what it is without repeated augmentation."""
    _, dataset = load(parquet, augmentation="light", repeated_augmentation=3)
    _, plain = load(parquet, augmentation="light")
    number = len(dataset)
    examples = dataset.__getitems__([7, 7 + number, 7 + 2 * number])
    copies = [example["pixel_values"] for example in examples]
    assert torch.equal(copies[0], plain[7]["pixel_values"])
    assert not torch.equal(copies[0], copies[1]) and not torch.equal(copies[1], copies[2])
    assert examples[0]["labels"] == examples[1]["labels"]
    dataset.set_epoch(1)
    (later,) = dataset.__getitems__([7 + number])
    assert not torch.equal(copies[1], later["pixel_values"])
    assert len(list(dataset)) == number
    with pytest.raises(IndexError, match=f"There is no row {number}; there are {number}"):
        dataset[number]


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 12), (2, 6), (4, 3)])
def test_repeated_examples_are_split_across_processes(parquet, processes, batch_size):
    """As DeiT's RASampler: an epoch of as many examples, three of each, in one step and on different processes."""
    task, dataset = load(parquet, augmentation="light", repeated_augmentation=3)
    number = len(dataset)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        sampler = task.sampler(dataset, processes * batch_size, seed=5)
        assert isinstance(sampler, RepeatedSampler) and len(sampler) == number
        batches = BatchSampler(sampler, batch_size, drop_last=False)
        shards = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
        indices = [index for step in zip(*shards) for batch in step for index in batch]
        assert len(set(indices)) == number  # no copy twice
        rows = Counter(index % number for index in indices)
        assert set(rows.values()) == {3} and len(rows) == number // 3
        for step in zip(*shards):
            assert set(Counter(index % number for batch in step for index in batch).values()) == {3}
            on_one = [max(Counter(index % number for index in batch).values()) for batch in step]
            assert max(on_one) == {1: 3, 2: 2, 4: 1}[processes]
        epochs.append(indices)
    assert epochs[0] == epochs[2] and epochs[0] != epochs[1]


def test_loader_processes_read_copies(parquet):
    task, dataset = load(parquet, augmentation="light", repeated_augmentation=3)
    loaded = []
    for workers in (0, 1):
        sampler = task.sampler(dataset, 12, seed=5)
        loader = DataLoader(dataset, 12, sampler=sampler, collate_fn=task.collate, num_workers=workers)
        loaded.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert torch.equal(loaded[0], loaded[1]) and len(loaded[0]) == len(dataset)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_binary_loss_is_that_of_timm(is_mixed, smoothing):
    """The mean over examples and classes; smoothed targets as with the cross-entropy; counted examples divide."""
    logits, labels = torch.randn(4, 5), torch.tensor([3, 0, 0, 2])
    shares = F.one_hot(labels, 5).float()
    shares = 0.7 * shares + 0.3 * shares.flip(0) if is_mixed else shares
    targets = shares * (1 - smoothing) + smoothing / 5
    by_hand = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).mean()
    loss = ClassificationLoss(smoothing, is_binary=True)
    torch.testing.assert_close(loss({"logits": logits}, shares if is_mixed else labels), by_hand)
    halves = [
        loss({"logits": logits[part]}, (shares if is_mixed else labels)[part], 4) for part in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves), by_hand)
