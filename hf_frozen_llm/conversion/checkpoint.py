# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The parts of a conversion that all architectures share: files, tensor names, the LLM block, building the model."""

import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_frozen_llm.conversion.foreign_objects import load_tensors
from hf_frozen_llm.modeling.checkpoint_files import UNPICKLING_ERRORS, load_pickle
from hf_frozen_llm.modeling.configuration_llm_block import LLMBlockConfig
from hf_frozen_llm.modeling.meta_checkpoint import META_LAYER
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock


StateDict = dict[str, torch.Tensor]

# The keys under which DeiT, VideoMAE and Point-BERT nest their state dictionaries.
NESTING_KEYS = ("model", "module", "base_model", "state_dict")
# The LLM block has the same names in every architecture.
LLM_BLOCK_NAMES = {
    "llama_dim_mapper1": "llm_block.input_projection",
    "llama_dim_mapper2": "llm_block.output_projection",
    "llama.norm": "llm_block.final_norm",
    **{f"llama.layers.*.{old}": f"llm_block.llm_layers.*.{new}" for old, new in META_LAYER.items()},
}


class GivenFields:
    """
    The configuration fields that the caller gives.

    Args:
        fields (`dict[str, Any]`): The fields; those that no method takes out go into the configuration as they are.
        architecture (`str`): The architecture's name in error messages.
    """

    def __init__(self, fields: dict[str, Any], architecture: str):
        self.fields, self.architecture = dict(fields), architecture

    def require(self, name: str, released: str) -> Any:
        """Take out a field that no tensor shows; `released` tells the caller its value in the released models."""
        if self.fields.get(name) is None:
            raise ValueError(
                f"The tensors of a released {self.architecture} do not show {name}: give it ({released} in the "
                "released models)."
            )
        return self.fields.pop(name)

    def confirm(self, name: str, shown: Any) -> Any:
        """Return the value that the tensors show; a given value must agree."""
        given = self.fields.pop(name, None)
        if given not in (None, shown):
            raise ValueError(f"{name} is given as {given}, but the checkpoint's tensors show {shown}.")
        return shown


@dataclass(frozen=True)
class Architecture:
    """
    How checkpoints of one released architecture are recognised and converted.

    Args:
        name (`str`):
            The name in error messages.
        model_type (`str`):
            The model type of the converted tensors.
        key_tensor (`tuple[str, int]`):
            The name and the number of dimensions of a tensor that only this architecture has.
        names (`dict[str, str | tuple[str, ...]]`):
            The released name of each module or parameter, and ours. `*` stands for a layer's number. A tensor with
            several new names is split into as many equal parts.
        make_config (`Callable[[StateDict, GivenFields], PreTrainedConfig]`):
            Reads the sizes from the tensors.
        head (`tuple[str, ...]`, *optional*, defaults to `("classifier.",)`):
            Prefixes of the modules that are newly initialised if the checkpoint has none of their tensors.
        pretraining_prefix (`str`, *optional*):
            The prefix of the host in checkpoints of its pre-training, which hold other modules too.
        pretraining_only (`tuple[str, ...]`, *optional*):
            Prefixes of tensors below `pretraining_prefix` that the classifier does not have.
        find_left_out (`Callable[[StateDict, type, dict[str, Any]], dict[str, str]]`, *optional*):
            Finds the tensors that a model class with the caller's fields does not use, with the reasons.
    """

    name: str
    model_type: str
    key_tensor: tuple[str, int]
    names: dict[str, str | tuple[str, ...]]
    make_config: Callable[[StateDict, GivenFields], Any]
    head: tuple[str, ...] = ("classifier.",)
    pretraining_prefix: str | None = None
    pretraining_only: tuple[str, ...] = ()
    find_left_out: Callable[[StateDict, type[PreTrainedModelWithLLMBlock], dict[str, Any]], dict[str, str]] = (
        lambda state, model_class, fields: {}
    )


