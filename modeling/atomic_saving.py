# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Replacing the files of a saved model: at every moment the folder is the old model or the new one, or says so."""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_INDEX = "model.safetensors.index.json"
_WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_CONFIG_FILES = ("config.json", "adapter_config.json")
# Temporary folders of a save: while its files are written, and while they replace those of an earlier save.
_WRITING, _REPLACING = ".saving-", ".replacing-"
_REPLACE_LOCK = threading.Lock()


@contextmanager
def written_atomically(folder: str, is_main_process: bool) -> Iterator[str]:
    """Yield a temporary folder in `folder`; its files replace those of `folder` after all have been written."""
    os.makedirs(folder, exist_ok=True)
    if is_main_process and _holds_config(folder):
        _remove_leftovers(folder)
    with _new_locked_folder(folder) as written:
        try:
            yield written
            if is_main_process:
                replacing = os.path.join(folder, _REPLACING + os.path.basename(written).removeprefix(_WRITING))
                os.rename(written, replacing)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{folder} could not be written, and is as before: {error}.") from error
        finally:
            shutil.rmtree(written, ignore_errors=True)
        if is_main_process:
            with _REPLACE_LOCK:
                _replace_files(replacing, folder)
            _remove_leftovers(folder)


def _replace_files(source: str, folder: str) -> None:
    """Move the files of a complete save into `folder`, so that at no moment it is a model of old and new files."""
    names = os.listdir(source)
    for name in _CONFIG_FILES:
        if name in names and os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    if new := {name for name in names if _WEIGHT_FILE.fullmatch(name)}:
        for name in os.listdir(folder):
            if _WEIGHT_FILE.fullmatch(name) and name not in new:
                os.remove(os.path.join(folder, name))
    for name in sorted(names, key=lambda name: (name in _CONFIG_FILES, name == _INDEX)):
        target = os.path.join(folder, name)
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.replace(os.path.join(source, name), target)
    os.rmdir(source)


@contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Lock a temporary folder, and yield whether it was free. The system unlocks that of a killed process."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or a file system without locks
            yield False
        else:
            yield True
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextmanager
def _new_locked_folder(folder: str) -> Iterator[str]:
    """Yield a new temporary folder in `folder`, locked. Before that, another save may take it for a leftover."""
    while True:
        written = tempfile.mkdtemp(dir=folder, prefix=_WRITING)
        with ExitStack() as stack:
            try:
                is_locked = stack.enter_context(_locked(written))
            except FileNotFoundError:
                continue
            if not is_locked:  # by a save that is removing it, or on a file system without locks
                time.sleep(0.1)
            if os.path.isdir(written):
                yield written
                return


def _find_leftovers(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith((_WRITING, _REPLACING)))


def _remove_leftovers(folder: str) -> None:
    """Remove the temporary folders of interrupted saves; those of running ones are locked."""
    for name in _find_leftovers(folder):
        path = os.path.join(folder, name)
        try:
            with _locked(path) as was_free:
                if was_free:
                    shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            pass  # its save has finished meanwhile


def _holds_config(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in _CONFIG_FILES)


def refuse_interrupted_save(folder: str) -> None:
    complete = [name for name in _find_leftovers(folder) if name.startswith(_REPLACING)]
    if complete and not _holds_config(folder):
        raise OSError(
            f"The last save into {folder} was interrupted while it replaced the files, or is still running. To finish "
            f"it, move the files of {os.path.join(folder, complete[-1])} into {folder}; or delete {complete[-1]} and "
            "save again."
        )


__all__ = ["refuse_interrupted_save", "written_atomically"]
