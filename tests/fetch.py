# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Download test data into the test cache: `python tests/fetch.py`; with `peers`, peft's own tests as well (1 MB).

The data is transformers' own tests of the installed version, which are only in its source distribution (10 MB), and
video clips of HMDB51, UCF101 and Kinetics from Debian's copy of torchvision's sources (9 MB). Existing files are not
downloaded again.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import peft
import transformers
from paths import CACHE, CLIPS


CLIPS_URL = "http://deb.debian.org/debian/pool/main/p/pytorch-vision/pytorch-vision_0.14.1.orig.tar.gz"
CLIPS_SHA256 = "ced67e1cf1f97e168cdf271851a4d0b6d382ab7936e7bcbb39aaa87239c324b6"


def fetch_tests(package: str, version: str, needed: str) -> Path:
    """Fetch the folder `tests` of a package's source distribution, which must hold the file `needed`."""
    target = CACHE / f"{package}-{version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the cache folder, so that the last step is a rename on one file system: a kill leaves nothing half-written.
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        # --no-build-isolation: setuptools and wheel of this environment, or pip builds one to read the metadata.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--dest", tmp, f"{package}=={version}"]
        subprocess.run(command, check=True)
        with tarfile.open(Path(tmp) / f"{package}-{version}.tar.gz") as sdist:
            prefix = f"{package}-{version}/tests/"
            sdist.extractall(tmp, [m for m in sdist.getmembers() if m.name.startswith(prefix)], filter="data")
        tests = Path(tmp) / f"{package}-{version}"
        if not (tests / "tests" / needed).is_file():
            sys.exit(f"the source distribution of {package} {version} has no tests/{needed}")
        # Their modules look for it, but the source distribution leaves it out.
        (tests / "tests" / "__init__.py").touch()
        try:
            tests.rename(target)
        except OSError:
            # Another run was faster.
            if not target.is_dir():
                raise
    return target


def fetch_clips() -> Path:
    if CLIPS.is_dir():
        return CLIPS
    CLIPS.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(CLIPS_URL, timeout=120) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != CLIPS_SHA256:
        sys.exit(f"{CLIPS_URL} is not the file it was")
    with tempfile.TemporaryDirectory(dir=CLIPS.parent) as tmp, tarfile.open(fileobj=io.BytesIO(content)) as sources:
        for member in sources.getmembers():
            if "/test/assets/videos/" in member.name and member.name.endswith((".avi", ".mp4")):
                member.name = Path(member.name).name
                sources.extract(member, Path(tmp) / "clips", filter="data")
        try:
            (Path(tmp) / "clips").rename(CLIPS)
        except OSError:
            # Another run was faster.
            if not CLIPS.is_dir():
                raise
    return CLIPS


if __name__ == "__main__":
    tests = fetch_tests("transformers", transformers.__version__, "test_modeling_common.py")
    print(f"transformers' own tests: {tests}")
    print(f"video clips: {fetch_clips()}")
    if "peers" in sys.argv[1:]:
        print(f"peft's own tests: {fetch_tests('peft', peft.__version__, 'testing_common.py')}")
