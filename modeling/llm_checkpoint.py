# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Finding a language model's tensors: their files, in a local folder or a Hub repository, and their names."""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import PureWindowsPath
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils import cached_file, extract_commit_hash, logging

from .checkpoint_files import (
    LocalFile,
    PickleFile,
    SafetensorsFile,
    TensorFile,
    dequantize_fp8,
    refuse_duplicates,
)
from .configuration_llm_block import refuse_too_many_layers
from .gguf_file import GGUFFile
from .hub_ranges import HubFile, RangesIgnored, is_offline, open_hub_files
from .layer_cache import layer_folder, locked, open_layer, repository_folder, write_layer
from .meta_checkpoint import MetaFile, is_meta_folder, read_meta_config


logger = logging.get_logger(__name__)

T = TypeVar("T")

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class LLMCheckpoint:
    """
    The tensors of a language model's checkpoint. Only the files that hold a requested tensor are opened, and only its
    bytes are read, from the Hub too, whose layers are kept in a cache. `.bin` files on the Hub are downloaded as a
    whole.

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
        self._files: dict[str, TensorFile] = {}
        self._gguf: GGUFFile | None = None
        # From each tensor to its stored keys: one, or those of its quantised values and their scales.
        self._stored_keys: dict[str, list[str]] = {}
        self.weight_map: dict[str, str] = {}
        self._cache_folder: str | None = None
        self._cached_layers: list[SafetensorsFile] = []
        self._bytes_from_cache = 0
        if is_gguf(name_or_path):
            self._gguf, self.revision = open_gguf(name_or_path, revision, self.hub_kwargs)
            self._files[name_or_path] = self._gguf
            if self.revision is not None:
                repo_id, filename = _split_gguf_name(name_or_path)
                self._cache_folder = os.path.join(layer_folder(repo_id, self.revision, self.hub_kwargs), filename)
            return
        _check_folder(name_or_path)
        self._on_hub = not os.path.isdir(name_or_path)
        if self._on_hub:
            self.revision = find_commit(name_or_path, "config.json", revision, self.hub_kwargs)
            self._cache_folder = layer_folder(name_or_path, self.revision, self.hub_kwargs)
        self.weight_map = self._find_weight_map()
        for key in self.weight_map:
            name = key.removesuffix("_blocks")
            if name != key and f"{name}_scales" in self.weight_map:
                if name in self.weight_map:
                    raise ValueError(f"{name_or_path} stores {name} twice: plainly, and as MXFP4 in {key}.")
                self._stored_keys[name] = [key, f"{name}_scales"]  # MXFP4
            elif f"{key}_scale_inv" in self.weight_map:
                self._stored_keys[key] = [key, f"{key}_scale_inv"]  # fp8
            elif not any(
                key.endswith(scale) and key.removesuffix(scale) + values in self.weight_map
                for scale, values in (("_scale_inv", ""), ("_scales", "_blocks"))
            ):
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
                self._files[name] = open_on_hub(
                    self.name_or_path, [name], cast(str, self.revision), self.hub_kwargs, SafetensorsFile
                )
            except EntryNotFoundError as error:
                if not required:
                    return False
                raise FileNotFoundError(
                    f"{self.name_or_path} (revision {self.revision}) lacks {name}, which its index names. {error}"
                ) from error
            return True
        path = self._find(name, required)
        if path is None:
            return False
        self._files[name] = SafetensorsFile(LocalFile(path)) if name.endswith(".safetensors") else PickleFile(path)
        return True

    def _file_of(self, key: str) -> TensorFile:
        if self._gguf is not None:
            return self._gguf
        name = self.weight_map[key]
        if name not in self._files:
            self._open(name, required=True)
        if key not in self._files[name].keys():
            raise ValueError(f"{self.name_or_path}: {name} lacks {key}, which the index lists. Download it again.")
        if twice := [other for other, file in self._files.items() if other != name and key in file.keys()]:
            raise ValueError(f"{self.name_or_path} stores {key} twice, in {name} and {twice[0]}. Download it again.")
        return self._files[name]

    def prefetch(self, path: str, keys: list[str]) -> None:
        """
        Download tensors of the module at `path` into the cache of layers, in few requests, unless they are there;
        `read` reads them from it. Files that are on this machine as a whole are not cached again.
        """
        if self._cache_folder is None:
            return
        file = os.path.join(self._cache_folder, f"{path}.safetensors")
        layer = open_layer(file, keys)
        if layer is None:
            ranges: dict[HubFile, list[tuple[int, int]]] = {}
            for stored_key in [stored_key for key in keys for stored_key in self._stored_keys_of(key)]:
                for source, begin, end in self._file_of(stored_key).byte_ranges(stored_key):
                    if isinstance(source, HubFile):
                        ranges.setdefault(source, []).append((begin, end))
            if not ranges:
                return
            with locked(self._cache_folder):
                layer = open_layer(file, keys)  # another process may have downloaded it meanwhile
                if layer is None:
                    for source, wanted in ranges.items():
                        source.prefetch(wanted)
                    tensors = {key: self.read(key).contiguous() for key in keys}
                    about = {"repository": self.name_or_path, "commit": cast(str, self.revision), "module": path}
                    for source in ranges:
                        source.close()
                    layer = write_layer(file, tensors, about)
                    # `read` will add them, but they have been counted.
                    self._bytes_from_cache -= sum(tensor.nbytes for tensor in tensors.values())
        self._cached_layers.append(layer)

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

        Raises:
            `ValueError`: if several modules fit, or a GGUF file has tensors that the module does not expect.
        """
        if self._gguf is not None:
            return self._gguf.find(prefix, expected)
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
        return self._stored_keys.get(key, [key])  # GGUF has no list of keys

    def _is_mxfp4(self, key: str) -> bool:
        return self._stored_keys_of(key)[0] == f"{key}_blocks"

    def read(self, key: str) -> torch.Tensor:
        """Read one tensor, as stored; a quantised one (GGUF, fp8, MXFP4) is dequantised."""
        for layer in self._cached_layers:
            if key in layer.keys():
                tensor = layer.read(key)
                self._bytes_from_cache += tensor.nbytes
                return tensor
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
        """Number of bytes read from the weight files, or from cached layers, so far; headers included."""
        return sum(file.bytes_read for file in self._files.values()) + self._bytes_from_cache

    def close(self) -> None:
        for file in (*self._files.values(), *self._cached_layers):
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
            weight_map = json.load(file, object_pairs_hook=refuse_duplicates)["weight_map"]
        for name in set(weight_map.values()):
            if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
                raise ValueError(f"{name} is not in the folder of the index")
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
                known = file.read().strip()
            if re.fullmatch("[0-9a-f]{40}", known):
                return known
        raise LocalEntryNotFoundError(
            f"{repo_id} (revision {revision}) is not in the cache, and cannot be downloaded in offline mode "
            "(HF_HUB_OFFLINE, local_files_only)."
        )
    url = hf_hub_url(repo_id, filename, revision=revision)
    commit = get_hf_file_metadata(url, token=hub_kwargs.get("token"), retry_on_errors=True).commit_hash
    if commit is None:
        raise OSError(f"{repo_id}: the server at {url} does not say which commit {revision} is.")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False) as temporary:
        temporary.write(commit)
    os.replace(temporary.name, path)
    return commit


