# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Files of checkpoints, read one tensor at a time: safetensors, `.bin` and GGUF."""

import json
import math
import os
import pickle
import re
import struct
import zipfile
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig
from transformers.utils import is_gguf_available


if is_gguf_available():
    import gguf


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
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

# Decoders whose configuration transformers can read from a GGUF file.
GGUF_ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma2",
    "gemma3",
    "phi3",
    "stablelm",
    "starcoder2",
    "nemotron",
)
# For these families llama.cpp stores the norm weight with the `1 +` already applied.
_GGUF_NORMS_PLUS_ONE = ("gemma2", "gemma3", "nemotron")

# Rows and columns of a block of values that share a scale, as in DeepSeek-V3.
FP8_BLOCK = 128

# struct codes and sizes of the value types of GGUF metadata; 8 is a string and 9 an array
# (specification: github.com/ggml-org/ggml, docs/gguf.md).
_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class ByteSource(Protocol):
    """
    A file that is read by byte ranges: a [`LocalFile`], or a file of the Hub.

    Args:
        path (`str`): the file's name, for errors.
        size (`int`): its size in bytes.
        bytes_read (`int`): number of bytes read so far.
    """

    path: str
    size: int
    bytes_read: int

    def read(self, offset: int, length: int) -> bytearray:
        """Read `length` bytes from `offset` on."""
        ...

    def close(self) -> None: ...


class LocalFile:
    """A local file that is read by byte ranges."""

    def __init__(self, path: str):
        self.path = path
        self.size = os.path.getsize(path)
        self.bytes_read = 0
        self._file = open(path, "rb")

    def read(self, offset: int, length: int) -> bytearray:
        if offset + length > self.size:
            raise ValueError(
                f"{self.path} is truncated: cannot read bytes {offset} to {offset + length} of {self.size}. "
                "Download or copy it again."
            )
        data = bytearray(length)
        self._file.seek(offset)
        if self._file.readinto(data) != length:
            raise OSError(f"{self.path}: could not read {length} bytes at {offset}.")
        self.bytes_read += length
        return data

    def close(self) -> None:
        self._file.close()


class SafetensorsFile:
    """The tensors of one safetensors file, read one at a time."""

    def __init__(self, file: ByteSource):
        self.file = file
        (header_length,) = struct.unpack("<Q", file.read(0, 8)) if file.size >= 8 else (file.size,)
        if 8 + header_length > file.size:
            raise ValueError(
                f"{file.path} is truncated or not a safetensors file: it is smaller than its header says."
            )
        self.data_start = 8 + header_length
        try:
            self.header = json.loads(file.read(8, header_length))
            self.header.pop("__metadata__", None)
            ends = [self._end(entry) for entry in self.header.values()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.path} is corrupt: its safetensors header is malformed ({error}).") from error
        if self.data_start + max(ends, default=0) > file.size:
            raise ValueError(
                f"{file.path} is truncated: by its header it has {self.data_start + max(ends)} bytes, but it has "
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
        """Return a tensor's size in bytes and its stored data type."""
        begin, end = self.header[key]["data_offsets"]
        return end - begin, self.header[key]["dtype"]

    def byte_ranges(self, key: str) -> list[tuple[int, int]]:
        """Return the byte ranges of a tensor in the file, each as its first byte and the one after its last."""
        begin, end = self.header[key]["data_offsets"]
        return [(self.data_start + begin, self.data_start + end)]

    def read(self, key: str) -> torch.Tensor:
        entry = self.header[key]
        begin, end = entry["data_offsets"]
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"{self.file.path} stores {key} as {entry['dtype']}, a quantised or unknown type; supported are "
                f"{list(SAFETENSORS_DTYPES)}. Use the unquantised checkpoint of this language model."
            )
        if end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{self.file.path} is corrupt: the size of {key} does not match its shape.")
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        data = self.file.read(self.data_start + begin, end - begin)
        return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])

    def close(self) -> None:
        self.file.close()


class PickleFile:
    """The tensors of one `.bin` file, memory-mapped; code in the pickle is never executed."""

    def __init__(self, path: str):
        self.path = path
        self.bytes_read = 0
        try:
            # Files from before torch 1.6 are not zip archives, and cannot be memory-mapped.
            mmap = zipfile.is_zipfile(path)
            self.tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read as a plain dictionary of tensors ({error}). It is corrupt, or contains code, "
                "which is never executed: use a safetensors copy of this language model."
            ) from error
        if not isinstance(self.tensors, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in self.tensors.items()
        ):
            raise ValueError(f"{path} is not a plain dictionary of tensors. Use a safetensors copy of this model.")

    def keys(self) -> list[str]:
        return list(self.tensors)

    def size_of(self, key: str) -> tuple[int, str]:
        """Return a tensor's size in bytes and its stored data type."""
        return self.tensors[key].nbytes, str(self.tensors[key].dtype).removeprefix("torch.")

    def read(self, key: str) -> torch.Tensor:
        tensor = self.tensors[key]
        self.bytes_read += tensor.nbytes
        return tensor

    def close(self) -> None:
        self.tensors = {}


