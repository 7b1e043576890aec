# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The licences of language models, and whether they permit redistributing a layer."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from hf_frozen_llm.hub.zoo import read_zoo


UNKNOWN = "unknown"
HUB_ERRORS = (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)
# Identifiers of the Hub. Some have conditions, such as a copy of the licence or the name of the LLM.
PERMITTING = {
    *("apache-2.0", "mit", "isc", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "unlicense", "zlib"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "artistic-2.0"),
    *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigcode-openrail-m", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"),
}


def find_licence(llm: str | None) -> str:
    """
    Return the licence of an LLM, from `hub_cards/zoo.yaml` or else from its model card; `"unknown"` without a card or
    a connection to the Hub.
    """
    if llm is None:
        return UNKNOWN
    if known := read_zoo()["llms"].get(llm):
        return known.get("license_name") or known["license"]
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


def permits_layer(licence: str) -> bool:
    """Return whether a licence is known to permit redistributing a layer."""
    return str(licence).lower() in PERMITTING


def refuse_forbidden_layer(llm: str | None) -> None:
    """
    Refuse to publish the layer of an LLM, unless its licence is known to permit it.

    Raises:
        `ValueError`: for other licences and unknown ones.
    """
    licence = find_licence(llm)
    if not permits_layer(licence):
        raise ValueError(
            f"The licence of {llm or 'the LLM, which has no name,'} is {licence}, which is not known to permit "
            "redistributing its layer. --light leaves the layer out, and loading then reads it from the LLM. If you "
            "may redistribute the layer, add --include-layer."
        )
