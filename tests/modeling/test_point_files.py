# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Files of point clouds, as their formats allow them and as downloads damage them."""

import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hf_frozen_llm import PointCloudProcessor
from hf_frozen_llm.modeling.point_files import read_points


CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6)]
TRIANGLES = [(0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]
FACES = [*QUADS, *TRIANGLES]
VERTEX_LINES = [f"{x} {y} {z}" for x, y, z in CORNERS]
FACE_LINES = [f"{len(face)} {' '.join(map(str, face))}" for face in FACES]
PLY_HEADER = """\
ply
format {} 1.0
comment Fabriqué à la main
element vertex 8
property float x
property float y
property float z
element face 8
property list uchar int vertex_indices
end_header
"""


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*parts):
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part)) + "\n"


def binary_ply(order="<"):
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    faces = b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in FACES)
    return PLY_HEADER.format(name).encode() + np.array(CORNERS, f"{order}f4").tobytes() + faces


OFF = lines("OFF", "8 8 12", VERTEX_LINES, FACE_LINES)
COLOURED = [f"{face} 0.8 0.1 0.1" for face in FACE_LINES]
OBJ = lines([f"v {v}" for v in VERTEX_LINES], [f"f {' '.join(str(i + 1) for i in face)}" for face in FACES])
TEXT_PLY = PLY_HEADER.format("ascii") + lines(VERTEX_LINES, FACE_LINES)


def is_the_cube(points):
    """Points on all six faces, as many on each, up to chance."""
    shares = [np.isclose(points[:, axis], side).mean() for axis in range(3) for side in (0, 1)]
    return points.shape == (8192, 3) and points.min() >= 0 and points.max() <= 1 and 0.12 < min(shares) < 0.2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mixed.off", OFF),
        ("glued.off", OFF.replace("OFF\n", "OFF")),
        ("bare.off", OFF.removeprefix("OFF\n")),
        ("comments.off", "# cube\n" + OFF.replace("\n", " # 7 7\n")),
        ("numbered.off", lines("OFF", "8 8 12", "", [f"{v} #{i}" for i, v in enumerate(VERTEX_LINES)], FACE_LINES)),
        ("colours.off", lines("COFF", "8 8 12", [f"{v} 0 0 1 1" for v in VERTEX_LINES], COLOURED)),
        ("windows.OFF", "\ufeff" + OFF.replace("\n", "\r\n")),
        ("latin.off", ("# Fabriqué\x85 1\n" + OFF).encode("latin-1")),
        ("text.ply", TEXT_PLY),
        ("latin.ply", TEXT_PLY.encode("latin-1")),
        ("mark.ply", "\ufeff" + TEXT_PLY),
        ("windows.ply", TEXT_PLY.replace("\n", "\r\n")),
        ("little.ply", binary_ply()),
        ("big.ply", binary_ply(">")),
        ("windows_binary.ply", binary_ply().replace(b"\n", b"\r\n")),
        ("newline.ply", binary_ply() + b"\n"),
        ("cube.obj", OBJ),
        ("comments.obj", "\ufeff" + OBJ.replace("\n", " # 7 7\n")),
    ],
)  # fmt: skip
def test_meshes(tmp_path, name, content):
    pytest.importorskip("trimesh")
    assert is_the_cube(read_points(write(tmp_path / name, content)))


def test_ply_with_other_elements_and_properties(tmp_path):
    header = ["ply", "format ascii 1.0", "obj_info made by hand", "element edge 1", "property int vertex1"]
    header += ["property int vertex2", "element vertex 2", "property double z", "property uchar red"]
    header += ["property double x", "property double y", "element range_grid 2", "property list uchar int ids"]
    file = write(tmp_path / "a.ply", lines(header, "end_header", "0 1", "3 255 1 2", "6 0 4 5", "2 7 7", "0"))
    assert read_points(file).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text",
    [
        "1 2.5 3\n4 5 6\n",
        "1\t2.5\t3\r\n4\t5\t6\r\n",
        "1, 2.5, 3, 9,\n4, 5, 6, 9,\n",
        "1;2.5;3\n4;5;6",
        "1;2,5;3\n4;5;6",
        "1|2.5|3\n4|5|6\n",
        "x,y,z,class\n1,2.5,3,0\n4,5,6,0\n",
        "//X Y Z R\n1 2.5 3 9\n4 5 6 9\n",
        "2\n1 2.5 3\n4 5 6\n",
        "# made by hand\n\n1 2.5 3 # first\n4 5 6\n",
        "\ufeff1 2.5 3\n4 5 6\n",
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".xyz", ".XYZ"])
def test_tables(tmp_path, text, suffix):
    assert read_points(write(tmp_path / f"a{suffix}", text)).tolist() == [[1, 2.5, 3], [4, 5, 6]]


