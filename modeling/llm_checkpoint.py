# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Finding a language model's tensors: their files, in a local folder or a Hub repository, and their names."""

import json
import os
import re
import tempfile
from typing import Any, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils import cached_file, extract_commit_hash, logging

from .checkpoint_files import ByteSource, GGUFFile, LocalFile, PickleFile, SafetensorsFile, dequantize_fp8
from .hub_ranges import HubFile, RangesIgnored, is_offline, repository_folder
from .meta_checkpoint import MetaFile, is_meta_folder, read_meta_config


logger = logging.get_logger(__name__)


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class LLMCheckpoint:
    """
    The tensors of a language model's checkpoint. Only the files that hold a requested tensor are opened, and only its
    bytes are read, from the Hub too. `.bin` files on the Hub are downloaded as a whole.

    Args:
        name_or_path (`str`):
            Hub repository id, local folder (also Meta's format, with `params.json`), or path that ends in `.gguf`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        hub_kwargs (`dict`, *optional*):
            `token`, `cache_dir`, `local_files_only`, … for the download.

    Raises:
        `FileNotFoundError`: if there are no weights in a known format.
        `ValueError`: for a truncated or corrupt file.
    """

    def __init__(self, name_or_path: str, revision: str | None = None, hub_kwargs: dict[str, Any] | None = None):
        self.name_or_path = name_or_path
        self.revision = revision
        self.hub_kwargs = hub_kwargs or {}
        self._files: dict[str, SafetensorsFile | PickleFile | MetaFile] = {}
        self._gguf: GGUFFile | None = None
        # From each tensor to its stored keys: one, or those of its quantised values and their scales.
        self._stored_keys: dict[str, list[str]] = {}
        if name_or_path.endswith(".gguf"):
            self._gguf = GGUFFile(open_gguf_file(name_or_path, revision, self.hub_kwargs)[0])
            return
        _check_folder(name_or_path)
        self._on_hub = not os.path.isdir(name_or_path)
        if self._on_hub:
            self.revision = find_commit(name_or_path, "config.json", revision, self.hub_kwargs)
        self.weight_map = self._find_weight_map()
        for key in self.weight_map:
            name = key.removesuffix("_blocks")
            if name != key and f"{name}_scales" in self.weight_map:
                self._stored_keys[name] = [key, f"{name}_scales"]  # MXFP4
            elif f"{key}_scale_inv" in self.weight_map:
                self._stored_keys[key] = [key, f"{key}_scale_inv"]  # fp8
            elif not (key.endswith("_scale_inv") or f"{key.removesuffix('_scales')}_blocks" in self.weight_map):
                self._stored_keys[key] = [key]

    def _find_weight_map(self) -> dict[str, str]:
        """Map the keys of the checkpoint to the files that hold them."""
        if is_meta_folder(self.name_or_path):
            self._files[self.name_or_path] = MetaFile(self.name_or_path)
            return dict.fromkeys(self._files[self.name_or_path].keys(), self.name_or_path)
        for name in WEIGHT_FILES:
            if name.endswith(".index.json"):
                path = self._find(name, required=False)
                if path is not None:
                    return _read_weight_map(path)
            elif self._open(name, required=False):
                return dict.fromkeys(self._files[name].keys(), name)
        raise FileNotFoundError(
            f"{self.name_or_path} has no language model weights: it has none of {WEIGHT_FILES}"
            + (", or offline, none of them in the cache." if self._on_hub else ".")
        )

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

    def _open(self, name: str, required: bool) -> bool:
        if self._on_hub and name.endswith(".safetensors"):
            try:
                file = open_hub_file(self.name_or_path, name, cast(str, self.revision), self.hub_kwargs)
            except EntryNotFoundError as error:
                if not required:
                    return False
                raise FileNotFoundError(
                    f"{self.name_or_path} (revision {self.revision}) lacks {name}, which its index names. {error}"
                ) from error
            self._files[name] = SafetensorsFile(file)
            return True
        path = self._find(name, required)
        if path is None:
            return False
        self._files[name] = SafetensorsFile(LocalFile(path)) if name.endswith(".safetensors") else PickleFile(path)
        return True

    def _file_of(self, key: str) -> SafetensorsFile | PickleFile | MetaFile | GGUFFile:
        if self._gguf is not None:
            return self._gguf
        name = self.weight_map[key]
        if name not in self._files:
            self._open(name, required=True)
        if key not in self._files[name].keys():
            raise ValueError(f"{self.name_or_path}: {name} lacks {key}, which the index lists. Download it again.")
        return self._files[name]

    def prefetch(self, keys: list[str]) -> None:
        """Download the bytes of these tensors in few requests; otherwise `read` requests each tensor separately."""
        ranges: dict[int, tuple[HubFile, list[tuple[int, int]]]] = {}
        for stored_key in [stored_key for key in keys for stored_key in self._stored_keys_of(key)]:
            opened = self._file_of(stored_key)
            if not isinstance(opened, (PickleFile, MetaFile)) and isinstance(opened.file, HubFile):
                ranges.setdefault(id(opened), (opened.file, []))[1].extend(opened.byte_ranges(stored_key))
        for file, wanted in ranges.values():
            file.prefetch(wanted)

    def keys_under(self, prefix: str, expected: set[str], base_model_prefix: str) -> dict[str, str]:
        """
        Find the tensors of a module in the checkpoint.

        Args:
            prefix (`str`): path of the module in the language model, such as `layers.3` or `decoder.final_layer_norm`.
            expected (`set[str]`): names of the module's tensors, to tell apart modules of the same path, such as layer
                3 of the language model and of a vision tower beside it.
            base_model_prefix (`str`): the prefix of the language model's published keys, such as `model`.

        Returns:
            `dict[str, str]`: from names below `prefix` to keys of the checkpoint; empty if there are none.
        """
        if self._gguf is not None:
            keys = {name: f"model.{prefix}.{name}" for name in expected}
            return {name: key for name, key in keys.items() if self._gguf.has(key)}
        found = self._modules_that_end_in(prefix)
        if not found and re.match("(language|text)_model\\.", prefix):
            # Published vision-language checkpoints have longer paths, such as `language_model.model.layers.3`.
            tower, _, path = prefix.partition(".")
            found = {before: keys for before, keys in self._modules_that_end_in(path).items() if tower in before}
        for before in (f"{base_model_prefix}.", ""):
            if before in found:
                return found[before]
        if len(found) > 1:
            # Several modules end in this path: the language model's has the expected tensors.
            found = {before: keys for before, keys in found.items() if expected <= set(keys)} or found
        if len(found) > 1:
            raise ValueError(
                f"{self.name_or_path} has several modules that end in {prefix}: {sorted(found)}. Use a checkpoint of "
                "only the language model."
            )
        return next(iter(found.values()), {})

    def keys(self) -> list[str]:
        """Return all keys of the checkpoint; none of a GGUF file, whose tensors have other names."""
        return list(self._stored_keys)

    def _modules_that_end_in(self, path: str) -> dict[str, dict[str, str]]:
        pattern = re.compile(rf"^((?:.*\.)?){re.escape(path)}\.(.+)$")
        found: dict[str, dict[str, str]] = {}
        for key in self._stored_keys:
            if match := pattern.match(key):
                found.setdefault(match[1], {})[match[2]] = key
        return found

    def size_of(self, key: str) -> tuple[int, str]:
        """Return a tensor's size in bytes and its stored data type."""
        sizes = [self._file_of(stored_key).size_of(stored_key) for stored_key in self._stored_keys_of(key)]
        return sum(size for size, _ in sizes), "MXFP4" if self._is_mxfp4(key) else sizes[0][1]

    def _stored_keys_of(self, key: str) -> list[str]:
        return [key] if self._gguf is not None else self._stored_keys[key]

    def _is_mxfp4(self, key: str) -> bool:
        return self._stored_keys_of(key)[0] == f"{key}_blocks"

    def read(self, key: str) -> torch.Tensor:
        """Read one tensor, as stored; a quantised one (GGUF, fp8, MXFP4) is dequantised."""
        stored = [self._file_of(stored_key).read(stored_key) for stored_key in self._stored_keys_of(key)]
        if self._is_mxfp4(key):
            return convert_moe_packed_tensors(*stored)  # to bfloat16, exactly
        if len(stored) == 2:
            return dequantize_fp8(stored[0], stored[1], f"{self.name_or_path}: {key}")
        if stored[0].dtype.itemsize == 1 and stored[0].is_floating_point():
            raise ValueError(
                f"{self.name_or_path} stores {key} as {stored[0].dtype} without the scales `{key}_scale_inv`, so it "
                "cannot be dequantised. Use the unquantised checkpoint of this language model."
            )
        return stored[0]

    @property
    def bytes_read(self) -> int:
        """Number of bytes read from the weight files so far, headers included."""
        return sum(
            f.bytes_read if isinstance(f, (PickleFile, MetaFile)) else f.file.bytes_read for f in self._open_files()
        )

    def _open_files(self) -> list[SafetensorsFile | PickleFile | MetaFile | GGUFFile]:
        return [self._gguf] if self._gguf is not None else list(self._files.values())

    def close(self) -> None:
        for file in self._open_files():
            file.close()

    def __enter__(self) -> "LLMCheckpoint":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _check_folder(name_or_path: str) -> None:
    """Refuse a missing folder whose path cannot be a Hub id."""
    if not os.path.isdir(name_or_path) and (os.path.isabs(name_or_path) or name_or_path.startswith(("./", "../"))):
        raise FileNotFoundError(f"{name_or_path}: there is no such folder.")


