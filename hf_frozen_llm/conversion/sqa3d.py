# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The published SQA3D models with points (github.com/SilongYong/SQA3D, `ScanQA`), those without the scene included, and
ScanQA's own (github.com/ATR-DBI/ScanQA).
"""

import re
from typing import Any

from transformers.utils import logging

from hf_frozen_llm.conversion.checkpoint import Architecture, GivenFields, StateDict, count_layers
from hf_frozen_llm.modeling.configuration_sqa3d_with_llm_block import SCANNET_MEAN_SIZES, SQA3DWithLLMBlockConfig
from hf_frozen_llm.modeling.modeling_sqa3d_with_llm_block import SQA3DWithLLMBlockModel
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


logger = logging.get_logger(__name__)

BACKBONE, PROPOSAL = "detection_backbone", "proposal_net"
DETECTOR = "sqa3d.detector"


def name_points(old: str, new: str) -> dict[str, str]:
    """Return the names of the layers of a PointNet++ module."""
    return {f"{old}.layer*.conv": f"{new}.layers.*.conv", f"{old}.layer*.bn.bn": f"{new}.layers.*.norm"}


def name_layer(old: str, new: str, attentions: dict[str, str]) -> dict[str, str]:
    """Return the names of a layer of tokens; `attentions` are the names of its attentions."""
    names = {f"{old}.ffn.mlp.fc.linear": f"{new}.mlp.fc1", f"{old}.ffn.mlp.linear": f"{new}.mlp.fc2"}
    for released, ours in attentions.items():
        names |= {f"{old}.{released}.linear_{part}": f"{new}.{ours}.{part}_proj" for part in "qkv"}
        names[f"{old}.{released}.linear_merge"] = f"{new}.{ours}.o_proj"
    for index in range(1, len(attentions) + 2):
        names[f"{old}.norm{index}.a_2"] = f"{new}.norm{index}.weight"
        names[f"{old}.norm{index}.b_2"] = f"{new}.norm{index}.bias"
    return names


def name_pooler(old: str, new: str) -> dict[str, str]:
    parts = {"mlp.fc.linear": "mlp.fc1", "mlp.linear": "mlp.fc2", "linear_merge": "out_proj"}
    return {f"{old}.{released}": f"{new}.{ours}" for released, ours in parts.items()}


TEXT_ATTENTION = {"mhatt": "attention"}
FUSION_ATTENTIONS = {"mhatt1": "object_attention", "mhatt2": "text_attention"}
PROPOSAL_LAYERS = {0: "conv1", 1: "norm1", 3: "conv2", 4: "norm2", 6: "conv3"}
NAMES: dict[str, str | tuple[str, ...]] = {
    **{
        released: ours
        for level in range(4)
        for released, ours in name_points(f"{BACKBONE}.sa{level + 1}.mlp_module", f"{DETECTOR}.levels.{level}").items()
    },
    **name_points(f"{BACKBONE}.fp1.mlp", f"{DETECTOR}.propagation1"),
    **name_points(f"{BACKBONE}.fp2.mlp", f"{DETECTOR}.propagation2"),
    **{f"voting_net.conv{i}": f"{DETECTOR}.voting.conv{i}" for i in (1, 2, 3)},
    **{f"voting_net.bn{i}": f"{DETECTOR}.voting.norm{i}" for i in (1, 2)},
    **name_points(f"{PROPOSAL}.vote_aggregation.mlp_module", f"{DETECTOR}.vote_aggregation"),
    **{f"{PROPOSAL}.proposal.{i}": f"{DETECTOR}.proposal.{name}" for i, name in PROPOSAL_LAYERS.items()},
    "lang_net.lstm": "sqa3d.text_encoder.lstm",
    "lang_feat_linear.0": "sqa3d.text_projection",
    "object_feat_linear.0": "sqa3d.object_projection",
    **name_layer("enc_list_s.*", "sqa3d.situation_layers.*", TEXT_ATTENTION),
    **name_layer("enc_list_q.*", "sqa3d.question_layers.*", TEXT_ATTENTION),
    **name_layer("dec_list.*", "sqa3d.situation_fusion_layers.*", FUSION_ATTENTIONS),
    **name_layer("dec_list_2.*", "sqa3d.question_fusion_layers.*", FUSION_ATTENTIONS),
    **name_layer("fusion_backbone.enc_list.*", "sqa3d.question_layers.*", TEXT_ATTENTION),
    **name_layer("fusion_backbone.dec_list.*", "sqa3d.question_fusion_layers.*", FUSION_ATTENTIONS),
    **name_pooler("attflat_lang", "sqa3d.question_pooler"),
    "fusion_norm.a_2": "sqa3d.pooled_norm.weight",
    "fusion_norm.b_2": "sqa3d.pooled_norm.bias",
    **name_pooler("attflat_s", "sqa3d.situation_pooler"),
    **name_pooler("attflat_q", "sqa3d.question_pooler"),
    **name_pooler("attflat_visual", "sqa3d.object_pooler"),
    "answer_cls.0": "classifier.fc1",
    "answer_cls.3": "classifier.fc2",
    "aux_reg.0": "situation_head.fc1",
    "aux_reg.3": "situation_head.fc2",
}
# Heads of ScanQA, which find the object that a question is about, and its class; no answer depends on them.
SCANQA_HEADS = ("object_cls.", "lang_cls.")
UNUSED = ("s_feat_linear.", "q_feat_linear.", "object_cls.", "attflat_lstm_q.")
OF_SCENE: tuple[str, ...] = (
    f"{BACKBONE}.",
    "voting_net.",
    f"{PROPOSAL}.",
    "object_feat_linear.",
    "dec_list.",
    "dec_list_2.",
)
OF_SCENE += ("attflat_visual.",)
HEADS = ("answer_cls.", "aux_reg.")


def is_scanqa(state: StateDict) -> bool:
    """Return whether the model is ScanQA's own, which has no situation."""
    return "fusion_norm.a_2" in state