@dataclass
class ConvertedCheckpoint:
    """
    The tensors and the configuration of the model converted from a released checkpoint.

    Args:
        architecture ([`Architecture`]): The checkpoint's architecture.
        model_class (`type[PreTrainedModelWithLLMBlock]`): The model's class.
        config (`PreTrainedConfig`): The model's configuration.
        tensors (`dict[str, torch.Tensor]`): The model's tensors by their published names.
        sources (`dict[str, str]`): The released name of each of these tensors.
        left_out (`dict[str, str]`): The tensors that the model does not use, and the reason.
    """

    architecture: Architecture
    model_class: type[PreTrainedModelWithLLMBlock]
    config: Any
    tensors: StateDict = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return a line for every tensor of the released checkpoint."""
        lines = [f"{self.sources[n]} -> {n} {tuple(t.shape)}" for n, t in self.tensors.items()]
        return "\n".join(lines + [f"{name}: left out, {why}" for name, why in self.left_out.items()])


def load_state_dict(checkpoint: str | Path | StateDict, use_ema: bool) -> StateDict:
    """Load a checkpoint without executing code in it, and unwrap its state dictionary."""
    loaded: Any = checkpoint if isinstance(checkpoint, dict) else _load_file(Path(checkpoint))
    if not isinstance(loaded, dict):
        raise ValueError(f"{checkpoint} holds a {type(loaded).__name__}, not the state dictionary of a model.")
    if use_ema:
        if "model_ema" not in loaded:
            raise ValueError(
                f"There are no averaged weights: no model_ema among {sorted(map(str, loaded))}. Use use_ema=False."
            )
        loaded = {"model": loaded["model_ema"]}
    while (key := next((key for key in NESTING_KEYS if isinstance(loaded.get(key), dict)), None)) is not None:
        loaded = loaded[key]
    tensors = {str(name).removeprefix("module."): t for name, t in loaded.items() if isinstance(t, torch.Tensor)}
    if not tensors or len(tensors) < len(loaded):
        raise ValueError(
            f"The checkpoint holds no state dictionary of a model; it holds {sorted(map(str, loaded))[:5]} …"
        )
    return tensors


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        try:
            return load_pickle(str(path))
        except pickle.UnpicklingError:
            if not zipfile.is_zipfile(path):
                raise
            return load_tensors(path)
    except UNPICKLING_ERRORS as error:
        raise ValueError(
            f"{path} cannot be read ({error}). It is damaged, or it holds objects other than tensors, whose code is "
            "not executed: save only its state dictionary with torch.save(model.state_dict(), …)."
        ) from error


def split_pretraining(state: StateDict, architecture: Architecture) -> tuple[StateDict, dict[str, str]]:
    """Separate the host from the other modules of its pre-training; return its tensors and the others' names."""
    prefix = architecture.pretraining_prefix
    if prefix is None or not any(name.startswith(f"{prefix}blocks.") for name in state):
        return state, {}
    kept = [n for n in state if n.startswith(prefix) and not n.startswith(architecture.pretraining_only)]
    left_out = {name: "used in pre-training only" for name in state if name not in kept}
    return {name.removeprefix(prefix): state[name] for name in kept}, left_out


