# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import io
import json
import math
import shutil
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, class_fields, make_split, write_image_folder, write_parquet
from torch.utils.data import DataLoader
from transformers import ViTConfig
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_frozen_llm.data.augmentation import draw_crop
from hf_frozen_llm.data.datasets import TransformedDataset, take_samples
from hf_frozen_llm.tasks.classification import find_class_names
from hf_frozen_llm.tasks.image_classification import ImageClassification, ImageDataArguments
from hf_frozen_llm.tasks.image_classification.data import (
    Augmentation,
    build_image_processor,
    find_image_size,
    read_published_processor,
)


LABEL2ID = {name: index for index, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"), image="img")


read = ImageClassification.read


def build_task(args, label2id=LABEL2ID):
    return ImageClassification(args, build_image_processor(args, 16, None), ViTConfig(**class_fields(label2id)))


def load(args, split="train", label2id=LABEL2ID, max_samples=None, **kwargs):
    rows = take_samples(args, read(args, split), max_samples)
    return build_task(args, label2id).dataset(rows, split, **kwargs)


def collate(examples):
    return build_task(ImageDataArguments("x")).collate(examples)


CROPS = {"random_crop_scale": [0.3, 1.0], "random_flip": True}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["parquet", "file", "images"])
def test_forms_of_data_give_the_same_tensors(tmp_path, form, streaming):
    if form == "images":
        args = ImageDataArguments(write_image_folder(tmp_path, {"train": 12, "test": 6}), streaming=streaming)
    else:
        folder = write_parquet(tmp_path, {"train": 12, "test": 6})
        file = f"{folder}/train-00000-of-00001.parquet"
        args = ImageDataArguments(file if form == "file" else folder, streaming=streaming)
    assert find_class_names(args, read(args, "train")) == CLASSES
    batch = collate(list(load(args)))
    order = torch.argsort(batch["labels"], stable=True)

    expected = make_split(12, seed=0)
    processor = build_image_processor(args, 16, None)
    pixels = processor([row["image"] for row in expected], return_tensors="pt")["pixel_values"]
    labels = torch.tensor(expected["label"])
    assert batch["labels"][order].tolist() == sorted(labels.tolist())
    assert torch.equal(
        batch["pixel_values"][order].sum((1, 2, 3)).sort().values,
        pixels[torch.argsort(labels, stable=True)].sum((1, 2, 3)).sort().values,
    )
    if form != "images":
        assert torch.equal(batch["pixel_values"], pixels)


def test_subsets_are_fixed_and_mixed(parquet):
    args = ImageDataArguments(parquet, image_column="img")
    first, second = load(args, max_samples=20), load(args, max_samples=20)
    assert len(first) == 20
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, second))
    assert len({row["labels"] for row in first}) > 3
    assert len(list(load(ImageDataArguments(parquet, image_column="img", streaming=True), max_samples=20))) == 20


def test_labels_are_matched_by_name(parquet):
    args = ImageDataArguments(parquet, image_column="img")
    turned = {name: index for index, name in enumerate(reversed(CLASSES))}
    assert [row["labels"] for row in load(args, label2id=turned)][:6] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="the model does not know the classes ant, bee"):
        load(args, label2id={"car": 0, "cat": 1, "dog": 2, "elk": 3, "fox": 4})


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["b", "a", "b"], ["a", "b"]), ([2, 0, 1], ["0", "1", "2"]), ([0, 3, 0], ["0", "1", "2", "3"])],
)
def test_labels_without_names(tmp_path, labels, names):
    images = make_split(3)["image"]
    datasets.Dataset.from_dict({"image": list(images), "label": labels}).to_parquet(tmp_path / "train.parquet")
    args = ImageDataArguments(str(tmp_path))
    assert find_class_names(args, read(args, "train")) == names
    label2id = {name: index for index, name in enumerate(names)}
    assert [names[row["labels"]] for row in load(args, label2id=label2id)] == [str(label) for label in labels]
    stream = ImageDataArguments(str(tmp_path), streaming=True)
    with pytest.raises(ValueError, match="Set class_names"):
        find_class_names(stream, read(stream, "train"))
    stream.class_names = names
    assert find_class_names(stream, read(stream, "train")) == names


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"image_column": "image"}, "train", r"has no column 'image'; it has img, label. Set image_column"),
        ({"label_column": "class"}, "train", r"has no column 'class'; it has img, label. Set label_column"),
        ({}, "validation", r"\[validation\] could not be loaded: .*validation.*train.*test"),
        ({"image_column": "label", "label_column": "img"}, "train", r"column 'label' holds no images"),
    ],
)
def test_wrong_columns_and_splits(parquet, changes, split, message, streaming):
    args = ImageDataArguments(parquet, **{"image_column": "img", "streaming": streaming, **changes})
    with pytest.raises(ValueError, match=message):
        read(args, split)


