# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Read point clouds from files, in float64, as coordinates may lie far from the origin.

Every count in a header is compared with the content of the file, before memory is allocated for it.
"""

import codecs
import importlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


POINT_SUFFIXES = (".ply", ".off", ".obj", ".npy", ".txt", ".xyz", ".h5")
# Points sampled on the surface of a mesh, from which farthest point sampling then chooses.
SURFACE_POINTS = 8192

# Coordinates and labels compress far less: more is a damaged file, or one made to fill the memory.
LARGEST_EXPANSION, LARGEST_UNCHECKED_SIZE = 100, 1 << 26

PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "float16": "f2", "float32": "f4", "float64": "f8"},
    **{f"{kind}{8 * size}": f"{kind[0]}{size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)},
}
LARGEST_PLY_HEADER = 1 << 20


def read_points(path: str | os.PathLike) -> np.ndarray:
    """
    Read a point cloud from a file.

    Args:
        path (`str` or `os.PathLike`): a `.ply`, `.off` or `.obj` file (of points, or of a mesh, on whose surface 8,192
            points are sampled, always the same ones), an `.npy` file (with fields `x`, `y`, `z` if it is structured),
            a `.txt` or `.xyz` file with three or more numbers on each line (the first three count), separated by
            spaces, tabs, commas, semicolons or bars, or an `.h5` file with the dataset `data`.

    Returns:
        `np.ndarray` of shape `(points, 3)`; or `(clouds, points, 3)` from an `.npy` or `.h5` file of that shape.
        Float64, or float32 if an `.npy` or `.h5` file holds no more.

    Raises:
        `FileNotFoundError`: if the file does not exist.
        `ValueError`: if the file has another format, is truncated, or cannot be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    if suffix not in POINT_SUFFIXES:
        raise ValueError(f"{file}: unsupported point-cloud format; supported: {', '.join(POINT_SUFFIXES)}.")
    try:
        if suffix == ".npy":
            # Of a memory map, numpy compares the header with the size of the file.
            return to_coordinates(np.lib.format.open_memmap(file, mode="r"))
        if suffix == ".h5":
            return to_coordinates(read_hdf5(file, ["data"])[0])
        if suffix == ".obj":
            return _read_obj(decode_text(file.read_bytes()))
        if suffix == ".ply":
            return _sample_surface(*_read_ply(file.read_bytes()))
        text = decode_text(file.read_bytes())
        return _sample_surface(*_read_off(text)) if suffix == ".off" else _read_table(text)
    except ImportError:
        raise
    except Exception as error:  # each library raises its own kinds
        raise ValueError(f"{file} cannot be read as a point cloud: {type(error).__name__}: {error}") from error


def to_coordinates(array: np.ndarray) -> np.ndarray:
    """Return numbers of any type, or fields `x`, `y` and `z`, as float64, or float32 if that is exact."""
    if array.dtype.names is not None:
        fields = {name.lower(): name for name in array.dtype.names}
        if not {"x", "y", "z"} <= set(fields):
            raise ValueError(f"the array has the fields {', '.join(array.dtype.names)}, not x, y and z")
        return np.stack([array[fields[axis]].astype(np.float64) for axis in "xyz"], axis=-1)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"the array holds {array.dtype}, not numbers")
    return array.astype(np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64)


