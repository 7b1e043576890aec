# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Files of checkpoints, read one tensor at a time: safetensors and `.bin`."""

import hashlib
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig


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

# Bytes of the largest header that is read, as in safetensors' own reader.
MAX_HEADER = 100_000_000

# Rows and columns of a block of values that share a scale, as in DeepSeek-V3.
FP8_BLOCK = 128


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


class TensorFile(Protocol):
    """
    Tensors of a checkpoint, read one at a time: of a file, or of several that belong together (GGUF, Meta's format).

    Args:
        bytes_read (`int`): number of bytes read so far, headers included.
    """

    @property
    def bytes_read(self) -> int: ...

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        ...

    def size_of(self, key: str) -> tuple[int, str]:
        """Return a tensor's size in bytes and its stored data type."""
        ...

    def byte_ranges(self, key: str) -> list[tuple[ByteSource, int, int]]:
        """Return the byte ranges of a tensor, each as its file, its first byte and the one after its last."""
        ...

    def read(self, key: str) -> torch.Tensor:
        """Read one tensor."""
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
    """The tensors of one safetensors file, read one at a time; those of a local file through `safe_open`."""

    def __init__(self, file: ByteSource):
        self.file = file
        (header_length,) = struct.unpack("<Q", file.read(0, 8)) if file.size >= 8 else (file.size,)
        if 8 + header_length > file.size:
            raise ValueError(
                f"{file.path} is truncated or not a safetensors file: it is smaller than its header says."
            )
        if header_length > MAX_HEADER:
            raise ValueError(
                f"{file.path} is corrupt: its safetensors header has {header_length} bytes, at most {MAX_HEADER} are "
                "allowed."
            )
        self.data_start = 8 + header_length
        try:
            self.header = json.loads(file.read(8, header_length), object_pairs_hook=refuse_duplicates)
            self.metadata = self.header.pop("__metadata__", None) or {}
            ranges = [(*self._offsets(entry), key) for key, entry in self.header.items()]
            refuse_overlaps(ranges)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.path} is corrupt: its safetensors header is malformed ({error}).") from error
        stop = self.data_start + max((end for _, end, _ in ranges), default=0)
        if stop > file.size:
            raise ValueError(
                f"{file.path} is truncated: by its header it has {stop} bytes, but it has {file.size}. Download or "
                "copy it again."
            )
        if isinstance(file, LocalFile):
            try:
                with safe_open(file.path, framework="pt"):
                    pass  # it checks the header
            except SafetensorError as error:
                raise ValueError(f"{file.path} is corrupt ({error}). Download or copy it again.") from error

    @staticmethod
    def _offsets(entry: dict) -> tuple[int, int]:
        begin, end = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (begin, end, *entry["shape"])) or begin > end:
            raise ValueError(f"offsets {entry['data_offsets']}, shape {entry['shape']}")
        if not isinstance(entry["dtype"], str):
            raise ValueError(f"data type {entry['dtype']}")
        return begin, end

    @property
    def bytes_read(self) -> int:
        return self.file.bytes_read

    def keys(self) -> list[str]:
        return list(self.header)

    def size_of(self, key: str) -> tuple[int, str]:
        begin, end = self.header[key]["data_offsets"]
        return end - begin, self.header[key]["dtype"]

    def byte_ranges(self, key: str) -> list[tuple[ByteSource, int, int]]:
        self._dtype_of(key)
        begin, end = self.header[key]["data_offsets"]
        return [(self.file, self.data_start + begin, self.data_start + end)]

    def _dtype_of(self, key: str) -> torch.dtype:
        """Return a tensor's data type; refuse an unknown one, and a size that does not fit."""
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
        return dtype

    def read(self, key: str) -> torch.Tensor:
        dtype, entry = self._dtype_of(key), self.header[key]
        begin, end = entry["data_offsets"]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        if isinstance(self.file, LocalFile):
            self.file.bytes_read += end - begin
            # Opened for each tensor: the pages of a memory map stay in memory until it is closed.
            with safe_open(self.file.path, framework="pt") as opened:
                return opened.get_tensor(key)
        data = self.file.read(self.data_start + begin, end - begin)
        return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])

    def close(self) -> None:
        self.file.close()


# What `torch.load` raises for a file that is damaged, holds code, or is no pickle at all.
UNPICKLING_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError),
    *(ValueError, pickle.UnpicklingError, struct.error),
)


def load_pickle(path: str, mmap: bool = False) -> Any:
    """Load what `torch.save` wrote, without executing code in it; raises one of `UNPICKLING_ERRORS`."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


class PickleFile:
    """The tensors of one `.bin` file, memory-mapped; code in the pickle is never executed."""

    def __init__(self, path: str):
        self.path = path
        self.bytes_read = 0
        try:
            # Files from before torch 1.6 are not zip archives, and cannot be memory-mapped.
            self.tensors = load_pickle(path, mmap=zipfile.is_zipfile(path))
        except UNPICKLING_ERRORS as error:
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
        return self.tensors[key].nbytes, str(self.tensors[key].dtype).removeprefix("torch.")

    def byte_ranges(self, key: str) -> list[tuple[ByteSource, int, int]]:
        return []  # it is memory-mapped

    def read(self, key: str) -> torch.Tensor:
        tensor = self.tensors[key]
        self.bytes_read += tensor.nbytes
        return tensor

    def close(self) -> None:
        self.tensors = {}


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs; two with the same key are a `ValueError`."""
    if len(made := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in made if keys.count(key) > 1)} is there twice")
    return made


def refuse_overlaps(ranges: Iterable[tuple[int, int, str]]) -> None:
    """Refuse tensors, each given by its first byte, the one after its last, and its name, that share bytes."""
    last_end, last_name = 0, ""
    for begin, end, name in sorted(ranges):
        if begin < last_end:
            raise ValueError(f"{name} and {last_name} overlap")
        last_end, last_name = end, name


def update_digest(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Add a tensor's name, shape, data type and bytes to a SHA-256 digest."""
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


def digest_tensors(tensors: dict[str, torch.Tensor]) -> str | None:
    """Return the SHA-256 digest of tensors; `None` if some are offloaded or sharded, so that it is not known."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta or type(tensor.data) is not torch.Tensor:
            return None
        update_digest(digest, name, tensor)
    return digest.hexdigest()


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
