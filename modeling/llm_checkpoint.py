# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading single tensors out of a language model's checkpoint: safetensors, `.bin` and GGUF, local or on the Hub."""

import json
import math
import os
import pickle
import re
import struct
import zipfile
from functools import cached_property
from typing import cast

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file, extract_commit_hash, is_gguf_available


if is_gguf_available():
    import gguf


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

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

    def read(self, key: str) -> torch.Tensor:
        shape, kind, offset = self.tensors[self._name_of(key)]
        data = self.file.read(self.data_start + offset, self._num_bytes(key, shape, kind))
        raw = torch.frombuffer(data, dtype=torch.uint8).numpy()
        if kind == gguf.GGMLQuantizationType.F32:
            tensor = torch.from_numpy(raw.view("float32"))
        elif kind == gguf.GGMLQuantizationType.F16:
            tensor = torch.from_numpy(raw.view("float16")).float()
        else:
            tensor = torch.from_numpy(gguf.dequantize(raw.reshape(shape[0], -1), gguf.GGMLQuantizationType(kind)))
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


class LLMCheckpoint:
    """
    The tensors of a language model's checkpoint. Only the files that hold a wanted tensor are opened or downloaded,
    and only that tensor's bytes are read from them.

    Args:
        name_or_path (`str`):
            Hub repository id, local folder, or path that ends in `.gguf`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        hub_kwargs (`dict`, *optional*):
            `token`, `cache_dir`, `local_files_only`, … for the download.

    Raises:
        `FileNotFoundError`: where there are no weights in a known format.
        `ValueError`: for a truncated or corrupt file.
    """

    def __init__(self, name_or_path: str, revision: str | None = None, hub_kwargs: dict | None = None):
        self.name_or_path = name_or_path
        self.revision = revision
        self.hub_kwargs = hub_kwargs or {}
        self._files: dict[str, SafetensorsFile | PickleFile] = {}
        self._gguf: GGUFFile | None = None
        if name_or_path.endswith(".gguf"):
            self._gguf = GGUFFile(LocalFile(find_gguf_file(name_or_path, revision, self.hub_kwargs)))
            return
        _check_folder(name_or_path)
        for name in WEIGHT_FILES:
            path = self._find(name, required=False)
            if path is not None:
                break
        else:
            raise FileNotFoundError(f"{name_or_path} holds no language model weights: it has none of {WEIGHT_FILES}.")
        if name.endswith(".index.json"):
            self.weight_map = _read_weight_map(path)
        else:
            self._open(name, path)
            self.weight_map = dict.fromkeys(self._files[name].keys(), name)

    def _find(self, name: str, required: bool) -> str | None:
        path = cached_file(
            self.name_or_path,
            name,
            revision=self.revision,
            _raise_exceptions_for_missing_entries=False,
            **self.hub_kwargs,
        )
        if path is None and required:
            raise FileNotFoundError(
                f"{self.name_or_path} (revision {self.revision or 'main'}) lacks {name}, which its index names. "
                "Download or copy it completely; in offline mode only files that are already cached can be read."
            )
        return path

    def _open(self, name: str, path: str):
        self._files[name] = SafetensorsFile(LocalFile(path)) if name.endswith(".safetensors") else PickleFile(path)

    def keys_under(self, prefix: str, expected: set[str], base_model_prefix: str) -> dict[str, str]:
        """
        Where the tensors below `prefix` (such as `layers.3` or `decoder.final_layer_norm`) are in the checkpoint.

        Args:
            prefix (`str`): path of a module in the language model.
            expected (`set[str]`): names of that module's tensors, which tell apart modules of the same path, such as
                layer 3 of the language model and of a vision tower beside it.
            base_model_prefix (`str`): what the language model's published keys begin with, such as `model`.

        Returns:
            `dict[str, str]`: from names below `prefix` to keys of the checkpoint; empty if there are none.
        """
        if self._gguf is not None:
            keys = {name: f"model.{prefix}.{name}" for name in expected}
            return {name: key for name, key in keys.items() if self._gguf.has(key)}
        found = self._modules_that_end_in(prefix)
        if not found and re.match("(language|text)_model\\.", prefix):
            # Published vision-language checkpoints have more between, such as `language_model.model.layers.3`.
            tower, _, path = prefix.partition(".")
            found = {before: keys for before, keys in self._modules_that_end_in(path).items() if tower in before}
        for before in (f"{base_model_prefix}.", ""):
            if before in found:
                return found[before]
        if len(found) > 1:
            # More than one module ends in this path: the language model's has the expected tensors.
            found = {before: keys for before, keys in found.items() if expected <= set(keys)} or found
        if len(found) > 1:
            raise ValueError(
                f"{self.name_or_path} has several modules that end in {prefix}: {sorted(found)}. Use a checkpoint of "
                "the language model alone."
            )
        return next(iter(found.values()), {})

    def _modules_that_end_in(self, path: str) -> dict[str, dict[str, str]]:
        pattern = re.compile(rf"^((?:.*\.)?){re.escape(path)}\.(.+)$")
        found: dict[str, dict[str, str]] = {}
        for key in self.weight_map:
            if match := pattern.match(key):
                found.setdefault(match[1], {})[match[2]] = key
        return found

    def read(self, key: str) -> torch.Tensor:
        """One tensor, as stored (a GGUF tensor: dequantised to float32)."""
        if self._gguf is not None:
            return self._gguf.read(key)
        name = self.weight_map[key]
        if name not in self._files:
            self._open(name, cast(str, self._find(name, required=True)))
        if key not in self._files[name].keys():
            raise ValueError(f"{self.name_or_path}: {name} lacks {key}, which the index promises. Download it again.")
        return self._files[name].read(key)

    @property
    def bytes_read(self) -> int:
        """Bytes read from the weight files so far, headers included."""
        return sum(f.bytes_read if isinstance(f, PickleFile) else f.file.bytes_read for f in self._open_files())

    def _open_files(self) -> list[SafetensorsFile | PickleFile | GGUFFile]:
        return [self._gguf] if self._gguf is not None else list(self._files.values())

    def close(self):
        for file in self._open_files():
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _check_folder(name_or_path: str) -> None:
    """Refuses what can only be a local folder and is none, which would be taken for a Hub id."""
    if not os.path.isdir(name_or_path) and (os.path.isabs(name_or_path) or name_or_path.startswith(("./", "../"))):
        raise FileNotFoundError(f"{name_or_path}: there is no such folder.")


