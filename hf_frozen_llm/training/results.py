# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The folder of a run: its results, a JSON file that is written and read, and the configuration of its model."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

import hf_frozen_llm
from hf_frozen_llm.modeling.checkpoint_files import update_digest
from hf_frozen_llm.modeling.configuration_llm_block import WithLLMBlockConfigMixin
from hf_frozen_llm.modeling.publishing import is_local_path


PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub", "safetensors", "numpy")
RESULTS_FILE = "results.json"
# The tensors that a light folder lacks.
LLM_TENSORS = re.compile(r"(^|\.)(llm_layers|final_norm)\.")


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


def load_own_config(name_or_path: str) -> Any:
    """
    Load the configuration of a saved model of this package.

    Raises:
        `OSError`: if there is no such model.
        `ValueError`: if it is another model.
    """
    refuse_missing_folder(name_or_path)
    config = load_saved_config(name_or_path)
    if not isinstance(config, WithLLMBlockConfigMixin):
        raise ValueError(
            f"{name_or_path} is a {config.model_type}, not a model of this package. Give a folder that "
            "`hf-frozen-llm train` or save_pretrained wrote."
        )
    return config


def find_hub_id(name_or_path: str | None) -> str | None:
    """
    Return the id of a model on the Hub, or that of the model from which a local one was made: `base_model` in its
    model card. `None` if there is no such id.
    """
    if name_or_path is None:
        return None
    path = Path(name_or_path).expanduser()
    if path.exists():
        card = (path if path.is_dir() else path.parent) / "README.md"
        try:
            origin = ((metadata_load(card) if card.is_file() else None) or {}).get("base_model")
        except (OSError, ValueError, yaml.YAMLError):  # a card that cannot be read must not end a training
            origin = None
        name_or_path = origin if isinstance(origin, str) else ""
    owner, _, rest = name_or_path.partition("/")
    return f"{owner}/{rest.partition('/')[0]}" if rest and not is_local_path(name_or_path) else None


def find_base_models(config: Any, host: str | None) -> dict[str, str | None]:
    """Return the Hub ids of the host and of the language model whose weights a model has, `None` where not known."""
    block = config.llm_block
    reads_llm = block is not None and block.kind == "llm" and block.weights != "random"
    return {"host": find_hub_id(host), "llm": find_hub_id(block.llm_name_or_path) if reads_llm else None}


def digest_weights(folder: str | Path) -> str | None:
    """
    Return the SHA-256 digest of the tensors of a saved model, without those of the LLM layer, which a light folder
    lacks. `None` if there are no safetensors files.
    """
    digest = hashlib.sha256()
    places = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    for name, file in sorted(places.items()):
        if not LLM_TENSORS.search(name):
            with safe_open(file, framework="pt") as tensors:
                update_digest(digest, name, tensors.get_tensor(name))
    return digest.hexdigest() if places else None


def current_time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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


def measure_memory(device: torch.device) -> int | None:
    """
    Return the most bytes that this process has had: allocated on a GPU, or else its resident set, which Windows does
    not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
    """Write a file atomically, see [`replacing`]."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Name a temporary file that replaces `path` once it is written: readers see the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_confusion_matrix(tables: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Write the table `confusion_matrix`, if there is one, into a `.csv` and, with matplotlib, a `.png` file."""
    if "confusion_matrix" not in tables:
        return
    import pandas as pd

    from hf_frozen_llm.plotting import plot_confusion_matrix

    table = pd.DataFrame(tables["confusion_matrix"])
    write_text(file, table.to_csv(index=False))
    if find_spec("matplotlib") is not None:
        with replacing(file.with_suffix(".png")) as temporary:
            plot_confusion_matrix(temporary, table)


def print_facts(facts: dict[str, str]) -> None:
    """Print one line for each fact, in two columns."""
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
