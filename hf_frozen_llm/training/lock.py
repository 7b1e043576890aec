# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Let one run at a time write into an `output_dir`."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from transformers.utils import logging


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

LOCK_FILE = "_run.lock"  # Trainer does not push files that begin with `_`


@contextmanager
def lock_output_dir(output_dir: str | Path) -> Iterator[None]:
    """
    Make the folder, and keep other runs out of it. The system ends the lock of a killed process.

    Raises:
        `OSError`: if another run writes into the folder, or it cannot be written to.
    """
    folder = Path(output_dir)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_locked(folder / LOCK_FILE)
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"output_dir is {str(folder)!r}, but it cannot be written to: {error.strerror}. Choose another one."
        ) from error
    try:
        yield
    finally:
        # Deleted while it is locked, so that nobody else has locked this file.
        (folder / LOCK_FILE).unlink(missing_ok=True)
        file.close()
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # if the run has written nothing


def open_locked(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            # Unlike those of flock, these locks are not inherited by loader processes, which may outlive a killed run.
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise BlockingIOError(
                f"output_dir {path.parent} is in use by {owner}. Wait for its end, or choose another output_dir."
            ) from error
        except OSError as error:
            logger.warning(f"{path.parent} cannot be locked ({error.strerror}): start no second run in it.")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
                return file
        file.close()  # the run that held it has ended and deleted it
