# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Where tests find files that are not in the repository."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
import transformers


REPO = Path(__file__).resolve().parent.parent
# Filled by `python tests/fetch.py`.
CACHE = Path(os.environ.get("HF_FROZEN_LLM_TEST_CACHE") or Path.home() / ".cache" / "hf_frozen_llm_tests")
CLIPS = CACHE / "clips"
# Filled by `make peers`.
PEFT_TESTS = CACHE / f"peft-{version('peft')}" / "tests"


def clips() -> list[Path]:
    """Real video clips. Without them the calling test is skipped, and fails in CI."""
    if CLIPS.is_dir():
        return sorted(CLIPS.iterdir())
    message = f"no folder {CLIPS}: run `python tests/fetch.py`"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def shared_dir() -> Path:
    """
    Folder of real weights and fixtures: `HF_FROZEN_LLM_SHARED`, or `shared` beside the repository.

    Without it the calling test is skipped, and fails in CI.
    """
    folder = Path(os.environ.get("HF_FROZEN_LLM_SHARED") or REPO.parent / "shared")
    if folder.is_dir():
        return folder
    message = f"no folder {folder}: set HF_FROZEN_LLM_SHARED to the folder that holds models/ and fixtures/"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message, allow_module_level=True)


def upstream_tests_dir(version: str = transformers.__version__) -> Path:
    """Folder that holds transformers' own `tests` folder of `version`, filled by `python tests/fetch.py`."""
    return CACHE / f"transformers-{version}"
