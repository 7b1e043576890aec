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
import transformers  # noqa: E402
from family_table import FAMILY_TABLE  # noqa: E402
from host_table import HOST_TABLE  # noqa: E402
from paths import shared_dir as find_shared_dir  # noqa: E402
from result_table import ResultTable  # noqa: E402


torch.set_num_threads(THREADS)

pytest_plugins = ["run_fixtures"]

NETWORK_ATTEMPTS: list[str] = []
TABLES = (HOST_TABLE, FAMILY_TABLE)
# by table, then by test and column
OUTCOMES: dict[str, dict[tuple[str, str], tuple[str, str, bool]]] = {table.marker: {} for table in TABLES}


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
    for table in TABLES:
        option = f"--{table.name}-table"
        parser.addoption(option, metavar="FILE", type=Path, help=f"write the table of {table.name} tests into FILE")


def pytest_configure(config: pytest.Config) -> None:
    for table in TABLES:
        usage = f"{table.marker}(column, {table.name}=…): counts in a table, see tests/{table.marker}.py"
        config.addinivalue_line("markers", usage)
        if path := config.getoption(table.marker):
            with_table(table, path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: needs --run-slow"))
        for table in TABLES:
            if mark := item.get_closest_marker(table.marker):
                params = item.callspec.params if hasattr(item, "callspec") else {}
                try:
                    row = mark.kwargs.get(table.name)
                    cell = table.cell_of(*mark.args, row, params, getattr(item, "cls", None))
                except ValueError as error:
                    raise pytest.UsageError(f"{item.nodeid}: {error}") from error
                # A property comes with the report from an xdist worker.
                item.user_properties.append((table.marker, cell))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not (report.failed or (report.when == "call" and report.passed)):
        return
    for marker, cell in report.user_properties:
        if marker in OUTCOMES:
            test = report.nodeid, cell[1]
            _, _, has_passed = OUTCOMES[marker].get(test, (*cell, True))
            OUTCOMES[marker][test] = (*cell, has_passed and report.passed)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int):
    result = yield
    has_ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    for table in TABLES:
        path = session.config.getoption(table.marker)
        if path and has_ended and not IS_WORKER:
            if not OUTCOMES[table.marker]:
                option = f"--{table.name}-table"
                raise pytest.UsageError(f"{option}: no test marked {table.marker} has run; {path} stays as it is.")
            path.write_text(with_table(table, path), encoding="utf-8")
    return result


def with_table(table: ResultTable, path: Path) -> str:
    """Return the text of the file with the table of this test run."""
    versions = f"transformers {transformers.__version__} and torch {torch.__version__}"
    try:
        return table.put_into(path.read_text(encoding="utf-8"), table.make(OUTCOMES[table.marker], versions))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--{table.name}-table {path}: {error}") from error


def pytest_unconfigure(config: pytest.Config) -> None:
    if not IS_WORKER:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network():
    """Fail a test that looked up the address of another machine, even if the tested code caught the error."""
    NETWORK_ATTEMPTS.clear()
    yield
    assert not NETWORK_ATTEMPTS, f"network asked for: {NETWORK_ATTEMPTS}"


class DeprecationRecorder(logging.Handler):
    """Record transformers' log messages about deprecated names: most of its deprecations are no warnings."""

    messages: list[str]

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in (message := record.getMessage()):
            self.messages.append(message)


@pytest.fixture(autouse=True)
def no_upstream_deprecations(request: pytest.FixtureRequest):
    """Fail a test in which this repository, not transformers' own tests, uses a deprecated name of transformers."""
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
