# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The released ViT, which is timm's."""

import math

from hf_frozen_llm.conversion.checkpoint import (
    Architecture,
    GivenFields,
    StateDict,
    count_layers,
    make_llm_block_config,
)
from hf_frozen_llm.modeling.configuration_vit_with_llm_block import ViTWithLLMBlockConfig


LAYER = "vit.encoder.layer.*"
NAMES: dict[str, str | tuple[str, ...]] = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "blocks.*.norm1": f"{LAYER}.layernorm_before",
    "blocks.*.attn.qkv": tuple(f"{LAYER}.attention.attention.{name}" for name in ("query", "key", "value")),
    "blocks.*.attn.proj": f"{LAYER}.attention.output.dense",
    "blocks.*.norm2": f"{LAYER}.layernorm_after",
    "blocks.*.mlp.fc1": f"{LAYER}.intermediate.dense",
    "blocks.*.mlp.fc2": f"{LAYER}.output.dense",
    "norm": "vit.layernorm",
    "head": "classifier",
}


def make_config(state: StateDict, given: GivenFields) -> ViTWithLLMBlockConfig:
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    patches_per_side = math.isqrt(state["pos_embed"].shape[1] - 1)
    llm_block = make_llm_block_config(state, given, layer_index=31)
    return ViTWithLLMBlockConfig(
        hidden_size=given.confirm("hidden_size", width),
        num_channels=given.confirm("num_channels", channels),
        patch_size=given.confirm("patch_size", patch_size),
        image_size=given.confirm("image_size", patches_per_side * patch_size),
        num_hidden_layers=given.confirm("num_hidden_layers", count_layers(state, "blocks")),
        intermediate_size=given.confirm("intermediate_size", len(state["blocks.0.mlp.fc1.weight"])),
        qkv_bias=given.confirm("qkv_bias", "blocks.0.attn.qkv.bias" in state),
        **{"num_labels": given.confirm("num_labels", len(state["head.weight"]))},
        num_attention_heads=given.require("num_attention_heads", "3, 6 and 12 of ViT-T, -S and -B"),
        layer_norm_eps=given.fields.pop("layer_norm_eps", 1e-6),
        llm_block=llm_block,
        **given.fields,
    )


VIT = Architecture(
    name="ViT",
    model_type="vit_with_llm_block",
    key_tensor=("patch_embed.proj.weight", 4),
    names=NAMES,
    make_config=make_config,
)
