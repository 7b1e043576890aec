# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The models of traffic scenes at tiny size."""

from typing import Any

import numpy as np
import torch
from model_case import Model, ModelCase, Tensors, padded, randn

from hf_frozen_llm import (
    ForecastMAEWithLLMBlockConfig,
    ForecastMAEWithLLMBlockForMotionForecasting,
    ForecastMAEWithLLMBlockModel,
    MMTransformerWithLLMBlockConfig,
    MMTransformerWithLLMBlockForMotionForecasting,
    MMTransformerWithLLMBlockModel,
    MotionProcessor,
    VectorNetWithLLMBlockConfig,
    VectorNetWithLLMBlockForMotionForecasting,
    VectorNetWithLLMBlockModel,
)


def scenes(batch: int) -> Tensors:
    """Three agents and four lanes, some of them padding."""
    return {
        "agent_history": randn(batch, 3, 5, 4),
        "agent_positions": randn(batch, 3, 2),
        "lanes": randn(batch, 4, 6, 5),
        "agent_mask": padded([3, 2], 3, batch),
        "lane_mask": padded([3, 4], 4, batch),
    }


def traffic(num_agents: int, num_lanes: int, num_steps: int = 6) -> dict[str, Any]:
    steps = np.arange(float(num_steps))
    return {
        "positions": np.stack([np.stack([steps + y, steps * y], axis=1) for y in range(num_agents)]),
        "timestamps": steps / 10,
        "target": 0,
        "lanes": [{"centerline": [[-5, y], [20, y + 2]], "is_intersection": y > 2} for y in range(num_lanes)],
    }


def futures(batch: int) -> Tensors:
    return {"labels": randn(batch, 6, 2).cumsum(dim=1)}


