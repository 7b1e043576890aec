# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth, which skips the update of a layer for random examples of a batch."""

import torch


def drop_path(update: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """In training, set a layer's update `(batch, tokens, width)` to 0 with this rate, and scale up the others."""
    if not training or rate == 0:
        return update
    kept = torch.rand(len(update), 1, 1, device=update.device) >= rate
    return update * kept.to(update.dtype) / (1 - rate)


__all__ = ["drop_path"]
