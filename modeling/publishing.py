# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Saving models for the Hub, where their configurations must not name folders of this machine."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .configuration_llm_block import LLMBlockConfig


_PUBLISHING: ContextVar[bool] = ContextVar("publishing", default=False)


@contextmanager
def publishing() -> Iterator[None]:
    """While it lasts, models are saved so that other machines can load them."""
    token = _PUBLISHING.set(True)
    try:
        yield
    finally:
        _PUBLISHING.reset(token)


def is_publishing() -> bool:
    return _PUBLISHING.get()


def is_local_path(name: str) -> bool:
    """Return whether a model is named by a path of this machine, not by its place on the Hub."""
    is_on_hub = re.fullmatch(r"(?i)[\w-][\w.-]*(/[\w.-]+(/.+\.gguf)?)?", name)
    return os.path.exists(name) or not is_on_hub


def leave_out_local_paths(config: Any) -> None:
    """
    Remove the paths of this machine from a configuration and its parts.

    Raises:
        `ValueError`: if a model with this configuration does not hold the LLM layer, and reads it from such a path.
    """
    if isinstance(config, LLMBlockConfig) and config.llm_name_or_path and is_local_path(config.llm_name_or_path):
        if not config.save_weights:
            raise ValueError(
                f"llm_block.save_weights is False and llm_block.llm_name_or_path is {config.llm_name_or_path!r}, so "
                "that no other machine could load the model from the Hub. Set save_weights to True, if the language "
                "model's licence permits it, or name the language model by its id on the Hub."
            )
        config.llm_name_or_path = config.llm_revision = None
    if config._name_or_path and is_local_path(config._name_or_path):
        config._name_or_path = ""
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            leave_out_local_paths(getattr(config, name))


__all__ = ["is_publishing", "leave_out_local_paths", "publishing"]
