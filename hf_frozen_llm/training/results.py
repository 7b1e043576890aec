# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Write the results of a run: a JSON file beside the model."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import hf_frozen_llm


PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub", "safetensors", "numpy")


def collect_versions() -> dict[str, str]:
    versions = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "hf_frozen_llm": hf_frozen_llm.__version__, **versions}


def find_git_revision() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` if it was changed; `None` outside a checkout."""
    root = Path(hf_frozen_llm.__file__).resolve().parents[1]
    try:
        top, commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top).resolve() != root:
        return None
    return f"{commit}-dirty" if changes else commit


@contextmanager
def failing_run() -> Iterator[None]:
    """Mark an exception as the failure of a run that has begun, for the exit code of the command line."""
    try:
        yield
    except Exception as error:
        vars(error)["is_failed_run"] = True
        raise


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: readers see the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def print_facts(facts: dict[str, str]) -> None:
    """Print one line for each fact, in two columns."""
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