class _GGUFHeader:
    """Reads the header of a GGUF file value by value, through a growing window: never the whole of a large file."""

    def __init__(self, file: ByteSource):
        self.file = file
        self.position = 0
        self._window = bytearray()

    def take(self, length: int) -> bytearray:
        """Return the next `length` bytes."""
        while self.position + length > len(self._window):
            missing = max(1 << 20, self.position + length - len(self._window))
            missing = min(missing, self.file.size - len(self._window))
            if missing <= 0:
                raise ValueError(f"{self.file.path} is truncated: it ends inside its header. Download it again.")
            self._window.extend(self.file.read(len(self._window), missing))
        self.position += length
        return self._window[self.position - length : self.position]

    def scalar(self, code: str) -> Any:
        """Return the next value, of the type of a `struct` code."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value, of a GGUF value type; `None` for arrays (token lists), which no layer needs."""
        if kind == 8:
            return self.string()
        if kind == 9:
            item_kind, count = self.scalar("I"), self.scalar("Q")
            if item_kind in _GGUF_SCALARS:
                self.take(struct.calcsize(_GGUF_SCALARS[item_kind]) * count)
            else:
                for _ in range(count):
                    self.value(item_kind)
            return None
        if kind not in _GGUF_SCALARS:
            raise ValueError(f"{self.file.path} is corrupt: unknown GGUF value type {kind}.")
        return self.scalar(_GGUF_SCALARS[kind])


