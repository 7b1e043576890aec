# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The released VideoMAE, and the pre-trained one that its runs start from."""

from hf_frozen_llm.conversion.checkpoint import (
    Architecture,
    GivenFields,
    StateDict,
    count_layers,
    make_llm_block_config,
)
from hf_frozen_llm.modeling.configuration_videomae_with_llm_block import VideoMAEWithLLMBlockConfig


LAYER = "videomae.encoder.layer.*"
NAMES: dict[str, str | tuple[str, ...]] = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "blocks.*.norm1": f"{LAYER}.layernorm_before",
    "blocks.*.attn.qkv": tuple(f"{LAYER}.attention.attention.{name}" for name in ("query", "key", "value")),
    "blocks.*.attn.q_bias": f"{LAYER}.attention.attention.query.bias",
    "blocks.*.attn.v_bias": f"{LAYER}.attention.attention.value.bias",
    "blocks.*.attn.proj": f"{LAYER}.attention.output.dense",
    "blocks.*.norm2": f"{LAYER}.layernorm_after",
    "blocks.*.mlp.fc1": f"{LAYER}.intermediate.dense",
    "blocks.*.mlp.fc2": f"{LAYER}.output.dense",
    "norm": "videomae.layernorm",
    "fc_norm": "fc_norm",
    "head": "classifier",
}


def make_config(state: StateDict, given: GivenFields) -> VideoMAEWithLLMBlockConfig:
    width, channels, tubelet_size, patch_size, _ = state["patch_embed.proj.weight"].shape
    llm_block = make_llm_block_config(state, given, layer_index=15)
    has_head = "head.weight" in state
    if has_head:
        given.fields["num_labels"] = given.confirm("num_labels", len(state["head.weight"]))
    return VideoMAEWithLLMBlockConfig(
        hidden_size=given.confirm("hidden_size", width),
        num_channels=given.confirm("num_channels", channels),
        tubelet_size=given.confirm("tubelet_size", tubelet_size),
        patch_size=given.confirm("patch_size", patch_size),
        num_hidden_layers=given.confirm("num_hidden_layers", count_layers(state, "blocks")),
        intermediate_size=given.confirm("intermediate_size", len(state["blocks.0.mlp.fc1.weight"])),
        use_mean_pooling=given.confirm("use_mean_pooling", not has_head or "fc_norm.weight" in state),
        num_frames=given.require("num_frames", "16"),
        image_size=given.require("image_size", "224"),
        num_attention_heads=given.require("num_attention_heads", "6 and 12 of ViT-S and -B"),
        layer_norm_eps=given.fields.pop("layer_norm_eps", 1e-6),
        fc_norm_eps=given.fields.pop("fc_norm_eps", 1e-6),
        llm_block=llm_block,
        **given.fields,
    )


VIDEOMAE = Architecture(
    name="VideoMAE",
    model_type="videomae_with_llm_block",
    key_tensor=("patch_embed.proj.weight", 5),
    names=NAMES,
    make_config=make_config,
    head=("classifier.", "fc_norm."),
    # The checkpoint also has the decoder.
    pretraining_prefix="encoder.",
    pretraining_only=("encoder.norm.",),
)
