# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm predict`: files and splits of all tasks, unreadable inputs, refused inputs."""

import base64
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import (
    CLASSES,
    TINY_POINT_BERT,
    TINY_VIDEOMAE,
    make_clouds,
    make_frames,
    write_image_folder,
    write_npz,
    write_video,
    write_video_folder,
)
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, pipeline

from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import Predictions, predict, print_predictions
from hf_frozen_llm.plotting import plot_predictions
from hf_frozen_llm.tasks import TASKS


CPU = ["--use_cpu", "true"]
SHORT = ["--max_steps", "2", "--save_strategy", "no", "--eval_strategy", "no"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Write 12 images in 6 folders, and two files to ignore: a hidden file and a text."""
    folder = tmp_path_factory.mktemp("pictures")
    write_image_folder(folder)
    shutil.copy(folder / "test" / "ant" / "0.png", folder / "test" / ".hidden.png")
    (folder / "test" / "notes.txt").write_text("notes")
    return folder / "test"


@pytest.fixture(scope="session")
def video_run(tmp_path_factory, llm):
    folder = tmp_path_factory.mktemp("video")
    data = write_video_folder(folder / "data")
    command = ["train", "video_classification/tiny.yaml", *TINY_VIDEOMAE, *SHORT, "--dataset_name", data]
    block = ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    main([*command, *block, "--output_dir", str(folder / "run"), "--eval_split", "null"])
    return folder


@pytest.fixture(scope="session")
def point_run(tmp_path_factory, llm):
    folder = tmp_path_factory.mktemp("points")
    data = write_npz(folder / "data.npz", {"train": 24, "test": 12})
    command = ["train", "point_cloud_classification/tiny.yaml", *TINY_POINT_BERT, *SHORT, "--dataset_name", data]
    block = ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    main([*command, *block, "--output_dir", str(folder / "run"), "--eval_split", "null"])
    return folder


def best(records):
    return {record["file"]: record["predictions"][0] for record in records}


def assert_same_scores(records, others):
    assert len(records) == len(others)
    for record, other in zip(records, others):
        scores, same = (
            {best["label"]: best["score"] for best in predictions}
            for predictions in (record["predictions"], other["predictions"])
        )
        assert scores == pytest.approx(same, abs=1e-5)


def test_images_as_a_pipeline_predicts_them(finished_run, pictures):
    found = predict(str(finished_run), pictures, [*CPU, "--per_device_eval_batch_size", "5"])
    files = sorted(str(file) for file in pictures.glob("*/*.png"))
    assert [record["file"] for record in found.records] == files and found.failures == {}
    classify = pipeline("image-classification", model=str(finished_run), device="cpu")
    assert_same_scores(found.records, [{"predictions": predictions} for predictions in classify(files)])
    assert all(len(record["predictions"]) == 5 for record in found.records)


def test_what_evaluate_computes(finished_run, data, tmp_path):
    split = ["--dataset_name", data, "--split", "test"]
    found = predict(str(finished_run), (), [*CPU, *split])
    assert [record["row"] for record in found.records] == list(range(30))
    main(["evaluate", str(finished_run), *CPU, *split, "--output_file", str(tmp_path / "results.json")])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    right = [record["predictions"][0]["label"] == CLASSES[record["row"] % 6] for record in found.records]
    assert np.mean(right) == pytest.approx(metrics["eval_top1"])


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_split_without_labels_in_which_a_row_cannot_be_read(streaming, finished_run, data, tmp_path, pictures):
    import datasets

    images = [{"path": None, "bytes": file.read_bytes()} for file in sorted(pictures.glob("*/*.png"))]
    images[3] = {"path": None, "bytes": b"no image"}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": images}, features=features)
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    flags = ["--dataset_name", str(tmp_path / "data"), "--split", "test", "--streaming", streaming]
    found = predict(str(finished_run), (), [*CPU, *flags, "--per_device_eval_batch_size", "4"])
    assert [record["row"] for record in found.records] == [0, 1, 2, *range(4, 12)]
    assert list(found.failures) == ["row 3"]
    assert found.failures["row 3"].startswith("the image cannot be decoded")
    files = predict(str(finished_run), pictures, CPU).records
    assert_same_scores(found.records, [*files[:3], *files[4:]])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_cannot_be_read_is_named_and_the_others_are_predicted(workers, finished_run, pictures, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    shutil.copy(pictures / "ant" / "0.png", tmp_path / "Good.PNG")
    inputs = [tmp_path, pictures / "notes.txt", tmp_path / "*.png"]
    options = [*CPU, "--per_device_eval_batch_size", "2", "--dataloader_num_workers", workers]
    found = predict(str(finished_run), inputs, options)
    assert [record["file"] for record in found.records] == [str(tmp_path / "Good.PNG")]
    names = [str(tmp_path / "bad.png"), str(tmp_path / "empty.jpg"), str(pictures / "notes.txt")]
    assert sorted(found.failures) == sorted(names)
    assert found.failures[names[0]].startswith("the image cannot be decoded: ")
    assert found.failures[names[2]].startswith("a .txt file (point-cloud-classification takes these); ")
    capsys.readouterr()
    print_predictions(found)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{tmp_path / 'Good.PNG'}  ")
    assert f"{names[0]}: the image cannot be decoded" in printed.err
    assert printed.err.endswith("3 of 4 inputs could not be predicted.\n")


def test_all_of_a_batch_cannot_be_read(finished_run, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    found = predict(str(finished_run), tmp_path, [*CPU, "--per_device_eval_batch_size", "2"])
    assert found.records == [] and len(found.failures) == 3


def test_videos_of_several_sizes(video_run):
    folder = video_run / "data" / "test"
    write_video(folder.parent / "other.mkv", make_frames(9, 3, (64, 48)))
    write_video(folder.parent / "short.mkv", make_frames(2))
    inputs = [folder, folder.parent / "other.mkv", folder.parent / "short.mkv"]
    found = predict(str(video_run / "run"), inputs, [*CPU, "--per_device_eval_batch_size", "5"])
    assert len(found.records) == 13
    (cause,) = found.failures.values()
    assert cause.startswith("the video has 2 frames, and the model reads 4")
    # The recipe it was trained by says num_segments: 2; views can be set as in `evaluate`.
    one = predict(str(video_run / "run"), inputs[:2], [*CPU, "--num_segments", "1"])
    assert best(one.records) != best(found.records)
    split = predict(str(video_run / "run"), (), [*CPU, "--split", "test"])
    assert_same_scores(found.records[:12], split.records)


def test_point_clouds_of_several_sizes(point_run, tmp_path):
    clouds, _ = make_clouds(36)
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", clouds[24 + number][: 64 - 8 * number])
    np.savetxt(tmp_path / "4.txt", clouds[28])
    np.save(tmp_path / "few.npy", clouds[0][:20])
    found = predict(str(point_run / "run"), tmp_path, CPU)
    files = ["0.npy", "1.npy", "2.npy", "3.npy", "4.txt"]
    assert [record["file"] for record in found.records] == [str(tmp_path / name) for name in files]
    (cause,) = found.failures.values()
    assert cause.startswith("has 20 points, fewer than num_points, 32.")
    split = predict(str(point_run / "run"), (), [*CPU, "--split", "test"])
    assert_same_scores([found.records[0], found.records[4]], [split.records[0], split.records[4]])


def test_votes_of_point_cloud_files(point_run, tmp_path):
    clouds, _ = make_clouds(36)
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", clouds[24 + number])
    votes = [*CPU, "--num_votes", "3", "--per_device_eval_batch_size", "3"]
    found = predict(str(point_run / "run"), tmp_path, votes)
    split = predict(str(point_run / "run"), (), [*votes, "--split", "test"])
    assert_same_scores(found.records, split.records[:3])
    np.save(tmp_path / "3.npy", clouds[0][:40])
    with pytest.raises(ValueError, match=r"Point clouds have 40 to 64 points.* Set max_points"):
        predict(str(point_run / "run"), tmp_path, [*votes, "--per_device_eval_batch_size", "4"])
    found = predict(str(point_run / "run"), tmp_path, [*votes, "--max_points", "36"])
    split = predict(str(point_run / "run"), (), [*votes, "--split", "test", "--max_points", "36"])
    assert_same_scores(found.records[:3], split.records[:3])


def test_json_lines_are_written_as_a_whole(finished_run, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    found = predict(str(finished_run), pictures, CPU, output)
    assert [json.loads(line) for line in output.read_text().splitlines()] == found.records
    assert os.listdir(tmp_path) == ["out.jsonl"]
    output.write_text("before")
    with pytest.raises(FileNotFoundError):
        predict(str(finished_run), [pictures, "nowhere.png"], CPU, output)
    assert output.read_text() == "before"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        predict(str(finished_run), pictures, CPU, tmp_path / "nowhere" / "out.jsonl")


def test_table_and_exit_code(call, finished_run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    code, output, _ = call("predict", str(finished_run), "*/*.png", *CPU)
    lines = output.splitlines()
    assert code == 0
    assert len(lines) == 12 and lines[0].startswith("ant/0.png  ")
    assert len({line.index(" %") for line in lines}) == 1, "percentages stand below each other"
    (tmp_path / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    code, output, errors = call("predict", str(finished_run), "bad.png", *CPU, "--output", "x.jsonl")
    assert code == 1
    assert "bad.png: the image cannot be decoded" in errors
    assert "0 predictions are in x.jsonl." in output


def test_table_of_what_is_no_class(capsys):
    records = [{"file": "a.png", "answer": "yes", "boxes": [1, 2]}, {"row": 3, "answer": "no", "boxes": []}]
    print_predictions(Predictions(records, {}))
    assert capsys.readouterr().out == "a.png  answer yes  boxes [1, 2]\nrow 3  answer no   boxes []\n"


def test_llm_that_has_moved(finished_run, pictures, llm, tmp_path):
    light = AutoModelForImageClassification.from_pretrained(finished_run)
    light.config.llm_block.save_weights = False
    light.config.llm_block.llm_name_or_path = str(tmp_path / "gone")
    light.save_pretrained(tmp_path / "light")
    shutil.copy(finished_run / "preprocessor_config.json", tmp_path / "light")
    found = predict(str(tmp_path / "light"), pictures, [*CPU, "--llm_block.llm_name_or_path", llm])
    assert_same_scores(found.records, predict(str(finished_run), pictures, CPU).records)


def test_bf16(finished_run, pictures):
    found = predict(str(finished_run), pictures, [*CPU, "--bf16_full_eval", "true"])
    for record, other in zip(found.records, predict(str(finished_run), pictures, CPU).records):
        assert record["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=0.02)


@pytest.mark.parametrize(
    ("inputs", "flags", "message"),
    [
        ([], [], r"There is nothing to predict on: give files, folders or patterns, or a split"),
        (["nowhere.png"], [], r"nowhere.png: there is no such file"),
        (["*.webp"], [], r"\*.webp: there is no file of this pattern"),
        (["empty"], [], r"empty: the folder holds no files; .*run is a model for image-classification, which takes"),
        (
            ["texts"],
            [],
            r"texts: the folder holds .txt \(2\), files without a suffix \(1\); .* which takes .bmp",
        ),
        (["texts/0.txt", "texts/1.txt"], [], r"texts/0.txt is a .txt file .*\(2 files of other kinds in all\)"),
        (
            ["clip.mp4"],
            [],
            r"clip.mp4 is a .mp4 file \(video-classification takes these\); .* for image-cl",
        ),
        (["a.png"], ["--split", "test"], r"Give files or a split, not both: remove the files, or --split"),
        (
            ["a.png"],
            ["--learning_rate", "1"],
            r"predict does not use --learning_rate; .* accelerator_config, bf16",
        ),
        ([], ["--split", "test", "--max_eval_samples", "3"], r"predict does not use --max_eval_samples"),
        ([], ["--split", "dev"], r"could not be loaded: .*dev"),
        (["a.png"], ["--num_segments", "2"], r"`num_segments` is a key of the task video-classification"),
    ],
)
def test_refused(inputs, flags, message, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("texts/0.txt", "texts/1.txt", "texts/LICENSE", "clip.mp4"):
        (tmp_path / name).write_text("text")
    Image.new("RGB", (20, 20)).save("a.png")
    with pytest.raises((ValueError, OSError), match=message):
        predict(str(finished_run), inputs, [*CPU, *flags])


def test_models_that_are_refused(finished_run, pictures, tmp_path, video_run):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"vit: Unknown model type 'vit'. This package provides: vit_with_llm_block"):
        predict(str(tmp_path / "vit"), pictures, CPU)
    with pytest.raises(OSError, match="nowhere is neither a folder with a model nor a model on the Hub"):
        predict(str(tmp_path / "nowhere"), pictures, CPU)
    with pytest.raises(ValueError, match=r"a model for video-classification, which takes .avi"):
        predict(str(video_run / "run"), pictures / "ant" / "0.png", CPU)


# Figures


def test_a_picture_names_questions_files_and_places(tmp_path):
    rows = []
    for color in ("lime", "blue"):
        Image.new("RGBA", (3, 2), color).save(tmp_path / "image.png")
        rows.append({"image": {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}})
    task = TASKS["image-classification"](None, None, None)
    several = [{"label": label, "score": score} for label, score in zip("abcdef", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4))]

    def draw(records):
        task.plot(tmp_path / "x.svg", rows, records, ["b.png", "c.png"])
        text = (tmp_path / "x.svg").read_text()
        images = [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r'base64,\s*([^"]+)"', text)]
        return [image.convert("RGB").getpixel((1, 1)) for image in images], re.findall("<!-- (.*?) -->", text)

    pixels, texts = draw([{"question": "is it green?", "predictions": several}, {"predictions": several}])
    assert pixels == [(0, 255, 0), (0, 0, 255)]
    assert "is it green?" in texts and "c.png" in texts and not {"b.png", "1. b.png", "2. c.png"} & {*texts}
    assert texts.count("50.0 %") == 2 and "40.0 %" not in texts, "the five best answers"
    _, texts = draw([{"predictions": several[:1]}] * 2)
    assert {"a", "1. b.png", "2. c.png"} <= {*texts}, "a search"


def test_a_picture_shows_every_image_and_score(tmp_path):
    images = [Image.new("RGB", (20 + 30 * number, 30), (40 * number, 0, 0)) for number in range(5)]
    predictions = [[{"label": "a very long label of many words", "score": 0.5 / (k + 1)} for k in range(3)]] * 5
    plot_predictions(tmp_path / "x.svg", images, [f"question {n}" for n in range(5)], predictions, "what was searched")
    text = (tmp_path / "x.svg").read_text()
    assert text.count("<image") == 5
    for shown in ("question 4", "what was searched", "50.0 %", "16.7 %", "a very long label of …"):
        assert f"<!-- {shown} -->" in text, shown


def test_pictures_that_cannot_be_drawn(point_run, finished_run, tmp_path):
    with pytest.raises(ValueError, match="point-cloud-classification: plot needs a column of images"):
        predict(str(point_run / "run"), (), [*CPU, "--split", "test"], plot=tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"plot is .*, but there is no folder"):
        predict(str(point_run / "run"), (), [*CPU, "--split", "test"], plot=tmp_path / "no" / "x.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="There is nothing to draw"):
        predict(str(finished_run), tmp_path / "broken.png", CPU, plot=tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
