# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The formats in which checkpoints are stored, read one tensor at a time: safetensors, `.bin` and GGUF."""

import json
import math
import os
import pickle
import re
import struct
import zipfile
from functools import cached_property
from importlib.metadata import version

import torch
from transformers.utils import is_gguf_available


if is_gguf_available():
    import gguf


# Not the 8-bit float types: those tensors mean nothing without the scales of the quantisation they come from.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Architectures whose GGUF tensors are those of the transformers layer, up to the row order of q and k in "llama".
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "stablelm", "starcoder2")

# struct codes and sizes of the value types of GGUF metadata; 8 is a string and 9 an array
# (specification: github.com/ggml-org/ggml, docs/gguf.md).
_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class LocalFile:
    """A file read by byte ranges; counts the bytes."""

    def __init__(self, path: str):
        self.path = path
        self.size = os.path.getsize(path)
        self.bytes_read = 0
        self._file = open(path, "rb")

    def read(self, offset: int, length: int) -> bytearray:
        if offset + length > self.size:
            raise ValueError(
                f"{self.path} is truncated: bytes {offset} to {offset + length} are wanted and it has {self.size}. "
                "Download or copy it again."
            )
        data = bytearray(length)
        self._file.seek(offset)
        if self._file.readinto(data) != length:
            raise OSError(f"{self.path}: could not read {length} bytes at {offset}.")
        self.bytes_read += length
        return data

    def close(self):
        self._file.close()


class SafetensorsFile:
    """The tensors of one safetensors file, read one at a time."""

    def __init__(self, file: LocalFile):
        self.file = file
        (header_length,) = struct.unpack("<Q", file.read(0, 8)) if file.size >= 8 else (file.size,)
        if 8 + header_length > file.size:
            raise ValueError(f"{file.path} is truncated or no safetensors file: its header does not fit into it.")
        self.data_start = 8 + header_length
        try:
            self.header = json.loads(file.read(8, header_length))
            self.header.pop("__metadata__", None)
            ends = [self._end(entry) for entry in self.header.values()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.path} is corrupt: its safetensors header is malformed ({error}).") from error
        if self.data_start + max(ends, default=0) > file.size:
            raise ValueError(
                f"{file.path} is truncated: its header promises {self.data_start + max(ends)} bytes and it has "
                f"{file.size}. Download or copy it again."
            )

    @staticmethod
    def _end(entry: dict) -> int:
        begin, end = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (begin, end, *entry["shape"])) or begin > end:
            raise ValueError(f"offsets {entry['data_offsets']}, shape {entry['shape']}")
        if not isinstance(entry["dtype"], str):
            raise ValueError(f"data type {entry['dtype']}")
        return end

    def keys(self) -> list[str]:
        return list(self.header)

    def size_of(self, key: str) -> tuple[int, str]:
        """A tensor's bytes and the type it is stored in."""
        begin, end = self.header[key]["data_offsets"]
        return end - begin, self.header[key]["dtype"]

    def byte_range(self, key: str) -> tuple[int, int]:
        """Where a tensor lies in the file: its first byte and the one after its last."""
        begin, end = self.header[key]["data_offsets"]
        return self.data_start + begin, self.data_start + end

    def read(self, key: str) -> torch.Tensor:
        entry = self.header[key]
        begin, end = entry["data_offsets"]
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"{self.file.path} stores {key} as {entry['dtype']}, a quantised or unknown type; readable are "
                f"{list(SAFETENSORS_DTYPES)}. Use the unquantised checkpoint of this language model."
            )
        if end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{self.file.path} is corrupt: {key} does not have the size that its shape asks for.")
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        data = self.file.read(self.data_start + begin, end - begin)
        return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])

    def close(self):
        self.file.close()


class PickleFile:
    """The tensors of one `.bin` file, memory-mapped; code in the pickle is never executed."""

    def __init__(self, path: str):
        self.path = path
        self.bytes_read = 0
        try:
            # Files from before torch 1.6 are no zip archives, and cannot be mapped into memory.
            mmap = zipfile.is_zipfile(path)
            self.tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read as a plain dictionary of tensors ({error}). It is corrupt, or holds code, "
                "which is not executed: use a safetensors copy of this language model."
            ) from error
        if not isinstance(self.tensors, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in self.tensors.items()
        ):
            raise ValueError(f"{path} is not a plain dictionary of tensors. Use a safetensors copy of this model.")

    def keys(self) -> list[str]:
        return list(self.tensors)

    def size_of(self, key: str) -> tuple[int, str]:
        """A tensor's bytes and the type it is stored in."""
        return self.tensors[key].nbytes, str(self.tensors[key].dtype).removeprefix("torch.")

    def read(self, key: str) -> torch.Tensor:
        tensor = self.tensors[key]
        self.bytes_read += tensor.nbytes
        return tensor

    def close(self):
        self.tensors = {}


