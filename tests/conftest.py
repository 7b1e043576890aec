# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import ipaddress
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest


# xdist workers inherit what their controller sets here, so each run has one HF_HOME and never the user's.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_frozen_llm_tests_")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run on the CPU, unless HF_FROZEN_LLM_TEST_GPU names a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("HF_FROZEN_LLM_TEST_GPU", "")
# One thread in each worker, and in what it starts.
THREADS = 1 if IS_WORKER else min(4, os.cpu_count() or 1)
os.environ["OMP_NUM_THREADS"] = str(THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from paths import shared_dir as find_shared_dir  # noqa: E402


torch.set_num_threads(THREADS)

NETWORK_ATTEMPTS: list[str] = []


def is_loopback(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def refuse_network(event: str, args: tuple) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if not is_loopback(host):
        NETWORK_ATTEMPTS.append(f"{event} {args[1] if event == 'socket.connect' else host}")
        raise OSError(f"tests must not use the network, but this one asked for {host!r}")


sys.addaudithook(refuse_network)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: needs --run-slow"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not IS_WORKER:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network():
    """Fails a test that asked for an address beyond this machine, even where the tested code swallowed the refusal."""
    NETWORK_ATTEMPTS.clear()
    yield
    assert not NETWORK_ATTEMPTS, f"network asked for: {NETWORK_ATTEMPTS}"


class DeprecationRecorder(logging.Handler):
    """Keeps what transformers logs about deprecated names: most of its deprecations are log messages, not warnings."""

    messages: list[str]

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in (message := record.getMessage()):
            self.messages.append(message)


@pytest.fixture(autouse=True)
def no_upstream_deprecations(request: pytest.FixtureRequest):
    """Fails a test in which we, not transformers' own tests, use a name that transformers is about to drop."""
    recorder = DeprecationRecorder()
    recorder.messages = []
    logger = logging.getLogger("transformers")
    logger.addHandler(recorder)
    yield
    logger.removeHandler(recorder)
    if "upstream" not in request.path.parts:
        assert not recorder.messages, f"deprecated in transformers: {recorder.messages}"


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    return find_shared_dir()
