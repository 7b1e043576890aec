# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The published METER with CLIP and RoBERTa (github.com/zdou0830/METER): pre-trained, and fine-tuned for questions,
retrieval, NLVR2 and SNLI-VE.
"""

import math
from typing import Any

from hf_frozen_llm.conversion.checkpoint import Architecture, GivenFields, StateDict, count_layers
from hf_frozen_llm.modeling.configuration_meter_with_llm_block import MeterWithLLMBlockConfig
from hf_frozen_llm.modeling.modeling_meter_with_llm_block import (
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
)
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


CLIP, RELEASED_CLIP = "meter.vision_model", "vit_model.visual"
CLIP_LAYER, RELEASED_CLIP_LAYER = f"{CLIP}.encoder.layers.*", f"{RELEASED_CLIP}.transformer.resblocks.*"
TEXT_LAYER = "text_transformer.encoder.layer.*"
SELF_ATTENTION = [f"attention.{name}" for name in ("self.query", "self.key", "self.value")]
SELF_ATTENTION += ["attention.output.dense", "attention.output.LayerNorm"]
FEED_FORWARD = ["intermediate.dense", "output.dense", "output.LayerNorm"]
CROSS_ATTENTION = [f"cross{name}" for name in SELF_ATTENTION]
FUSION = [
    f"cross_modal_{modality}_{module}"
    for modality in ("text", "image")
    for module in (
        "transform",
        "pooler.dense",
        *(f"layers.*.{name}" for name in (*SELF_ATTENTION, *CROSS_ATTENTION, *FEED_FORWARD)),
    )
]
NAMES: dict[str, str | tuple[str, ...]] = {
    f"{RELEASED_CLIP}.conv1": f"{CLIP}.embeddings.patch_embedding",
    f"{RELEASED_CLIP}.class_embedding": f"{CLIP}.embeddings.class_embedding",
    f"{RELEASED_CLIP}.positional_embedding": f"{CLIP}.embeddings.position_embedding.weight",
    f"{RELEASED_CLIP}.ln_pre": f"{CLIP}.pre_layrnorm",
    f"{RELEASED_CLIP}.ln_post": f"{CLIP}.post_layernorm",
    f"{RELEASED_CLIP_LAYER}.ln_1": f"{CLIP_LAYER}.layer_norm1",
    f"{RELEASED_CLIP_LAYER}.ln_2": f"{CLIP_LAYER}.layer_norm2",
    **{
        f"{RELEASED_CLIP_LAYER}.attn.in_proj_{kind}": tuple(
            f"{CLIP_LAYER}.self_attn.{name}_proj.{kind}" for name in ("q", "k", "v")
        )
        for kind in ("weight", "bias")
    },
    f"{RELEASED_CLIP_LAYER}.attn.out_proj": f"{CLIP_LAYER}.self_attn.out_proj",
    f"{RELEASED_CLIP_LAYER}.mlp.c_fc": f"{CLIP_LAYER}.mlp.fc1",
    f"{RELEASED_CLIP_LAYER}.mlp.c_proj": f"{CLIP_LAYER}.mlp.fc2",
    **{
        f"text_transformer.embeddings.{name}": f"meter.text_model.embeddings.{name}"
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    },
    **{
        f"{TEXT_LAYER}.{name}": f"meter.text_model.encoder.layer.*.{name}" for name in (*SELF_ATTENTION, *FEED_FORWARD)
    },
    "token_type_embeddings": "meter.token_type_embeddings",
    **{name: f"meter.{name}" for name in FUSION},
    "vqa_classifier.0": "classifier.dense",
    "vqa_classifier.1": "classifier.layer_norm",
    "vqa_classifier.3": "classifier.out_proj",
    "itm_score.fc": "match_head",
    "rank_output": "rank_head",
}
UNUSED = {
    "vit_model.positional_embedding": "of CLIP's text encoder, which METER does not use",
    "vit_model.ln_final.": "of CLIP's text encoder, which METER does not use",
    "text_transformer.pooler.": "METER has a pooler of its own",
    "text_transformer.embeddings.position_ids": "a constant",
    "text_transformer.embeddings.token_type_ids": "a constant",
}
HEADS: dict[type[PreTrainedModelWithLLMBlock], tuple[str, ...]] = {
    MeterWithLLMBlockForVisualQuestionAnswering: ("vqa_classifier.",),
    MeterWithLLMBlockForImageTextRetrieval: ("itm_score.", "rank_output."),
}
# Those of fine-tuned checkpoints, and of the pre-training.
FINE_TUNED_HEADS = ("vqa_classifier.", "rank_output.", "nlvr2_classifier.", "snli_classifier.")
PRETRAINING_HEADS = ("itm_score.", "mlm_score.")


def find_left_out(
    state: StateDict, model_class: type[PreTrainedModelWithLLMBlock], fields: dict[str, Any]
) -> dict[str, str]:
    """Return the tensors that a model does not use, each with the reason."""
    own = HEADS.get(model_class, ())
    has_own = any(name.startswith(own) for name in state) if own else True
    others = sorted({head for name in state for head in FINE_TUNED_HEADS if name.startswith(head)} - set(own))
    if not has_own and others:
        raise ValueError(
            f"The checkpoint is that of another task: it has {' and '.join(others)}* and none of "
            f"{' and '.join(f'{head}*' for head in own)}, which {model_class.__name__} needs."
        )
    left_out = {
        name: why for name in state for prefix, why in UNUSED.items() if name == prefix or name.startswith(prefix)
    }
    heads = tuple({*FINE_TUNED_HEADS, *PRETRAINING_HEADS} - set(own))
    return left_out | {name: "the head of another task" for name in state if name.startswith(heads)}


def make_config(state: StateDict, given: GivenFields) -> MeterWithLLMBlockConfig:
    vision_width, channels, patch_size, _ = state[f"{RELEASED_CLIP}.conv1.weight"].shape
    patches_per_side = math.isqrt(len(state[f"{RELEASED_CLIP}.positional_embedding"]) - 1)
    vocab_size, text_width = state["text_transformer.embeddings.word_embeddings.weight"].shape
    layer = RELEASED_CLIP_LAYER.replace("*", "0")
    vision_config = {
        "hidden_size": vision_width,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": given.confirm("image_size", patches_per_side * patch_size),
        "num_hidden_layers": count_layers(state, f"{RELEASED_CLIP}.transformer.resblocks"),
        "intermediate_size": len(state[f"{layer}.mlp.c_fc.weight"]),
        "num_attention_heads": given.require("vision_num_attention_heads", "12"),
    }
    text_config = {
        "hidden_size": text_width,
        "vocab_size": vocab_size,
        "num_hidden_layers": count_layers(state, "text_transformer.encoder.layer"),
        "intermediate_size": len(state[f"{TEXT_LAYER.replace('*', '0')}.intermediate.dense.weight"]),
        "max_position_embeddings": len(state["text_transformer.embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(state["text_transformer.embeddings.token_type_embeddings.weight"]),
        "num_attention_heads": given.require("text_num_attention_heads", "12"),
        "layer_norm_eps": 1e-5,
    }
    if "vqa_classifier.3.weight" in state:
        given.fields["num_labels"] = given.confirm("num_labels", len(state["vqa_classifier.3.weight"]))
    return MeterWithLLMBlockConfig(
        vision_config=vision_config,
        text_config=text_config,
        hidden_size=given.confirm("hidden_size", len(state["cross_modal_text_transform.weight"])),
        num_hidden_layers=given.confirm("num_hidden_layers", count_layers(state, "cross_modal_image_layers")),
        intermediate_size=given.confirm(
            "intermediate_size", len(state["cross_modal_image_layers.0.intermediate.dense.weight"])
        ),
        type_vocab_size=given.confirm("type_vocab_size", len(state["token_type_embeddings.weight"])),
        num_attention_heads=given.require("num_attention_heads", "12"),
        **given.fields,
    )


METER = Architecture(
    name="METER",
    model_type="meter_with_llm_block",
    key_tensor=(f"{RELEASED_CLIP}.conv1.weight", 4),
    names=NAMES,
    make_config=make_config,
    head=("classifier.", "match_head.", "rank_head.", "image_projection.", "text_projection.", "logit_scale"),
    find_left_out=find_left_out,
)
