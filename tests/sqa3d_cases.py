# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The model of questions about 3D scenes at tiny size."""

from typing import Any

import torch
from model_case import Model, ModelCase, Tensors, ones, padded, randn

from hf_frozen_llm import (
    SQA3DWithLLMBlockConfig,
    SQA3DWithLLMBlockForQuestionAnswering,
    SQA3DWithLLMBlockModel,
)


def rooms(batch: int) -> Tensors:
    """Points, a situation and a question, and annotated objects; words and objects end with padding."""
    return {
        "points": randn(batch, 40, 5),
        "situation_embeds": randn(batch, 6, 7),
        "situation_mask": padded([6, 4], 6, batch),
        "question_embeds": randn(batch, 5, 7).flip(1),
        "question_mask": padded([3, 5], 5, batch),
        "object_centers": randn(batch, 16, 3) * padded([16, 12], 16, batch)[..., None],
        "object_mask": padded([16, 12], 16, batch),
    }


def answers(batch: int) -> Tensors:
    """Answers, poses, and the labels of the detector."""
    classes = torch.arange(16 * batch).view(batch, 16) % 4 * padded([16, 12], 16, batch).long()
    return {
        "labels": torch.eye(3)[torch.arange(batch) % 3],
        "situation_labels": randn(batch, 7),
        "object_classes": classes,
        "object_size_residuals": randn(batch, 16, 3) / 4,
        "vote_labels": randn(batch, 40, 3).repeat(1, 1, 3),
        "vote_mask": torch.arange(40 * batch).view(batch, 40) % 3 > 0,
    }


def texts_of(model: Model, batch: int) -> Any:
    inputs = rooms(batch)
    return model.sqa3d.encode_texts(
        *((inputs[f"{name}_embeds"], inputs[f"{name}_mask"], None) for name in ("situation", "question"))
    )


def finish_sqa3d(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    batch = len(hidden_states)
    mask = rooms(batch)["object_mask"].bool()
    return model.answer(model.sqa3d.pool(texts_of(model, batch), hidden_states, mask)[0])[0]


SQA3D = ModelCase(
    config_class=SQA3DWithLLMBlockConfig,
    base_class=SQA3DWithLLMBlockModel,
    model_class=SQA3DWithLLMBlockForQuestionAnswering,
    fields={
        "num_point_features": 2,
        "num_samples": [20, 12, 8, 6],
        "num_neighbors": [6, 5, 4, 4],
        "radii": [0.8, 1.2, 1.6, 2.0],
        "point_channels": [[8, 12], [12, 16], [16, 16], [16, 16]],
        "propagation_channels": [[16, 16], [16, 12]],
        "vote_radius": 1.0,
        "vote_num_neighbors": 4,
        "proposal_size": 10,
        "num_object_classes": 4,
        "mean_sizes": [[1.0, 0.5, 0.8], [0.4, 0.6, 1.0], [2.0, 1.5, 0.5], [0.5, 0.5, 0.5]],
        "object_tokens": "annotated",
        "word_embedding_size": 7,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pooler_hidden_size": 16,
        "pooler_output_size": 20,
        "num_labels": 3,
        "hidden_dropout_prob": 0.0,
        "word_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
        "answer_loss_weight": 1.0,
        "box_loss_weight": 0.1,
        "vote_loss_weight": 0.01,
    },
    inputs=rooms,
    num_tokens=16,
    finish=finish_sqa3d,
    refused=[
        (
            {**rooms(2), "points": torch.zeros(2, 40, 4)},
            [r"\(2, 40, 4\); it must be \(batch, points, 5\)", "features"],
        ),
        ({**rooms(2), "points": torch.zeros(40, 5)}, [r"points has the shape \(40, 5\)"]),
        ({**rooms(2), "points": torch.zeros(2, 0, 5)}, [r"points has the shape \(2, 0, 5\)"]),
        ({**rooms(2), "points": None}, ["You have to specify points"]),
        ({**rooms(2), "situation_embeds": None}, ["situation_embeds or situation_ids"]),
        ({**rooms(2), "question_ids": ones(2, 5)}, ["question_embeds or question_ids, and only one"]),
        ({**rooms(2), "question_embeds": None, "question_ids": ones(2, 5)}, ["question_ids .* set vocab_size"]),
        ({**rooms(2), "question_embeds": torch.zeros(2, 5, 8)}, [r"\(2, 5, 8\)", "word_embedding_size"]),
        ({**rooms(2), "question_mask": torch.ones(2, 6)}, [r"question_mask has the shape \(2, 6\).* \(2, 5\)"]),
        ({**rooms(2), "object_centers": None}, ["object_centers and object_mask", "annotated"]),
        ({**rooms(2), "object_mask": torch.ones(2, 3)}, [r"object_mask \(2, 3\)"]),
        ({**rooms(2), "labels": torch.ones(2, 4)}, [r"labels has the shape \(2, 4\)", r"\(2, 3\)"]),
        (
            {**rooms(2), "situation_labels": torch.ones(2, 6)},
            [r"situation_labels has the shape \(2, 6\)", r"\(2, 7\)"],
        ),
        ({**rooms(2), "vote_labels": torch.ones(2, 40, 9)}, ["need object_classes and object_size_residuals"]),
    ],
    targets=answers,
    head=("classifier", "situation_head"),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: model.sqa3d.fusion_layers(texts_of(model, 2), inputs["object_mask"].bool()),
    token_mask=lambda inputs: inputs["object_mask"],
)