def convert_state_dict(
    state: StateDict,
    left_out: dict[str, str],
    architecture: Architecture,
    model_class: type[PreTrainedModelWithLLMBlock],
    fields: dict[str, Any],
) -> ConvertedCheckpoint:
    """Rename every tensor and read the configuration; refuse unknown tensors."""
    left_out = left_out | architecture.find_left_out(state, model_class, fields)
    converted = ConvertedCheckpoint(architecture, model_class, config=None, left_out=left_out)
    unknown = []
    for name, tensor in state.items():
        if name in left_out:
            continue
        targets = rename(name, architecture.names)
        for target, part in zip(targets, tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]):
            converted.tensors[target], converted.sources[target] = part, name
        if not targets:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"The checkpoint holds tensors that a released {architecture.name} does not have: {sorted(unknown)[:5]}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}. Nothing has been converted."
        )
    norm = state.get("llama.norm.weight")
    if norm is not None and not torch.equal(norm, torch.ones_like(norm)):
        raise ValueError("llama.norm.weight is not 1: the released code neither loads nor trains this norm.")
    try:
        converted.config = architecture.make_config(state, GivenFields(fields, architecture.name))
    except KeyError as error:
        raise ValueError(
            f"The checkpoint lacks {error.args[0]}, whose shape gives a size of a released {architecture.name}. It is "
            "incomplete, or of a changed model."
        ) from error
    except (IndexError, TypeError) as error:
        raise ValueError(
            f"The tensors of the checkpoint do not have the shapes of a released {architecture.name} ({error})."
        ) from error
    return converted


def rename(name: str, names: dict[str, str | tuple[str, ...]]) -> list[str]:
    """Return our names of a released tensor; none if it is unknown."""
    for old, new in {**names, **LLM_BLOCK_NAMES}.items():
        pattern = re.escape(old).replace(r"\*", r"(?P<layer>\d+)")
        # The parameter's name follows the module's.
        if match := re.fullmatch(rf"{pattern}(?P<parameter>\.[^.]+)?", name):
            layer, parameter = match.groupdict().get("layer") or "", match["parameter"] or ""
            return [f"{each.replace('*', layer)}{parameter}" for each in ((new,) if isinstance(new, str) else new)]
    return []


def count_layers(state: StateDict, prefix: str) -> int:
    pattern = rf"{re.escape(prefix)}\.(\d+)\."
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def make_llm_block_config(state: StateDict, given: GivenFields, layer_index: int) -> LLMBlockConfig | None:
    """Return the configuration of the LLM block, None without LLM layers; `layer_index` is the released code's."""
    llm_fields = {n: given.fields.pop(n, None) for n in ("layer_index", "llm_name_or_path", "llm_rms_norm_eps")}
    num_layers = count_layers(state, "llama.layers")
    if num_layers == 0:
        return None
    last = layer_index if llm_fields["layer_index"] is None else llm_fields["layer_index"]
    if last + 1 < num_layers:
        raise ValueError(
            f"layer_index is {last}, but the checkpoint holds {num_layers} LLM layers: give the index of the last "
            f"one, at least {num_layers - 1}."
        )
    intermediate_size, hidden_size = state["llama.layers.0.feed_forward.w1.weight"].shape
    eps = llm_fields["llm_rms_norm_eps"]
    return LLMBlockConfig(
        llm_name_or_path=llm_fields["llm_name_or_path"],
        layer_index=last if num_layers == 1 else list(range(last + 1 - num_layers, last + 1)),
        llm_config={
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": max(32, last + 1),
            "num_attention_heads": given.require("llm_num_attention_heads", "32"),
            "rms_norm_eps": 1e-6 if eps is None else eps,
        },
    )


def build_model(converted: ConvertedCheckpoint) -> PreTrainedModelWithLLMBlock:
    """Build the model through a saved folder, and refuse missing and unexpected tensors."""
    model_class: Any = converted.model_class
    with tempfile.TemporaryDirectory() as folder:
        converted.config.save_pretrained(folder)
        tensors = {name: tensor.contiguous().clone() for name, tensor in converted.tensors.items()}
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    model.config._name_or_path, model.config.architectures = "", [model_class.__name__]
    new = tuple(head for head in converted.architecture.head if not any(n.startswith(head) for n in converted.tensors))
    missing = {name for name in info["missing_keys"] if not name.startswith(new)}
    if problems := sorted({*missing, *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise ValueError(
            f"The checkpoint lacks tensors that the model needs, or has others: {problems}. It is incomplete, or of a "
            "changed model."
        )
    return model
