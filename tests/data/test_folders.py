# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Splits and classes of local folders; files are not opened here."""

import os
from pathlib import Path

import datasets
import pytest
from tiny_runs import make_split, write_image_folder

from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.classification import find_class_names


KINDS = {"image": ".png", "video": ".mp4"}


def write(folder: Path, *files: str) -> str:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    return str(folder)


def read(folder, split="train", kind="image", with_targets=True, **options):
    task = TASKS[f"{kind}-classification"]
    args = task.arguments(dataset_name=str(folder), **options)
    rows = task.read(args, split, with_targets)
    column = rows[args.input_column] if not args.streaming else [row[args.input_column] for row in rows]
    files = [str(Path(file["path"]).relative_to(folder)) for file in column]
    return (files, find_class_names(args, rows)) if with_targets else files


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "classes",
    [
        ["bus", "train"],
        ["beaker", "test tube"],
        ["high speed train", "park"],
        ["boot", "training shoe"],
        ["evaluation", "other"],
        ["test", "train", "val"],
        ["[v1]", "*"],
    ],
)
def test_a_class_may_have_the_name_of_a_split(tmp_path, classes, kind, streaming):
    suffix = KINDS[kind]
    for split, count in (("train", 3), ("test", 2)):
        write(tmp_path, *(f"{split}/{name}/{number}{suffix}" for name in classes for number in range(count)))
    for split, count in (("train", 3), ("test", 2)):
        files, names = read(tmp_path, split, kind, streaming=streaming)
        assert files == [f"{split}/{name}/{number}{suffix}" for name in sorted(classes) for number in range(count)]
        assert names == sorted(classes)


def test_rows_are_those_of_datasets_in_its_order(tmp_path):
    """Of a folder that `datasets` reads rightly."""
    folder = write_image_folder(tmp_path, {"train": 60, "test": 30})
    write(tmp_path, "train/cat-2/1.png", "train/cat 2/1.png", "test/cat-2/1.png", "test/cat 2/1.png")
    expected = datasets.load_dataset(folder, split="train").cast_column("image", datasets.Image(decode=False))
    task = TASKS["image-classification"]
    rows = task.read(task.arguments(dataset_name=folder), "train")
    assert list(rows["image"]) == list(expected["image"]) and list(rows["label"]) == list(expected["label"])
    assert rows.features["label"] == expected.features["label"]


def test_links_are_followed(tmp_path):
    source = tmp_path / "source"
    write(source, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    folder = tmp_path / "folder"
    write(folder, "train/cat/1.png")
    os.symlink(source / "train/dog", folder / "train/wolf")
    os.symlink(source / "test", folder / "test")
    assert read(folder) == (["train/cat/1.png", "train/wolf/1.png"], ["cat", "wolf"])
    assert read(folder, "test") == (["test/cat/1.png", "test/dog/1.png"], ["cat", "dog"])
    os.symlink(folder / "train", folder / "train/cat/above")  # a ring
    assert read(folder)[0] == ["train/cat/1.png", "train/wolf/1.png"]


@pytest.mark.parametrize("name", ["set [v1]", "set *", "a+b", "train"])
def test_any_name_of_the_folder(tmp_path, name):
    files = ["train/cat/1.png", "train/dog/2.PNG"]
    assert read(write(tmp_path / name, *files, "test/dog/3.png")) == (files, ["cat", "dog"])


@pytest.mark.parametrize("form", ["folder", "file"])
def test_brackets_in_the_path_of_parquet_files(tmp_path, form):
    (tmp_path / "set [v1]").mkdir()
    for count, split in ((4, "train"), (2, "test")):
        make_split(count).to_parquet(tmp_path / "set [v1]" / f"{split}.parquet")
    task = TASKS["image-classification"]
    name = tmp_path / "set [v1]" / ("" if form == "folder" else "train.parquet")
    for streaming in (False, True):
        rows = task.read(task.arguments(dataset_name=str(name), streaming=streaming), "train")
        assert len(list(rows)) == 4


@pytest.mark.parametrize("name", ["fold 1", "fold [1]", "images/fold1", "val+test"])
def test_any_name_of_the_split(tmp_path, name):
    write(tmp_path, f"{name}/cat/1.png", f"{name}/dog/2.png", "train/cat/3.png")
    assert read(tmp_path, name) == ([f"{name}/cat/1.png", f"{name}/dog/2.png"], ["cat", "dog"])


def test_names_of_splits(tmp_path):
    write(tmp_path, "training/cat/1.png", "val/cat/2.png", "val/dog/3.png", "test/cat/4.png", "eval/cat/5.png")
    assert read(tmp_path, "train") == (["training/cat/1.png"], ["cat"])
    assert read(tmp_path, "validation")[0] == ["val/cat/2.png", "val/dog/3.png"]
    assert read(tmp_path, "test")[0] == ["test/cat/4.png"]
    assert read(tmp_path, "train+validation[1:]") == (["training/cat/1.png", "val/dog/3.png"], ["cat", "dog"])
    write(tmp_path, "dev/cat/6.png")
    with pytest.raises(ValueError, match=r"\[validation\]: dev and val are folders of 'validation'; name the split"):
        read(tmp_path, "validation")
    with pytest.raises(ValueError, match=r"no images in a folder of this split\. The folders are dev, eval, test"):
        read(tmp_path, "fold1")


def test_slices(tmp_path):
    files = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]
    write(tmp_path, *files, "test/cat/1.png")
    for split, expected in (
        ("train[:90%]", files[:18]),
        ("train[90%:]", files[18:]),
        ("train[5:7]", files[5:7]),
        ("train[:5%]+train[-1:]", [files[0], files[-1]]),
    ):
        assert read(tmp_path, split) == (expected, ["cat", "dog"])


