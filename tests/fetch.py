# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Fetches transformers' own tests of the installed version into the test cache: `python tests/fetch.py`.

They ship in the source distribution only (10 MB). What is there already is not fetched again.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from paths import upstream_tests_dir


def fetch_upstream_tests(version: str) -> Path:
    target = upstream_tests_dir(version)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the cache folder, so that the last step is a rename on one file system: a kill leaves nothing half-written.
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        # --no-build-isolation: setuptools and wheel of this environment, or pip builds one to read the metadata.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--dest", tmp, f"transformers=={version}"]
        subprocess.run(command, check=True)
        with tarfile.open(Path(tmp) / f"transformers-{version}.tar.gz") as sdist:
            prefix = f"transformers-{version}/tests/"
            sdist.extractall(tmp, [m for m in sdist.getmembers() if m.name.startswith(prefix)], filter="data")
        tests = Path(tmp) / f"transformers-{version}"
        if not (tests / "tests" / "test_modeling_common.py").is_file():
            sys.exit(f"the source distribution of transformers {version} has no tests/test_modeling_common.py")
        # Their modules look for it, but the source distribution leaves it out.
        (tests / "tests" / "__init__.py").touch()
        try:
            tests.rename(target)
        except OSError:
            # Another run was faster.
            if not target.is_dir():
                raise
    return target


if __name__ == "__main__":
    print(f"transformers' own tests: {fetch_upstream_tests(transformers.__version__)}")
