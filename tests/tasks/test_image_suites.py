# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Suites of robustness: published layouts, masks, mean corruption errors and the table, with naive references."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, class_fields, write_image_folder
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_frozen_llm import ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification, evaluate_suites
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS, corrupt
from hf_frozen_llm.tasks.image_classification.suites import ALEXNET_ERRORS


# The order of the labels is not that of the wnids.
WNIDS = ["n00000007", "n00000002", "n00000009", "n00000004", "n00000005", "n00000001", "n00000003", "n00000008"]
PARTIAL = ["n00000002", "n00000005", "n00000009"]
SIDE = 16


def save_model(folder, llm, labels, seed=0, side=SIDE, crop=False):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    block = None if llm is None else {"llm_name_or_path": llm}
    fields = class_fields({label: index for index, label in enumerate(labels)})
    config = ViTWithLLMBlockConfig(**sizes, image_size=side, patch_size=8, llm_block=block, **fields)
    model = ViTWithLLMBlockForImageClassification(config)
    model.classifier.weight.data.normal_(0, 3)  # so that the images have different predictions
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    crops = (
        {"size": {"shortest_edge": side + 8}, "do_center_crop": True, "crop_size": size} if crop else {"size": size}
    )
    ViTImageProcessorPil(resample=3, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], **crops).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory, llm):
    return save_model(tmp_path_factory.mktemp("model") / "vit", llm, WNIDS)


def write_classes(folder, names, count=3, size=(20, 24), seed=0, numbered=False):
    """Write images of each class, and hidden files beside them; with ImageNet's numbers in their names on demand."""
    rng = np.random.default_rng(seed)
    number = 0
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / ".DS_Store").write_bytes(b"x")
        for place in range(count):
            number += 1
            file = f"ILSVRC2012_val_{number:08d}.JPEG" if numbered else f"{place}.jpeg"
            coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name / file, "PNG")
    (folder / "README.txt").write_text("about")


def images_of(folder, names):
    return [(file, name) for name in names for file in sorted((folder / name).glob("[!.]*"))]


@functools.lru_cache
def load(model):
    loaded = ViTWithLLMBlockForImageClassification.from_pretrained(model)
    return loaded.eval(), ViTImageProcessorPil.from_pretrained(model)


def predict(model, files, resize=True):
    """Return the scores of each image, of the reloaded model, one at a time."""
    loaded, processor = load(model)
    options = {} if resize else {"do_resize": False, "do_center_crop": False}
    with torch.no_grad():
        return [
            loaded(**processor(Image.open(file).convert("RGB"), return_tensors="pt", **options)).logits[0].numpy()
            for file in files
        ]


def accuracy(scores, answers, k=1, classes=None):
    """Count an image if one of its `k` best labels, of `classes` alone, is among its answers."""
    hits = 0
    for of_image, right in zip(scores, answers):
        order = sorted(classes or range(len(of_image)), key=lambda label: -of_image[label])
        hits += any(label in right for label in order[:k])
    return hits / len(scores)


FLAGS = ["--use_cpu", "true", "--disable_tqdm", "true"]


def run(models, suites, tmp_path, *flags, **options):
    models = [models] if isinstance(models, str) else models
    return evaluate_suites(models, suites, [*FLAGS, *flags], output=str(tmp_path / "out"), **options)