def _read_weight_map(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("weight_map has values that are not file names")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is corrupt: it is not the index of a sharded checkpoint ({error!r}). Download it again."
        ) from error
    return weight_map


def find_commit(repo_id: str, filename: str, revision: str | None, hub_kwargs: dict[str, Any]) -> str:
    """
    Resolve a branch or tag to its commit. The commit is stored in the Hub's cache as huggingface_hub does, for offline
    mode.
    """
    revision = revision or "main"
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    path = os.path.join(repository_folder(repo_id, hub_kwargs), "refs", revision)
    if is_offline(hub_kwargs):
        if os.path.isfile(path):
            with open(path) as file:
                return file.read().strip()
        raise LocalEntryNotFoundError(
            f"{repo_id} (revision {revision}) is not in the cache, and cannot be downloaded in offline mode "
            "(HF_HUB_OFFLINE, local_files_only)."
        )
    url = hf_hub_url(repo_id, filename, revision=revision)
    commit = get_hf_file_metadata(url, token=hub_kwargs.get("token"), retry_on_errors=True).commit_hash
    if commit is None:
        raise OSError(f"{repo_id}: the server at {url} does not say which commit {revision} is.")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(commit)
    return commit


def open_hub_file(repo_id: str, filename: str, commit: str, hub_kwargs: dict[str, Any]) -> ByteSource:
    """Open a file of the Hub: from the Hub's cache if it holds the whole file, else by byte ranges."""
    path = try_to_load_from_cache(repo_id, filename, cache_dir=hub_kwargs.get("cache_dir"), revision=commit)
    if isinstance(path, str):
        return LocalFile(path)
    try:
        return HubFile(repo_id, filename, commit, hub_kwargs)
    except RangesIgnored:
        logger.warning(f"{repo_id}: the server ignores range requests, so {filename} is downloaded as a whole.")
        return LocalFile(hf_hub_download(repo_id, filename, revision=commit, **hub_kwargs))


