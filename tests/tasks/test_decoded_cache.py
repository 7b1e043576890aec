# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`cache_decoded`: the same examples, from decoded images that are kept until data, split or size change."""

import json
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image
from tiny_runs import TINY, make_split, write_image_folder

from hf_frozen_llm.cli import main
from hf_frozen_llm.data import decoded_cache
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.run import build_run


NO_CROPS = ["--random_crop_scale", "null"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; a part has 25 of the 60 rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded_cache, "ROWS_PER_PART", 25)
    return tmp_path / "cache" / "decoded_pictures"


def build(recipe, output_dir, *flags):
    run = build_run(read_recipe(recipe, [*TINY, "--output_dir", str(output_dir), *flags]))
    return [run.train_dataset, run.eval_dataset]


def assert_same_examples(one, other, largest_difference=0.0):
    for expected, found in zip(one, other):
        assert len(expected) == len(found) > 20
        for epoch in (0, 1):
            expected.set_epoch(epoch)
            found.set_epoch(epoch)
            for a, b in zip(expected, found):
                assert a.keys() == b.keys() and a["labels"] == b["labels"]
                assert a["pixel_values"].dtype == b["pixel_values"].dtype
                difference = (a["pixel_values"].float() - b["pixel_values"].float()).abs().max()
                assert difference <= largest_difference


CASES = {
    "resized": [*NO_CROPS, "--random_flip", "false"],
    "middle": [*NO_CROPS, "--random_flip", "false", "--crop_pct", "0.8"],
    "moved": [*NO_CROPS, "--crop_padding", "2"],
    "chosen rows": [*NO_CROPS, "--crop_padding", "1", "--max_train_samples", "40", "--max_eval_samples", "21"],
    "crops of whole images": ["--cached_edge", "20"],
    "bytes for the device": ["--augmentation", "deit", "--cached_edge", "30"],
}


@pytest.mark.parametrize("case", CASES)
def test_examples_are_the_same(case, recipe, tmp_path):
    """Images have 24 x 20 pixels, the model 16 x 16."""
    flags = CASES[case]
    without = flags[: flags.index("--cached_edge")] if "--cached_edge" in flags else flags
    expected = build(recipe, tmp_path / "run", *without)
    assert_same_examples(expected, build(recipe, tmp_path / "run", *flags, "--cache_decoded", "true"))


def test_mirrored_after_resizing(recipe, tmp_path):
    """Pillow's resize rounds a mirrored image a little differently."""
    expected = build(recipe, tmp_path / "run", *NO_CROPS)
    found = build(recipe, tmp_path / "run", *NO_CROPS, "--cache_decoded", "true")
    assert_same_examples(expected, found, 1.01 / 255 / 0.224)


def test_large_images_are_reduced_for_crops(recipe, tmp_path):
    """To 8/7 of the model's 16 pixels; those of the evaluation have its size."""
    train, evaluated = build(recipe, tmp_path / "run", "--cache_decoded", "true")
    images = [decoded_cache.load_picture(dataset.rows[3]["image"]) for dataset in (train, evaluated)]
    assert [image.size for image in images] == [(23, 19), (16, 16)]
    original = make_split(60)[3]["image"]
    assert images[0].tobytes() == original.resize((23, 19), Image.Resampling.BICUBIC).tobytes()


def test_kept_until_data_split_or_size_change(recipe, cache, tmp_path):
    pictures = tmp_path / "pictures"
    flags = ["--dataset_name", write_image_folder(pictures), "--cache_decoded", "true"]

    def files():
        return {path.name: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}

    build(recipe, tmp_path / "run", *flags)
    first = files()
    assert len(first) == 2  # a part of each split
    build(recipe, tmp_path / "run", *flags, "--random_flip", "false", "--augmentation", "deit")
    assert files() == first
    build(recipe, tmp_path / "run", *flags, "--host.image_size", "32")
    assert len(files()) == 4
    changed = pictures / "test" / "ant" / "0.png"
    stat = changed.stat()
    Image.new("RGB", (20, 20)).save(changed)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    _, evaluated = build(recipe, tmp_path / "run", *flags)
    assert len(files()) == 5 and files().items() >= first.items()
    assert not any(decoded_cache.load_picture(evaluated.rows[0]["image"]).tobytes())
    main(["train", str(recipe), *TINY, *flags, "--output_dir", str(tmp_path / "run"), "--max_steps", "2"])
    assert len(files()) == 5
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training_set"]["labels"]["ant"] == 3


def test_labels_are_not_cached():
    """The same pictures with other labels."""
    rows = make_split(12).cast_column("image", datasets.Image(decode=False))
    for labels in (rows["label"][:], rows["label"][::-1]):
        labelled = rows.remove_columns(["label"]).add_column("label", labels)
        found = decoded_cache.cache_pictures(labelled, "image", lambda *_: Image.new("RGB", (1, 1)), 0, None, "rows")
        assert found["label"][:] == labels


def test_interrupted_write_loses_no_whole_part(cache):
    """Of 60 rows in parts of 25, the second part is interrupted."""
    rows = make_split(60).cast_column("image", datasets.Image(decode=False))
    decoded = []

    def read(encoded, row):
        decoded.append(row)
        if row == 30 and decoded.count(30) == 1:
            raise KeyboardInterrupt
        return Image.new("RGB", (2, 1), (row, 0, 0))

    with pytest.raises(KeyboardInterrupt):
        decoded_cache.cache_pictures(rows, "image", read, 0, None, "rows")
    assert len(list(cache.glob("*.arrow"))) == 1
    decoded.remove(0)
    found = decoded_cache.cache_pictures(rows, "image", read, 0, None, "rows")
    assert 0 not in decoded and len(list(cache.glob("*.arrow"))) == 3
    reds = [decoded_cache.load_picture(row["image"]).getpixel((1, 0))[0] for row in found]
    assert reds == list(range(60)) and found["label"][:] == rows["label"][:]


def test_saved_models_are_evaluated_without_it(recipe, cache, tmp_path):
    """Corruptions of small images need them at their own size."""
    run = build_run(read_recipe(recipe, [*TINY, "--output_dir", str(tmp_path / "run"), "--cache_decoded", "true"]))
    files = list(cache.iterdir())
    rows = run.task.read(run.task.args, "test")
    dataset = run.task.dataset(rows, "test")
    assert "bytes" in dataset.rows[0]["image"] and "width" not in dataset.rows[0]["image"]
    assert list(cache.iterdir()) == files


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cached_edge", "30"], "cached_edge is set, but cache_decoded is not"),
        (["--preprocessing_num_workers", "2"], "preprocessing_num_workers is set, but cache_decoded is not"),
        (["--cache_decoded", "true", "--cached_edge", "0"], "cached_edge is 0; it must be at least 1"),
        (
            ["--cache_decoded", "true", "--streaming", "true", "--max_steps", "2"],
            "cache_decoded keeps whole data sets",
        ),
    ],
)
def test_contradictions_are_refused(flags, message, recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(recipe, tmp_path / "run", *flags)


def test_image_that_cannot_be_decoded_is_named(recipe, tmp_path):
    pictures = tmp_path / "pictures"
    flags = ["--dataset_name", write_image_folder(pictures), "--cache_decoded", "true"]
    Path(pictures, "train", "bee", "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\[train\], row 3 \(.*bee.*1\.png\): the image cannot be decoded"):
        build(recipe, tmp_path / "run", *flags)
