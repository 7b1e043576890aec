# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The model zoo, `hub_cards/zoo.yaml`."""

from pathlib import Path
from typing import Any

import yaml

import hf_frozen_llm.hub_cards


def read_zoo() -> dict[str, Any]:
    """Return the small and the planned checkpoints, their data, and the licences of their language models."""
    file = Path(hf_frozen_llm.hub_cards.__file__).parent / "zoo.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
