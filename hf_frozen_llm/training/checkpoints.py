# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Which of Trainer's `checkpoint-<n>` folders a run can go on from."""

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging


logger = logging.get_logger(__name__)


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders, the latest first, complete or not."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path, world_size: int = 1) -> Path | None:
    """The latest checkpoint that was written to its end; the others are named in a warning."""
    for folder in find_checkpoints(output_dir):
        defect = find_defect(folder, world_size)
        if defect is None:
            return folder
        logger.warning(f"{folder} is skipped: {defect} The run was probably stopped while writing it.")
    return None


def find_defect(folder: str | Path, world_size: int = 1) -> str | None:
    """What is missing in a checkpoint folder, or `None`. Trainer writes the weights first and its state last."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder."
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "trainer_state.json is missing or cut off."
    if f"checkpoint-{state.get('global_step')}" != folder.name:
        return f"trainer_state.json is of step {state.get('global_step')}."

    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for name in names:
            with safe_open(folder / name, framework="pt"):
                pass
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return f"its weights cannot be read ({error})."

    rng_states = [folder / "rng_state.pth"]
    if not rng_states[0].is_file() and world_size > 1:
        rng_states = [folder / f"rng_state_{rank}.pth" for rank in range(world_size)]
    elif not rng_states[0].is_file() and (folder / "rng_state_0.pth").is_file():
        rng_states = [folder / "rng_state_0.pth"]
    for file in [folder / "optimizer.pt", folder / "scheduler.pt", *rng_states]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is missing or cut off."
    return None
