# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Folders, `.npz` and `.h5` files of point clouds as people have them: layouts, leftovers, labels, far coordinates."""

import zipfile

import datasets
import h5py
import numpy as np
import pytest
from tiny_runs import CLASSES, make_clouds, write_npz

from hf_frozen_llm import PointCloudProcessor
from hf_frozen_llm.tasks.classification import find_class_names
from hf_frozen_llm.tasks.point_cloud_classification import PointCloudClassification, PointDataArguments


def read(name, split="train", **options):
    return PointCloudClassification.read(PointDataArguments(str(name), num_points=16, **options), split)


def labels_of(name, split="train"):
    """Return the names of the classes, and the class of each row."""
    rows = read(name, split)
    names = find_class_names(PointDataArguments("x"), rows)
    return names, rows["label"][:]


def write_clouds(folder, layout, suffix=".txt"):
    """Write one point cloud of each class for `train`, and another one for `test`."""
    for number, cloud in enumerate(make_clouds(4)[0]):
        split, label = ("train", "test")[number // 2], ("bed", "night stand")[number % 2]
        file = folder / layout.format(split=split, label=label) / f"{label}_1{suffix}"
        file.parent.mkdir(parents=True)
        np.savetxt(file, cloud)
    return folder


@pytest.mark.parametrize("suffix", [".txt", ".xyz", ".TXT"])
@pytest.mark.parametrize("layout", ["{split}/{label}", "{label}/{split}"])
def test_layouts(tmp_path, layout, suffix):
    write_clouds(tmp_path, layout, suffix)
    for split, clouds in (("train", make_clouds(4)[0][:2]), ("test", make_clouds(4)[0][2:])):
        assert labels_of(tmp_path, split) == (["bed", "night stand"], [0, 1])
        np.testing.assert_allclose(read(tmp_path, split)["points"][:], clouds, atol=1e-6)


def test_modelnet_as_published(tmp_path):
    pytest.importorskip("trimesh")
    for label in ("bed", "chair"):
        (tmp_path / label / "train").mkdir(parents=True)
        text = "OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
        (tmp_path / label / "train" / f"{label}_0001.off").write_text(text)
    assert labels_of(tmp_path) == (["bed", "chair"], [0, 1])


def test_leftovers_are_no_data(tmp_path):
    write_clouds(tmp_path, "{split}/{label}")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "train" / name).mkdir()
        np.savetxt(tmp_path / "train" / name / "0-checkpoint.txt", make_clouds(1)[0][0])
    (tmp_path / "train" / "bed" / "._bed_1.txt").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tmp_path / "train" / "bed" / "folder.txt").mkdir()
    assert labels_of(tmp_path) == (["bed", "night stand"], [0, 1])


def test_links_and_brackets(tmp_path):
    write_clouds(tmp_path / "elsewhere", "{split}/{label}")
    folder = tmp_path / "data [v1]"
    (folder / "train").mkdir(parents=True)
    for label in ("bed", "night stand"):
        (folder / "train" / label).symlink_to(tmp_path / "elsewhere" / "train" / label)
    assert labels_of(folder) == (["bed", "night stand"], [0, 1])
    with h5py.File(folder / "a[1].h5", "w") as file:
        file["data"], file["label"] = make_clouds(2)
    assert labels_of(folder, "a[1].h5") == (["0", "1"], [0, 1])


def test_other_layouts_are_refused_by_name(tmp_path):
    write_clouds(tmp_path, "clouds/{split}/{label}", ".off")
    with pytest.raises(ValueError, match=r"\.ply, \.off.* are read from the folders <split>/<class>/ and <class>/"):
        read(tmp_path)


def test_names_are_lines(tmp_path):
    """In ModelNet40's lists and in `shape_names.txt`."""
    cloud = make_clouds(1)[0][0]
    for label in ("night stand", "tv_stand"):
        (tmp_path / label).mkdir()
        np.savetxt(tmp_path / label / f"{label}_0001.txt", cloud)
    (tmp_path / "train.txt").write_text("\ufeffnight stand_0001\r\n\r\ntv_stand_0001 \r\n", encoding="utf-8")
    assert labels_of(tmp_path, "train.txt") == (["night stand", "tv_stand"], [0, 1])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = cloud[None], [1]
    (tmp_path / "shape_names.txt").write_text("night stand\ntv stand\n\n")
    assert labels_of(tmp_path, "a.h5") == (["night stand", "tv stand"], [1])


STRINGS = np.array(["bee", "ant", "ant", "bee"])
NUMBERS = np.array([1, 0, 0, 1])


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (NUMBERS[:, None], ["0", "1"]),
        (NUMBERS.astype(np.uint8), ["0", "1"]),
        (NUMBERS.astype(float)[:, None], ["0", "1"]),
        (NUMBERS.astype(">i4"), ["0", "1"]),
        (STRINGS, ["ant", "bee"]),
        (STRINGS.astype("S"), ["ant", "bee"]),
        (STRINGS.astype("S")[:, None], ["ant", "bee"]),
    ],
)
@pytest.mark.parametrize("form", ["npz", "h5"])
def test_labels(tmp_path, form, label, names):
    points = make_clouds(4)[0]
    if form == "npz":
        np.savez(tmp_path / "a.npz", points=points, label=label, split=np.array([b"train"] * 4)[:, None])
        assert labels_of(tmp_path / "a.npz") == (names, [1, 0, 0, 1])
        return
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = points
        file["label"] = label.astype(object) if label.dtype.kind == "U" else label
    assert labels_of(tmp_path, "a.h5") == (names, [1, 0, 0, 1])


