# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import pytest
from transformers.testing_utils import torch_device


UPSTREAM_MARKERS = [
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
]
# Some upstream tests skip inside `subTest` only, and then pass as a whole.
HAS_SKIPPED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    for marker in UPSTREAM_MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' own tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Fail a test that is skipped although its class does not name it in `skipped`, and one named there that runs."""
    report = yield
    is_left_out = item.get_closest_marker("slow") and not item.config.getoption("--run-slow")
    if torch_device != "cpu" or not isinstance(item, pytest.Function) or is_left_out:
        return report
    skipped = getattr(item.cls, "skipped", {})
    if report.skipped:
        item.stash[HAS_SKIPPED] = True
        if item.name not in skipped:
            report.outcome = "failed"
            report.longrepr = f"skipped, but {item.cls.__name__}.skipped does not name it: {report.longrepr}"
    elif report.when == "call" and report.passed and item.name in skipped and HAS_SKIPPED not in item.stash:
        report.outcome = "failed"
        report.longrepr = f"named in {item.cls.__name__}.skipped ({skipped[item.name]}), but it runs and passes"
    return report
