# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of the paper's released code (github.com/ziqipang/LM4VisualEncoding) as models of this package."""

import math
import pickle
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_frozen_llm.modeling.configuration_llm_block import LLMBlockConfig
from hf_frozen_llm.modeling.configuration_point_bert_with_llm_block import PointBertWithLLMBlockConfig
from hf_frozen_llm.modeling.configuration_videomae_with_llm_block import VideoMAEWithLLMBlockConfig
from hf_frozen_llm.modeling.configuration_vit_with_llm_block import ViTWithLLMBlockConfig
from hf_frozen_llm.modeling.meta_checkpoint import META_LAYER
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks import TASKS, find_task


StateDict = dict[str, torch.Tensor]

# What the checkpoints are nested in: DeiT, VideoMAE and Point-BERT each have their own.
_NESTED_IN = ("model", "module", "base_model", "state_dict")
# Where pre-trained checkpoints have the host, and what of it is not in the classifier.
_PRETRAINED = {
    "transformer_q.": ("transformer_q.cls_head", "transformer_q.mask_token"),
    "encoder.": ("encoder.norm.",),
}
_BLOCK = {
    "llama_dim_mapper1": "llm_block.input_projection",
    "llama_dim_mapper2": "llm_block.output_projection",
    "llama.norm": "llm_block.final_norm",
}
# Of one layer of the host; `attn.qkv` is split.
_VIT_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_POINT_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_IMAGE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
_VIDEO = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "norm": "videomae.layernorm",
    "fc_norm": "fc_norm",
    "head": "classifier",
}
_POINTS = {
    "cls_token": "point_bert.embeddings.cls_token",
    "cls_pos": "point_bert.embeddings.cls_position",
    "encoder.first_conv.0": "point_bert.embeddings.group_encoder.conv1",
    "encoder.first_conv.1": "point_bert.embeddings.group_encoder.norm1",
    "encoder.first_conv.3": "point_bert.embeddings.group_encoder.conv2",
    "encoder.second_conv.0": "point_bert.embeddings.group_encoder.conv3",
    "encoder.second_conv.1": "point_bert.embeddings.group_encoder.norm2",
    "encoder.second_conv.3": "point_bert.embeddings.group_encoder.conv4",
    "reduce_dim": "point_bert.embeddings.projection",
    "pos_embed.0": "point_bert.embeddings.position_embeddings.fc1",
    "pos_embed.2": "point_bert.embeddings.position_embeddings.fc2",
    "norm": "point_bert.layernorm",
    "cls_head_finetune.0": "classifier.dense",
    "cls_head_finetune.3": "classifier.out_proj",
}


@dataclass
class ConvertedCheckpoint:
    """
    What a released checkpoint becomes.

    Args:
        config (`PreTrainedConfig`): of the model.
        tensors (`dict[str, torch.Tensor]`): of the model, by its published names.
        sources (`dict[str, str]`): for each of these, the name that the released code has for it.
        left_out (`dict[str, str]`): tensors that the model has no use for, and why.
    """

    config: Any
    tensors: StateDict = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """A line for every tensor of the released checkpoint."""
        lines = [f"{self.sources[n]} -> {n} {tuple(t.shape)}" for n, t in self.tensors.items()]
        return "\n".join(lines + [f"{name}: left out, {why}" for name, why in self.left_out.items()])


def convert_released_checkpoint(
    checkpoint: str | Path | StateDict, task: str, use_ema: bool = False, **config: Any
) -> PreTrainedModelWithLLMBlock:
    """
    An ordinary model of this package out of a checkpoint of the released code.

    Args:
        checkpoint (`str`, `Path` or `dict`):
            The `.pth` file, or its state dictionary. No code in it is executed.
        task (`str`):
            `"image-classification"`, `"video-classification"` or `"point-cloud-classification"`.
        use_ema (`bool`, *optional*, defaults to `False`):
            Whether to take the averaged weights (`model_ema`).
        config:
            What tensors do not show. `num_attention_heads` of the host; `llm_num_attention_heads` if there is an LLM
            layer; for videos `num_frames` and `image_size`; for clouds of points `num_groups` and `group_size`. Other
            fields of the model's configuration may be given, `layer_index` (by default the released code's: 15 for
            videos, else 31), `llm_name_or_path` and `llm_rms_norm_eps` (1e-6).

    Returns:
        `PreTrainedModelWithLLMBlock`: in evaluation mode, self-contained when saved.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it cannot be read, is of another task, lacks tensors, has others than those of the model, or
            if something has to be given.
    """
    return _build(read_released_checkpoint(checkpoint, task, use_ema, **config))


