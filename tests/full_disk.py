# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A disk that is full: files of this process cannot grow beyond a number of bytes."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def full_disk(limit: int):
    """Make writes beyond `limit` bytes fail in all files, with an `OSError` instead of a signal."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
