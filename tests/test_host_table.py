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


def test_cell_of():
    class WithHost:
        host = "vit_class"

    assert HOST_TABLE.cell_of("loads", None, {"host": "swin", "fast": True}, None) == ("swin", "loads")
    assert HOST_TABLE.cell_of("loads", "vit_class", {"attn": "sdpa"}, None) == ("vit_class", "loads")
    assert HOST_TABLE.cell_of("upstream tests", None, {}, WithHost) == ("vit_class", "upstream tests")
    with pytest.raises(ValueError, match="columns are"):
        HOST_TABLE.cell_of("load", None, {"host": "swin"}, None)
    with pytest.raises(ValueError, match="host is 'resnet'"):
        HOST_TABLE.cell_of("loads", None, {"host": "resnet"}, None)
    with pytest.raises(ValueError, match="host is None"):
        HOST_TABLE.cell_of("loads", None, {}, None)


def test_make_table():
    outcomes = {"a": ("vit", "loads", True), "b": ("vit", "loads", True), "c": ("vit", "DDP", False)}
    lines = HOST_TABLE.make(outcomes, "torch 2").split("\n")
    assert lines[0] == "| host | loads | equals AutoModel | upstream tests | compile | export | ONNX | LoRA | DDP |"
    assert "| ViT (`ViTModel`) | 2 ✓ | – | – | – | – | – | – | 0 of 1 ✗ |" in lines
    assert len(lines) == 2 + len(ROWS) + 2 and {line.count("|") for line in lines[:-2]} == {len(COLUMNS) + 2}
    assert lines[-1] == "2 of 3 checks passed, with torch 2."


def test_put_between_markers():
    assert HOST_TABLE.put_into(PAGE, "new\ntable") == PAGE.replace("old", "new\ntable")
    assert HOST_TABLE.put_into(PAGE.replace("old\n", ""), "new") == PAGE.replace("old", "new")
    for text in ("", BEGIN, f"{END}\n{BEGIN}", f"{PAGE}{PAGE}"):
        with pytest.raises(ValueError, match="needs the lines"):
            HOST_TABLE.put_into(text, "new")


def run_pytest(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPO / "tests")}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--host-table", "page.md", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_table_of_a_run(workers, tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "test_tiny.py").write_text(TESTS)
    done = run_pytest(tmp_path, "-n", workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(f"# Hosts\n\n{BEGIN}\n| host |") and page.endswith(f"\n{END}\n\nMore.\n")
    rows = {line.split(" | ")[0]: [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in page.split("\n")}
    expected = {name: ["–"] * len(COLUMNS) for name in ROWS}
    expected["vit"][0] = "2 ✓"
    expected["clip"][0] = "1 of 2 ✗"
    expected["beit_cls"][2] = "1 ✓"
    expected["swin"][5] = "0 of 1 ✗"
    assert {name: rows[f"| {title}"] for name, title in ROWS.items()} == expected
    assert "\n4 of 6 checks passed, with transformers " in page


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