def convert_to_folder(
    checkpoint: str | Path | StateDict, task: str, output: str | Path, use_ema: bool = False, **config: Any
) -> str:
    """
    As [`convert_released_checkpoint`]; saves the model in `output`, where nothing is written should that fail.

    Returns:
        `str`: a line for every tensor of the checkpoint.

    Raises:
        `FileExistsError`: if `output` is no empty or new folder.
    """
    if Path(output).exists() and (not Path(output).is_dir() or any(Path(output).iterdir())):
        raise FileExistsError(f"{output} exists already; convert into a new or empty folder.")
    converted = read_released_checkpoint(checkpoint, task, use_ema, **config)
    _build(converted).save_pretrained(output)
    return converted.describe()


def _build(converted: ConvertedCheckpoint) -> PreTrainedModelWithLLMBlock:
    model_type = converted.config.model_type
    model_class: Any = find_task(model_type).models[model_type]
    with tempfile.TemporaryDirectory() as folder:
        converted.config.architectures = [model_class.__name__]
        converted.config.save_pretrained(folder)
        tensors = {name: tensor.contiguous().clone() for name, tensor in converted.tensors.items()}
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    model.config._name_or_path = ""
    is_pretrained_alone = not any(name.startswith("classifier.") for name in converted.tensors)
    new = ("classifier.", "fc_norm.") if is_pretrained_alone else ()
    missing = {name for name in info["missing_keys"] if not name.startswith(new)}
    if problems := sorted({*missing, *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise ValueError(
            f"The checkpoint lacks tensors that the model needs, or has others: {problems}. It is incomplete, or of a "
            "changed model."
        )
    return model


def read_released_checkpoint(
    checkpoint: str | Path | StateDict, task: str, use_ema: bool = False, **config: Any
) -> ConvertedCheckpoint:
    """As [`convert_released_checkpoint`], without building the model: what becomes of every tensor."""
    state, left_out = _unwrap(_load(checkpoint), use_ema)
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; it must be one of {tuple(TASKS)}.")
    found = _find_task(state)
    if found != task:
        raise ValueError(f"The checkpoint is of {found}, not of {task}. Convert it with task={found!r}.")
    names, layer_names, prefix = {
        "image-classification": (_IMAGE, _VIT_LAYER, "vit.encoder.layer"),
        "video-classification": (_VIDEO, _VIT_LAYER, "videomae.encoder.layer"),
        "point-cloud-classification": (_POINTS, _POINT_LAYER, "point_bert.layers"),
    }[task]
    converted = ConvertedCheckpoint(config=None, left_out=left_out)
    for name, tensor in state.items():
        targets = _rename(name, tensor, names, layer_names, prefix)
        for target, part in targets.items():
            converted.tensors[target], converted.sources[target] = part, name
        if not targets:
            left_out[name] = "unknown"
    if unknown := sorted(name for name, why in left_out.items() if why == "unknown"):
        raise ValueError(
            f"The checkpoint holds tensors that the released {task} model does not have: {unknown[:5]}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}. Nothing has been converted."
        )
    norm = state.get("llama.norm.weight")
    if norm is not None and not torch.equal(norm, torch.ones_like(norm)):
        raise ValueError("llama.norm.weight is not 1: the released code neither loads nor trains this norm.")
    make_config = {
        "image-classification": _image_config,
        "video-classification": _video_config,
        "point-cloud-classification": _points_config,
    }[task]
    converted.config = make_config(state, _Given(config, task))
    return converted


def _load(checkpoint: str | Path | StateDict) -> dict[str, Any]:
    if isinstance(checkpoint, dict):
        return checkpoint
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"{checkpoint}: there is no such file.")
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{checkpoint} cannot be read ({error}). It is damaged, or holds objects besides tensors, whose code is "
            "not executed: save its state dictionary alone, by torch.save(model.state_dict(), …)."
        ) from error


