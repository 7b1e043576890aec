# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The models of images and texts at tiny size."""

import dataclasses

import torch
from model_case import Model, ModelCase, Tensors, image, ones, pixels, randn
from tiny_hosts import SIZES
from transformers import (
    AutoModelForVisualQuestionAnswering,
    RobertaTokenizer,
)

from hf_frozen_llm import (
    MeterImageProcessor,
    MeterProcessor,
    MeterWithLLMBlockConfig,
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
)


def pairs(batch: int) -> Tensors:
    """Images and texts of 6 tokens; every second text ends with padding."""
    input_ids = torch.arange(6 * batch).view(batch, 6) % 17 + 3
    attention_mask = torch.ones_like(input_ids)
    input_ids[1::2, 4:], attention_mask[1::2, 4:] = 1, 0
    return {"pixel_values": randn(batch, 3, 8, 8), "input_ids": input_ids, "attention_mask": attention_mask}


def groups(batch: int) -> Tensors:
    """One match in each group of two."""
    labels = torch.tensor([[1, 0], [0, 1]] * batch)[: batch // 2]
    return {"labels": labels if batch % 2 == 0 else ones(batch)}


def fused(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    """The pooled texts, which the block does not change, and the pooled images."""
    text, _ = model.meter.fuse(model.meter.encode(**pairs(len(hidden_states)), pixel_mask=None))
    return model.meter.pool(text, hidden_states)


def tokenizer() -> RobertaTokenizer:
    """The special tokens of RoBERTa, a space, and some letters."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"acdeorst"]
    return RobertaTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METER_QUESTIONS = ModelCase(
    config_class=MeterWithLLMBlockConfig,
    base_class=MeterWithLLMBlockModel,
    model_class=MeterWithLLMBlockForVisualQuestionAnswering,
    fields={
        **SIZES,
        **NO_DROPOUT,
        "vision_config": {**SIZES, "hidden_size": 16, "num_hidden_layers": 1, "image_size": 8},
        "text_config": {
            **{**SIZES, **NO_DROPOUT, "hidden_size": 20, "num_hidden_layers": 1},
            **{"vocab_size": 20, "max_position_embeddings": 12, "type_vocab_size": 1},
        },
        "num_labels": 3,
    },
    inputs=pairs,
    num_tokens=5,
    finish=lambda model, hidden_states: model.classifier(fused(model, hidden_states)),
    refused=[
        ({**pairs(2), **pixels(2, 3, 12, 12)}, ["pixel_values", r"\(batch, 3, 8, 8\)", "image_size"]),
        ({**pairs(2), **pixels(2, 1, 8, 8)}, ["pixel_values", "num_channels"]),
        ({**pairs(2), "pixel_values": None}, ["pixel_values"]),
        ({**pairs(2), "input_ids": None}, ["input_ids"]),
        (
            {**pairs(2), "input_ids": ones(3, 6)},
            [r"input_ids has the shape \(3, 6\)", "2 images"],
        ),
        ({**pairs(2), "input_ids": ones(2, 11)}, ["has 11 tokens", "allows 10", "truncation"]),
        ({**pairs(2), "attention_mask": ones(2, 7)}, [r"attention_mask has the shape \(2, 7\).*\(2, 6\)"]),
        ({**pairs(2), "pixel_mask": ones(2, 4, 8)}, [r"pixel_mask has the shape \(2, 4, 8\).*\(2, 8, 8\)"]),
        ({**pairs(2), "labels": ones(2)}, [r"labels has the shape \(2,\)", r"\(batch, num_labels\) = \(2, 3\)"]),
    ],
    targets=lambda batch: {"labels": torch.eye(3)[torch.arange(batch) % 3]},
    head=("classifier",),
    auto_class=AutoModelForVisualQuestionAnswering,
    processor=lambda: MeterProcessor(
        MeterImageProcessor({"shortest_edge": 8}), tokenizer(), ["cat", "dog", "bird"], max_length=6
    ),
    sample=lambda: {"images": image(), "text": "cats"},
)
METER_RETRIEVAL = dataclasses.replace(
    METER_QUESTIONS,
    model_class=MeterWithLLMBlockForImageTextRetrieval,
    finish=lambda model, hidden_states: model.match_head(fused(model, hidden_states)),
    refused=[
        *METER_QUESTIONS.refused[:-1],
        (
            {**pairs(2), "labels": ones(3)},
            [r"labels has the shape \(3,\)", r"\(groups, pairs\)"],
        ),
    ],
    targets=groups,
    output="match_logits",
    head=("match_head", "rank_head"),
    invariant={"rank_head.bias"},  # the scores of a group are compared
    auto_class=None,
)
METER_EMBEDDINGS = dataclasses.replace(
    METER_RETRIEVAL,
    fields={**METER_RETRIEVAL.fields, "contrastive_loss_weight": 0.5, "projection_dim": 8},
    head=(*METER_RETRIEVAL.head, "image_projection", "text_projection", "logit_scale"),
)