def test_tables_in_other_encodings(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        content = "# é\x85 7\n1 2.5 3\n4 5 6\n".encode(encoding)
        assert read_points(write(tmp_path / "a.txt", content)).tolist() == [[1, 2.5, 3], [4, 5, 6]]


def test_arrays(tmp_path):
    points = np.arange(12.0).reshape(4, 3)
    fields = np.zeros(4, [("intensity", "u1"), ("Z", ">f4"), ("X", "<f8"), ("Y", "i4")])
    fields["X"], fields["Y"], fields["Z"] = points.T
    for number, array in enumerate([points, points.astype(">f8"), points.astype(">i2"), fields]):
        np.save(tmp_path / f"{number}.npy", array)
        content = read_points(tmp_path / f"{number}.npy")
        assert content.dtype == np.float64 and content.dtype.isnative and np.array_equal(content, points)
        processor = PointCloudProcessor(num_points=4, do_normalize=False)
        assert sorted(processor(array)["points"][0].tolist()) == points.tolist()
    np.save(tmp_path / "half.npy", points.astype(np.float16))
    assert read_points(tmp_path / "half.npy").dtype == np.float32
    with pytest.raises(ValueError, match=r"points: the array has the fields a, not x, y and z"):
        PointCloudProcessor(num_points=4)(np.zeros(4, [("a", "f4")]))


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".xyz", ".ply", ".obj", ".off", ".h5"])
def test_coordinates_far_from_the_origin(tmp_path, suffix):
    """UTM coordinates of an object of one metre, in millimetres."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (64, 3)).round(3) + [512345.0, 5412345.0, 100.0]
    rows = [" ".join(f"{value:.3f}" for value in point) for point in points]
    file = tmp_path / f"a{suffix}"
    match suffix:
        case ".npy":
            np.save(file, points)
        case ".h5":
            with h5py.File(file, "w") as content:
                content["data"] = points
        case ".ply":
            axes = [f"property double {axis}" for axis in "xyz"]
            write(file, lines("ply", "format ascii 1.0", "element vertex 64", axes, "end_header", rows))
        case ".obj":
            write(file, lines([f"v {row}" for row in rows]))
        case _:
            write(file, lines("OFF", "64 0 0", rows) if suffix == ".off" else lines(rows))
    assert np.abs(read_points(file) - points).max() < 1e-8
    processor = PointCloudProcessor(num_points=16)
    assert (processor(file)["points"] - processor(points)["points"]).abs().max() < 1e-6


def cut(text, number):
    return lines(text.splitlines()[:number])


OFF_100 = lines("OFF", "100 100 0", [f"{i} {i * i} 1" for i in range(100)], [f"3 {i} {i // 2} 0" for i in range(100)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", cut(OFF_100, 32), "says 100 vertices and 100 faces, but 30 lines follow"),
        ("a.off", cut(OFF_100, 152), "says 100 vertices and 100 faces, but 150 lines follow"),
        ("a.off", OFF_100 + "1 2 3\n", "but 201 lines follow"),
        ("a.off", lines("OFF", "3 1 0", VERTEX_LINES[:3], "3 0 1"), "has fewer than 3 vertices"),
        ("a.off", lines("OFF", "3 1 0", VERTEX_LINES[:3], "3 0 1 3"), "a face names a vertex that does not exist"),
        ("a.off", lines("OFF", "3 1 0", VERTEX_LINES[:3], "3 0 1 1"), "the faces have no area"),
        ("a.off", lines("4OFF", "1 0 0", "1 2 3 4"), "with three coordinates are read"),
        ("a.off", lines("OFF BINARY", "1 0 0"), "OFF files of text"),
        ("a.off", lines("OFF", "1000000000000 0 0", "1 2 3"), "1,000,000,000,000 vertices"),
        ("a.ply", cut(TEXT_PLY, 13), "8 'vertex' elements, but the file ends before"),
        ("a.ply", cut(TEXT_PLY, 22), "8 'face' elements, but the file ends before"),
        ("a.ply", TEXT_PLY + "1 2 3\n", "24 bytes follow the elements"),
        ("a.ply", binary_ply()[:-3], "8 'face' elements, but the file ends before"),
        ("a.ply", binary_ply() + b"abc", "3 bytes follow the elements"),
        ("a.ply", TEXT_PLY.replace("vertex_indices", "corners"), "have no property vertex_indices, but corners"),
        ("a.ply", TEXT_PLY.replace("float x", "string x"), "the header has the line 'property string x'"),
        ("a.ply", TEXT_PLY.replace("float x", "float u"), "no vertices with x, y and z"),
        ("a.ply", TEXT_PLY.replace("end_header", "end"), "no line `end_header`"),
        ("a.ply", TEXT_PLY.replace("4 0 1 3 2", "-4 0 1 3 2"), "a list has the length -4"),
        ("a.txt", "3\n1 2 3\n4 5 6\n", "the first line says 3 points, but 2 lines follow"),
        ("a.txt", "1 2 3 4\n5 6\n", "number of columns changed"),
        ("a.txt", "1,,3\n", "could not convert string ''"),
        ("a.txt", "1 2\n", "2 columns; a point has three coordinates"),
        ("a.txt", "# nothing\n", "the file has no points"),
        ("a.obj", "v 1 2\nv 3 4\n", "some without three coordinates"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "out of bounds"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, name, content, message):
    if name == "a.obj" or "vertex that" in message or "area" in message:
        pytest.importorskip("trimesh")
    with pytest.raises(ValueError, match=rf"a\.\w+ cannot be read as a point cloud: .*{message}"):
        read_points(write(tmp_path / name, content))


def test_truncated_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    content = (tmp_path / "a.npy").read_bytes()
    for damaged in (content[:-8], content.replace(b"(4, 3), }        ", b"(400000000000,3)}")):
        with pytest.raises(ValueError, match=r"a\.npy cannot be read as a point cloud: .*file size"):
            read_points(write(tmp_path / "a.npy", damaged))


def write_sources(folder):
    with h5py.File(folder / "other.h5", "w") as file:
        file["data"] = np.ones((4, 3))
    (folder / "raw").write_bytes(bytes(96))


def virtual(file, folder):
    layout = h5py.VirtualLayout((4, 3), "f8")
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "data", (4, 3))
    file.create_virtual_dataset("data", layout)


def half_written(file, folder):
    file.create_dataset("data", shape=(4, 3), dtype="f8", chunks=(2, 3))[:2] = 1


HDF5 = {
    "claims 9,830,400,000 bytes": lambda file, _: file.create_dataset("data", (200_000, 2048, 6), "f4"),
    "'data' claims": lambda file, _: file.create_dataset("data", (200_000, 2048, 6), "f4", compression="gzip"),
    "was never written": lambda file, _: file.create_dataset("data", (4, 3), "f8"),
    "1 of 2 chunks were written": half_written,
    "'data' is a link": lambda file, folder: file.update(data=h5py.ExternalLink(str(folder / "other.h5"), "data")),
    "is a link; only": lambda file, _: file.update(data=h5py.SoftLink("/other")),
    "is stored in other files": lambda file, folder: file.create_dataset(
        "data", (4, 3), "f8", external=[(str(folder / "raw"), 0, 96)]
    ),
    "stored in other files; only": virtual,
    "no dataset 'data'; it has points": lambda file, _: file.update(points=np.ones((4, 3))),
    "is no dataset": lambda file, _: file.create_group("data"),
}


@pytest.mark.parametrize("message", list(HDF5))
def test_hdf5_that_is_not_what_it_claims(tmp_path, message):
    write_sources(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        HDF5[message](file, tmp_path)
    with pytest.raises(ValueError, match=rf"a\.h5 cannot be read as a point cloud: .*{message}"):
        read_points(tmp_path / "a.h5")


def test_hdf5_compressed(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 30, 3)).astype(">f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=points, compression="gzip", shuffle=True, chunks=(2, 30, 3))
    assert np.array_equal(read_points(tmp_path / "a.h5"), points)


BOMBS = """
import importlib.util, resource, sys, time
import h5py

spec = importlib.util.spec_from_file_location("point_files", sys.argv[1])
point_files = sys.modules["point_files"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(point_files)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for file in sys.argv[2:]:
    try:
        point_files.read_points(file)
    except ValueError:
        continue
    sys.exit(f"{file} was read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.process_time() - start)
"""


def test_bombs_take_neither_memory_nor_time(tmp_path):
    files = []
    for name, text in (("text", TEXT_PLY), ("binary", binary_ply().decode("latin-1"))):
        for element in ("vertex 8", "face 8"):
            files.append(tmp_path / f"{name}_{element[:4]}.ply")
            write(files[-1], text.replace(element, f"{element[:-1]}1000000000000").encode("latin-1"))
    files.append(write(tmp_path / "a.off", lines("OFF", "1000000000000 1 0", VERTEX_LINES)))
    files.append(tmp_path / "a.h5")
    with h5py.File(files[-1], "w") as file:
        file.create_dataset("data", (200_000, 2048, 6), "f4")
    assert files[-1].stat().st_size < 2000
    module = Path(__file__).parents[2] / "modeling" / "point_files.py"
    command = [sys.executable, "-c", BOMBS, str(module), *map(str, files)]
    memory, seconds = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert memory < 100 and seconds < 1