def open_gguf_file(
    name_or_path: str, revision: str | None, hub_kwargs: dict[str, Any]
) -> tuple[ByteSource, str | None]:
    """Open a GGUF file by its path or as `owner/repository/file.gguf`; return it and its commit on the Hub."""
    if os.path.isfile(name_or_path):
        return LocalFile(name_or_path), None
    owner, _, rest = name_or_path.partition("/")
    repository, _, filename = rest.partition("/")
    if not filename or os.path.isabs(name_or_path) or owner in (".", ".."):
        raise FileNotFoundError(f"{name_or_path}: there is no such GGUF file.")
    repo_id = f"{owner}/{repository}"
    commit = find_commit(repo_id, filename, revision, hub_kwargs)
    return open_hub_file(repo_id, filename, commit, hub_kwargs), commit


def _read_gguf_config(folder: str, name: str, file: GGUFFile) -> PreTrainedConfig:
    """Read a GGUF file's configuration by transformers, and set the fields that transformers leaves at defaults."""
    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    for ours, theirs in (
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ):
        if f"{file.architecture}.{theirs}" in file.metadata:
            setattr(config, ours, file.metadata[f"{file.architecture}.{theirs}"])
    if file.architecture in ("gemma2", "gemma3"):
        # The 27B models have another scale; llama.cpp (src/models/gemma2.cpp, gemma3.cpp) tells them by their depth.
        is_27b = config.num_hidden_layers == {"gemma2": 46, "gemma3": 62}[file.architecture]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    return config


def load_llm_config(
    name_or_path: str, revision: str | None, hub_kwargs: dict[str, Any]
) -> tuple[PreTrainedConfig, str | None]:
    """
    Load the configuration of a language model; return it and its commit on the Hub (`None` for local files).

    Raises:
        `FileNotFoundError`: for a local folder without `config.json`.
        `ValueError`: for a language model that needs remote code.
    """
    if name_or_path.endswith(".gguf"):
        file, commit = open_gguf_file(name_or_path, revision, hub_kwargs)
        gguf_file = GGUFFile(file)  # a clear error for a truncated file or an unsupported architecture
        try:
            if isinstance(file, LocalFile):
                folder, name = os.path.split(os.path.abspath(file.path))
                return _read_gguf_config(folder, name, gguf_file), commit
            with tempfile.TemporaryDirectory() as folder:
                # transformers only opens whole files: write one with only the header, as long as the original.
                with open(os.path.join(folder, "header.gguf"), "wb") as header:
                    header.write(file.read(0, gguf_file.data_start))
                    header.truncate(file.size)
                return _read_gguf_config(folder, "header.gguf", gguf_file), commit
        finally:
            gguf_file.close()
    _check_folder(name_or_path)
    if is_meta_folder(name_or_path):
        return read_meta_config(name_or_path), None
    if os.path.isdir(name_or_path) and not os.path.isfile(os.path.join(name_or_path, "config.json")):
        raise FileNotFoundError(
            f"{name_or_path} has no config.json, so its language model is unknown. Copy the model's config.json into "
            "it."
        )
    # The file's path in the Hub's cache contains the commit of a branch.
    commit = None
    if not os.path.isdir(name_or_path):
        commit = extract_commit_hash(cached_file(name_or_path, "config.json", revision=revision, **hub_kwargs), None)
    try:
        config = AutoConfig.from_pretrained(
            name_or_path, revision=commit or revision, trust_remote_code=False, **hub_kwargs
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name_or_path}: its config.json is not of a language model that transformers supports ({error}). "
            "Language models that need remote code cannot be used."
        ) from error
    return config, commit