def test_wrong_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(ImageDataArguments(str(tmp_path / "nothing")), "train")
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"only \.parquet files and folders"):
        read(ImageDataArguments(str(tmp_path / "data.csv")), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_data(tmp_path, streaming):
    make_split(2).select([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"\[train\] (is empty|could not be loaded: .* corresponds to no data)"):
        read(ImageDataArguments(str(tmp_path), streaming=streaming), "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", ["cut off", "no image", "missing"])
def test_broken_images_are_named(tmp_path, damage, streaming):
    rows = list(make_split(4).cast_column("image", datasets.Image(decode=False)))
    content = {"cut off": rows[2]["image"]["bytes"][:200], "no image": b"text"}
    rows[2]["image"] = None if damage == "missing" else {"bytes": content[damage], "path": "third.png"}
    features = make_split(1).features
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"\[train\], row 2.*image (cannot be decoded|is missing)") as error:
        list(load(ImageDataArguments(str(tmp_path), streaming=streaming)))
    assert damage == "missing" or "third.png" in str(error.value)


def test_labels_outside_the_classes_are_named(tmp_path):
    images = list(make_split(3)["image"])
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, -1]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"\[test\], row 2: 'label' is -1, which is not one of the 6 classes"):
        list(load(ImageDataArguments(str(tmp_path)), split="test"))


def test_colour_modes_become_rgb(tmp_path):
    images = [Image.new(mode, (8, 8), 1) for mode in ("L", "1", "I;16", "P", "LA")] + [Image.new("CMYK", (8, 8))]
    for index, image in enumerate(images):
        folder = tmp_path / "train" / CLASSES[index]
        folder.mkdir(parents=True)
        image.save(folder / f"x.{'tiff' if image.mode == 'CMYK' else 'png'}")
    assert collate(list(load(ImageDataArguments(str(tmp_path)))))["pixel_values"].shape == (6, 3, 16, 16)


GREYS = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))


def decode(content, path=None, **options):
    """Return the pixels, from 0 to 255, of an image of 16 x 16 pixels."""
    args = ImageDataArguments("x", image_mean=[0, 0, 0], image_std=[1, 1, 1], **options)
    encoded = {"bytes": content if path is None else None, "path": path and str(path)}
    task = ImageClassification(args, build_image_processor(args, 16, None), ViTConfig(**class_fields(LABEL2ID)))
    rows = datasets.Dataset.from_dict({"label": [0]})
    (example,) = task.example_transform(rows, "train", False, 0)([{"image": encoded, "label": 0}], [(0, 3)])
    return (example["pixel_values"] * 255).round().numpy().astype(int)


def encode(array, kind="PNG"):
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, kind)
        return file.getvalue()


def write_tiff(array, bits=16, is_white_zero=False):
    """Return a TIFF file of unsigned integers, packed as 12 bits if there are that many."""
    pixels = array.astype("<u2").tobytes()
    if bits == 12:
        number = sum(int(value) << 12 * place for place, value in enumerate(array.flat[::-1]))
        pixels = number.to_bytes(array.size * 12 // 8, "big")
    height, width = array.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not is_white_zero), 273: 0, 277: 1, 278: height}
    tags |= {279: len(pixels)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels


WIDE = GREYS.astype(np.uint16)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (encode(WIDE * 257), {}),
        (encode(WIDE * 257, "TIFF"), {}),
        (encode((WIDE * 257).astype(">u2"), "TIFF"), {}),
        (b"P5 16 16 65535\n" + (WIDE * 257).astype(">u2").tobytes(), {}),
        (b"P5 16 16 4095\n" + (WIDE * 16).astype(">u2").tobytes(), {}),
        (write_tiff(WIDE * 16, bits=12), {}),
        (write_tiff(WIDE * 257), {}),
        (write_tiff(65535 - WIDE * 257, is_white_zero=True), {}),
        (encode(GREYS.astype(np.float32) / 255, "TIFF"), {}),
        (encode(WIDE * 16), {"pixel_range": [0, 4080]}),
        (encode(GREYS.astype(np.int32) * 257 - 1000, "TIFF"), {"pixel_range": [-1000, 64535]}),
        (encode(GREYS.astype(np.float32) - 5, "TIFF"), {"pixel_range": [-5, 250]}),
        (encode(GREYS), {"pixel_range": [0, 4095]}),  # of images with more than 8 bits only
    ],
)
def test_more_than_8_bits(content, options):
    pixels = decode(content, **options)
    assert np.abs(pixels - GREYS).max() <= 1, pixels[0, 0]