def open_on_hub(
    repo_id: str, names: Sequence[str], commit: str, hub_kwargs: dict[str, Any], parse: Callable[..., T]
) -> T:
    """Open files of the Hub that belong together: from its cache if it holds them as a whole, else by byte ranges."""
    cached = [
        try_to_load_from_cache(repo_id, name, cache_dir=hub_kwargs.get("cache_dir"), revision=commit) for name in names
    ]
    paths = [path for path in cached if isinstance(path, str)]
    if len(paths) < len(names):
        try:
            return open_hub_files([HubFile(repo_id, name, commit, hub_kwargs) for name in names], parse)
        except RangesIgnored:
            logger.warning(f"{repo_id}: the server ignores range requests, so {names[0]} is downloaded as a whole.")
            paths = [hf_hub_download(repo_id, name, revision=commit, **hub_kwargs) for name in names]
    return parse(*map(LocalFile, paths))


def is_gguf(name_or_path: str) -> bool:
    return name_or_path.lower().endswith(".gguf")


def open_gguf(name_or_path: str, revision: str | None, hub_kwargs: dict[str, Any]) -> tuple[GGUFFile, str | None]:
    """
    Open a GGUF file by its path or as `owner/repository/file.gguf`, with the other parts of a split one; return it and
    its commit on the Hub.
    """
    paths = [name_or_path]
    if split := re.search(r"(?i)-\d{5}-of-(\d{5})\.gguf$", name_or_path):
        begin, end = name_or_path[: split.start()], name_or_path[split.start() + len("-00001") :]
        paths = [f"{begin}-{number:05d}{end}" for number in range(1, int(split[1]) + 1)]
    if os.path.isfile(name_or_path):
        if missing := [path for path in paths if not os.path.isfile(path)]:
            raise FileNotFoundError(f"{name_or_path} is a part of a split GGUF file; {missing[0]} is missing.")
        return GGUFFile(*map(LocalFile, paths)), None
    repo_id, filename = _split_gguf_name(name_or_path)
    commit = find_commit(repo_id, filename, revision, hub_kwargs)
    names = [path.removeprefix(f"{repo_id}/") for path in paths]
    return open_on_hub(repo_id, names, commit, hub_kwargs, GGUFFile), commit