def test_a_folder_without_splits_is_training_data(tmp_path):
    files = ["cat/1.png", "dog/2.png"]
    write(tmp_path, *files)
    assert read(tmp_path) == (files, ["cat", "dog"])
    assert read(tmp_path, "train[50%:]") == (files[1:], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"\[test\] could not be loaded: .*The folders are cat, dog\."):
        read(tmp_path, "test")


def test_hidden_files_are_left_out(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/cat/._1.png", "train/.ipynb_checkpoints/1.png", "train/__MACOSX/1.png")
    write(tmp_path, "train/dog/2.png", "train/dog/Thumbs.db", "train/notes.txt")
    assert read(tmp_path) == (["train/cat/1.png", "train/dog/2.png"], ["cat", "dog"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/images/cat/1.png", "train/images/dog/1.png"],
            r"train/images/cat/1\.png lies a folder deeper\. If the folders in train/images are the classes, name the",
        ),
        (["train/cat/a/1.png", "train/dog/1.png"], r"<split>/<class>/<file>, but .*cat/a/1\.png lies a folder deeper"),
        (["train/cat/1.png", "train/1.png"], r"train/1\.png lies outside the folders of the classes"),
        (["set/train/cat/1.png"], r"there is no folder of this split\. Set dataset_name to the folder that holds the"),
        (
            ["train/cat/1.png", "train/owl/1.heic"],
            r"no file in the folder .*owl has one of the suffixes .*1\.heic",
        ),
        (["train/cat/1.txt", "test/cat/1.png"], r"there are no images in a folder of this split"),
    ],
)
def test_files_in_other_places(tmp_path, files, message):
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_files_without_labels_may_lie_anywhere(tmp_path):
    files = ["test/1.png", "test/a/2.jpg", "test/a/b/3.tif"]
    write(tmp_path, *files, "train/cat/1.png")
    assert read(tmp_path, "test", with_targets=False) == files


def test_metadata_files(tmp_path):
    """The columns of an image folder of `datasets` come from this file."""
    write_image_folder(tmp_path / "set [v1]", {"train": 6, "test": 6})
    rows = ["file_name,label", "ant/0.png,old", "bee/1.png,new"]
    for split in ("train", "test"):
        (tmp_path / "set [v1]" / split / "metadata.csv").write_text("\n".join(rows))
    files, names = read(tmp_path / "set [v1]")
    assert files == ["train/ant/0.png", "train/bee/1.png"] and names == ["new", "old"]


@pytest.mark.parametrize("suffix", [".webm", ".flv", ".wmv", ".m4v", ".mpg", ".3gp", ".MOV"])
def test_videos_of_all_suffixes(tmp_path, suffix):
    files = [f"train/cat/1{suffix}", f"train/dog/1{suffix}"]
    assert read(write(tmp_path, *files), kind="video") == (files, ["cat", "dog"])
