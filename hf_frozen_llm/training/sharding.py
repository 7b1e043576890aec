# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What FSDP gathers at a time."""

from typing import Any


def name_sharded_layers(model: Any) -> list[str]:
    """
    Return the classes of the modules of a model that FSDP shards as a whole: those that must not be split, but not one
    around the input embeddings, because accelerate shards these by themselves, and cannot do so within another.
    """
    embeddings = model.get_input_embeddings()
    layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    around = {type(layer).__name__ for layer in layers if any(module is embeddings for module in layer.modules())}
    return sorted({type(layer).__name__ for layer in layers} - around)
