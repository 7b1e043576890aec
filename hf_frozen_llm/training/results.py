# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The folder of a run: its results, a JSON file that is written and read, and the configuration of its model."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

import hf_frozen_llm


PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub", "safetensors", "numpy")
RESULTS_FILE = "results.json"


def refuse_missing_folder(name_or_path: str) -> None:
    """Refuse a path that looks local and is not there: asking the Hub for it takes half a minute, and misleads."""
    path = Path(name_or_path).expanduser()
    is_local = path.is_absolute() or name_or_path.startswith(".") or len(path.parts) != 2 or path.parent.is_dir()
    if is_local and not path.exists():
        raise FileNotFoundError(
            f"{name_or_path} is neither a folder with a model nor a model on the Hub: there is no such folder, and "
            "the name of a model on the Hub is `owner/name`."
        )


def load_saved_config(name_or_path: str) -> Any:
    """
    Load the configuration of a saved model.

    Raises:
        `ValueError`: for a model that is unknown, or has code of its own, which no model of this package needs.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except ValueError as error:
        problem = str(error)
        if "trust_remote_code" in problem:
            problem = (
                "not a model of this package: it has code of its own (auto_map in its config.json), which is never "
                "executed here (trust_remote_code=False)."
            )
        raise ValueError(f"{name_or_path}: {problem}") from error


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


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


def to_json(content: Any, **options: Any) -> str:
    """Return strict JSON: numbers that are not finite become `null`, because other readers refuse `NaN`."""
    return json.dumps(without_infinite(content), allow_nan=False, **options)


def without_infinite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: without_infinite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_infinite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    write_text(path, to_json(content, indent=2, ensure_ascii=False) + "\n")


def read_results(file: Path) -> dict[str, Any]:
    """Read a `results.json`; refuse another file of that name."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(results["recipe"], dict):
            return results
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{file} does not hold the results of a run of this package: delete or move it.")


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: readers see the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_confusion_matrix(tables: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Write the table `confusion_matrix`, if there is one, into a `.csv` and, with matplotlib, a `.png` file."""
    if "confusion_matrix" not in tables:
        return
    import pandas as pd

    from hf_frozen_llm.plotting import plot_confusion_matrix

    table = pd.DataFrame(tables["confusion_matrix"])
    write_text(file, table.to_csv(index=False))
    if find_spec("matplotlib") is not None:
        temporary = file.with_name(f".{os.getpid()}.{file.stem}.png")
        plot_confusion_matrix(temporary, table)
        os.replace(temporary, file.with_suffix(".png"))


def print_facts(facts: dict[str, str]) -> None:
    """Print one line for each fact, in two columns."""
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
