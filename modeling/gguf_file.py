# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""GGUF files, read one tensor at a time."""

import math
import re
import struct
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from transformers.utils import is_gguf_available

from .checkpoint_files import MAX_HEADER, ByteSource, refuse_overlaps, unpermute_rotary_heads
from .configuration_llm_block import MAX_LAYERS


if is_gguf_available():
    import gguf


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

# struct codes and sizes of the value types of GGUF metadata; 8 is a string and 9 an array
# (specification: github.com/ggml-org/ggml, docs/gguf.md).
_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class _GGUFHeader:
    """Reads the header of a GGUF file value by value, through a growing window: never the whole of a large file."""

    def __init__(self, file: ByteSource):
        self.file = file
        self.position = 0
        self._window = bytearray()

    def take(self, length: int) -> bytearray:
        """Return the next `length` bytes."""
        end = self.position + length
        if end > self.file.size:
            raise ValueError(f"{self.file.path} is truncated: it ends inside its header. Download it again.")
        if end > MAX_HEADER:
            raise ValueError(f"{self.file.path} is corrupt: its GGUF header has more than {MAX_HEADER} bytes.")
        if end > len(self._window):
            missing = min(max(1 << 20, end - len(self._window)), self.file.size - len(self._window))
            self._window.extend(self.file.read(len(self._window), missing))
        self.position = end
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
            elif item_kind == 8:
                for _ in range(count):
                    self.take(self.scalar("Q"))
            else:
                raise ValueError(f"{self.file.path} is corrupt: a GGUF array of value type {item_kind}.")
            return None
        if kind not in _GGUF_SCALARS:
            raise ValueError(f"{self.file.path} is corrupt: unknown GGUF value type {kind}.")
        return self.scalar(_GGUF_SCALARS[kind])


class GGUFTensor(NamedTuple):
    """
    Where a tensor of a GGUF file is stored.

    Args:
        file ([`ByteSource`]): its file.
        begin (`int`): its first byte in the file.
        shape (`list[int]`): its shape.
        kind (`int`): its quantisation type.
    """

    file: ByteSource
    begin: int
    shape: list[int]
    kind: int