class GGUFFile:
    """The tensors of one GGUF file under transformers' names, dequantised to float32 one at a time."""

    def __init__(self, file: ByteSource):
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

    def _read_header(self) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, int]]]:
        """Return the file's metadata, and each tensor's shape, quantisation type and offset."""
        header = _GGUFHeader(self.file)
        if bytes(header.take(4)) != b"GGUF":
            raise ValueError(f"{self.file.path} is not a GGUF file.")
        version = header.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{self.file.path} has GGUF version {version}; supported are versions 2 and 3.")
        num_tensors, num_values = header.scalar("Q"), header.scalar("Q")
        metadata = {}
        for _ in range(num_values):
            key = header.string()
            metadata[key] = header.value(header.scalar("I"))
        tensors = {}
        for _ in range(num_tensors):
            name = header.string()
            shape = [header.scalar("Q") for _ in range(header.scalar("I"))][::-1]
            tensors[name] = (shape, header.scalar("I"), header.scalar("Q"))
        alignment = metadata.get("general.alignment", 32)
        self.data_start = -(-header.position // alignment) * alignment
        for name, (shape, kind, offset) in tensors.items():
            if self.data_start + offset + self._num_bytes(name, shape, kind) > self.file.size:
                raise ValueError(f"{self.file.path} is truncated: {name} is beyond its end. Download it again.")
        return metadata, tensors

    def _num_bytes(self, name: str, shape: list[int], kind: int) -> int:
        try:
            block_size, type_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except ValueError as error:
            raise ValueError(f"{self.file.path}: {name} has the unknown quantisation type {kind}.") from error
        return math.prod(shape) // block_size * type_size

    @cached_property
    def _names(self) -> Any:
        architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        return gguf.get_tensor_name_map(architecture, self.metadata[f"{self.architecture}.block_count"])

    def _stored(self, key: str) -> list[tuple[list[int], int, int]]:
        """Return shape, quantisation type and offset of the tensors stored for `key`: of two for fused experts."""
        unfused = [key.replace("gate_up_proj", name) for name in ("gate_proj", "up_proj")]
        names = [
            self._names.get_name(name, try_suffixes=(".weight", ".bias"))
            for name in (unfused if key.endswith(".experts.gate_up_proj") else [key])
        ]
        if ".experts." in key:
            names = [f"{name}.weight" for name in names]
        return [self.tensors[name] for name in names if name in self.tensors]

    def has(self, key: str) -> bool:
        """Return whether the file holds the whole tensor that transformers calls `key`."""
        return len(self._stored(key)) == (2 if key.endswith(".experts.gate_up_proj") else 1)

    def size_of(self, key: str) -> tuple[int, str]:
        """Return a tensor's size in bytes and its stored data type."""
        stored = self._stored(key)
        kinds = sorted({gguf.GGMLQuantizationType(kind).name for _, kind, _ in stored})
        return sum(self._num_bytes(key, shape, kind) for shape, kind, _ in stored), ", ".join(kinds)

    def byte_ranges(self, key: str) -> list[tuple[int, int]]:
        """Return the byte ranges of a tensor in the file, each as its first byte and the one after its last."""
        begins = [(self.data_start + offset, shape, kind) for shape, kind, offset in self._stored(key)]
        return [(begin, begin + self._num_bytes(key, shape, kind)) for begin, shape, kind in begins]

    def read(self, key: str) -> torch.Tensor:
        tensors = [self._read(key, *stored) for stored in self._stored(key)]
        tensor = torch.cat(tensors, dim=-2) if len(tensors) > 1 else tensors[0]
        projection = re.search(r"\.([qk])_proj\.", key)
        if self.architecture == "llama" and projection:
            heads = "head_count" if projection[1] == "q" else "head_count_kv"
            num_heads = self.metadata.get(f"llama.attention.{heads}", self.metadata["llama.attention.head_count"])
            tensor = unpermute_rotary_heads(tensor, num_heads)
        if self.architecture in _GGUF_NORMS_PLUS_ONE and key.endswith("norm.weight"):
            tensor = tensor - 1
        return tensor[None] if key.endswith("shared_expert_gate.weight") else tensor

    def _read(self, key: str, shape: list[int], kind: int, offset: int) -> torch.Tensor:
        data = self.file.read(self.data_start + offset, self._num_bytes(key, shape, kind))
        raw = torch.frombuffer(data, dtype=torch.uint8).numpy()
        if kind == gguf.GGMLQuantizationType.F32:
            tensor = torch.from_numpy(raw.view("float32"))
        elif kind == gguf.GGMLQuantizationType.F16:
            tensor = torch.from_numpy(raw.view("float16")).float()
        else:
            quantization = gguf.GGMLQuantizationType(kind)
            try:
                # Blocks are along the last dimension.
                tensor = torch.from_numpy(gguf.dequantize(raw.reshape(math.prod(shape[:-1]), -1), quantization))
            except NotImplementedError as error:
                raise ValueError(
                    f"{self.file.path} stores {key} as {quantization.name}, which gguf {version('gguf')} cannot "
                    "dequantise. Use another quantisation of this language model, or its safetensors repository."
                ) from error
        return tensor.reshape(shape)

    def close(self) -> None:
        self.file.close()


def unpermute_rotary_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Permute the rows of q or k to transformers' order: Meta and llama.cpp interleave the halves of a rotary head."""
    pairs = tensor.reshape(num_heads, tensor.shape[0] // num_heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape).contiguous()


def check_quantization(config: PreTrainedConfig) -> None:
    """
    Refuse a language model whose quantisation cannot be read.

    Raises:
        `ValueError`: for any quantisation except MXFP4 and fp8 with blocks of 128 x 128 or one scale for each matrix.
    """
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    method = quantization.get("quant_method", "an unknown method")
    block_size = quantization.get("weight_block_size") or [FP8_BLOCK] * 2
    if quantization and (method not in ("fp8", "mxfp4") or list(block_size) != [FP8_BLOCK] * 2):
        raise ValueError(
            f"This {config.model_type} checkpoint is quantised by {method} (quantization_config of its config.json); "
            f"supported are fp8 with blocks of {FP8_BLOCK} x {FP8_BLOCK}, MXFP4, and GGUF files. Use the unquantised "
            "checkpoint of this language model."
        )


def dequantize_fp8(values: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """Dequantise values with a scale for each block of 128 x 128 (DeepSeek-V3), or with one scale (Mistral)."""
    if scales.numel() == 1:
        return values.float() * scales.float()
    *_, rows, columns = values.shape
    if scales.shape != (*values.shape[:-2], -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)):
        raise ValueError(
            f"{name} has the shape {tuple(values.shape)}, but its scales, {tuple(scales.shape)}, are not of blocks of "
            f"{FP8_BLOCK} x {FP8_BLOCK}. Use the unquantised checkpoint of this language model."
        )
    scales = scales.float().repeat_interleave(FP8_BLOCK, dim=-2)[..., :rows, :]
    return values.float() * scales.repeat_interleave(FP8_BLOCK, dim=-1)[..., :columns]