def uses_points(state: StateDict) -> bool:
    """Return whether the answers depend on the scene: a third pooled vector beside those of the texts."""
    return is_scanqa(state) or state["answer_cls.0.weight"].shape[1] == 3 * len(state["attflat_s.linear_merge.weight"])


def find_left_out(
    state: StateDict, model_class: type[PreTrainedModelWithLLMBlock], fields: dict[str, Any]
) -> dict[str, str]:
    """Return the tensors that the model does not use, each with the reason."""
    left_out = {name: "not used by the published model" for name in state if name.startswith(UNUSED)}
    if is_scanqa(state):
        left_out = {name: "a head that no answer depends on" for name in state if name.startswith(SCANQA_HEADS)}
    elif "answer_cls.0.weight" in state and "attflat_s.linear_merge.weight" in state and not uses_points(state):
        unused = (*OF_SCENE, "aux_reg.")
        left_out |= {name: "not used by a model without the scene" for name in state if name.startswith(unused)}
    if model_class is SQA3DWithLLMBlockModel:
        left_out |= {name: "a head" for name in state if name.startswith(HEADS)}
    return left_out


def read_detector(state: StateDict, given: GivenFields) -> dict[str, Any]:
    """Return the sizes of the detector, which its tensors show."""

    def widths(prefix: str) -> list[int]:
        pattern = re.compile(rf"{re.escape(prefix)}\.layer\d+\.conv\.weight")
        return [len(tensor) for name, tensor in sorted(state.items()) if pattern.fullmatch(name)]

    first = state[f"{BACKBONE}.sa1.mlp_module.layer0.conv.weight"]
    seed_width = state["voting_net.conv1.weight"].shape[1]
    num_outputs, proposal_size = state[f"{PROPOSAL}.proposal.6.weight"].shape[:2]
    # What the channels of the proposals are for: two of objectness, three of the centre, two of each heading bin, four
    # of each size class, one of each object class.
    num_heading_bins = given.fields.pop("num_heading_bins", None) or 1
    rest = num_outputs - 5 - 2 * num_heading_bins
    mean_sizes = given.fields.pop("mean_sizes", None)
    num_sizes = rest // 5 if mean_sizes is None else len(mean_sizes)
    if num_sizes < 1 or rest - 4 * num_sizes < 1:
        raise ValueError(
            f"A proposal has {num_outputs} outputs, which do not fit num_heading_bins={num_heading_bins} and "
            f"{num_sizes} mean_sizes: give those of the checkpoint."
        )
    if mean_sizes is None:
        mean_sizes = SCANNET_MEAN_SIZES
        if num_sizes != len(mean_sizes):
            logger.warning(
                f"The detector has {num_sizes} size classes, not ScanNet's {len(mean_sizes)}: give mean_sizes, on "
                "which the sizes of boxes and their loss depend. They are set to 1 metre."
            )
            mean_sizes = [[1.0, 1.0, 1.0]] * num_sizes
    vote_factor = len(state["voting_net.conv3.weight"]) // (3 + seed_width)
    return {
        "num_point_features": given.confirm("num_point_features", first.shape[1] - 3),
        "point_channels": [widths(f"{BACKBONE}.sa{level}.mlp_module") for level in range(1, 5)],
        "propagation_channels": [widths(f"{BACKBONE}.fp{index}.mlp") for index in (1, 2)],
        "vote_factor": given.confirm("vote_factor", vote_factor),
        "proposal_size": given.confirm("proposal_size", proposal_size),
        "num_heading_bins": num_heading_bins,
        "num_object_classes": given.confirm("num_object_classes", rest - 4 * num_sizes),
        "mean_sizes": [[float(side) for side in size] for size in mean_sizes],
    }


