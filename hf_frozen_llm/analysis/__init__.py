# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What the LLM block looks at: tokens at its tap points, activation maps, and scores of them."""

from .activations import TokenActivations, TokenLayout, tap_points, token_activations, token_layout
from .curves import area_under_curve, deletion_and_insertion
from .images import ImageAnalysis, analyze_images, score_maps
from .layers import layer_names, reshape_transform
from .masks import MaskedImage, find_masked_images, mask_of_tokens
from .measures import (
    effective_rank,
    filtering_ratio,
    frequency,
    gradient_coherence,
    linear_cka,
    magnitude,
    min_max,
    token_similarity,
    update_ratio,
)
from .scores import auroc, held_out_iou, ious, oracle_iou, pointing_game
from .suggestion import Recovery, choose_candidate, linear_probe, recovery_rate


__all__ = [
    "ImageAnalysis",
    "MaskedImage",
    "Recovery",
    "TokenActivations",
    "TokenLayout",
    "analyze_images",
    "area_under_curve",
    "auroc",
    "choose_candidate",
    "deletion_and_insertion",
    "effective_rank",
    "filtering_ratio",
    "find_masked_images",
    "frequency",
    "gradient_coherence",
    "held_out_iou",
    "ious",
    "layer_names",
    "linear_cka",
    "linear_probe",
    "magnitude",
    "mask_of_tokens",
    "min_max",
    "oracle_iou",
    "pointing_game",
    "recovery_rate",
    "reshape_transform",
    "score_maps",
    "tap_points",
    "token_activations",
    "token_layout",
    "token_similarity",
    "update_ratio",
]