class GGUFFile:
    """
    The tensors of one GGUF file under transformers' names, dequantised to float32 one at a time.

    Args:
        files ([`ByteSource`]): the file, or the parts of a split one, of which the first holds the metadata.
    """

    def __init__(self, *files: ByteSource):
        if not is_gguf_available():
            raise ImportError(f"{files[0].path} is a GGUF file: `pip install gguf` to read it.")
        self.files, self.file = files, files[0]
        self.tensors: dict[str, GGUFTensor] = {}
        self.metadata, self.header_size = self._read_header(self.file)
        self.architecture = self.metadata.get("general.architecture")
        if self.architecture not in GGUF_ARCHITECTURES:
            raise ValueError(
                f"{self.file.path} holds the GGUF architecture {self.architecture!r}; supported are "
                f"{GGUF_ARCHITECTURES}. Use the model's safetensors repository instead."
            )
        num_layers = self.metadata.get(f"{self.architecture}.block_count")
        if type(num_layers) is not int or not 0 < num_layers <= MAX_LAYERS:
            raise ValueError(
                f"{self.file.path} is corrupt: its {self.architecture}.block_count is {num_layers}, which must be "
                f"between 1 and {MAX_LAYERS}."
            )
        for file in files[1:]:
            self._read_header(file)
        num_tensors = self.metadata.get("split.tensors.count", len(self.tensors))
        if num_tensors != len(self.tensors):
            raise ValueError(
                f"{self.file.path} and its other parts hold {len(self.tensors)} tensors, but its split.tensors.count "
                f"is {num_tensors}. Download all parts again, under their own names."
            )

    def _read_header(self, file: ByteSource) -> tuple[dict[str, Any], int]:
        """Read where the tensors of a file are; return its metadata and the size of its header."""
        header = _GGUFHeader(file)
        if bytes(header.take(4)) != b"GGUF":
            raise ValueError(f"{file.path} is not a GGUF file.")
        version = header.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{file.path} has GGUF version {version}; supported are versions 2 and 3.")
        num_tensors, num_values = header.scalar("Q"), header.scalar("Q")
        metadata = {}
        for _ in range(num_values):
            key = header.string()
            metadata[key] = header.value(header.scalar("I"))
        stored = []
        for _ in range(num_tensors):
            name, num_dimensions = header.string(), header.scalar("I")
            if num_dimensions > 4:
                raise ValueError(f"{file.path} is corrupt: {name} has {num_dimensions} dimensions.")
            shape = [header.scalar("Q") for _ in range(num_dimensions)][::-1]
            stored.append((name, shape, header.scalar("I"), header.scalar("Q")))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"{file.path} is corrupt: its general.alignment is {alignment!r}.")
        data_start = -(-header.position // alignment) * alignment
        ranges = []
        for name, shape, kind, offset in stored:
            tensor = GGUFTensor(file, data_start + offset, shape, kind)
            ranges.append((tensor.begin, tensor.begin + self._num_bytes(name, shape, kind), name))
            if ranges[-1][1] > file.size:
                raise ValueError(f"{file.path} is truncated: {name} is beyond its end. Download it again.")
            if name in self.tensors:
                raise ValueError(f"{file.path} is corrupt: {name} is stored twice.")
            self.tensors[name] = tensor
        try:
            refuse_overlaps(ranges)
        except ValueError as error:
            raise ValueError(f"{file.path} is corrupt: {error}.") from error
        return metadata, data_start

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

    def _stored_names(self, key: str) -> list[str]:
        """Return the names under which the file may hold `key`: two for fused experts."""
        unfused = [key.replace("gate_up_proj", name) for name in ("gate_proj", "up_proj")]
        names = [
            self._names.get_name(name, try_suffixes=(".weight", ".bias"))
            for name in (unfused if key.endswith(".experts.gate_up_proj") else [key])
        ]
        return [f"{name}.weight" for name in names] if ".experts." in key else names

    def _stored(self, key: str) -> list[GGUFTensor]:
        return [self.tensors[name] for name in self._stored_names(key) if name in self.tensors]

    def keys(self) -> list[str]:
        """Return no names: those of transformers are only known to [`find`]."""
        return []

    def find(self, prefix: str, expected: Iterable[str]) -> dict[str, str]:
        """
        Find the tensors of a module, see [`LLMCheckpoint.keys_under`].

        Raises:
            `ValueError`: if the file has tensors of the module that it does not expect.
        """
        keys = {name: f"model.{prefix}.{name}" for name in expected}
        found = {name: key for name, key in keys.items() if self._has(key)}
        if unused := self._unused(found.values()):
            raise ValueError(
                f"{self.file.path} holds tensors of {prefix} that this {self.architecture} has no place for: "
                f"{unused}. Use the model's safetensors repository instead."
            )
        return found

    def _has(self, key: str) -> bool:
        """Return whether the file holds the whole tensor that transformers calls `key`."""
        return len(self._stored(key)) == len(self._stored_names(key))

    def _unused(self, keys: Iterable[str]) -> list[str]:
        """Return the names of tensors that `keys` leave out of the layers and norms that they are of."""
        used = {name for key in keys for name in self._stored_names(key)}
        modules = {match[0] for name in used if (match := re.match(r"blk\.\d+\.|[^.]+\.", str(name)))}
        # Rotary frequencies of old files: llama.cpp computes them, too.
        used |= {f"{module}attn_rot_embd.weight" for module in modules}
        return sorted(name for name in self.tensors if name.startswith(tuple(modules)) and name not in used)

    def size_of(self, key: str) -> tuple[int, str]:
        kinds = sorted({gguf.GGMLQuantizationType(tensor.kind).name for tensor in self._stored(key)})
        return sum(end - begin for _, begin, end in self.byte_ranges(key)), ", ".join(kinds)

    def byte_ranges(self, key: str) -> list[tuple[ByteSource, int, int]]:
        return [
            (file, begin, begin + self._num_bytes(key, shape, kind)) for file, begin, shape, kind in self._stored(key)
        ]

    def read(self, key: str) -> torch.Tensor:
        tensors = [self._read(key, stored) for stored in self._stored(key)]
        tensor = torch.cat(tensors, dim=-2) if len(tensors) > 1 else tensors[0]
        projection = re.search(r"\.([qk])_proj\.", key)
        if self.architecture == "llama" and projection:
            num_heads = self.metadata.get("llama.attention.head_count")
            if projection[1] == "k":
                num_heads = self.metadata.get("llama.attention.head_count_kv", num_heads)
            if type(num_heads) is not int or num_heads < 1 or len(tensor) % (2 * num_heads):
                raise ValueError(
                    f"{self.file.path} is corrupt: its llama.attention.head_count or head_count_kv is {num_heads}, "
                    f"but {key} has {len(tensor)} rows."
                )
            tensor = unpermute_rotary_heads(tensor, num_heads)
        if self.architecture in _GGUF_NORMS_PLUS_ONE and key.endswith("norm.weight"):
            tensor = tensor - 1
        return tensor[None] if key.endswith("shared_expert_gate.weight") else tensor

    def read_stored(self, name: str) -> torch.Tensor | None:
        """Read a tensor by its name in the file; `None` if there is none."""
        return self._read(name, self.tensors[name]) if name in self.tensors else None

    def _read(self, key: str, stored: GGUFTensor) -> torch.Tensor:
        file, begin, shape, kind = stored
        data = file.read(begin, self._num_bytes(key, shape, kind))
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
                    f"{file.path} stores {key} as {quantization.name}, which gguf {version('gguf')} cannot "
                    "dequantise. Use another quantisation of this language model, or its safetensors repository."
                ) from error
        return tensor.reshape(shape)

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self.files)

    def close(self) -> None:
        for file in self.files:
            file.close()
