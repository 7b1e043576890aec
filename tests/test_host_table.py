# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import os
import subprocess
import sys

import pytest
from host_table import HOST_TABLE
from paths import REPO
from tiny_hosts import HOSTS
from transformers import MODEL_MAPPING


ROWS, COLUMNS, BEGIN, END = HOST_TABLE.rows, HOST_TABLE.columns, HOST_TABLE.begin, HOST_TABLE.end
PAGE = f"# Hosts\n\n{BEGIN}\nold\n{END}\n\nMore.\n"
TESTS = """
import unittest
import pytest

@pytest.mark.host_table("loads")
@pytest.mark.parametrize("value", [1, 2])
@pytest.mark.parametrize("host", ["vit", "clip"])
def test_loads(host, value):
    assert (host, value) != ("clip", 2)

@pytest.mark.host_table("DDP")
@pytest.mark.parametrize("host", ["vit"])
def test_skipped(host):
    pytest.skip()

@pytest.fixture
def broken():
    yield
    raise ValueError

@pytest.mark.host_table("ONNX")
@pytest.mark.parametrize("host", ["swin"])
def test_teardown_fails(host, broken):
    pass

@pytest.mark.host_table("compile", host="vit_class")
@pytest.mark.parametrize("host", ["sdpa"])
def test_row_of_the_mark(host):
    pass

@pytest.mark.host_table("upstream tests")
class SuiteTest(unittest.TestCase):
    host = "beit_cls"

    def test_one(self):
        pass

def test_unmarked():
    pass
"""


def test_every_host_has_a_row():
    assert set(ROWS) == {*HOSTS, "vit_class"}
    for host in HOSTS:
        assert f"(`{MODEL_MAPPING[type(HOSTS[host].config())].__name__}`)" in ROWS[host]
    assert len(set(ROWS.values())) == len(ROWS)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="columns are"):
        HOST_TABLE.cell_of("load", None, {"host": "swin"}, None)
    with pytest.raises(ValueError, match="host is 'resnet'"):
        HOST_TABLE.cell_of("loads", None, {"host": "resnet"}, None)
    with pytest.raises(ValueError, match="host is None"):
        HOST_TABLE.cell_of("loads", None, {}, None)
    for page in ("", BEGIN, f"{END}\n{BEGIN}", f"{PAGE}{PAGE}"):
        with pytest.raises(ValueError, match="needs the lines"):
            HOST_TABLE.put_into(page, "new")


def run_pytest(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPO / "tests")}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--host-table", "page.md", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_table_of_a_run(tmp_path):
    """The table from two processes; a test names its row by its parameter, its mark or its class."""
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "test_tiny.py").write_text(TESTS)
    done = run_pytest(tmp_path, "-n", "2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text()
    header = "| host | loads | equals AutoModel | upstream tests | compile | export | ONNX | LoRA | DDP |"
    assert page.startswith(f"# Hosts\n\n{BEGIN}\n{header}\n") and page.endswith(f"\n{END}\n\nMore.\n")
    rows = {line.split(" | ")[0]: [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in page.split("\n")}
    expected = {name: ["–"] * len(COLUMNS) for name in ROWS}
    expected["vit"][0] = "2 ✓"
    expected["clip"][0] = "1 of 2 ✗"
    expected["beit_cls"][2] = "1 ✓"
    expected["swin"][5] = "0 of 1 ✗"
    expected["vit_class"][3] = "1 ✓"
    assert {name: rows[f"| {title}"] for name, title in ROWS.items()} == expected
    assert "\n5 of 7 checks passed, with transformers " in page


@pytest.mark.parametrize(
    ("page", "arguments", "words"),
    [
        ("no lines\n", [], "needs the lines"),
        (PAGE, ["-k", "unmarked"], "no test marked host_table has run"),
        (PAGE, ["-k", "nothing"], "no test marked host_table has run"),
    ],
)
def test_nothing_is_written(page, arguments, words, tmp_path):
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "test_tiny.py").write_text(TESTS)
    done = run_pytest(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and words in done.stderr, done.stdout + done.stderr
    assert (tmp_path / "page.md").read_text() == page
