# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
from paths import clips
from PIL import Image
from tiny_runs import (
    CLASSES,
    TINY_VIDEOMAE,
    class_fields,
    make_frames,
    write_something_something,
    write_video,
    write_video_folder,
)
from torch.utils.data import DataLoader
from transformers import VideoMAEConfig, pipeline

from hf_frozen_llm.cli import main
from hf_frozen_llm.data.datasets import TransformedDataset
from hf_frozen_llm.tasks.classification import find_class_names
from hf_frozen_llm.tasks.video_classification import VideoClassification, VideoDataArguments
from hf_frozen_llm.tasks.video_classification.data import choose_frames, read_frames


LABEL2ID = {name: index for index, name in enumerate(CLASSES)}
CONFIG = VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, **class_fields(LABEL2ID))
NO_LABELS = datasets.Dataset.from_dict({"label": [0]})
read = VideoClassification.read


def build_task(args, config=CONFIG):
    return VideoClassification(args, VideoClassification.build_processor(args, {}, config), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"))


def transform(args, seed=None):
    return build_task(args).example_transform(NO_LABELS, "test", training=seed is not None, seed=seed or 0)


def prepare(args, video, seed=None, key=(0, 0)):
    return transform(args, seed)([{args.video_column: video, args.label_column: 0}], [key])


def numbers(clip):
    """Return the indices of a clip's frames, from their red."""
    return clip[:, 0].float().mean((1, 2)).round().int().tolist()


def test_segments_are_those_of_the_released_code():
    args = VideoDataArguments("x", num_segments=2)
    for total in (4, 16, 17, 37, 45, 96, 301):
        for n in (4, 16):
            if total < n:
                continue
            tick = total / n
            both = sorted([int(tick / 2.0 + tick * x) for x in range(n)] + [int(tick * x) for x in range(n)])
            views = [choose_frames(args, total, n, segment).tolist() for segment in range(2)]
            assert views == [both[0::2], both[1::2]]
            middle = choose_frames(VideoDataArguments("x"), total, n).tolist()
            assert middle == [int(tick / 2 + tick * x) for x in range(n)]


def test_training_draws_one_frame_of_each_part():
    args, rng = VideoDataArguments("x"), np.random.default_rng(0)
    drawn = np.stack([choose_frames(args, 38, 4, draw=rng.random(4)) for _ in range(500)])
    for part in range(4):
        assert set(drawn[:, part].tolist()) == set(range(9 * part, 9 * part + 9))


def test_dense_frames():
    args, rng = VideoDataArguments("x", sampling="dense", frame_stride=3), np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        chosen = choose_frames(args, 20, 4, draw=rng.random(4))
        assert np.diff(chosen).tolist() == [3, 3, 3]
        starts.add(int(chosen[0]))
    assert starts == set(range(11))
    assert choose_frames(args, 20, 4).tolist() == [5, 8, 11, 14]
    args.num_segments = 3
    assert [int(choose_frames(args, 20, 4, segment)[0]) for segment in range(3)] == [0, 5, 10]
    assert choose_frames(args, 6, 4).tolist() == [0, 3, 5, 5]  # ends with the last frame


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_too_short(sampling):
    args = VideoDataArguments("x", sampling=sampling)
    for draw in (None, np.zeros(4)):
        with pytest.raises(ValueError, match=r"has 3 frames, and the model reads 4\. Leave it out, or set repeat_fra"):
            choose_frames(args, 3, 4, draw=draw)
    args.repeat_frames = True
    assert max(choose_frames(args, 3, 4)) <= 2
    assert max(choose_frames(args, 3, 4, draw=np.full(4, 0.999))) <= 2
    with pytest.raises(ValueError, match="has 0 frames"):
        choose_frames(args, 0, 4)


@pytest.mark.parametrize("form", ["path", "bytes"])
@pytest.mark.parametrize("suffix", [".mkv", ".avi"])  # only the second header has a frame count
def test_frames_are_exact(tmp_path, suffix, form):
    written = make_frames(30)
    file = write_video(tmp_path / f"video{suffix}", written)
    video = {"path": str(file), "bytes": None} if form == "path" else {"path": "x", "bytes": file.read_bytes()}
    seen = []
    frames = read_frames(video, lambda total: seen.append(total) or np.array([3, 0, 29, 3]))
    assert set(seen) == {30}
    assert sorted(frames) == [0, 3, 29]
    assert all(np.array_equal(np.asarray(frames[i]), np.asarray(written[i])) for i in frames)


@pytest.mark.parametrize("damage", ["text", "cut off", "cut short", "missing", "short"])
def test_unreadable_videos_are_named(tmp_path, damage):
    file = write_video(tmp_path / "video.avi", make_frames(3 if damage == "short" else 20))
    content = file.read_bytes()
    damaged = {"text": b"text", "cut off": content[: len(content) // 2], "cut short": content[:300]}
    file.write_bytes(damaged.get(damage, content))
    video = None if damage == "missing" else {"path": str(file), "bytes": None}
    for seed in (None, 0):
        with pytest.raises(
            ValueError, match=r"x \[test\], row 5.*(decoded|cut off|missing|3 frames|0 frames)"
        ) as error:
            prepare(VideoDataArguments("x", num_segments=2), video, seed, key=(0, 5))
        assert damage == "missing" or "video.avi" in str(error.value)


def test_real_clips():
    """HMDB51, UCF101 (AVI) and Kinetics (MP4); one has a title that is not in UTF-8."""
    files = clips()
    assert len(files) == 9
    test = VideoDataArguments("x", num_segments=2, num_crops=3)
    train = VideoDataArguments("x", random_crop_scale=[0.08, 1.0], samples_per_video=2)
    for file in files:
        content = {"path": None, "bytes": file.read_bytes()}
        (views,) = prepare(test, {"path": str(file), "bytes": None})
        assert views["pixel_values"].shape == (6, 4, 3, 16, 16)
        first, second = (views["pixel_values"][i].float() for i in (1, 4))
        assert first.std() > 20 and not torch.equal(first, second)
        assert torch.equal(prepare(test, content)[0]["pixel_values"], views["pixel_values"])
        assert len(prepare(train, content, seed=0)) == 2


def test_a_file_without_a_video_stream(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="the file has no video stream"):
        prepare(VideoDataArguments("x"), {"path": str(tmp_path / "sound.wav"), "bytes": None})


def test_wrong_labels_are_named(folder):
    with pytest.raises(ValueError, match=r"row 7: 'label' is 9, which is not one of the 6 classes"):
        transform(VideoDataArguments("x"))([{"video": {"path": "x"}, "label": 9}], [(0, 7)])


@pytest.mark.parametrize("size", [(40, 24), (24, 41), (33, 33)])
def test_one_view_is_what_the_processor_makes(tmp_path, size):
    args = VideoDataArguments("x")
    frames = make_frames(8, size=size)
    file = write_video(tmp_path / "video.mkv", frames)
    clip = prepare(args, {"path": str(file), "bytes": None})[0]["pixel_values"]
    assert clip.shape == (1, 4, 3, 16, 16)
    task = build_task(args)
    view = task.views({"pixel_values": clip[None]})[0]["pixel_values"]
    expected = task.processor([frames[i] for i in (1, 3, 5, 7)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_wide", [True, False])
def test_crops_lie_along_the_longer_side(tmp_path, is_wide):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, :, 1] = np.arange(48) * 5
    frame = Image.fromarray(pixels if is_wide else pixels.transpose(1, 0, 2).copy())
    file = write_video(tmp_path / "video.mkv", [frame] * 8)
    args = VideoDataArguments("x", num_segments=2, num_crops=3)
    views = prepare(args, {"path": str(file), "bytes": None})[0]["pixel_values"]
    assert views.shape == (6, 4, 3, 16, 16)
    left = views[:, 0, 1, 0, 0].tolist()
    assert left == [0, 80, 160, 0, 80, 160]  # the crops of one choice of frames, then those of the other


def test_training_clips_depend_on_seed_epoch_and_row_alone(folder):
    args = VideoDataArguments(folder, random_crop_scale=[0.3, 1.0], samples_per_video=2)
    dataset = build_task(args).dataset(read(args, "train"), "train", training=True, seed=1)
    assert isinstance(dataset, TransformedDataset)
    loaders = [DataLoader(dataset, batch_size=5, collate_fn=build_task(args).collate, num_workers=n) for n in (0, 2)]
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        here, there = (list(loader) for loader in loaders)
        assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(here, there))
        assert [len(batch["labels"]) for batch in here] == [10, 10, 10, 6]
        epochs.append(torch.cat([batch["pixel_values"] for batch in here]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    # Both clips of a video have the same frames, cropped in two ways.
    for one, other in zip(epochs[0][0::2], epochs[0][1::2]):
        assert numbers(one) == numbers(other)
        assert not torch.equal(one, other)


def test_forms_of_data(tmp_path, folder):
    args = VideoDataArguments(folder)
    rows = read(args, "test")
    assert find_class_names(args, rows) == CLASSES
    content = [{"bytes": open(row["path"], "rb").read(), "path": None} for row in rows["video"]]
    features = datasets.Features({"clip": datasets.Video(decode=False), "label": datasets.ClassLabel(names=CLASSES)})
    parquet = datasets.Dataset.from_dict({"clip": content, "label": rows["label"]}, features=features)
    parquet.to_parquet(tmp_path / "test.parquet")
    lines = [f"{row['video']['path']} {row['label']}" for row in rows]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "test.csv").write_text("\n".join(lines))
    expected = None
    for name, split, column in (
        (folder, "test", "video"),
        (tmp_path, "test", "clip"),
        (tmp_path, "lists/test.csv", "v"),
    ):
        for streaming in (False, True):
            args = VideoDataArguments(str(name), streaming=streaming, video_column=column)
            if split == "test" and streaming and column == "video":
                args.class_names = CLASSES
            task = build_task(args)
            batch = task.collate(list(task.dataset(read(args, split), split)))
            order = batch["labels"].argsort(stable=True)
            result = batch["pixel_values"][order].flatten(1).sum(1).sort().values
            expected = result if expected is None else expected
            assert torch.equal(result, expected), (name, split, streaming)


def test_something_something(tmp_path):
    name = write_something_something(tmp_path, {"labels/train.json": 7, "labels/validation.json": 3})
    args = VideoDataArguments(name)
    rows = read(args, "labels/train.json")
    classes = [f"Moving {label} something" for label in CLASSES]
    assert find_class_names(args, rows) == classes
    assert rows["label"] == [0, 1, 2, 3, 4, 5, 0]
    assert read_frames(rows[6]["video"], lambda total: np.array([0, total - 1])).keys() == {0, 7}
    (tmp_path / "labels" / "labels.json").unlink()
    assert find_class_names(args, read(args, "labels/validation.json")) == classes[:3]

    (tmp_path / "20bn-something-something-v2" / "train3.webm").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 7 videos are missing, the first is .*train3\.webm"):
        read(args, "labels/train.json")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*test\.json"):
        read(args, "labels/test.json")
    (tmp_path / "labels" / "labels.json").write_text('{"Moving ant something": "0"}')
    with pytest.raises(ValueError, match=r"labels\.json does not have the class 'Moving bee something'"):
        read(args, "labels/validation.json")
    (tmp_path / "labels" / "bad.json").write_text('[{"id": "1"}]')
    with pytest.raises(ValueError, match="not a list of annotations with `id` and `template`"):
        read(args, "labels/bad.json")
    (tmp_path / "bad.csv").write_text("a b c\n")
    with pytest.raises(ValueError, match="each row must be a path and a label"):
        read(args, "bad.csv")


def test_wrong_columns(tmp_path):
    datasets.Dataset.from_dict({"video": [1, 2], "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"column 'video' holds no videos\. Set video_column"):
        read(VideoDataArguments(str(tmp_path)), "train")
    with pytest.raises(ValueError, match=r"has no column 'clip'; it has video, label\. Set video_column"):
        read(VideoDataArguments(str(tmp_path), video_column="clip"), "train")


def test_averages_are_of_probabilities():
    logits = torch.randn(6, 3, 5, dtype=torch.float64)
    task = build_task(VideoDataArguments("x"))
    expected = logits.softmax(-1).mean(0)
    torch.testing.assert_close(task.average(logits).softmax(-1), expected)
    torch.testing.assert_close(task.average(logits).logsumexp(-1).exp(), torch.ones(3, dtype=torch.float64))


def test_each_view_counts_once():
    """The model's logits are twice the mean of a clip's pixels, and its negative."""
    task = build_task(VideoDataArguments("x", num_segments=3))
    clips = torch.randint(0, 256, (2, 3, 4, 3, 16, 16), dtype=torch.uint8)
    batch = {"pixel_values": clips, "row": torch.arange(2)}

    def model(pixel_values):
        means = 2 * pixel_values.mean((1, 2, 3, 4))
        return {"logits": torch.stack([means, -means], dim=1)}

    shares = torch.stack([model(**view)["logits"].softmax(-1) for view in task.views(batch)])
    assert len(shares) == 3 and not torch.allclose(shares[0], shares.mean(0), rtol=1e-3)
    for record, expected in zip(task.predict(model, batch), shares.mean(0)):
        assert record["probabilities"] == pytest.approx(expected[record["labels"]].tolist())


def test_half_of_the_clips_are_mirrored():
    task = build_task(VideoDataArguments("x", random_flip=True))
    clips = torch.randint(0, 256, (200, 1, 3, 2, 2), dtype=torch.uint8)
    batch = task.augment({"pixel_values": clips, "labels": torch.arange(200)}, np.random.default_rng(0))
    plain, mirrored = (task.normalize(side.float() / 255) for side in (clips, clips.flip(-1)))
    is_mirrored = [torch.equal(clip, side) for clip, side in zip(batch["pixel_values"], mirrored)]
    expected = [side if flips else clip for flips, clip, side in zip(is_mirrored, plain, mirrored)]
    assert torch.equal(batch["pixel_values"], torch.stack(expected))
    assert 80 < sum(is_mirrored) < 120


def test_batches_are_drawn_from_their_generator_alone():
    args = VideoDataArguments(
        "x", random_flip=True, rand_augment_ops=2, random_erasing=0.5, mixup_alpha=0.8, cutmix_alpha=1.0
    )
    task = build_task(args)
    inputs = {"pixel_values": torch.randint(0, 256, (6, 4, 3, 16, 16), dtype=torch.uint8), "labels": torch.arange(6)}
    results = []
    for seed in (0, 1, 0):
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        results.append(task.augment(inputs, np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), before)  # dropout draws what it would have drawn
    for name in ("pixel_values", "labels"):
        assert torch.equal(results[0][name], results[2][name])
        assert not torch.equal(results[0][name], results[1][name])
    torch.testing.assert_close(results[0]["labels"].sum(1), torch.ones(6))


def test_without_augmentation_clips_are_normalised():
    args = VideoDataArguments("x")
    task = build_task(args)
    clips = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    batch = task.augment({"pixel_values": clips, "labels": torch.arange(2)}, np.random.default_rng(0))
    figures = (task.processor.image_mean, task.processor.image_std)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in figures)
    torch.testing.assert_close(batch["pixel_values"], (clips / 255 - mean) / std)
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_crops": 0}, "num_crops is 0"),
        ({"frame_stride": 0}, "frame_stride is 0"),
        ({"random_erasing": 1.5}, "it is a probability"),
        ({"rand_augment_magnitude": 11.0}, "between 0 and 10"),
        ({"mixup_alpha": -1.0}, "must not be negative"),
        ({"cutmix_alpha": math.nan}, "must be finite"),
        ({"image_std": [1.0, math.nan, 1.0]}, "image_std is .*finite"),
        ({"random_crop_scale": [0.5]}, "two numbers"),
        ({"image_mean": [0.5]}, "one per colour"),
        ({"video_column": "label"}, "they are two columns"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoDataArguments("x", **changes)


def test_host_must_see_squares_in_colour():
    for fields in ({"num_channels": 1}, {"image_size": (16, 24)}):
        with pytest.raises(ValueError, match="read as squares with 3 channels"):
            VideoClassification.build_processor(VideoDataArguments("x"), {}, VideoMAEConfig(**fields))


RECIPE = """\
task: video-classification
model_type: videomae_with_llm_block
dataset_name: {data}
eval_split: test
llm_block:
  llm_name_or_path: {llm}
random_crop_scale: [0.5, 1]
random_flip: true
rand_augment_ops: 1
random_erasing: 0.25
mixup_alpha: 0.8
cutmix_alpha: 1.0
samples_per_video: 2
num_segments: 2
num_crops: 3
layer_decay: 0.7
learning_rate: 1e-3
label_smoothing_factor: 0.1
classifier_init_scale: 1e-3
gradient_accumulation_steps: 2
max_steps: 4
save_steps: 2
eval_strategy: steps
eval_steps: 2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder, llm):
    path = tmp_path_factory.mktemp("video_run")
    (path / "recipe.yaml").write_text(RECIPE.format(data=folder, llm=llm))
    main(["train", str(path / "recipe.yaml"), *TINY_VIDEOMAE, "--output_dir", str(path / "run")])
    return path


def test_resumed_run_is_the_same(run, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "run").mkdir()
    (run / "run" / "checkpoint-2").rename(tmp_path / "run" / "checkpoint-2")
    flags = ["--output_dir", str(tmp_path / "run"), "--resume", "true"]
    main(["train", str(run / "recipe.yaml"), *TINY_VIDEOMAE, *flags])
    one, other = (load_file(folder / "run" / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_saved_model_in_a_pipeline(run, folder, caplog):
    processor = VideoClassification.load_processor(str(run / "run"))
    assert processor.crop_size["height"] == 16
    # It prefers a video processor; transformers' need torchvision.
    caplog.set_level(logging.ERROR, "transformers.pipelines.video_classification")
    classify = pipeline("video-classification", str(run / "run"))
    answers = classify(f"{folder}/test/ant/0.mkv", top_k=6, frame_sampling_rate=2)
    assert {answer["label"] for answer in answers} == set(CLASSES)
    assert math.isclose(sum(answer["score"] for answer in answers), 1, rel_tol=1e-5)


def test_evaluation_takes_the_settings_of_the_run(run):
    main(["evaluate", str(run / "run")])
    trained = json.loads((run / "run" / "results.json").read_text())["metrics"]
    evaluated = json.loads((run / "run" / "eval_results.json").read_text())["metrics"]
    assert evaluated["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-6)
    assert evaluated["eval_top1"] == trained["eval_top1"]
    main(["evaluate", str(run / "run"), "--num_segments", "1", "--num_crops", "1"])
    single = json.loads((run / "run" / "eval_results.json").read_text())["metrics"]
    assert single["eval_loss"] != evaluated["eval_loss"]
    with pytest.raises(ValueError, match="does not use --mixup_alpha"):
        main(["evaluate", str(run / "run"), "--mixup_alpha", "1"])


def test_two_processes_evaluate_the_same(run, assert_same_on_two_processes):
    """With all views; the last batch of the second process is filled with rows that count once."""
    assert_same_on_two_processes(run / "run")
