# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Plant the faults of mutants.py, one at a time, in a copy of the repository, and run for each the test that must fail.

A fault whose test passes has survived. `python tests/plant_mutants.py clip` plants those with `clip` in their names.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant


REPO = Path(__file__).resolve().parent.parent
TIME_LIMIT = 300  # seconds for one test
# What pytest returns if tests failed; other codes say that it could not run them.
FAILED = 1
SLOW_IMPORTS = ("transformers.trainer", "datasets", "evaluate", "peft", "pandas")


def copy_repository(target: Path) -> None:
    """Copy it laid out as it is installed, so that the copy is imported, not the installed package."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "outputs")
    shutil.copytree(REPO, target, ignore=ignored)
    for name in ("modeling", "recipes"):
        (target / "hf_frozen_llm" / name).symlink_to(target / name)


def set_environment(folder: Path) -> None:
    """Set what conftest.py sets, before libraries that read it are imported, and let processes import the copy."""
    shared = Path(os.environ.get("HF_FROZEN_LLM_SHARED") or REPO.parent / "shared")
    if shared.is_dir():
        os.environ["HF_FROZEN_LLM_SHARED"] = str(shared.resolve())
    os.environ |= {"HF_HOME": str(folder / "hf_home"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"PYTHONPATH": str(folder / "repository"), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in SLOW_IMPORTS:
        importlib.import_module(name)


def run_tests(copy: Path, tests: list[str], time_limit: float | None = None) -> tuple[int | None, str]:
    """
    Return the exit code of pytest in a forked process, which need not import the libraries again, and the end of its
    output. The code is negative after the time limit.
    """

    def child() -> None:
        os.chdir(copy)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(copy))
        with open(copy.parent / "output", "w") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(time_limit)
    process.kill()
    process.join()
    return process.exitcode, (copy.parent / "output").read_text(encoding="utf-8")[-2000:]


def plant(mutant: Mutant, copy: Path) -> bool:
    """Run a mutant's test with the fault in the copy, and return whether it failed."""
    file = copy / mutant.file
    content = file.read_text(encoding="utf-8")
    if content.count(mutant.text) != 1:
        print(f"NOT APPLICABLE  {mutant.name}: {mutant.file} does not hold its text once", flush=True)
        return False
    file.write_text(content.replace(mutant.text, mutant.fault), encoding="utf-8")
    start = time.monotonic()
    code, output = run_tests(copy, [mutant.test], TIME_LIMIT)
    file.write_text(content, encoding="utf-8")
    verdict = {FAILED: "killed", 0: "SURVIVED"}.get(code, "ERROR")
    print(f"{verdict:<14}  {mutant.name} ({time.monotonic() - start:.0f} s)", flush=True)
    if verdict == "ERROR":
        print(output, flush=True)
    return verdict == "killed"


def main(words: list[str]) -> int:
    """Plant all mutants, or those whose names hold one of the words; return the exit code."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder, "repository")
        copy_repository(copy)
        set_environment(Path(folder))
        code, output = run_tests(copy, list(dict.fromkeys(mutant.test for mutant in chosen)))
        if code != 0:
            print(f"Their tests must pass without a fault:\n{output}")
            return 1
        killed = sum(plant(mutant, copy) for mutant in chosen)
    print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