def test_values_outside_the_range_are_black_and_white():
    pixels = decode(encode(np.tile(np.arange(16, dtype=np.float32), (16, 1)), "TIFF"), pixel_range=[4, 9])
    assert pixels[0, 0].tolist() == [0] * 5 + [51, 102, 153, 204] + [255] * 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            encode(WIDE * 16),
            r"\[train\], row 3: the pixels have 16 bits, but values from 0 to 4080 .*pixel_range",
        ),
        (encode(GREYS.astype(np.int32) * 257, "TIFF"), r"integers of 32 bits, from 0 to 65535\. Set pixel_range"),
        (encode(GREYS.astype(np.float32), "TIFF"), r"numbers from 0 to 255, not from 0 to 1\. Set pixel_range"),
        (encode(GREYS - np.float32(1), "TIFF"), r"numbers from -1 to 254, not from 0 to 1\. Set pixel_range"),
        (encode(np.full((16, 16), np.nan, np.float32), "TIFF"), "pixels that are not finite"),
    ],
)
def test_ranges_that_are_not_stated(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content)


def test_range_errors_name_the_file(tmp_path):
    (tmp_path / "x.png").write_bytes(encode(WIDE * 16))
    with pytest.raises(ValueError, match=r"row 3 \(.*x\.png\): the pixels have 16 bits"):
        decode(None, tmp_path / "x.png")


def test_centre_crop_keeps_the_aspect_ratio():
    args = ImageDataArguments("x", crop_pct=0.875, interpolation="bilinear")
    processor = build_image_processor(args, 224, None)
    stripes = np.zeros((256, 512, 3), np.uint8)
    stripes[:, 144:368] = 255  # the crop of a 512 x 256 image
    pixels = processor(Image.fromarray(stripes), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels.min() > 2  # white everywhere


def test_augmentation_depends_on_seed_epoch_and_row_alone(parquet):
    args = ImageDataArguments(parquet, image_column="img", **CROPS)
    dataset = load(args, training=True)
    assert isinstance(dataset, TransformedDataset)
    loaders = [DataLoader(dataset, batch_size=7, collate_fn=collate, num_workers=n) for n in (0, 2)]
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        here, there = (torch.cat([batch["pixel_values"] for batch in loader]) for loader in loaders)
        assert torch.equal(here, there)
        epochs.append(here)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(dataset[33]["pixel_values"], epochs[0][33])


def test_epoch_reaches_workers_that_stay(parquet):
    dataset = load(ImageDataArguments(parquet, image_column="img", **CROPS), training=True)
    stay = DataLoader(dataset, batch_size=30, collate_fn=collate, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        seen = torch.cat([batch["pixel_values"] for batch in stay])
        assert torch.equal(seen, torch.stack([row["pixel_values"] for row in dataset]))


def test_crops_lie_in_the_image_and_cover_what_they_should():
    rng = np.random.default_rng(0)
    shares, flips = [], 0
    for _ in range(500):
        left, top, width, height = draw_crop((200, 100), (0.25, 0.5), rng)
        assert left >= 0 and top >= 0 and left + width <= 200 and top + height <= 100
        assert 0.7 < width / height < 1.4
        shares.append(width * height / 20000)
    assert 0.24 < min(shares) < 0.27 and 0.45 < max(shares) < 0.51
    logarithms = [math.log(w / h) for *_, w, h in (draw_crop((4000, 4000), (0.1, 0.2), rng) for _ in range(4000))]
    assert abs(np.mean(logarithms)) < 0.01  # of aspect ratios; the mean of their logarithm would be 0.03 if uniform
    left, top, width, height = draw_crop((400, 20), (1.0, 1.0), rng)
    assert (width, height, top) == (27, 20, 0) and left == 186

    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4] = 255
    flip = Augmentation((8, 8), None, True, Image.Resampling.BICUBIC)
    for _ in range(400):
        image = np.asarray(flip(Image.fromarray(half), rng))
        flips += int(image[0, 7, 0] == 255)
    assert 160 < flips < 240


def test_stream_repeats_in_a_new_order(parquet):
    args = ImageDataArguments(parquet, image_column="img", streaming=True, shuffle_buffer_size=100, **CROPS)
    stream, again = (iter(load(args, training=True, seed=1)) for _ in range(2))
    drawn = [next(stream) for _ in range(120)]
    assert [row["labels"] for row in drawn[:60]] != [row["labels"] for row in drawn[60:]]
    assert sorted(row["labels"] for row in drawn[:60]) == sorted(row["labels"] for row in drawn[60:])
    assert all(torch.equal(row["pixel_values"], next(again)["pixel_values"]) for row in drawn)


def test_processor_of_a_published_host_keeps_its_figures(tmp_path):
    build_image_processor(ImageDataArguments("x", image_mean=[0.1, 0.2, 0.3]), 32, None).save_pretrained(tmp_path)
    args = ImageDataArguments("x")
    processor = build_image_processor(args, 16, read_published_processor(args, str(tmp_path)))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert dict(processor.size)["height"] == 16
    shutil.rmtree(tmp_path)
    assert list(build_image_processor(ImageDataArguments("x"), 16, None).image_mean) == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("published", "size"),
    [
        # of DINOv2, CLIP and SigLIP, as transformers writes them
        (BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}), (16, 16)),
        (CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), (16, 16)),
        (SiglipImageProcessorPil(size={"height": 16, "width": 12}), (16, 12)),
        # and as older files have them: of ViT, CLIP, BEiT, DINOv3 and one that keeps the aspect ratio
        ({"size": 16}, (16, 16)),
        ({"size": 20, "crop_size": 16, "do_center_crop": True}, (16, 16)),
        ({"size": 20, "crop_size": 16, "do_center_crop": False}, (20, 20)),
        ({"size": {"height": 16, "width": 16}, "crop_size": None, "do_center_crop": None}, (16, 16)),
        ({"size": {"shortest_edge": 16}}, (16, 16)),
        ({}, (40, 40)),
    ],
)
def test_published_processors_of_other_classes(tmp_path, published, size):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    if isinstance(published, dict):
        content = {"image_processor_type": "BitImageProcessor", "image_mean": mean, "image_std": std, **published}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    else:
        mean, std = list(published.image_mean), list(published.image_std)
        published.save_pretrained(tmp_path)
    args = ImageDataArguments("x")
    settings = read_published_processor(args, str(tmp_path))
    image_size = find_image_size(args, {}, settings, 40)
    processor = build_image_processor(args, image_size, settings)
    assert list(processor.image_mean) == mean and list(processor.image_std) == std
    pixels = processor(Image.new("RGB", (50, 30)), return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape[-2:]) == size

    assert find_image_size(args, {"image_size": 32}, settings, 32) == 32
    assert find_image_size(ImageDataArguments("x", image_size=8), {"image_size": 32}, settings, 32) == 8
    assert find_image_size(args, {}, None, (16, 24)) == (16, 24)