def _split_gguf_name(name: str) -> tuple[str, str]:
    """Return the repository and the file of `owner/repository/file.gguf`."""
    owner, _, rest = name.partition("/")
    repository, _, filename = rest.partition("/")
    if not filename or os.path.isabs(name) or owner in (".", ".."):
        raise FileNotFoundError(f"{name}: there is no such GGUF file.")
    return f"{owner}/{repository}", filename


def _set_gguf_rope_scaling(config: PreTrainedConfig, file: GGUFFile) -> None:
    """Set the scaling of rotary frequencies as llama.cpp does (src/llama-model.cpp); transformers leaves it out."""
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.metadata.get(f"{prefix}.type", "linear")
    factor = file.metadata.get(f"{prefix}.factor") or file.metadata.get(f"{file.architecture}.rope.scale_linear")
    factor = 1.0 if kind == "none" else float(factor or 1.0)
    attention_factor = float(file.metadata.get(f"{prefix}.attn_factor", 1.0))
    length = file.metadata.get(f"{prefix}.original_context_length", config.max_position_embeddings)
    short, long = (file.read_stored(f"rope_factors_{name}.weight") for name in ("short", "long"))
    if (frequencies := file.read_stored("rope_freqs.weight")) is not None:
        short = long = frequencies
    scaling: dict[str, Any] = {}
    if short is not None and long is not None and kind != "yarn":
        scaling = {"rope_type": "longrope", "factor": 1.0, "attention_factor": attention_factor}
        scaling |= {"short_factor": (factor * short).tolist(), "long_factor": (factor * long).tolist()}
        scaling |= {"original_max_position_embeddings": length}
    elif short is not None or long is not None or kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"{file.file.path} scales its rotary frequencies by {kind} in a way that cannot be read. Use the model's "
            "safetensors repository instead."
        )
    elif kind == "yarn":
        attention_factor *= 1 + 0.1 * math.log(factor)
        scaling = {"rope_type": "yarn", "factor": factor, "attention_factor": attention_factor}
        scaling |= {"original_max_position_embeddings": length}
    elif factor != 1:
        scaling = {"rope_type": "linear", "factor": factor}
    rope = config.rope_parameters
    rope.get("full_attention", rope).update(scaling)


def _read_gguf_config(folder: str, name: str, file: GGUFFile) -> PreTrainedConfig:
    """Read a GGUF file's configuration by transformers, and set the fields that transformers leaves at defaults."""
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{file.file.path}: transformers cannot read its metadata ({error!r}).") from error
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
    _set_gguf_rope_scaling(config, file)
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
    if is_gguf(name_or_path):
        gguf_file, commit = open_gguf(name_or_path, revision, hub_kwargs)
        file = gguf_file.file
        try:
            if isinstance(file, LocalFile):
                folder, name = os.path.split(os.path.abspath(file.path))
                return _read_gguf_config(folder, name, gguf_file), commit
            with tempfile.TemporaryDirectory() as folder:
                # transformers only opens whole files: write one with only the header, as long as the original.
                with open(os.path.join(folder, "header.gguf"), "wb") as header:
                    header.write(file.read(0, gguf_file.header_size))
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
        stored, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=commit or revision, **hub_kwargs)
        refuse_too_many_layers(stored)
        config = AutoConfig.from_pretrained(
            name_or_path, revision=commit or revision, trust_remote_code=False, **hub_kwargs
        )
    except (ArithmeticError, AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(
            f"{name_or_path}: its config.json is not of a language model that transformers supports ({error}). "
            "Language models that need remote code cannot be used."
        ) from error
    return config, commit