def _read_weight_map(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("weight_map holds other things than file names")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is corrupt: no index of a sharded checkpoint ({error!r}). Download it again."
        ) from error
    return weight_map


def find_gguf_file(name_or_path: str, revision: str | None, hub_kwargs: dict) -> str:
    """The local path of a GGUF file that is named by a path or as `owner/repository/file.gguf`."""
    if os.path.isfile(name_or_path):
        return name_or_path
    owner, _, rest = name_or_path.partition("/")
    repository, _, filename = rest.partition("/")
    if not filename or os.path.isabs(name_or_path) or owner in (".", ".."):
        raise FileNotFoundError(f"{name_or_path}: there is no such GGUF file.")
    return hf_hub_download(f"{owner}/{repository}", filename, revision=revision, **hub_kwargs)


def load_llm_config(name_or_path: str, revision: str | None, hub_kwargs: dict) -> tuple[PreTrainedConfig, str | None]:
    """
    The configuration of a language model and the commit it was read at (`None` for local files).

    Raises:
        `FileNotFoundError`: for a local folder without `config.json`.
        `ValueError`: for a language model that transformers knows only through remote code.
    """
    if name_or_path.endswith(".gguf"):
        path = find_gguf_file(name_or_path, revision, hub_kwargs)
        GGUFFile(LocalFile(path)).close()  # a clear error for a truncated file or an unsupported architecture
        folder, name = os.path.split(os.path.abspath(path))
        return AutoConfig.from_pretrained(folder, gguf_file=name), extract_commit_hash(path, None)
    _check_folder(name_or_path)
    if os.path.isdir(name_or_path) and not os.path.isfile(os.path.join(name_or_path, "config.json")):
        raise FileNotFoundError(
            f"{name_or_path} has no config.json, so it is not known which language model it holds. Copy the model's "
            "config.json into it."
        )
    # The commit that a branch stands for is where the Hub's cache keeps the file.
    commit = None
    if not os.path.isdir(name_or_path):
        commit = extract_commit_hash(cached_file(name_or_path, "config.json", revision=revision, **hub_kwargs), None)
    try:
        config = AutoConfig.from_pretrained(
            name_or_path, revision=commit or revision, trust_remote_code=False, **hub_kwargs
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name_or_path}: its config.json is of no language model that transformers itself knows ({error}). One "
            "that needs remote code cannot be used."
        ) from error
    return config, commit
