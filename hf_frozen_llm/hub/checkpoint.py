# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Facts about saved weights and the licences of language models, without loading anything."""

import json
import struct
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, get_safetensors_metadata, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors import safe_open

import hf_frozen_llm.hub_cards


UNKNOWN = "unknown"
HUB_ERRORS = (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)


def weight_names(name_or_path: str) -> list[str]:
    folder = Path(name_or_path)
    if not folder.is_dir():
        return list(get_safetensors_metadata(name_or_path).weight_map)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def find_licence(llm: str | None) -> str:
    """Return the licence in the LLM's model card; `"unknown"` without a card or a connection to the Hub."""
    if llm is None:
        return UNKNOWN
    path = Path(llm)
    try:
        if path.exists():
            card = (path if path.is_dir() else path.parent) / "README.md"
            metadata = (metadata_load(card) if card.is_file() else None) or {}
        else:
            metadata = ModelCard.load(llm).data.to_dict()
    except (*HUB_ERRORS, OSError, ValueError, yaml.YAMLError):
        return f"{UNKNOWN}: its model card cannot be read"
    return metadata.get("license_name") or metadata.get("license") or UNKNOWN


def read_zoo() -> dict[str, Any]:
    """Return the planned checkpoints, and the licences of their language models."""
    file = Path(hf_frozen_llm.hub_cards.__file__).parent / "zoo.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


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