def _unwrap(loaded: dict[str, Any], use_ema: bool) -> tuple[StateDict, dict[str, str]]:
    if use_ema:
        if "model_ema" not in loaded:
            raise ValueError(f"There are no averaged weights: no model_ema among {sorted(loaded)}. Use use_ema=False.")
        loaded = loaded["model_ema"]
    while (name := next((n for n in _NESTED_IN if isinstance(loaded.get(n), dict)), None)) is not None:
        loaded = loaded[name]
    tensors = {n.removeprefix("module."): t for n, t in loaded.items() if isinstance(t, torch.Tensor)}
    if not tensors or len(tensors) < len(loaded):
        raise ValueError(f"This is no checkpoint of a model; it holds {sorted(map(str, loaded))[:5]} …")
    # A pre-trained Point-BERT lies beside its teacher and tokenizer, a pre-trained VideoMAE beside its decoder.
    for prefix, of_pretraining in _PRETRAINED.items():
        if any(name.startswith(f"{prefix}blocks.") for name in tensors):
            kept = [n for n in tensors if n.startswith(prefix) and not n.startswith(of_pretraining)]
            why = "of the pre-training alone"
            return {n.removeprefix(prefix): tensors[n] for n in kept}, {n: why for n in tensors if n not in kept}
    return tensors, {}


def _find_task(state: StateDict) -> str:
    if "encoder.first_conv.0.weight" in state:
        return "point-cloud-classification"
    weight = state.get("patch_embed.proj.weight")
    if weight is None or weight.ndim not in (4, 5):
        raise ValueError(
            "The checkpoint is of none of the released models: it has neither encoder.first_conv.0.weight nor "
            f"patch_embed.proj.weight. It begins with {list(state)[:3]}."
        )
    return "image-classification" if weight.ndim == 4 else "video-classification"


def _rename(
    name: str, tensor: torch.Tensor, names: dict[str, str], layer_names: dict[str, str], prefix: str
) -> dict[str, torch.Tensor]:
    """The tensors of the model that one of the checkpoint becomes; none if it is unknown."""
    path, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"llama\.layers\.(\d+)\.(.+)", path):
        part = META_LAYER.get(match[2])
        return {} if part is None else {f"llm_block.llm_layers.{match[1]}.{part}.{kind}": tensor}
    if match := re.fullmatch(r"(?:blocks\.)?blocks\.(\d+)\.(.+)", path):
        layer, part = f"{prefix}.{match[1]}", match[2]
        if part in layer_names:
            return {f"{layer}.{layer_names[part]}.{kind}": tensor}
        query, key, value = (f"{layer}.attention.attention.{name}" for name in ("query", "key", "value"))
        if prefix.startswith("point_bert"):
            query, key, value = (f"{layer}.attention.{name}_proj" for name in ("q", "k", "v"))
        if part == "attn.qkv":
            return {f"{name}.{kind}": of_one for name, of_one in zip((query, key, value), tensor.chunk(3))}
        if part == "attn" and kind in ("q_bias", "v_bias"):
            return {f"{query if kind == 'q_bias' else value}.bias": tensor}
        return {}
    for old, new in {**names, **_BLOCK}.items():
        if name == old:
            return {new: tensor}
        if path == old:
            return {f"{new}.{kind}": tensor}
    return {}


class _Given:
    """The configuration's fields that the caller gave; `ask` names those that are needed."""

    def __init__(self, fields: dict[str, Any], task: str):
        self.fields, self.task = dict(fields), task

    def ask(self, name: str, released: str) -> Any:
        if self.fields.get(name) is None:
            raise ValueError(
                f"The tensors of a {self.task} model do not show {name}: give it ({released} in the released models)."
            )
        return self.fields.pop(name)

    def check(self, name: str, shown: Any) -> Any:
        given = self.fields.pop(name, None)
        if given not in (None, shown):
            raise ValueError(f"{name} is given as {given}, but the checkpoint's tensors show {shown}.")
        return shown