class GGUFFile:
    """The tensors of one GGUF file under transformers' names, dequantised to float32 one at a time."""

    def __init__(self, file: LocalFile):
        if not is_gguf_available():
            raise ImportError(f"{file.path} is a GGUF file: `pip install gguf` to read it.")
        self.file = file
        self.metadata, self.tensors = self._read_header()
        self.architecture = self.metadata.get("general.architecture")
        if self.architecture not in GGUF_ARCHITECTURES:
            raise ValueError(
                f"{file.path} holds the GGUF architecture {self.architecture!r}; supported are {GGUF_ARCHITECTURES}. "
                "Use the model's safetensors repository instead."
            )

    def _read_header(self):
        # The header is walked in one pass over a growing window, so that a large file is not read to find its tensors.
        window, position = bytearray(), 0

        def take(length: int) -> bytearray:
            nonlocal position
            while position + length > len(window):
                missing = max(1 << 20, position + length - len(window))
                missing = min(missing, self.file.size - len(window))
                if missing <= 0:
                    raise ValueError(f"{self.file.path} is truncated: it ends inside its header. Download it again.")
                window.extend(self.file.read(len(window), missing))
            position += length
            return window[position - length : position]

        def scalar(code: str):
            return struct.unpack("<" + code, take(struct.calcsize(code)))[0]

        def string() -> str:
            return take(scalar("Q")).decode("utf-8", errors="replace")

        def value(kind: int):
            if kind == 8:
                return string()
            if kind == 9:
                item_kind, count = scalar("I"), scalar("Q")
                if item_kind in _GGUF_SCALARS:
                    take(struct.calcsize(_GGUF_SCALARS[item_kind]) * count)
                else:
                    for _ in range(count):
                        value(item_kind)
                return None  # token lists and the like: nothing a layer needs
            if kind not in _GGUF_SCALARS:
                raise ValueError(f"{self.file.path} is corrupt: unknown GGUF value type {kind}.")
            return scalar(_GGUF_SCALARS[kind])

        if bytes(take(4)) != b"GGUF":
            raise ValueError(f"{self.file.path} is not a GGUF file.")
        version = scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{self.file.path} has GGUF version {version}; versions 2 and 3 can be read.")
        num_tensors, num_values = scalar("Q"), scalar("Q")
        metadata = {}
        for _ in range(num_values):
            key = string()
            metadata[key] = value(scalar("I"))
        tensors = {}
        for _ in range(num_tensors):
            name = string()
            shape = [scalar("Q") for _ in range(scalar("I"))][::-1]
            tensors[name] = (shape, scalar("I"), scalar("Q"))
        alignment = metadata.get("general.alignment", 32)
        self.data_start = -(-position // alignment) * alignment
        for name, (shape, kind, offset) in tensors.items():
            if self.data_start + offset + self._num_bytes(name, shape, kind) > self.file.size:
                raise ValueError(f"{self.file.path} is truncated: {name} lies behind its end. Download it again.")
        return metadata, tensors

    def _num_bytes(self, name: str, shape: list[int], kind: int) -> int:
        try:
            block_size, type_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except ValueError as error:
            raise ValueError(f"{self.file.path}: {name} has the unknown quantisation type {kind}.") from error
        return math.prod(shape) // block_size * type_size

    @cached_property
    def _names(self):
        architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        return gguf.get_tensor_name_map(architecture, self.metadata[f"{self.architecture}.block_count"])

    def _name_of(self, key: str) -> str | None:
        """The GGUF name of a tensor that transformers calls `key`."""
        name = self._names.get_name(key, try_suffixes=(".weight", ".bias"))
        return name if name in self.tensors else None

    def has(self, key: str) -> bool:
        return self._name_of(key) is not None

    def size_of(self, key: str) -> tuple[int, str]:
        """A tensor's bytes and the type it is stored in."""
        shape, kind, _ = self.tensors[self._name_of(key)]
        return self._num_bytes(key, shape, kind), gguf.GGMLQuantizationType(kind).name

    def byte_range(self, key: str) -> tuple[int, int]:
        """Where a tensor lies in the file: its first byte and the one after its last."""
        shape, kind, offset = self.tensors[self._name_of(key)]
        begin = self.data_start + offset
        return begin, begin + self._num_bytes(key, shape, kind)

    def read(self, key: str) -> torch.Tensor:
        shape, kind, offset = self.tensors[self._name_of(key)]
        data = self.file.read(self.data_start + offset, self._num_bytes(key, shape, kind))
        raw = torch.frombuffer(data, dtype=torch.uint8).numpy()
        if kind == gguf.GGMLQuantizationType.F32:
            tensor = torch.from_numpy(raw.view("float32"))
        elif kind == gguf.GGMLQuantizationType.F16:
            tensor = torch.from_numpy(raw.view("float16")).float()
        else:
            kind = gguf.GGMLQuantizationType(kind)
            try:
                # Blocks lie along the last dimension.
                tensor = torch.from_numpy(gguf.dequantize(raw.reshape(math.prod(shape[:-1]), -1), kind))
            except NotImplementedError as error:
                raise ValueError(
                    f"{self.file.path} stores {key} as {kind.name}, which gguf {version('gguf')} cannot dequantise. "
                    "Use another quantisation of this language model, or its safetensors repository."
                ) from error
        tensor = tensor.reshape(shape)
        projection = re.search(r"\.([qk])_proj\.", key)
        if self.architecture == "llama" and projection:
            # llama.cpp interleaves the two halves of every rotary head; undo it.
            heads = "head_count" if projection[1] == "q" else "head_count_kv"
            num_heads = self.metadata.get(f"llama.attention.{heads}", self.metadata["llama.attention.head_count"])
            tensor = tensor.reshape(num_heads, shape[0] // num_heads // 2, 2, *shape[1:]).swapaxes(1, 2)
            tensor = tensor.reshape(shape).contiguous()
        return tensor

    def close(self):
        self.file.close()