def finish_mmtransformer(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    """The head reads the target's proposals, too."""
    inputs = model.mmtransformer.complete_inputs(**scenes(2))
    _, proposals = model.mmtransformer.encode(*inputs)
    return model.decoder(hidden_states[:, 0], proposals[:, 0])[0].cumsum(dim=-2)


MMTRANSFORMER = ModelCase(
    config_class=MMTransformerWithLLMBlockConfig,
    base_class=MMTransformerWithLLMBlockModel,
    model_class=MMTransformerWithLLMBlockForMotionForecasting,
    fields={
        "num_future_steps": 6,
        "num_proposals": 3,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "position_hidden_size": 8,
        "lane_hidden_size": 6,
        "decoder_hidden_size": 16,
    },
    inputs=scenes,
    num_tokens=7,
    finish=finish_mmtransformer,
    refused=[
        ({"agent_history": torch.zeros(2, 3, 5, 4)}, ["agent_history and agent_positions"]),
        (
            {"agent_history": torch.zeros(2, 7, 4), "agent_positions": torch.zeros(2, 3, 2)},
            [r"\(2, 7, 4\); it must be \(batch, agents, steps, 4\)", "num_history_features"],
        ),
        (
            {"agent_history": torch.zeros(2, 3, 7, 5), "agent_positions": torch.zeros(2, 3, 2)},
            [r"\(2, 3, 7, 5\)", "num_history_features"],
        ),
        ({**scenes(2), "agent_positions": torch.zeros(2, 4, 2)}, [r"agent_positions .* must be \(2, 3, 2\)"]),
        ({**scenes(2), "lanes": torch.zeros(2, 4, 6, 4)}, [r"lanes has the shape \(2, 4, 6, 4\)", "attributes"]),
        ({**scenes(2), "lane_mask": torch.ones(2, 5)}, [r"lane_mask has the shape \(2, 5\); it must be \(2, 4\)"]),
        ({**scenes(2), "agent_mask": torch.ones(2, 4)}, [r"agent_mask has the shape \(2, 4\)"]),
        ({}, ["agent_history"]),
    ],
    targets=futures,
    output="trajectories",
    head=("decoder",),
    token_mask=lambda inputs: torch.cat([inputs["agent_mask"], inputs["lane_mask"]], dim=1),
    processor=lambda: MotionProcessor(num_history_steps=6, num_lane_points=6),
    sample=lambda: [traffic(3, 4)],
)


def polylines(batch: int) -> Tensors:
    """Four polylines of up to five vectors, some of them padding."""
    return {
        "polyline_vectors": randn(batch, 4, 5, 9),
        "vector_mask": padded([5, 3, 4, 5], 5, batch * 4).reshape(batch, 4, 5),
        "polyline_mask": padded([4, 3], 4, batch),
    }


VECTORNET = ModelCase(
    config_class=VectorNetWithLLMBlockConfig,
    base_class=VectorNetWithLLMBlockModel,
    model_class=VectorNetWithLLMBlockForMotionForecasting,
    fields={
        "num_future_steps": 6,
        "num_modes": 3,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "decoder_hidden_size": 64,
        "trajectory_loss": "huber",
    },
    inputs=polylines,
    num_tokens=4,
    finish=lambda model, hidden_states: model.decoder(hidden_states[:, 0])[0].cumsum(dim=-2),
    refused=[
        (
            {"polyline_vectors": torch.zeros(2, 4, 5, 6)},
            [r"\(2, 4, 5, 6\); it must be \(batch, polylines, vectors, 9\)", "num_vector_features"],
        ),
        ({"polyline_vectors": torch.zeros(4, 5, 9)}, [r"\(4, 5, 9\)"]),
        ({**polylines(2), "vector_mask": torch.ones(2, 4, 6)}, [r"vector_mask .* must be \(2, 4, 5\)"]),
        ({**polylines(2), "polyline_mask": torch.ones(2, 5)}, [r"polyline_mask .* must be \(2, 4\)"]),
        ({}, ["polyline_vectors"]),
    ],
    targets=futures,
    output="trajectories",
    head=("decoder",),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: [
        lambda nodes, layer=layer: layer(
            nodes,
            model.vectornet.embed(inputs["polyline_vectors"], inputs["vector_mask"].bool())[1],
            inputs["polyline_mask"].bool(),
        )[0]
        for layer in model.vectornet.layers
    ],
    token_mask=lambda inputs: inputs["polyline_mask"],
    processor=lambda: MotionProcessor(format="polylines", num_history_steps=6, num_lane_points=6),
    sample=lambda: [traffic(2, 2)],
)


def poses(batch: int) -> Tensors:
    """Three agents and four lanes, some of them padding."""
    return {
        "agent_history": randn(batch, 3, 9, 4),
        "agent_poses": randn(batch, 3, 4),
        "agent_types": torch.arange(3 * batch).reshape(batch, 3) % 4,
        "lanes": randn(batch, 4, 6, 3),
        "lane_poses": randn(batch, 4, 4),
        "agent_mask": padded([3, 2], 3, batch),
        "lane_mask": padded([3, 4], 4, batch),
    }


FORECAST_MAE = ModelCase(
    config_class=ForecastMAEWithLLMBlockConfig,
    base_class=ForecastMAEWithLLMBlockModel,
    model_class=ForecastMAEWithLLMBlockForMotionForecasting,
    fields={
        "num_agent_types": 5,  # upstream's tests draw integers below 5
        "num_future_steps": 6,
        "num_modes": 3,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_history_layers": 1,
        "history_attention_heads": [1, 2],
        "history_kernel_sizes": [3, 5],
        "lane_hidden_size": 8,
        "decoder_hidden_size": 16,
        "drop_path_rate": 0.0,
    },
    inputs=poses,
    num_tokens=7,
    finish=lambda model, hidden_states: model.decoder(model.forecast_mae.layernorm(hidden_states[:, 0]))[0],
    refused=[
        ({"agent_history": torch.zeros(2, 3, 9, 4)}, ["agent_history and agent_poses"]),
        (
            {"agent_history": torch.zeros(2, 9, 4), "agent_poses": torch.zeros(2, 3, 4)},
            [r"\(2, 9, 4\); it must be \(batch, agents, steps, 4\)", "num_history_features"],
        ),
        ({**poses(2), "agent_poses": torch.zeros(2, 3, 2)}, [r"agent_poses .* \(2, 3, 2\); it must be \(2, 3, 4\)"]),
        ({**poses(2), "agent_types": torch.zeros(2, 4)}, [r"agent_types .* must be \(2, 3\)"]),
        ({**poses(2), "lanes": torch.zeros(2, 4, 6, 5)}, [r"lanes has the shape \(2, 4, 6, 5\)", "num_lane_features"]),
        ({**poses(2), "lane_poses": None}, ["lane_poses with lanes"]),
        ({**poses(2), "lane_poses": torch.zeros(2, 5, 4)}, [r"lane_poses .* must be \(2, 4, 4\)"]),
        ({**poses(2), "lane_mask": torch.ones(2, 5)}, [r"lane_mask has the shape \(2, 5\); it must be \(2, 4\)"]),
        ({**poses(2), "agent_mask": torch.ones(2, 4)}, [r"agent_mask has the shape \(2, 4\)"]),
        ({}, ["agent_history"]),
    ],
    targets=futures,
    output="trajectories",
    head=("decoder",),
    invariant={"decoder.score_fc3.bias"},  # a constant in a softmax
    positions=(-1, 0, 1, 2),
    layers=lambda model, inputs: [
        lambda tokens, layer=layer: layer(
            tokens, torch.cat([inputs["agent_mask"], inputs["lane_mask"]], dim=1).bool()
        )[0]
        for layer in model.forecast_mae.layers
    ],
    token_mask=lambda inputs: torch.cat([inputs["agent_mask"], inputs["lane_mask"]], dim=1),
    processor=lambda: MotionProcessor(format="poses", num_history_steps=9, num_lane_points=6),
    sample=lambda: [traffic(3, 4, num_steps=9)],
)
