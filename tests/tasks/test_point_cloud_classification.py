# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json
import os
import shutil

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import CLASSES, TINY_POINT_BERT, class_fields, make_clouds, write_h5, write_modelnet40, write_npz

from hf_frozen_llm import (
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    PointCloudProcessor,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.modeling.point_groups import sample_farthest_points
from hf_frozen_llm.tasks.classification import find_class_names
from hf_frozen_llm.tasks.point_cloud_classification import PointCloudClassification, PointDataArguments
from hf_frozen_llm.tasks.point_cloud_classification.data import random_rotations


LABEL2ID = {name: index for index, name in enumerate(CLASSES)}
CONFIG = PointBertWithLLMBlockConfig(num_groups=4, group_size=4)
read = PointCloudClassification.read


def build_task(args, label2id=LABEL2ID):
    config = PointBertWithLLMBlockConfig(num_groups=4, group_size=4, **class_fields(label2id))
    return PointCloudClassification(args, PointCloudClassification.build_processor(args, {}, config), config)


def load(args, split, label2id=LABEL2ID):
    task = build_task(args, label2id)
    return task.collate(list(task.dataset(read(args, split), split)))


def write_files(folder, sizes):
    """`<split>/<class>/<number>.npy`."""
    for seed, (split, count) in enumerate(sizes.items()):
        for number, (cloud, label) in enumerate(zip(*make_clouds(count, seed=seed))):
            (folder / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            np.save(folder / split / CLASSES[label] / f"{number}.npy", cloud)
    return str(folder)


def write_parquet(folder, sizes):
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(sizes.items()):
        clouds, labels = make_clouds(count, seed=seed)
        points = datasets.List(datasets.List(datasets.Value("float32")))
        features = datasets.Features({"points": points, "label": datasets.ClassLabel(names=CLASSES)})
        rows = {"points": clouds.tolist(), "label": labels.tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


FORMS = {
    "npz": (lambda folder, sizes: write_npz(folder.with_suffix(".npz"), sizes), "train", "test"),
    "h5": (write_h5, "ply_data_train0.h5", "ply_data_test0.h5"),
    "modelnet40": (write_modelnet40, "modelnet40_train.txt", "modelnet40_test.txt"),
    "files": (write_files, "train", "test"),
    "parquet": (write_parquet, "train", "test"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", list(FORMS))
def test_forms_of_data(tmp_path, form, streaming):
    write, train_split, _ = FORMS[form]
    args = PointDataArguments(write(tmp_path / "data", {train_split: 14}), num_points=16, streaming=streaming)
    names = find_class_names(args, read(args, train_split))
    assert names == ([f"{name}_thing" for name in CLASSES] if form == "modelnet40" else CLASSES)
    batch = load(args, train_split, {name: index for index, name in enumerate(names)})
    assert batch["labels"].sort().values.tolist() == sorted(index % 6 for index in range(14))
    clouds, labels = make_clouds(14)
    expected = [PointCloudProcessor(num_points=16).prepare(clouds[i]) for i in np.argsort(labels, kind="stable")]
    points = batch["points"][batch["labels"].argsort(stable=True)]
    # Files come in the order of their names.
    assert torch.allclose(points.sum((1, 2)).sort().values, torch.stack(expected).sum((1, 2)).sort().values, atol=1e-4)
    if form != "files":
        torch.testing.assert_close(points, torch.stack(expected), rtol=0, atol=1e-5)


def test_several_h5_files_and_their_names(tmp_path):
    write_h5(tmp_path, {"ply_data_train0.h5": 7, "ply_data_train1.h5": 5, "ply_data_test0.h5": 3})
    args = PointDataArguments(str(tmp_path), num_points=16)
    assert list(read(args, "ply_data_train*.h5")["label"]) == [*[0, 1, 2, 3, 4, 5, 0], *range(5)]
    (tmp_path / "shape_names.txt").unlink()
    assert find_class_names(args, read(args, "ply_data_train0.h5")) == [str(index) for index in range(6)]
    args.class_names = CLASSES
    assert find_class_names(args, read(args, "ply_data_train0.h5")) == CLASSES


def test_changed_files_are_read_again(tmp_path):
    args = PointDataArguments(write_files(tmp_path, {"train": 6}), num_points=16)
    before = load(args, "train")
    file = tmp_path / "train" / "ant" / "0.npy"
    np.save(file, 1 / np.load(file))
    os.utime(file, ns=(1, 1))
    assert not torch.equal(load(args, "train")["points"], before["points"])


def test_max_points_keeps_the_farthest(tmp_path):
    name = write_npz(tmp_path / "data.npz", {"train": 40})
    whole = read(PointDataArguments(name, num_points=16), "train")["points"][:]
    args = PointDataArguments(name, num_points=16, max_points=20)
    reduced = read(args, "train")
    chosen = sample_farthest_points(torch.tensor(whole), 20).numpy()
    assert np.array_equal(reduced["points"][:], np.take_along_axis(whole, chosen[..., None], 1))
    assert find_class_names(args, reduced) == CLASSES
    with pytest.raises(ValueError, match="a point cloud has 64 points, fewer than max_points, 65"):
        read(PointDataArguments(name, num_points=16, max_points=65), "train")


def test_max_points_of_a_stream_that_does_not_know_its_features(tmp_path):
    clouds, labels = make_clouds(8)
    table = pyarrow.table({"points": clouds.tolist(), "label": labels.tolist()})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    whole, stream = (
        load(PointDataArguments(str(tmp_path), num_points=16, max_points=20, streaming=streaming), "train")
        for streaming in (False, True)
    )
    assert stream["points"].shape == (8, 20, 3)
    assert torch.equal(whole["points"], stream["points"]) and torch.equal(whole["labels"], stream["labels"])


def test_clouds_of_different_sizes(tmp_path):
    name = write_files(tmp_path, {"train": 6})
    np.save(tmp_path / "train" / "ant" / "0.npy", make_clouds(1, 40)[0][0])
    with pytest.raises(ValueError, match=r"Point clouds have 40 to 64 points.* Set max_points to at most"):
        load(PointDataArguments(name, num_points=16), "train")
    assert load(PointDataArguments(name, num_points=16, max_points=40), "train")["points"].shape == (6, 40, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"points": np.where(p == p[3, 5], np.nan, p)}, r"\[train\], row 3: point 5 is \[nan, nan, nan\]"),
        (
            lambda p: {"points": np.concatenate([p, p], -1)},
            r"arrays of the shape \(64, 6\); a point cloud is \(points, 3\)",
        ),
        (lambda p: {"points": p[:, :8]}, r"row 0 has 8 points, fewer than num_points, 16"),
        (lambda p: {"split": np.array(["test"] * 6)}, "could not be loaded: the splits are test"),
        (lambda p: {"label": np.array([0, 1, 9, 0, 0, 0]), "classes": np.array(CLASSES[:6])}, "9"),
    ],
)
def test_wrong_clouds_are_named(tmp_path, change, message):
    name = write_npz(tmp_path / "data.npz", {"train": 6}, **change(make_clouds(6)[0]))
    with pytest.raises(ValueError, match=message):
        load(PointDataArguments(name, num_points=16), "train")


def test_wrong_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(PointDataArguments(str(tmp_path / "nothing")), "train")
    with pytest.raises(FileNotFoundError, match=r"'nothing\.npz', but there is no such file"):
        read(PointDataArguments("nothing.npz"), "train")
    name = write_h5(tmp_path / "h5", {"ply_data_train0.h5": 3})
    with pytest.raises(FileNotFoundError, match=r"no such file in the folder; its \.h5 files: ply_data_train0\.h5"):
        read(PointDataArguments(name), "train.h5")
    (tmp_path / "h5" / "text.h5").write_text("text")
    with pytest.raises(ValueError, match=r"text\.h5 cannot be read as point clouds `data` with `label`"):
        read(PointDataArguments(name), "text.h5")
    name = write_modelnet40(tmp_path / "txt", {"modelnet40_train.txt": 7})
    (tmp_path / "txt" / "bee_thing" / "bee_thing_0001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 7 files are missing: .*bee_thing_0001\.txt"):
        read(PointDataArguments(name), "modelnet40_train.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*modelnet40_test\.txt"):
        read(PointDataArguments(name), "modelnet40_test.txt")
    (tmp_path / "txt" / "bee_thing" / "bee_thing_0001.txt").write_text("one two three\n")
    with pytest.raises(ValueError, match=r"bee_thing_0001\.txt cannot be read as a point cloud"):
        read(PointDataArguments(name), "modelnet40_train.txt")
    np.savez(tmp_path / "data.npz", points=make_clouds(2)[0], label=[0, 1])
    with pytest.raises(ValueError, match="the file has no array 'split'; it has points, label"):
        read(PointDataArguments(str(tmp_path / "data.npz")), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"random_scale": [1.5, 0.5]}, r"two numbers such as \[0\.6667, 1\.5\]"),
        ({"random_translation": -0.1}, "must not be negative"),
        ({"num_votes": 0}, "num_votes is 0"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        PointDataArguments("x", **changes)


def test_fewer_points_than_groups():
    with pytest.raises(ValueError, match=r"num_points is 16, but host\.num_groups 64 and host\.group_size 32 need"):
        PointCloudClassification.build_processor(
            PointDataArguments("x", num_points=16), {}, PointBertWithLLMBlockConfig()
        )


def task_of(num_points=16, **fields):
    args = PointDataArguments("x", num_points=num_points, **fields)
    return PointCloudClassification(args, PointCloudProcessor(num_points=num_points), CONFIG)


def test_fewer_candidates_than_points():
    for name in ("num_candidates", "max_points"):
        with pytest.raises(ValueError, match=f"{name} is 15, fewer than num_points, 16"):
            task_of(**{name: 15})


def are_in(points, clouds):
    """Return whether all points belong to the point cloud, without repetition."""
    return all(
        len({tuple(p) for p in a.tolist()} & {tuple(p) for p in b.tolist()}) == len(a) for a, b in zip(points, clouds)
    )


def test_points_are_drawn_from_the_candidates():
    clouds = torch.tensor(make_clouds(5)[0])
    inputs = {"points": clouds, "labels": torch.arange(5)}
    rng = np.random.default_rng(0)
    drawn = task_of().augment(inputs, rng)
    assert torch.equal(drawn["labels"], inputs["labels"])
    assert drawn["points"].shape == (5, 16, 3) and are_in(drawn["points"], clouds)
    farthest = clouds.gather(1, sample_farthest_points(clouds, 20)[..., None].expand(-1, -1, 3))
    for _ in range(5):
        drawn = task_of(num_candidates=20).augment(inputs, rng)["points"]
        assert are_in(drawn, farthest)
    assert not torch.equal(drawn, task_of(num_candidates=20).augment(inputs, rng)["points"])
    exact = task_of(num_candidates=20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = (exact.augment(inputs, np.random.default_rng(3))["points"] for _ in range(2))
    assert torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


def test_scale_and_translation():
    clouds = torch.ones(2000, 1, 3)
    scaled = task_of(1, random_scale=[0.5, 2.0]).change(clouds, np.random.default_rng(0)).squeeze(1)
    assert 0.5 <= scaled.min() < 0.51 and 1.99 < scaled.max() <= 2
    assert (scaled[:, 0] != scaled[:, 1]).all()  # each axis by itself
    moved = task_of(1, random_translation=0.2).change(clouds, np.random.default_rng(0)).squeeze(1) - 1
    assert -0.2 <= moved.min() < -0.19 and 0.19 < moved.max() <= 0.2
    assert moved.mean().abs() < 0.01


@pytest.mark.parametrize("axis", ["x", "y", "z", "any"])
def test_rotations(axis):
    matrices = random_rotations(axis, torch.rand(4000, 3, dtype=torch.float64))
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand_as(matrices))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(4000, dtype=torch.float64))
    vectors = torch.eye(3, dtype=torch.float64)
    if axis == "any":
        assert (matrices.mean(0).abs() < 0.05).all()
    else:
        kept = vectors["xyz".index(axis)]
        torch.testing.assert_close(matrices @ kept, kept.expand(4000, 3))
        assert (matrices.mean(0) - torch.outer(kept, kept)).abs().max() < 0.05
    cloud = torch.tensor(make_clouds(3)[0])
    turned = task_of(64, random_rotation=axis).change(cloud, np.random.default_rng(0))
    torch.testing.assert_close(turned.norm(dim=-1).sort().values, cloud.norm(dim=-1).sort().values)


def test_views():
    clouds = torch.tensor(make_clouds(4)[0])
    farthest = clouds.gather(1, sample_farthest_points(clouds, 16)[..., None].expand(-1, -1, 3))
    (single,) = task_of().views({"points": clouds})
    assert torch.equal(single["points"], farthest)
    voting = task_of(num_votes=4, num_candidates=20, random_translation=0.2)
    first, *others = voting.views({"points": clouds})
    assert torch.equal(first["points"], farthest) and len(others) == 3
    assert all(torch.equal(a["points"], b["points"]) for a, b in zip(others, voting.views({"points": clouds})[1:]))
    assert not torch.equal(others[0]["points"], others[1]["points"])
    logits = torch.randn(4, 2, 5)
    assert torch.equal(voting.average(logits), logits.mean(0))


RECIPE = """\
task: point-cloud-classification
model_type: point_bert_with_llm_block
dataset_name: {data}
eval_split: test
llm_block:
  llm_name_or_path: {llm}
num_candidates: 40
random_scale: [0.6667, 1.5]
random_translation: 0.2
random_rotation: y
num_votes: 3
projection_learning_rate_scale: 0.5
learning_rate: 1e-3
max_steps: 4
save_steps: 2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, llm):
    path = tmp_path_factory.mktemp("points_run")
    data = write_npz(path / "data.npz", {"train": 24, "test": 12})
    (path / "recipe.yaml").write_text(RECIPE.format(data=data, llm=llm))
    main(["train", str(path / "recipe.yaml"), *TINY_POINT_BERT, "--output_dir", str(path / "run")])
    return path


def test_resumed_run_is_the_same(run, tmp_path):
    shutil.copytree(run / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    flags = ["--output_dir", str(tmp_path / "run"), "--resume", "true"]
    main(["train", str(run / "recipe.yaml"), *TINY_POINT_BERT, *flags])
    one, other = (load_file(folder / "run" / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_votes(run):
    main(["evaluate", str(run / "run")])
    trained = json.loads((run / "run" / "results.json").read_text())["metrics"]
    evaluated = json.loads((run / "run" / "eval_results.json").read_text())["metrics"]
    assert evaluated["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-6)
    main(["evaluate", str(run / "run"), "--num_votes", "1"])
    single = json.loads((run / "run" / "eval_results.json").read_text())["metrics"]
    assert single["eval_loss"] != evaluated["eval_loss"]


def test_a_converted_host_is_the_start(run, tmp_path, llm):
    """As in the paper's recipes: published weights, other numbers of groups and classes."""
    trained = load_file(run / "run" / "model.safetensors")
    (tmp_path / "host").mkdir()
    config = json.loads((run / "run" / "config.json").read_text())
    config = PointBertWithLLMBlockConfig(**{**config, "llm_block": None, "id2label": {0: "a", 1: "b"}, "label2id": {}})
    host = PointBertWithLLMBlockForPointCloudClassification(config)
    host.load_state_dict({n: t for n, t in trained.items() if n.startswith("point_bert.")}, strict=False)
    host.save_pretrained(tmp_path / "host")
    flags = [
        "--host.name_or_path",
        str(tmp_path / "host"),
        "--host.num_groups",
        "8",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    flags += ["--max_steps", "1", "--learning_rate", "0", "--num_points", "32", "--use_cpu", "true"]
    main(["train", str(run / "recipe.yaml"), *flags])
    started = load_file(tmp_path / "run" / "model.safetensors")
    names = [
        name for name in started if name.startswith("point_bert.") and "norm1." not in name and "norm2." not in name
    ]
    assert len(names) > 20 and all(torch.equal(started[name], trained[name]) for name in names)
    assert len(started["classifier.out_proj.bias"]) == 6


def test_two_processes_evaluate_the_same(run, assert_same_on_two_processes):
    """With all votes; the last batch of the second process is filled with rows that count once."""
    assert_same_on_two_processes(run / "run")
