# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The published Forecast-MAE (github.com/jchengai/forecast-mae), trained from scratch, fine-tuned or pre-trained."""

from typing import Any

from hf_frozen_llm.conversion.checkpoint import Architecture, GivenFields, StateDict, count_layers
from hf_frozen_llm.modeling.configuration_forecast_mae_with_llm_block import ForecastMAEWithLLMBlockConfig
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


NEW, LAYERS, LEVELS = "forecast_mae", "net.blocks", "net.hist_embed.levels"
HISTORY = f"{NEW}.history_encoder"


def name_level(level: int) -> dict[str, str]:
    """Return the names of the tensors of a level of the history encoder."""
    old, new = f"{LEVELS}.{level}.blocks.*", f"{HISTORY}.levels.{level}.*"
    attention = {"attn.qkv": "qkv", "attn.proj": "o_proj", "attn.rpb": "relative_bias"}
    return {f"{old}.{part}": f"{new}.{part}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")} | {
        f"{old}.{released}": f"{new}.attention.{ours}" for released, ours in attention.items()
    }


NAMES: dict[str, str | tuple[str, ...]] = {
    "net.hist_embed.embed.proj": f"{HISTORY}.embedding",
    "net.hist_embed.fpn_conv": f"{HISTORY}.output_conv",
    "net.hist_embed.lateral_convs.*": f"{HISTORY}.lateral_convs.*",
    **{name: ours for level in range(3) for name, ours in name_level(level).items()},
    "net.hist_embed.norm*": f"{HISTORY}.norms.*",
    f"{LEVELS}.*.downsample.reduction": f"{HISTORY}.downsampling.*.conv",
    f"{LEVELS}.*.downsample.norm": f"{HISTORY}.downsampling.*.norm",
    "net.lane_embed.first_conv.0": f"{NEW}.lane_encoder.conv1",
    "net.lane_embed.first_conv.1": f"{NEW}.lane_encoder.norm1",
    "net.lane_embed.first_conv.3": f"{NEW}.lane_encoder.conv2",
    "net.lane_embed.second_conv.0": f"{NEW}.lane_encoder.conv3",
    "net.lane_embed.second_conv.1": f"{NEW}.lane_encoder.norm2",
    "net.lane_embed.second_conv.3": f"{NEW}.lane_encoder.conv4",
    "net.pos_embed.0": f"{NEW}.pose_fc1",
    "net.pos_embed.2": f"{NEW}.pose_fc2",
    "net.actor_type_embed": f"{NEW}.agent_type_embeddings",
    "net.lane_type_embed": f"{NEW}.lane_embedding",
    **{f"{LAYERS}.*.{part}": f"{NEW}.layers.*.{part}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    **{
        f"{LAYERS}.*.attn.in_proj_{part}": tuple(f"{NEW}.layers.*.attention.{each}_proj.{part}" for each in "qkv")
        for part in ("weight", "bias")
    },
    f"{LAYERS}.*.attn.out_proj": f"{NEW}.layers.*.attention.o_proj",
    "net.norm": f"{NEW}.layernorm",
    "net.decoder.multimodal_proj": "decoder.mode_projection",
    **{f"net.decoder.loc.{2 * i}": f"decoder.trajectory_fc{i + 1}" for i in range(3)},
    **{f"net.decoder.pi.{2 * i}": f"decoder.score_fc{i + 1}" for i in range(3)},
}

LEFT_OUT = {
    "net.dense_predictor.": "used in training only, for the futures of the other agents",
    **{
        f"net.{name}": "used in pre-training only"
        for name in (
            "future_embed.",
            "decoder_",
            "lane_mask_token",
            "future_mask_token",
            "history_mask_token",
            "future_pred.",
            "history_pred.",
            "lane_pred.",
        )
    },
}


def find_left_out(
    state: StateDict, model_class: type[PreTrainedModelWithLLMBlock], fields: dict[str, Any]
) -> dict[str, str]:
    """Return the tensors that the model does not use, each with the reason."""
    return {name: why for name in state for prefix, why in LEFT_OUT.items() if name.startswith(prefix)}


def make_config(state: StateDict, given: GivenFields) -> ForecastMAEWithLLMBlockConfig:
    num_types, width = state["net.actor_type_embed"].shape
    biases = [state[f"{LEVELS}.{level}.blocks.0.attn.rpb"].shape for level in range(count_layers(state, LEVELS))]
    lane_width, num_lane_features, _ = state["net.lane_embed.first_conv.0.weight"].shape
    shown = {
        "num_history_features": state["net.hist_embed.embed.proj.weight"].shape[1],
        "num_lane_features": num_lane_features,
        "num_agent_types": num_types,
        "hidden_size": width,
        "num_hidden_layers": count_layers(state, LAYERS),
        "intermediate_size": len(state[f"{LAYERS}.0.mlp.fc1.weight"]),
        "num_history_layers": count_layers(state, f"{LEVELS}.0.blocks"),
        "history_attention_heads": [heads for heads, _ in biases],
        "history_kernel_sizes": [(size + 1) // 2 for _, size in biases],
        "lane_hidden_size": lane_width,
    }
    # A pre-trained one has no head.
    if "net.decoder.multimodal_proj.weight" in state:
        shown |= {
            "num_modes": len(state["net.decoder.multimodal_proj.weight"]) // width,
            "num_future_steps": len(state["net.decoder.loc.4.weight"]) // 2,
            "decoder_hidden_size": len(state["net.decoder.loc.0.weight"]),
        }
    return ForecastMAEWithLLMBlockConfig(
        num_attention_heads=given.require("num_attention_heads", "8"),
        **{name: given.confirm(name, value) for name, value in shown.items()},
        **given.fields,
    )


FORECAST_MAE = Architecture(
    name="Forecast-MAE",
    model_type="forecast_mae_with_llm_block",
    key_tensor=("net.actor_type_embed", 2),
    names=NAMES,
    make_config=make_config,
    head=("decoder.", "llm_block."),
    find_left_out=find_left_out,
)