def value(table, **where):
    rows = table[np.logical_and.reduce([table[name] == wanted for name, wanted in where.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


# Published test sets


@pytest.mark.parametrize(
    ("suite", "inside", "names"),
    [
        ("imagenet", "imagenet/val", WNIDS),
        ("imagenet", "imagenet", WNIDS),
        ("imagenet-sketch", "imagenet-sketch/sketch", WNIDS),
        ("imagenet-a", "imagenet-a", PARTIAL),
        ("imagenet-r", "imagenet-r/imagenet-r", PARTIAL),
    ],
)
def test_folders_of_wnids(model, tmp_path, suite, inside, names):
    write_classes(tmp_path / inside, names, count=4)
    if inside.endswith("val"):
        (tmp_path / "imagenet/train/n00000001").mkdir(parents=True)
    table = run(model, [suite], tmp_path, "--per_device_eval_batch_size", "5", suite_folder=str(tmp_path))
    files = images_of(tmp_path / inside, names)
    scores, answers = predict(model, [file for file, _ in files]), [{WNIDS.index(name)} for _, name in files]
    classes = [WNIDS.index(name) for name in names]
    for k in (1, 5):
        row = value(table, metric=f"top{k}")
        assert row.value == pytest.approx(accuracy(scores, answers, k, classes))
        assert row["count"] == len(files) and row.data == str(tmp_path / inside) and row.corruption == ""
    if suite == "imagenet-a":  # the other classes would win, and five of three always hit
        assert table.value[0] != accuracy(scores, answers)
        assert table.value[1] == 1


@pytest.mark.parametrize("labels", [WNIDS, [str(number) for number in range(8)], ["ant", "bee", "cat", *"abcde"]])
def test_imagenet_v2_has_numbers(llm, tmp_path, labels):
    model = save_model(tmp_path / "model", llm, labels)
    folder = tmp_path / "imagenet-v2/imagenetv2-matched-frequency-format-val"
    write_classes(folder, [str(number) for number in range(8)])
    (tmp_path / "wnids.txt").write_text("".join(f"{wnid} a name\n" for wnid in WNIDS))
    wnids = str(tmp_path / "wnids.txt") if labels[0] == "ant" else None
    table = run(model, ["imagenet-v2"], tmp_path, suite_folder=str(tmp_path), wnids=wnids)
    files = images_of(folder, [str(number) for number in range(8)])
    by_number = list(range(8)) if labels[0] == "0" else [WNIDS.index(wnid) for wnid in sorted(WNIDS)]
    answers = [{by_number[int(name)]} for _, name in files]
    assert value(table, metric="top1").value == accuracy(predict(model, [file for file, _ in files]), answers)


def test_imagenet_real_counts_any_of_the_labels(model, tmp_path):
    write_classes(tmp_path / "imagenet/val", WNIDS, numbered=True)
    lists = [[number % 8, (number + 3) % 8] if number % 4 else [] for number in range(24)]
    (tmp_path / "imagenet-real").mkdir()
    (tmp_path / "imagenet-real/real.json").write_text(json.dumps(lists))
    table = run(model, ["imagenet-real"], tmp_path, suite_folder=str(tmp_path))
    by_number = [WNIDS.index(wnid) for wnid in sorted(WNIDS)]
    kept, answers = [], []
    for file, _ in images_of(tmp_path / "imagenet/val", WNIDS):
        found = lists[int(file.stem[-8:]) - 1]
        if found:
            kept.append(file)
            answers.append({by_number[number] for number in found})
    row = value(table, metric="top1")
    assert row.value == pytest.approx(accuracy(predict(model, kept), answers))
    assert row["count"] == len(kept) == 18 and row.without_label == 6


def test_imagenet_c(llm, tmp_path):
    """Images of the model's size are neither resized nor cropped; the means are those of the definitions."""
    model = save_model(tmp_path / "model", llm, WNIDS, crop=True)
    for place, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            folder = tmp_path / "imagenet-c" / ("noise" if "noise" in name else "") / name / str(severity)
            write_classes(folder, PARTIAL, 1, (SIDE, SIDE) if severity < 5 else (40, 28), seed=10 * place + severity)
    table = run(model, ["imagenet-c"], tmp_path, suite_folder=str(tmp_path))
    accuracies = {}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            folder = tmp_path / "imagenet-c" / ("noise" if "noise" in name else "") / name / str(severity)
            files = images_of(folder, PARTIAL)
            scores = predict(model, [file for file, _ in files], resize=severity == 5)
            accuracies[name, severity] = accuracy(scores, [{WNIDS.index(wnid)} for _, wnid in files])
            row = value(table, metric="top1", corruption=name, severity=severity)
            assert row.value == pytest.approx(accuracies[name, severity])
    row = value(table, metric="top1", corruption="mean")
    assert row.value == pytest.approx(sum(accuracies.values()) / 75) and row["count"] == 225
    errors = [
        sum(1 - accuracies[name, severity] for severity in range(1, 6)) / (5 * ALEXNET_ERRORS[name])
        for name in CORRUPTIONS
    ]
    assert value(table, metric="mce").value == pytest.approx(sum(errors) / 15)
    assert "AlexNet" in value(table, metric="mce").constants


@pytest.mark.parametrize(
    ("suite", "folder", "names", "message"),
    [
        (
            "imagenet",
            "imagenet/val",
            ["n00000001", "n77777777"],
            "does not know 1 of the 2 classes .*first is n77777777",
        ),
        ("imagenet-a", "elsewhere", WNIDS, "Expected in .*: imagenet-a/<wnid>/.*natural-adv-examples"),
        ("imagenet-c", "imagenet-c/fog/1", WNIDS, "gaussian_noise/1 has no folders of classes.*zenodo"),
        ("imagenet-v2", "imagenet-v2", ["0", "1"], "has 2 classes, but the model has 8"),
        ("imagenet-real", "imagenet", WNIDS, "there is no .*real.json.*reassessed-imagenet"),
        ("imagenet-x", "imagenet", WNIDS, "suite is 'imagenet-x'; it must be one of clean, imagenet, "),
    ],
)
def test_other_folders_are_refused(model, tmp_path, suite, folder, names, message):
    write_classes(tmp_path / folder, names, 1)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(model, [suite], tmp_path, suite_folder=str(tmp_path))
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (WNIDS[:-1], "holds 7 different wnids in 7 lines, but the model has 8 labels"),
        ([*WNIDS[:-1], WNIDS[0]], "holds 7 different wnids in 8 lines"),
        (["tench", *WNIDS], "holds 'tench'; each line must begin with a wnid"),
    ],
)
def test_wrong_wnids_are_refused(model, tmp_path, lines, message):
    write_classes(tmp_path / "imagenet", WNIDS, 1)
    (tmp_path / "wnids").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        run(model, ["imagenet"], tmp_path, suite_folder=str(tmp_path), wnids=str(tmp_path / "wnids"))


def test_labels_without_wnids_are_named(llm, tmp_path):
    model = save_model(tmp_path / "model", llm, [*"abcdefgh"])
    write_classes(tmp_path / "imagenet-v2", [str(number) for number in range(8)], 1)
    with pytest.raises(ValueError, match=r"a label of the model is 'a'. Give `--wnids FILE`"):
        run(model, ["imagenet-v2"], tmp_path, suite_folder=str(tmp_path))
    with pytest.raises(
        ValueError, match="imagenet-a is read from a folder: give `--suite-folder ROOT`, with imagenet-a/"
    ):
        run(model, ["imagenet-a"], tmp_path, "--dataset_name", str(tmp_path))


# The model's own data


@pytest.fixture(scope="module")
def own(tmp_path_factory, llm):
    """Two models of six classes, and a folder of images."""
    folder = tmp_path_factory.mktemp("own")
    data = write_image_folder(folder / "data", {"test": 12})
    return [save_model(folder / name, llm if seed else None, CLASSES, seed) for seed, name in enumerate("ab")], data


def test_corruptions_of_any_data(own, tmp_path, capsys):
    models, data = own
    flags = ["--dataset_name", data, "--split", "test"]
    table = run(models, ["clean", "corruptions"], tmp_path, *flags, baseline=models[0])
    files = images_of(tmp_path.parent / data / "test", CLASSES)
    answers = [{CLASSES.index(name)} for _, name in files]
    for model in models:
        assert value(table, model=model, suite="clean", metric="top1").value == accuracy(
            predict(model, [file for file, _ in files]), answers
        )
    for name, severity in (("fog", 2), ("contrast", 5), ("glass_blur", 3)):
        for number, (file, _) in enumerate(files):
            (tmp_path / name).mkdir(exist_ok=True)
            corrupt(Image.open(file), name, severity).save(tmp_path / name / f"{number}.png")
        scores = predict(models[1], [tmp_path / name / f"{number}.png" for number in range(len(files))])
        row = value(table, model=models[1], corruption=name, severity=severity, metric="top1")
        assert row.value == pytest.approx(accuracy(scores, answers)) and row["count"] == 12
        assert "CIFAR-10-C" in row.constants and row.data == f"{data} [test]"
    single = table[(table.metric == "top1") & (table.suite == "corruptions") & (table.corruption != "mean")]
    assert len(single) == 150
    errors = [
        single[(single.model == model)].groupby("corruption").value.mean().rsub(1).reindex(list(CORRUPTIONS))
        for model in models
    ]
    row = value(table, model=models[1], metric="mce")
    assert row.value == pytest.approx((errors[1] / errors[0]).mean()) and row.constants.endswith(models[0])
    assert value(table, model=models[0], metric="mce").value == pytest.approx(1)

    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(written.columns[:7]) == ["model", "suite", "corruption", "severity", "metric", "value", "count"]
    assert np.allclose(written.value, table.value) and written.weights_digest.str.len().eq(64).all()
    assert Image.open(tmp_path / "out.png").size[0] > 500
    assert f"{models[1]}  corruptions fog 2  top1 " in capsys.readouterr().out


def test_results_do_not_depend_on_batches(own, tmp_path):
    models, data = own
    flags = ["--dataset_name", data, "--split", "test", "--max_eval_samples", "7"]
    tables = [
        run(models[1], ["clean", "fgsm", "pgd"], tmp_path, *flags, "--per_device_eval_batch_size", size)
        for size in ("2", "7")
    ]
    assert tables[0].value.tolist() == tables[1].value.tolist() and set(tables[0]["count"]) == {7}
    clean, fgsm, pgd = (value(tables[0], suite=name, metric="top1") for name in ("clean", "fgsm", "pgd"))
    assert fgsm.value <= clean.value and "1/255" in fgsm.constants and "5 steps" in pgd.constants


def test_unreadable_images(own, tmp_path, capsys):
    models, data = own
    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data/test/bee/broken.png"
    broken.write_bytes(next(broken.parent.iterdir()).read_bytes()[:60])
    flags = ["--dataset_name", str(tmp_path / "data"), "--split", "test"]
    with pytest.raises(ValueError, match=r"row \d+ \(.*broken.png\): the image cannot be decoded"):
        run(models[1], ["clean"], tmp_path, *flags)
    table = run(models[1], ["clean", "fgsm"], tmp_path, *flags, unreadable="skip")
    assert set(table["count"]) == {12} and set(table.unreadable) == {1}
    printed = capsys.readouterr()
    assert printed.err.count("broken.png") == 1 and "(12 images, 1 unreadable)" in printed.out
    assert (
        value(table, suite="clean", metric="top1").value
        == value(run(models[1], ["clean"], tmp_path, "--dataset_name", data, "--split", "test"), metric="top1").value
    )


def test_command_line(own, tmp_path, monkeypatch, call):
    models, data = own
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset_name", data, "--split", "test", *FLAGS]
    main(["evaluate", *models, "--suite", "clean, fgsm", "--output", "shift", *flags])
    assert set(pd.read_csv("shift.csv").model) == set(models) and (tmp_path / "shift.png").is_file()
    code, _, error = call("evaluate", *models, *flags)
    assert code == 2 and "this needs --suite" in error
    for options, message in (
        (["--suite", "clean", "--baseline", "x"], "baseline is 'x'; it must be one of the models"),
        (["--suite", "clean,clean"], "suite is clean, clean; give at least one, and none twice"),
        (["--suite", "clean", "--unreadable", "no"], "unreadable is 'no'; it must be 'error' or 'skip'"),
        (["--suite", "clean", "--corruption", "fog"], "evaluate --suite does not use --corruption"),
        (["--suite", "clean", "--output", "nowhere/x"], "there is no folder nowhere"),
    ):
        code, _, error = call("evaluate", models[0], *options, *flags)
        assert code == 2 and message in error