def decode_text(content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark, UTF-16 with one, or else Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def split_lines(text: str) -> list[str]:
    """Split at line ends only: `str.splitlines` also splits at characters that Latin-1 comments have."""
    return re.split(r"\r\n|\r|\n", text)


def check_expansion(name: str, size: int, stored: int) -> None:
    """Refuse to read `size` bytes out of `stored` bytes, if compression does not explain the difference."""
    if size > LARGEST_UNCHECKED_SIZE and size > LARGEST_EXPANSION * stored:
        raise ValueError(f"{name!r} claims {size:,} bytes, but the file stores {stored:,} bytes of it")


def read_hdf5(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read datasets of an HDF5 file that are stored, complete, in the file itself."""
    h5py = _import("h5py", "Reading .h5 files")
    arrays = []
    with h5py.File(file, "r") as content:
        for name in names:
            # The link is inspected before anything follows it.
            if not content.id.links.exists(name.encode()):
                raise KeyError(f"the file has no dataset {name!r}; it has {', '.join(content) or 'none'}")
            if content.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise ValueError(f"{name!r} is a link; only data in the file itself is read")
            dataset = content[name]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{name!r} is no dataset")
            if dataset.is_virtual or dataset.external:
                raise ValueError(f"{name!r} is stored in other files; only data in the file itself is read")
            _check_hdf5_storage(name, dataset)
            arrays.append(dataset[...])
    return arrays


def _check_hdf5_storage(name: str, dataset: Any) -> None:
    """Refuse what was never written, which HDF5 fills with zeros."""
    stored = dataset.id.get_storage_size()
    check_expansion(name, dataset.size * dataset.dtype.itemsize, stored)
    if dataset.size > 0 and stored == 0:
        raise ValueError(f"{name!r} was never written")
    if dataset.chunks is not None:
        number = int(np.prod([-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks)]))
        if dataset.id.get_num_chunks() < number:
            raise ValueError(f"{name!r} is incomplete: {dataset.id.get_num_chunks()} of {number} chunks were written")


def _import(name: str, purpose: str) -> Any:
    # By name: transformers refuses to load a model's files from the Hub if a module that they import is missing.
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} requires {name}, which is not installed: pip install 'hf_frozen_llm[points]'"
        ) from error


def _sample_surface(vertices: np.ndarray, faces: Any) -> np.ndarray:
    """Sample points on polygons, an array or a list of arrays of indices; without polygons, return the vertices."""
    if isinstance(faces, np.ndarray):
        faces = faces if faces.shape[1] >= 3 else ()
    else:
        faces = [face for face in faces if len(face) >= 3]
    if len(faces) == 0:
        return vertices
    trimesh = _import("trimesh", "Sampling the surface of a mesh")
    triangles = trimesh.geometry.triangulate_quads(faces)
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise ValueError(f"a face names a vertex that does not exist: there are {len(vertices):,} vertices")
    # `process` would merge and reorder points in one place.
    return _sample_mesh(trimesh, trimesh.Trimesh(vertices, triangles, process=False))


def _sample_mesh(trimesh: Any, mesh: Any) -> np.ndarray:
    if not mesh.area > 0:
        raise ValueError("the faces have no area")
    return np.asarray(trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=0)[0], np.float64)


def _read_obj(text: str) -> np.ndarray:
    trimesh = _import("trimesh", "Reading .obj files")
    # trimesh does not know comments that follow numbers.
    text = re.sub(r"(?m)^([ \t]*[vf][ \t][^#\r\n]*)#[^\r\n]*", r"\1", text)
    # Materials are in other files.
    shape = trimesh.load(io.BytesIO(text.encode()), file_type="obj", process=False, skip_materials=True)
    if isinstance(shape, trimesh.Scene):
        shape = shape.to_geometry()
    if len(shape.vertices) == 0 or shape.vertices.shape[1] != 3:
        raise ValueError("the file has no vertices, or some without three coordinates")
    if len(getattr(shape, "faces", ())) > 0:
        return _sample_mesh(trimesh, shape)
    return np.asarray(shape.vertices, np.float64)


def _read_table(text: str) -> np.ndarray:
    """Read lines of numbers, after an optional line `x y z` or an optional count of the lines."""
    rows = [re.split("#|//|%", line, maxsplit=1)[0].strip(" \t;,|") for line in split_lines(text)]
    rows = [row for row in rows if row]
    if rows and rows[0].isdecimal():
        if int(rows[0]) != len(rows) - 1:
            raise ValueError(f"the first line says {int(rows[0]):,} points, but {len(rows) - 1:,} lines follow")
        rows = rows[1:]
    if not rows:
        raise ValueError("the file has no points")
    delimiter = next((sign for sign in ";|," if sign in rows[0]), None)
    if delimiter in (";", "|"):
        rows = [row.replace(",", ".") for row in rows]  # a decimal comma
    names = [name.strip("\"' \t").lower() for name in rows[0].split(delimiter)]
    points = np.loadtxt(rows[1:] if names[:3] == ["x", "y", "z"] else rows, delimiter=delimiter, ndmin=2)
    if points.shape[1] < 3:
        raise ValueError(f"the lines have {points.shape[1]} columns; a point has three coordinates")
    return points[:, :3]


def _read_off(text: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return vertices and faces of an OFF file: one of them on each line, which colours and normals may follow."""
    lines = [words for line in split_lines(text) if (words := line.partition("#")[0].split())]
    if not lines:
        raise ValueError("the file is empty")
    # ModelNet has files without a space before the counts: `OFF126 84 0`.
    header = re.fullmatch(r"(?:ST)?C?N?(4?n?)(?:OFF|off)(\d*)", lines[0][0])
    if header is not None:
        if header[1] or "BINARY" in lines[0]:
            raise ValueError(
                f"the header is {' '.join(lines[0])!r}; OFF files of text with three coordinates are read"
            )
        rest = [*([header[2]] if header[2] else []), *lines[0][1:]]
        lines = [*([rest] if rest else []), *lines[1:]]
    if not lines or len(lines[0]) not in (2, 3) or not all(word.isdecimal() for word in lines[0]):
        raise ValueError("the header does not say the numbers of vertices, faces and edges")
    num_vertices, num_faces = int(lines[0][0]), int(lines[0][1])
    lines = lines[1:]
    if num_vertices + num_faces != len(lines):
        raise ValueError(
            f"the header says {num_vertices:,} vertices and {num_faces:,} faces, but {len(lines):,} lines follow"
        )
    vertices = np.array([words[:3] for words in lines[:num_vertices]], np.float64).reshape(num_vertices, 3)
    faces = []
    for words in lines[num_vertices:]:
        size = int(words[0])
        if not 0 <= size < len(words):
            raise ValueError(f"the line {' '.join(words)!r} has fewer than {size} vertices")
        faces.append(np.array(words[1 : 1 + size], np.int64))
    return vertices, faces


@dataclass
class _PlyElement:
    """An element of a PLY header: the type of each property and, of lists, the type of the length."""

    name: str
    count: int
    properties: list[tuple[str, np.dtype, np.dtype | None]] = field(default_factory=list)


def _read_ply(content: bytes) -> tuple[np.ndarray, Any]:
    """Return vertices and faces of a PLY file, whatever other elements and properties it has."""
    content = content.removeprefix(codecs.BOM_UTF8)
    start = re.match(rb"ply[ \t]*(\r\n|\r|\n)", content)
    if start is None:
        raise ValueError("the first line is not `ply`")
    end = re.search(start[1] + rb"[ \t]*end_header[ \t]*(?:%b|\Z)" % start[1], content[:LARGEST_PLY_HEADER])
    if end is None:
        raise ValueError("the header has no line `end_header`")
    is_text, elements = _parse_ply_header(split_lines(decode_text(content[: end.start()]))[1:])
    data = content[end.end() :]
    if is_text:
        # As if it were binary, with numbers of one type.
        data = np.array(decode_text(data).split(), np.float64).tobytes()
    offset, columns = 0, {}
    for element in elements:
        columns[element.name], offset = _read_ply_element(data, offset, element)
    if data[offset:].strip(b"\0 \t\r\n"):
        raise ValueError(f"{len(data) - offset:,} bytes follow the elements that the header names")
    vertex, face = columns.get("vertex", {}), columns.get("face", {})
    if not {"x", "y", "z"} <= set(vertex):
        raise ValueError("the header names no vertices with x, y and z")
    faces = next((face[name] for name in ("vertex_indices", "vertex_index") if name in face), None)
    if face and faces is None:
        raise ValueError(f"the faces have no property vertex_indices, but {', '.join(face)}")
    return np.stack([vertex[axis].astype(np.float64) for axis in "xyz"], axis=-1), () if faces is None else faces


def _parse_ply_header(lines: list[str]) -> tuple[bool, list[_PlyElement]]:
    """Return whether the content is text, and the elements; the numbers of a text become float64."""
    order, elements = "", []
    orders = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}

    def dtype(name: str) -> np.dtype:
        return np.dtype(np.float64) if order == "=" else np.dtype(order + PLY_TYPES[name])

    for line in lines:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, *_] if name in orders:
                order = orders[name]
            case ["element", name, count] if count.isdecimal() and order:
                elements.append(_PlyElement(name, int(count)))
            case ["property", "list", size, kind, name] if elements and {size, kind} <= set(PLY_TYPES):
                elements[-1].properties.append((name, dtype(kind), dtype(size)))
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1].properties.append((name, dtype(kind), None))
            case _:
                raise ValueError(f"the header has the line {line!r}")
    return order == "=", elements


