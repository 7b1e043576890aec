# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The released mmTransformer (github.com/decisionforce/mmTransformer, `demo.pt`)."""

from typing import Any

from hf_frozen_llm.conversion.checkpoint import Architecture, GivenFields, StateDict, count_layers
from hf_frozen_llm.modeling.configuration_mmtransformer_with_llm_block import MMTransformerWithLLMBlockConfig
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


OLD, NEW, HEAD = "stacked_transformer", "mmtransformer", "stacked_transformer.prediction_header"
EXTRACTOR = f"{NEW}.motion_extractor"


def name_layers(old: str, new: str, attentions: dict[str, str]) -> dict[str, str]:
    """Return the names of the tensors of a stack of layers; `attentions` are the names of its attentions."""
    names = {f"{old}.feed_forward.w_{i}": f"{new}.mlp.fc{i}" for i in (1, 2)}
    for released, ours in attentions.items():
        names |= {f"{old}.{released}.linears.{i}": f"{new}.{ours}.{part}_proj" for i, part in enumerate("qkvo")}
    # One norm for each attention, and one for the feed-forward layers.
    return names | {f"{old}.sublayer.{i}.norm": f"{new}.norm{i + 1}" for i in range(len(attentions) + 1)}


def name_encoder(old: str, new: str) -> dict[str, str]:
    return name_layers(f"{old}.layers.*", f"{new}.layers.*", {"self_attn": "attention"}) | {
        f"{old}.norm": f"{new}.norm"
    }


def name_decoder(old: str, new: str) -> dict[str, str]:
    attentions = {"self_attn": "self_attention", "src_attn": "cross_attention"}
    return name_layers(f"{old}.layers.*", f"{new}.layers.*", attentions) | {f"{old}.norm": f"{new}.norm"}


def name_fusion(old: str, new: str) -> dict[str, str]:
    return {f"{old}.{i}": f"{new}.{part}" for i, part in ((0, "fc1"), (1, "norm"), (3, "fc2"))}


NAMES: dict[str, str | tuple[str, ...]] = {
    "subgraph.layer_seq.lmlp_*.mlp.0": f"{NEW}.lane_embeddings.subgraph.layers.*.linear",
    "subgraph.layer_seq.lmlp_*.mlp.1": f"{NEW}.lane_embeddings.subgraph.layers.*.norm",
    f"{OLD}.lane_emb.lut": f"{NEW}.lane_embeddings.projection",
    f"{OLD}.hist_tf.src_embed.0.lut": f"{EXTRACTOR}.embedding",
    f"{OLD}.query_embed.weight": f"{EXTRACTOR}.queries",
    **name_encoder(f"{OLD}.hist_tf.encoder", f"{EXTRACTOR}.encoder"),
    **name_decoder(f"{OLD}.hist_tf.decoder", f"{EXTRACTOR}.decoder"),
    f"{OLD}.pos_emb.0": f"{NEW}.position_fc1",
    f"{OLD}.pos_emb.1": f"{NEW}.position_norm",
    f"{OLD}.pos_emb.3": f"{NEW}.position_fc2",
    **name_fusion(f"{OLD}.fusion1", f"{NEW}.proposal_fusion"),
    **name_encoder(f"{OLD}.lane_enc", f"{NEW}.lane_encoder"),
    **name_decoder(f"{OLD}.lane_dec", f"{NEW}.lane_decoder"),
    **name_fusion(f"{OLD}.dist_emb", f"{NEW}.agent_summary"),
    **name_fusion(f"{OLD}.fusion2", f"{NEW}.agent_fusion"),
    **name_layers(f"{OLD}.social_enc.layers.*", f"{NEW}.social_layers.*", {"self_attn": "attention"}),
    f"{OLD}.social_enc.norm": f"{NEW}.social_norm",
    **name_decoder(f"{OLD}.social_dec", "decoder.social_decoder"),
    f"{HEAD}.reg_mlp.0": "decoder.trajectory_fc1",
    f"{HEAD}.reg_mlp.1": "decoder.trajectory_norm",
    f"{HEAD}.reg_mlp.3": "decoder.trajectory_fc2",
    f"{HEAD}.reg_mlp.4": "decoder.trajectory_fc3",
    f"{HEAD}.cls_FFN.w_1": "decoder.score_mlp.fc1",
    f"{HEAD}.cls_FFN.w_2": "decoder.score_mlp.fc2",
    f"{HEAD}.classification_layer.0": "decoder.score_fc1",
    f"{HEAD}.classification_layer.1": "decoder.score_fc2",
}


def find_left_out(
    state: StateDict, model_class: type[PreTrainedModelWithLLMBlock], fields: dict[str, Any]
) -> dict[str, str]:
    """Return the tensors that the model does not use, each with the reason."""
    unused = {
        f"{OLD}.hist_tf.src_embed.1.pe": "a constant, which the model computes",
        f"{HEAD}.dis_emb.": "not used by the released code",
    }
    if not fields.get("num_social_decoder_layers"):
        unused[f"{OLD}.social_dec."] = "not used by the released code; num_social_decoder_layers turns it on"
    return {name: why for name in state for prefix, why in unused.items() if name.startswith(prefix)}


def make_config(state: StateDict, given: GivenFields) -> MMTransformerWithLLMBlockConfig:
    num_proposals, width = state[f"{OLD}.query_embed.weight"].shape
    lane_width, num_lane_features = state["subgraph.layer_seq.lmlp_0.mlp.0.weight"].shape
    has_social_decoder = bool(given.fields.get("num_social_decoder_layers"))
    num_social_decoder_layers = count_layers(state, f"{OLD}.social_dec.layers") if has_social_decoder else 0
    lane_layers = [name for name in state if name.startswith("subgraph.layer_seq.") and name.endswith(".mlp.0.weight")]
    return MMTransformerWithLLMBlockConfig(
        num_history_features=given.confirm(
            "num_history_features", state[f"{OLD}.hist_tf.src_embed.0.lut.weight"].shape[1]
        ),
        num_lane_attributes=given.confirm("num_lane_attributes", num_lane_features - 4),
        num_future_steps=given.confirm("num_future_steps", len(state[f"{HEAD}.reg_mlp.4.weight"]) // 2),
        num_proposals=given.confirm("num_proposals", num_proposals),
        hidden_size=given.confirm("hidden_size", width),
        num_hidden_layers=given.confirm("num_hidden_layers", count_layers(state, f"{OLD}.social_enc.layers")),
        intermediate_size=given.confirm(
            "intermediate_size", len(state[f"{OLD}.social_enc.layers.0.feed_forward.w_1.weight"])
        ),
        position_hidden_size=given.confirm("position_hidden_size", len(state[f"{OLD}.pos_emb.0.weight"])),
        lane_hidden_size=given.confirm("lane_hidden_size", lane_width),
        num_lane_layers=given.confirm("num_lane_layers", len(lane_layers)),
        decoder_hidden_size=given.confirm("decoder_hidden_size", len(state[f"{HEAD}.reg_mlp.3.weight"])),
        num_social_decoder_layers=given.confirm("num_social_decoder_layers", num_social_decoder_layers),
        num_attention_heads=given.require("num_attention_heads", "2"),
        **given.fields,
    )


MMTRANSFORMER = Architecture(
    name="mmTransformer",
    model_type="mmtransformer_with_llm_block",
    key_tensor=(f"{OLD}.query_embed.weight", 2),
    names=NAMES,
    make_config=make_config,
    head=("decoder.loss_scales", "llm_block."),
    find_left_out=find_left_out,
)
