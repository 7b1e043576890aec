# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The cache of layers read from the Hub: safetensors files with the published names and the stored types."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from .checkpoint_files import LocalFile, SafetensorsFile, digest_tensors, update_digest


def repository_folder(repo_id: str, hub_kwargs: dict[str, Any]) -> str:
    """Return the folder of a repository in the Hub's cache."""
    cache = os.fspath(hub_kwargs.get("cache_dir") or constants.HF_HUB_CACHE)
    return os.path.join(cache, repo_folder_name(repo_id=repo_id, repo_type="model"))


def layer_folder(repo_id: str, commit: str, hub_kwargs: dict[str, Any]) -> str:
    """Return the folder for the layers of a commit of a repository."""
    return os.path.join(repository_folder(repo_id, hub_kwargs), "llm_layers", commit)


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Let one process at a time download into a folder of layers."""
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with WeakFileLock(f"{folder}.lock"):
        yield


def write_layer(path: str, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> SafetensorsFile:
    """
    Write tensors to a safetensors file, which is there only once it is complete, and open it.

    Args:
        path (`str`): the file.
        tensors (`dict[str, torch.Tensor]`): the tensors by their names.
        about (`dict[str, str]`): the file's metadata, to which the SHA-256 of the tensors is added.

    Raises:
        `OSError`: if the file cannot be written as a whole.
    """
    temporary = f"{path}.incomplete"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        save_file(tensors, temporary, {"format": "pt", **about, "sha256": str(digest_tensors(tensors))})
        if (written := open_layer(temporary, tensors)) is None:
            raise OSError("what was written cannot be read again")
        written.close()
        os.replace(temporary, path)
        return SafetensorsFile(LocalFile(path))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} cannot be written ({error}), and nothing of it is kept. Is the disk full, or damaged?"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def open_layer(path: str, keys: Iterable[str]) -> SafetensorsFile | None:
    """Open what `write_layer` wrote; return `None` if it is missing or damaged, or lacks one of `keys`."""
    if not os.path.isfile(path):
        return None
    try:
        file = SafetensorsFile(LocalFile(path))
    except (OSError, ValueError):
        return None
    digest = hashlib.sha256()
    try:
        for key in sorted(file.keys()):
            update_digest(digest, key, file.read(key))
    except (OSError, ValueError):
        pass  # the digest is another one
    if set(keys) <= set(file.keys()) and digest.hexdigest() == file.metadata.get("sha256"):
        return file
    file.close()
    return None
