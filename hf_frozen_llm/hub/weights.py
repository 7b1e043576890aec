# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Facts about saved weights, without loading them."""

import json
import struct
from pathlib import Path

from huggingface_hub import get_safetensors_metadata
from safetensors import safe_open


def weight_names(name_or_path: str) -> list[str]:
    folder = Path(name_or_path)
    if not folder.is_dir():
        return list(get_safetensors_metadata(name_or_path).weight_map)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor of a saved model, from the headers of its safetensors files."""
    sizes = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        sizes.update({name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()})
    return sizes