def test_named_classes_keep_their_order(tmp_path):
    classes = np.array(["cat", "bee", "ant"]).astype("S")
    name = write_npz(tmp_path / "a.npz", {"train": 4}, label=STRINGS, classes=classes)
    assert labels_of(name) == (["cat", "bee", "ant"], [1, 2, 2, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.eye(4)}, r"labels have the shape \(4, 4\), not \(clouds,\) or \(clouds, 1\).*argmax"),
        ({"label": np.array([0, 0.9, 1, 1.7])}, r"the label 0\.9 is no integer"),
        ({"label": np.array([0, np.nan, 1, 1])}, "the label nan is no integer"),
        ({"label": np.array([0j, 0, 1, 1])}, "the labels are complex128"),
        ({"label": STRINGS, "classes": np.array(["ant"])}, "labels bee are not among the classes ant"),
        ({"label": NUMBERS[:3]}, r"different lengths: \{'points': 4, 'label': 3, 'split': 4\}"),
        ({"split": np.array(["train"] * 5)}, "different lengths"),
        ({"points": np.ones((4, 60))}, r"the points have the shape \(4, 60\), not \(clouds, points, 3\)"),
        ({"points": np.full((4, 60, 3), "a")}, "the array holds <U1, not numbers"),
        ({"points": np.array([[None]] * 4)}, r"a\.npz cannot be read: Object arrays"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, message):
    write_npz(tmp_path / "a.npz", {"train": 4}, **changes)
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        read(tmp_path / "a.npz")


def test_damaged_npz(tmp_path):
    name = write_npz(tmp_path / "a.npz", {"train": 4})
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"b\.npz cannot be read: "):
        read(tmp_path / "b.npz")
    with zipfile.ZipFile(name, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(1 << 27))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: 'zeros\.npy' claims 134,217,728 bytes"):
        read(name)


def test_wrong_h5_files_are_named(tmp_path):
    points, labels = make_clouds(4)
    for name, content in {
        "lengths": {"data": points, "label": labels[:3]},
        "hot": {"data": points, "label": np.eye(4)},
        "empty": {"data": points},
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.update(content)
    (tmp_path / "other").mkdir()
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["data"] = points
        file["label"] = h5py.ExternalLink(str(tmp_path / "hot.h5"), "label")
    for name, message in {
        "lengths": "4 clouds and 3 labels",
        "hot": r"the labels have the shape \(4, 4\)",
        "empty": "no dataset 'label'; it has data",
        "link": "'label' is a link",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\.h5.*{message}"):
            read(tmp_path, f"{name}.h5")


def write_far(folder, form, points):
    if form == "files":
        (folder / "train" / "a").mkdir(parents=True)
        np.save(folder / "train" / "a" / "0.npy", points)
        return folder, "train"
    if form == "npz":
        np.savez(folder / "a.npz", points=points[None], label=[0], split=["train"])
        return folder / "a.npz", "train"
    if form == "h5":
        with h5py.File(folder / "a.h5", "w") as file:
            file["data"], file["label"] = points[None], [0]
        return folder, "a.h5"
    rows = {"points": [points.tolist()], "label": ["a"]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    return folder, "train"


@pytest.mark.parametrize(
    "options", [{}, {"streaming": True}, {"max_points": 40}, {"streaming": True, "max_points": 40}]
)
@pytest.mark.parametrize("form", ["files", "npz", "h5", "parquet"])
def test_coordinates_far_from_the_origin(tmp_path, form, options):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (64, 3)) + [512345.0, 5412345.0, 100.0]
    name, split = write_far(tmp_path, form, points)
    row = next(iter(read(name, split, **options)))
    found = np.asarray(row["points"])
    assert found.dtype == np.float64 and {tuple(point) for point in found} <= {tuple(point) for point in points}
    assert len(found) == options.get("max_points", 64)
    processor = PointCloudProcessor(num_points=16)
    if not options:
        assert np.array_equal(processor(found)["points"], processor(points)["points"])


def test_suffixes_in_capitals(tmp_path):
    name = write_npz(tmp_path / "a.npz", {"train": 4})
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert len(read(name.replace("a.npz", "A.NPZ"))) == 4
    with h5py.File(tmp_path / "A.H5", "w") as file:
        file["data"], file["label"] = make_clouds(2)
    assert len(read(tmp_path, "A.H5")) == 2


def test_float32_stays_float32(tmp_path):
    name = write_npz(tmp_path / "a.npz", {"train": 6})
    for options in ({}, {"max_points": 40}):
        assert read(name, **options).features["points"].dtype == "float32"
    assert find_class_names(PointDataArguments("x"), read(name)) == CLASSES