def test_published_host_without_a_processor(tmp_path):
    with pytest.raises(ValueError, match=r"no image processor .* says image_mean and image_std. Set image_mean and"):
        read_published_processor(ImageDataArguments("x"), str(tmp_path))
    args = ImageDataArguments("x", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    settings = read_published_processor(args, str(tmp_path))
    assert find_image_size(args, {}, settings, 16) == 16
    assert list(build_image_processor(args, 16, settings).image_std) == [0.4, 0.5, 0.6]
    figures = '"image_mean": [127.5, 127.5, 127.5], "image_std": [127.5, 127.5, 127.5]'
    (tmp_path / "preprocessor_config.json").write_text(f'{{"do_rescale": false, {figures}}}')
    with pytest.raises(ValueError, match="do_rescale=False, but images are always rescaled"):
        read_published_processor(ImageDataArguments("x"), str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    with pytest.raises(ValueError, match=r"says image_std\. Set"):
        read_published_processor(ImageDataArguments("x"), str(tmp_path))


def test_classes_are_those_of_the_whole_split(tmp_path):
    rows = make_split(12).cast_column("label", datasets.Value("int64"))
    rows.map(
        lambda row: {"label": CLASSES[row["label"]]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    ).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    args = ImageDataArguments(str(tmp_path), max_train_samples=2)
    split = read(args, "train")
    assert find_class_names(args, split) == CLASSES
    assert len(take_samples(args, split, 2)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is .*above 0"),
        ({"image_std": [0.5, math.nan, 0.5]}, "image_std is .*finite"),
        ({"image_mean": [0.5, math.inf, 0.5]}, "image_mean is .*finite"),
        ({"pixel_range": [0]}, "pixel_range is .*two numbers"),
        ({"pixel_range": [5, 5]}, "white must be above black"),
        ({"pixel_range": [0, math.inf]}, "white must be above black, and finite"),
        ({"pixel_range": [0, math.nan]}, "pixel_range is .*two numbers"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageDataArguments("data", **changes)
