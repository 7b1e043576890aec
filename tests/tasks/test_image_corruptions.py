# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Corrupted evaluation images, compared with direct definitions and with the constants of the published sets."""

import colorsys
import hashlib
import json
import math
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, TINY, class_fields, write_parquet
from torch.utils.data import DataLoader
from transformers import ViTConfig

from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.data.datasets import take_samples
from hf_frozen_llm.tasks.image_classification import ImageClassification, ImageDataArguments
from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS, corrupt
from hf_frozen_llm.tasks.image_classification.data import build_image_processor


SMALL, LARGE = (24, 31), (70, 83)  # heights and widths
# by corruption: severity 1 to 5 of make_cifar_c.py and of make_imagenet_c.py in github.com/hendrycks/robustness
PUBLISHED = {
    "gaussian_noise": ([0.04, 0.06, 0.08, 0.09, 0.10], [0.08, 0.12, 0.18, 0.26, 0.38]),
    "defocus_blur": (
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "brightness": ([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
    "contrast": ([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
    "jpeg_compression": ([80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
}
COLOURED = ("gaussian_noise", "shot_noise", "impulse_noise", "frost")  # grey images do not stay grey
# ITU-T T.81, table K.1
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""


def make_pixels(size, seed=0):
    """Return smooth colours with noise, and black, white and grey pixels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(coarse) + rng.integers(-20, 21, (*size, 3)), 0, 255).astype(np.uint8)
    pixels[0, :4], pixels[1, :4], pixels[2, :4] = 0, 255, 99
    return pixels


def as_grey(pixels):
    return np.repeat(pixels[..., :1], 3, axis=-1)


def cut(values):
    return np.floor(255 * np.clip(values, 0, 1))


def mirror(index, length):
    """Return the index of a pixel of a line that continues beyond its ends as its mirror image."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


def correlate(image, kernel):
    """Add up shifted images, one for each number of the kernel."""
    reach, total = len(kernel) // 2, np.zeros(image.shape)
    for y, line in enumerate(kernel):
        rows = [mirror(row + y - reach, image.shape[0]) for row in range(image.shape[0])]
        for x, weight in enumerate(line):
            columns = [mirror(column + x - reach, image.shape[1]) for column in range(image.shape[1])]
            total += weight * image[rows][:, columns]
    return total


def direct_noise(pixels, std):
    # The pixels are the seed.
    rng = np.random.default_rng(list(hashlib.sha256(pixels.tobytes()).digest()))
    return cut(pixels / 255 + std * rng.standard_normal(pixels.shape))


def direct_blur(pixels, constants):
    radius, edge = constants
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    places = range(-reach, reach + 1)
    disk = np.array([[float(math.hypot(x, y) <= radius) for x in places] for y in places])
    offsets = range(-(taps // 2), taps // 2 + 1)
    gaussian = np.array([[math.exp(-(x * x + y * y) / (2 * edge**2)) for x in offsets] for y in offsets])
    kernel = correlate(disk / disk.sum(), gaussian / gaussian.sum())
    return cut(correlate(pixels / 255, kernel) + 1e-9)


def direct_brightness(pixels, amount):
    def brighten(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))

    return cut(np.apply_along_axis(brighten, -1, pixels))


def direct_contrast(pixels, factor):
    rgb = pixels.astype(float) / 255
    means = [rgb[..., channel].sum() / rgb[..., channel].size for channel in range(3)]
    return cut(np.stack([means[c] + factor * (rgb[..., c] - means[c]) for c in range(3)], axis=-1))


def direct_jpeg(pixels, quality):
    """Quantise the cosine transform of blocks of a grey image whose sides are multiples of 8."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((np.array(LUMINANCE.split(), int).reshape(8, 8) * scale + 50) // 100, 1, 255)
    places = np.arange(8)
    cosines = np.cos((2 * places + 1) * places[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    output = np.zeros(pixels.shape)
    for y in range(0, pixels.shape[0], 8):
        for x in range(0, pixels.shape[1], 8):
            block = cosines @ (pixels[y : y + 8, x : x + 8, 0] - 128.0) @ cosines.T
            halves_up = np.sign(block) * np.floor(np.abs(block) / steps + 0.5 + 1e-9) * steps
            block = cosines.T @ halves_up @ cosines
            output[y : y + 8, x : x + 8] = np.clip(np.round(block + 128), 0, 255)[..., None]
    return output


DIRECT = {
    "gaussian_noise": direct_noise,
    "defocus_blur": direct_blur,
    "brightness": direct_brightness,
    "contrast": direct_contrast,
}


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", DIRECT)
def test_pixels_are_those_of_the_definition(name, size):
    pixels = make_pixels(size)
    for severity, constant in enumerate(PUBLISHED[name][size == LARGE], start=1):
        corrupted = np.asarray(corrupt(Image.fromarray(pixels), name, severity))
        expected = DIRECT[name](pixels, constant)
        assert corrupted.dtype == np.uint8 and corrupted.shape == pixels.shape
        # Fractions are cut off, so that values next to an integer can differ by one.
        difference = np.abs(corrupted - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
        assert np.abs(corrupted - pixels.astype(float)).mean() > 0.5


@pytest.mark.parametrize("size", [(24, 32), (72, 80)])
def test_jpeg_is_that_of_the_definition(size):
    pixels = as_grey(make_pixels(size))
    for severity, quality in enumerate(PUBLISHED["jpeg_compression"][size[0] > 64], start=1):
        corrupted = np.asarray(corrupt(Image.fromarray(pixels), "jpeg_compression", severity))
        difference = np.abs(corrupted - direct_jpeg(pixels, quality))
        # The encoder's transform is of integers, so that a few coefficients are rounded the other way.
        assert (difference <= 1).mean() > 0.6 and difference.mean() < 1
        colours = make_pixels(size)
        file = BytesIO()
        Image.fromarray(colours).save(file, "JPEG", quality=quality)
        same = np.asarray(corrupt(Image.fromarray(colours), "jpeg_compression", severity))
        assert np.array_equal(same, np.asarray(Image.open(file)))


@pytest.mark.parametrize(("side", "published"), [(64, 0), (65, 1)])
def test_noise_has_the_published_strength(side, published):
    grey = Image.new("RGB", (side, side), (128, 128, 128))
    for severity, std in enumerate(PUBLISHED["gaussian_noise"][published], start=1):
        noise = np.asarray(corrupt(grey, "gaussian_noise", severity)) / 255
        # Half of the values lie within 0.6745 standard deviations; few of these are clipped.
        quarters = np.quantile(noise, [0.25, 0.75])
        assert np.diff(quarters)[0] / (2 * 0.6745) == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 64), (40, 90), (224, 224)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_sizes_and_grey_images(name, size):
    image = Image.fromarray(as_grey(make_pixels(size)) if min(size) > 2 else np.full((*size, 3), 60, np.uint8))
    before = np.array(image)
    for severity in (1, 5):
        corrupted = corrupt(image, name, severity)
        assert corrupted.size == image.size and corrupted.mode == "RGB"
        assert np.asarray(corrupted).dtype == np.uint8
        if name not in COLOURED:
            assert np.ptp(np.asarray(corrupted).astype(int), axis=-1).max() == 0
    assert np.array_equal(before, np.asarray(image))


# The data set


def build_dataset(folder, corruption="gaussian_noise", max_samples=None, training=False, host_size=16, **changes):
    args = ImageDataArguments(str(folder), corruption=corruption, **changes)
    label2id = {name: index for index, name in enumerate(CLASSES)}
    task = ImageClassification(args, build_image_processor(args, host_size, None), ViTConfig(**class_fields(label2id)))
    rows = take_samples(args, task.read(args, "test"), max_samples)
    return task.dataset(rows, "test", training=training)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("corrupted"), {"test": 12})


def test_noise_depends_on_the_image_alone(folder):
    dataset = build_dataset(folder)
    single = [dataset[index]["pixel_values"] for index in range(12)]
    assert len({pixels.sum().item() for pixels in single}) == 12

    def assert_same(examples, order):
        assert all(torch.equal(e["pixel_values"], single[i]) for e, i in zip(examples, order, strict=True))

    order = [7, 3, 11, 0, 1]
    assert_same(dataset.__getitems__(order), order)
    batches = list(DataLoader(dataset, batch_size=5, num_workers=2))
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), torch.stack(single))
    assert_same(list(build_dataset(folder, streaming=True)), range(12))
    positions = build_dataset(folder, corruption=None)
    few = build_dataset(folder, max_samples=4)
    clean = build_dataset(folder, corruption=None, max_samples=4)
    where = [
        next(i for i in range(12) if torch.equal(positions[i]["pixel_values"], row["pixel_values"])) for row in clean
    ]
    assert where != list(range(4))
    assert_same(list(few), where)


def test_small_images_are_corrupted_before_they_are_resized(folder):
    dataset = build_dataset(folder, "defocus_blur", corruption_severity=4, host_size=32)
    image = datasets.load_dataset(folder, split="test")[3]["image"]
    image = Image.fromarray(direct_blur(np.asarray(image), (1, 0.2)).astype(np.uint8))
    pixels = dataset.transform.processor(image, return_tensors="pt")["pixel_values"][0]
    assert (dataset[3]["pixel_values"] - pixels).abs().max() < 0.05  # of a standard deviation of about 57 levels


@pytest.mark.parametrize(("host_size", "published"), [(72, 1), (40, 0)])
def test_larger_images_are_corrupted_as_the_model_gets_them(tmp_path, host_size, published):
    image = Image.fromarray(make_pixels((150, 200)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    small = Image.fromarray(make_pixels((20, 30)))
    columns = {"image": [image, small, image.convert("L")], "label": [0, 1, 2]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "test.parquet")
    dataset = build_dataset(tmp_path, "contrast", crop_pct=0.9, host_size=host_size)

    shorter = int(host_size / 0.9)
    fitted = image.resize((int(shorter * 200 / 150), shorter), Image.Resampling.BICUBIC)
    left, top = (fitted.width - host_size) // 2, (shorter - host_size) // 2
    fitted = np.asarray(fitted)[top : top + host_size, left : left + host_size]
    pixels = direct_contrast(fitted, PUBLISHED["contrast"][published][2])
    processor = dataset.transform.processor
    mean, std = (np.array(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
    expected = (pixels.transpose(2, 0, 1) / 255 - mean) / std
    examples = dataset.__getitems__([0, 1, 2])
    assert np.abs(examples[0]["pixel_values"].numpy() - expected).max() < 0.02
    assert all(example["pixel_values"].shape == (3, host_size, host_size) for example in examples)
    grey = examples[2]["pixel_values"].numpy() * std + mean
    assert np.ptp(grey, axis=0).max() < 1e-5


def test_training_images_stay_clean(folder):
    corrupted, clean = (build_dataset(folder, name, training=True) for name in ("contrast", None))
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(corrupted, clean))


# The commands


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--corruption", "rain"],
            "corruption is 'rain'; it must be one of gaussian_noise, shot_noise, impulse_noise, defocus_blur, ",
        ),
        (["--corruption", "contrast", "--corruption_severity", "0"], "corruption_severity is 0; it must be from 1 to"),
        (["--corruption", "contrast", "--corruption_severity", "6"], "corruption_severity is 6; it must be from 1 to"),
        (["--corruption_severity", "5"], "corruption_severity is 5, but corruption is not set"),
    ],
)
def test_wrong_keys_are_named(finished_run, flags, message):
    with pytest.raises(ValueError, match=message):
        main(["evaluate", str(finished_run), *flags])


def test_corruption_is_refused_in_training(recipe, tmp_path):
    for command in ("train", "check"):
        flags = ["--output_dir", str(tmp_path / "run"), "--corruption", "contrast"]
        with pytest.raises(ValueError, match="Remove it, and run `hf-frozen-llm evaluate … --corruption contrast"):
            main([command, str(recipe), *TINY, *flags])


def test_evaluate_on_corrupted_images(finished_run, data, tmp_path, capsys):
    main(["evaluate", str(finished_run)])
    clean = (finished_run / "eval_results.json").read_bytes()
    flags = ["--corruption", "gaussian_noise", "--corruption_severity", "5"]
    capsys.readouterr()
    main(["evaluate", str(finished_run), *flags])
    output = capsys.readouterr().out
    printed = json.loads(output[output.index("{\n") :])
    written = json.loads((finished_run / "eval_results_gaussian_noise_5.json").read_text())
    shift = {"corruption": "gaussian_noise", "corruption_severity": 5}
    assert printed == written
    assert written["dataset"] == {"name": data, "revision": None, "split": "test", **shift}
    assert (finished_run / "eval_results.json").read_bytes() == clean
    assert "corruption" not in json.loads(clean)["dataset"]
    assert written["metrics"]["eval_loss"] != json.loads(clean)["metrics"]["eval_loss"]

    other = tmp_path / "scores.json"
    main(["evaluate", str(finished_run), *flags, "--per_device_eval_batch_size", "7", "--output_file", str(other)])
    same = json.loads(other.read_text())["metrics"]
    assert same["eval_loss"] == pytest.approx(written["metrics"]["eval_loss"], rel=1e-5)
    assert same["eval_top1"] == written["metrics"]["eval_top1"]


def test_predict_on_corrupted_images(finished_run, tmp_path):
    Image.fromarray(make_pixels((40, 40))).save(tmp_path / "image.png")
    file = str(tmp_path / "image.png")
    quiet = ["--use_cpu", "true"]
    best = [
        predict(str(finished_run), file, [*quiet, *flags]).records[0]["predictions"][0]["score"]
        for flags in ([], ["--corruption", "contrast"], ["--corruption", "contrast"])
    ]
    assert best[0] != best[1] == best[2]