def make_config(state: StateDict, given: GivenFields) -> SQA3DWithLLMBlockConfig:
    given.fields["num_labels"] = given.confirm("num_labels", len(state["answer_cls.3.weight"]))
    has_points = given.confirm("use_points", uses_points(state))
    detector = read_detector(state, given) if has_points else {}
    hidden_size = state["lang_net.lstm.weight_hh_l0"].shape[1]
    lstm_layers = [name for name in state if re.fullmatch(r"lang_net\.lstm\.weight_ih_l\d+", name)]
    scanqa = is_scanqa(state)
    pooler = "attflat_lang" if scanqa else "attflat_s"
    layers = "fusion_backbone.enc_list" if scanqa else "enc_list_q"
    pooler_output_size, pooled_width = state[f"{pooler}.linear_merge.weight"].shape
    return SQA3DWithLLMBlockConfig(
        **detector,
        use_points=has_points,
        use_situation=given.confirm("use_situation", not scanqa),
        word_embedding_size=given.confirm("word_embedding_size", state["lang_net.lstm.weight_ih_l0"].shape[1]),
        num_lstm_layers=given.confirm("num_lstm_layers", len(lstm_layers)),
        bidirectional_lstm=given.confirm("bidirectional_lstm", "lang_net.lstm.weight_ih_l0_reverse" in state),
        hidden_size=given.confirm("hidden_size", hidden_size),
        num_hidden_layers=given.confirm("num_hidden_layers", (2 - scanqa) * count_layers(state, layers)),
        intermediate_size=given.confirm("intermediate_size", len(state[f"{layers}.0.ffn.mlp.fc.linear.weight"])),
        pooler_hidden_size=given.confirm("pooler_hidden_size", len(state[f"{pooler}.mlp.fc.linear.weight"])),
        num_glimpses=given.confirm("num_glimpses", pooled_width // hidden_size),
        pooler_output_size=given.confirm("pooler_output_size", pooler_output_size),
        predict_situation=given.confirm("predict_situation", has_points and "aux_reg.0.weight" in state),
        **given.fields,
    )


SQA3D = Architecture(
    name="SQA3D",
    model_type="sqa3d_with_llm_block",
    key_tensor=("lang_net.lstm.weight_ih_l0", 2),
    names=NAMES,
    make_config=make_config,
    head=("classifier.", "situation_head."),
    find_left_out=find_left_out,
)
