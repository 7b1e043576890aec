# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The released Point-BERT, and the pre-trained one that its runs start from."""

from hf_frozen_llm.conversion.checkpoint import (
    Architecture,
    GivenFields,
    StateDict,
    count_layers,
    make_llm_block_config,
)
from hf_frozen_llm.modeling.configuration_point_bert_with_llm_block import PointBertWithLLMBlockConfig


EMBEDDINGS = "point_bert.embeddings"
LAYER = "point_bert.layers.*"
NAMES: dict[str, str | tuple[str, ...]] = {
    "cls_token": f"{EMBEDDINGS}.cls_token",
    "cls_pos": f"{EMBEDDINGS}.cls_position",
    "encoder.first_conv.0": f"{EMBEDDINGS}.group_encoder.conv1",
    "encoder.first_conv.1": f"{EMBEDDINGS}.group_encoder.norm1",
    "encoder.first_conv.3": f"{EMBEDDINGS}.group_encoder.conv2",
    "encoder.second_conv.0": f"{EMBEDDINGS}.group_encoder.conv3",
    "encoder.second_conv.1": f"{EMBEDDINGS}.group_encoder.norm2",
    "encoder.second_conv.3": f"{EMBEDDINGS}.group_encoder.conv4",
    "reduce_dim": f"{EMBEDDINGS}.projection",
    "pos_embed.0": f"{EMBEDDINGS}.position_embeddings.fc1",
    "pos_embed.2": f"{EMBEDDINGS}.position_embeddings.fc2",
    "blocks.blocks.*.norm1": f"{LAYER}.layernorm_before",
    "blocks.blocks.*.attn.qkv": tuple(f"{LAYER}.attention.{name}_proj" for name in ("q", "k", "v")),
    "blocks.blocks.*.attn.proj": f"{LAYER}.attention.o_proj",
    "blocks.blocks.*.norm2": f"{LAYER}.layernorm_after",
    "blocks.blocks.*.mlp.fc1": f"{LAYER}.fc1",
    "blocks.blocks.*.mlp.fc2": f"{LAYER}.fc2",
    "norm": "point_bert.layernorm",
    "cls_head_finetune.0": "classifier.dense",
    "cls_head_finetune.3": "classifier.out_proj",
}


def make_config(state: StateDict, given: GivenFields) -> PointBertWithLLMBlockConfig:
    width, encoder_width = state["reduce_dim.weight"].shape
    llm_block = make_llm_block_config(state, given, layer_index=31)
    head = state.get("cls_head_finetune.3.weight")
    if head is not None:
        num_labels, classifier_width = head.shape
        given.fields["num_labels"] = given.confirm("num_labels", num_labels)
        given.fields["classifier_hidden_size"] = given.confirm("classifier_hidden_size", classifier_width)
    return PointBertWithLLMBlockConfig(
        hidden_size=given.confirm("hidden_size", width),
        encoder_hidden_size=given.confirm("encoder_hidden_size", encoder_width),
        encoder_channels=[
            len(state["encoder.first_conv.0.weight"]),
            len(state["encoder.first_conv.3.weight"]),
            len(state["encoder.second_conv.0.weight"]),
        ],
        position_hidden_size=given.confirm("position_hidden_size", len(state["pos_embed.0.weight"])),
        num_hidden_layers=given.confirm("num_hidden_layers", count_layers(state, "blocks.blocks")),
        intermediate_size=given.confirm("intermediate_size", len(state["blocks.blocks.0.mlp.fc1.weight"])),
        qkv_bias=given.confirm("qkv_bias", "blocks.blocks.0.attn.qkv.bias" in state),
        num_groups=given.require("num_groups", "64"),
        group_size=given.require("group_size", "32"),
        num_attention_heads=given.require("num_attention_heads", "6"),
        llm_block=llm_block,
        **given.fields,
    )


POINT_BERT = Architecture(
    name="Point-BERT",
    model_type="point_bert_with_llm_block",
    key_tensor=("encoder.first_conv.0.weight", 3),
    names=NAMES,
    make_config=make_config,
    # The checkpoint also has the student's momentum teacher and the tokenizer.
    pretraining_prefix="transformer_q.",
    pretraining_only=("transformer_q.cls_head", "transformer_q.mask_token"),
)