def _read_ply_element(data: bytes, offset: int, element: _PlyElement) -> tuple[dict[str, Any], int]:
    """Return the columns of an element, arrays or lists of arrays, and the offset of what follows."""
    smallest = sum((kind if size is None else size).itemsize for _, kind, size in element.properties)
    if element.count == 0 or smallest == 0:
        return {}, offset
    truncated = ValueError(f"the header says {element.count:,} {element.name!r} elements, but the file ends before")
    if offset + element.count * smallest > len(data):
        raise truncated
    # Mostly all lists are as long as those of the first row.
    fields: list[Any] = []
    position = offset
    for name, kind, size in element.properties:
        length = 1 if size is None else _ply_length(data, position, size)
        fields += [(name, kind)] if size is None else [(f"{name} length", size), (name, kind, (length,))]
        position += length * kind.itemsize + (0 if size is None else size.itemsize)
        if position > len(data):
            raise truncated
    row = np.dtype(fields)
    end = offset + element.count * row.itemsize
    if end <= len(data):
        rows = np.frombuffer(data, row, element.count, offset)
        lists = [name for name, _, size in element.properties if size is not None]
        if all((rows[f"{name} length"] == rows[name].shape[1]).all() for name in lists):
            return {name: rows[name] for name, *_ in element.properties}, end
    columns: dict[str, list] = {name: [] for name, *_ in element.properties}
    for _ in range(element.count):
        for name, kind, size in element.properties:
            length = 1
            if size is not None:
                if offset + size.itemsize > len(data):
                    raise truncated
                length = _ply_length(data, offset, size)
                offset += size.itemsize
            if offset + length * kind.itemsize > len(data):
                raise truncated
            columns[name].append(np.frombuffer(data, kind, length, offset))
            offset += length * kind.itemsize
    scalars = [name for name, _, size in element.properties if size is None]
    return {**columns, **{name: np.concatenate(columns[name]) for name in scalars}}, offset


def _ply_length(data: bytes, offset: int, size: np.dtype) -> int:
    length = np.frombuffer(data, size, 1, offset)[0]
    if length < 0 or length != int(length):
        raise ValueError(f"a list has the length {length}")
    return int(length)


__all__ = [
    "POINT_SUFFIXES",
    "check_expansion",
    "decode_text",
    "read_hdf5",
    "read_points",
    "split_lines",
    "to_coordinates",
]