def _num_layers(state: StateDict, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def _llm_block(state: StateDict, given: _Given, layer_index: int) -> LLMBlockConfig | None:
    llm_fields = {n: given.fields.pop(n, None) for n in ("layer_index", "llm_name_or_path", "llm_rms_norm_eps")}
    taken = _num_layers(state, r"llama\.layers\.(\d+)\.")
    if taken == 0:
        return None
    last = layer_index if llm_fields["layer_index"] is None else llm_fields["layer_index"]
    if last + 1 < taken:
        raise ValueError(f"The checkpoint holds {taken} LLM layers; layer_index, the last, is at least {taken - 1}.")
    inner, width = state["llama.layers.0.feed_forward.w1.weight"].shape
    eps = llm_fields["llm_rms_norm_eps"]
    return LLMBlockConfig(
        llm_name_or_path=llm_fields["llm_name_or_path"],
        layer_index=last if taken == 1 else list(range(last + 1 - taken, last + 1)),
        llm_config={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": max(32, last + 1),
            "num_attention_heads": given.ask("llm_num_attention_heads", "32"),
            "rms_norm_eps": 1e-6 if eps is None else eps,
        },
    )


def _image_config(state: StateDict, given: _Given) -> ViTWithLLMBlockConfig:
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    llm_block = _llm_block(state, given, layer_index=31)
    return ViTWithLLMBlockConfig(
        hidden_size=given.check("hidden_size", width),
        num_channels=given.check("num_channels", channels),
        patch_size=given.check("patch_size", patch_size),
        image_size=given.check("image_size", side * patch_size),
        num_hidden_layers=given.check("num_hidden_layers", _num_layers(state, r"blocks\.(\d+)\.")),
        intermediate_size=given.check("intermediate_size", len(state["blocks.0.mlp.fc1.weight"])),
        qkv_bias=given.check("qkv_bias", "blocks.0.attn.qkv.bias" in state),
        **{"num_labels": given.check("num_labels", len(state["head.weight"]))},
        num_attention_heads=given.ask("num_attention_heads", "3, 6 and 12 of ViT-T, -S and -B"),
        layer_norm_eps=given.fields.pop("layer_norm_eps", 1e-6),
        llm_block=llm_block,
        **given.fields,
    )


def _video_config(state: StateDict, given: _Given) -> VideoMAEWithLLMBlockConfig:
    width, channels, tubelet_size, patch_size, _ = state["patch_embed.proj.weight"].shape
    llm_block = _llm_block(state, given, layer_index=15)
    is_pretrained = "head.weight" not in state
    if not is_pretrained:
        given.fields["num_labels"] = given.check("num_labels", len(state["head.weight"]))
    return VideoMAEWithLLMBlockConfig(
        hidden_size=given.check("hidden_size", width),
        num_channels=given.check("num_channels", channels),
        tubelet_size=given.check("tubelet_size", tubelet_size),
        patch_size=given.check("patch_size", patch_size),
        num_hidden_layers=given.check("num_hidden_layers", _num_layers(state, r"blocks\.(\d+)\.")),
        intermediate_size=given.check("intermediate_size", len(state["blocks.0.mlp.fc1.weight"])),
        use_mean_pooling=given.check("use_mean_pooling", is_pretrained or "fc_norm.weight" in state),
        num_frames=given.ask("num_frames", "16"),
        image_size=given.ask("image_size", "224"),
        num_attention_heads=given.ask("num_attention_heads", "6 and 12 of ViT-S and -B"),
        layer_norm_eps=given.fields.pop("layer_norm_eps", 1e-6),
        fc_norm_eps=given.fields.pop("fc_norm_eps", 1e-6),
        llm_block=llm_block,
        **given.fields,
    )


def _points_config(state: StateDict, given: _Given) -> PointBertWithLLMBlockConfig:
    width, encoder_width = state["reduce_dim.weight"].shape
    llm_block = _llm_block(state, given, layer_index=31)
    head = state.get("cls_head_finetune.3.weight")
    if head is not None:
        given.check("num_labels", len(head))
        given.check("classifier_hidden_size", head.shape[1])
        given.fields.update(num_labels=len(head), classifier_hidden_size=head.shape[1])
    return PointBertWithLLMBlockConfig(
        hidden_size=given.check("hidden_size", width),
        encoder_hidden_size=given.check("encoder_hidden_size", encoder_width),
        encoder_channels=[
            len(state["encoder.first_conv.0.weight"]),
            len(state["encoder.first_conv.3.weight"]),
            len(state["encoder.second_conv.0.weight"]),
        ],
        position_hidden_size=given.check("position_hidden_size", len(state["pos_embed.0.weight"])),
        num_hidden_layers=given.check("num_hidden_layers", _num_layers(state, r"(?:blocks\.)?blocks\.(\d+)\.")),
        intermediate_size=given.check("intermediate_size", len(state["blocks.blocks.0.mlp.fc1.weight"])),
        qkv_bias=given.check("qkv_bias", "blocks.blocks.0.attn.qkv.bias" in state),
        num_groups=given.ask("num_groups", "64"),
        group_size=given.ask("group_size", "32"),
        num_attention_heads=given.ask("num_attention_heads", "6"),
        llm_block=llm_block,
        **given.fields,
    )
