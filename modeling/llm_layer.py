# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Taking decoder layers out of a language model, and initialising them without its checkpoint."""

import copy
import inspect
import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init

from .checkpoint_files import check_quantization
from .configuration_llm_block import MAX_LAYERS
from .quantized_linear import QuantizedLinear, copy_quantized


FINAL_NORM_NAMES = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "norm_f",
    "layer_norm",
    "final_norm",
    "layernorm",
    "embedding_norm",
)
# Modules with "Attention" in their name that mix tokens by a recurrence instead of a softmax. Kimi Linear and
# RecurrentGemma are names of families that have layers of both kinds.
_NOT_SELF_ATTENTION = re.compile("(?<!Kimi)Linear|Lightning|Rwkv|Recurrent(?!Gemma)|Delta|Mamba")


@dataclass
class LLMLayers:
    """
    Decoder layers of a language model, and the modules and paths that loading and calling them requires.

    Args:
        llm (`PreTrainedModel`): the language model on the meta device, with all its layers.
        stack_path (`str`): path of its stack of layers, such as `layers` or `decoder.layers`.
        indices (`list[int]`): indices of the layers taken out, from 0.
        layers (`nn.ModuleList`): the layers taken out.
        final_norm (`nn.Module`, *optional*): the language model's norm after its last layer.
        final_norm_path (`str`, *optional*): path of that norm.
        rotary (`nn.Module`, *optional*): the language model's rotary embedding, on the CPU.
    """

    llm: PreTrainedModel
    stack_path: str
    indices: list[int]
    layers: nn.ModuleList
    final_norm: nn.Module | None
    final_norm_path: str | None
    rotary: nn.Module | None

    @property
    def config(self) -> PreTrainedConfig:
        return self.llm.config.get_text_config(decoder=True)

    def layer_path(self, index: int) -> str:
        return f"{self.stack_path}.{index}"


def has_sdpa(llm_config: PreTrainedConfig) -> bool:
    """Return whether SDPA gives the same results: not in families with ALiBi, sinks, or soft-capped scores."""
    model_class = cast(type[PreTrainedModel], MODEL_MAPPING[type(llm_config)])
    soft_cap = getattr(llm_config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return model_class._supports_sdpa and soft_cap is None


def build_llm(llm_config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """
    Build the language model on the meta device, without memory and without weights.

    Raises:
        `ValueError`: for a model that is not a decoder, has a quantisation that cannot be read, or cannot be built by
            transformers.
    """
    name = llm_config.model_type
    if llm_config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; the LLM block takes layers of decoder language models.")
    if type(llm_config) not in MODEL_MAPPING or not (
        type(llm_config) in MODEL_FOR_CAUSAL_LM_MAPPING
        or type(llm_config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
        or type(llm_config.get_text_config(decoder=True)) in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        raise ValueError(f"{name} is not a decoder language model that transformers can build without a head.")
    check_quantization(llm_config)
    num_layers = getattr(llm_config.get_text_config(decoder=True), "num_hidden_layers", None) or 0
    if num_layers > MAX_LAYERS:
        raise ValueError(f"This {name} has {num_layers} layers; at most {MAX_LAYERS} are supported.")
    llm_config = copy.deepcopy(llm_config)
    vars(llm_config).pop("quantization_config", None)  # reading dequantises the tensors
    attention = llm_config.get_text_config(decoder=True)._attn_implementation
    if attention in (None, "sdpa") and not has_sdpa(llm_config):
        attention = "eager"
    kwargs = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"):
            return AutoModel.from_config(llm_config, dtype=dtype, **kwargs)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"transformers cannot build this {name} ({type(error).__name__}: {error}).") from error


def _find_stack(llm: PreTrainedModel, num_layers: int) -> str:
    stacks = [n for n, m in llm.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    if not stacks:
        name = f"{llm.config.get_text_config(decoder=True).model_type} ({type(llm).__name__})"
        raise ValueError(f"{name} has no stack of {num_layers} decoder layers, each of which runs once.")
    # A vision tower may be as deep; then the name tells which stack is the language model's.
    return min(stacks, key=lambda n: (not re.search(r"decoder|language_model|text_model", n), n.count("."), len(n)))


def _check_layer(layer: nn.Module, index: int, text_config: PreTrainedConfig) -> None:
    """Refuse by name a layer that cannot run alone between two projections."""
    location = f"Layer {index} of {text_config.model_type} ({type(layer).__name__})"
    layer_types = getattr(text_config, "layer_types", None) or []
    layer_type = layer_types[index] if index < len(layer_types) else ""
    names = [type(m).__name__ for m in layer.modules()]
    has_attention = any("Attention" in name and not _NOT_SELF_ATTENTION.search(name) for name in names)
    if not has_attention or layer_type in ("linear_attention", "conv", "mamba"):
        kind = layer_type or "recurrent or convolutional"
        raise ValueError(f"{location} has no self-attention ({kind}). Choose a layer_index with self-attention.")
    if any(isinstance(m, nn.Conv1d) or "Mamba" in type(m).__name__ for m in layer.modules()):
        raise ValueError(f"{location} also mixes tokens by a convolution or recurrence, which depends on their order.")
    if any("Indexer" in type(m).__name__ for m in layer.modules()):
        raise ValueError(f"{location} attends to a selection of earlier tokens, which depends on their order.")
    causal = [m.is_causal for m in layer.modules() if hasattr(m, "is_causal")]
    if causal and not any(causal):
        raise ValueError(f"{location} is not a decoder layer: its attention is not causal in the language model.")
    is_encoder = type(text_config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(text_config, "is_decoder", False)
    if is_encoder and not causal:
        raise ValueError(f"{location} is not a decoder layer: llm_config.is_decoder is False.")
    parameters = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    if any(getattr(m, "is_kv_shared_layer", False) for m in layer.modules()):
        raise ValueError(f"{location} uses the keys and values of an earlier layer, so it cannot run alone.")
    if "per_layer_input" in parameters and getattr(text_config, "hidden_size_per_layer_input", None):
        raise ValueError(f"{location} needs an embedding of the input words for each layer, so it cannot run alone.")


def build_llm_layers(llm_config: PreTrainedConfig, layer_index: int | list[int], dtype: torch.dtype) -> LLMLayers:
    """
    Build a language model on the meta device and take layers out of it.

    Args:
        llm_config (`PreTrainedConfig`): the language model's configuration.
        layer_index (`int` or `list[int]`): indices of the layers, negative from the end.
        dtype (`torch.dtype`): data type of the layers' parameters.

    Raises:
        `ValueError`: for an index out of range, or a layer that cannot run alone.
    """
    llm = build_llm(llm_config, dtype)
    text_config = llm.config.get_text_config(decoder=True)
    num_layers = getattr(text_config, "num_hidden_layers", None)
    if num_layers is None:
        raise ValueError(f"{text_config.model_type} has no stack of decoder layers: no num_hidden_layers.")
    indices = layer_index if isinstance(layer_index, list) else [layer_index]
    for index in indices:
        if not -num_layers <= index < num_layers:
            raise ValueError(
                f"layer_index {index} is out of range: {text_config.model_type} here has {num_layers} layers, "
                f"0 to {num_layers - 1} or -{num_layers} to -1."
            )
    indices = [index % num_layers for index in indices]
    if len(set(indices)) != len(indices):
        raise ValueError(f"layer_index {layer_index} names a layer twice.")
    stack_path = _find_stack(llm, num_layers)
    owner_path = stack_path.rpartition(".")[0]
    owner = llm.get_submodule(owner_path)
    layers = nn.ModuleList([llm.get_submodule(f"{stack_path}.{index}") for index in indices])
    for index, layer in zip(indices, layers):
        _check_layer(layer, index, text_config)
        _make_bidirectional(layer, text_config)
    norm_name = next((n for n in FINAL_NORM_NAMES if isinstance(getattr(owner, n, None), nn.Module)), None)
    rotary = _find_rotary(owner)
    if rotary is not None:
        with torch.device("cpu"):
            rotary = type(rotary)(config=text_config)
    return LLMLayers(
        llm=llm,
        stack_path=stack_path,
        indices=indices,
        layers=layers,
        final_norm=getattr(owner, norm_name) if norm_name else None,
        final_norm_path=f"{owner_path}.{norm_name}".lstrip(".") if norm_name else None,
        rotary=rotary,
    )


def _find_rotary(owner: nn.Module) -> nn.Module | None:
    named = getattr(owner, "rotary_emb", None)
    return named or next((m for m in owner.children() if "RotaryEmbedding" in type(m).__name__), None)


def _make_bidirectional(layer: nn.Module, text_config: PreTrainedConfig) -> None:
    # Without a mask, SDPA is causal if `module.is_causal`, and flash attention uses `module.sliding_window`.
    for module in layer.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = None  # type: ignore[assignment]
    # Mistral uses the configuration's, which some families do not allow to be `None`.
    object.__setattr__(text_config, "sliding_window", None)


def build_final_norm(built: LLMLayers, mode: str) -> nn.Module | None:
    """
    Return the norm after the layers, on the meta device.

    Raises:
        `ValueError`: if the language model has no such norm.
    """
    if mode == "none":
        return None
    if built.final_norm is None and mode == "pretrained":
        raise ValueError(
            f"final_norm='pretrained', but this {built.config.model_type} has no norm after its last layer. Use "
            "'unit' or 'none'."
        )
    if built.final_norm is not None:
        return built.final_norm
    # An LLM that ends without a norm (OPT-350m): the norm type of its layers.
    norms = [m for m in built.layers.modules() if "norm" in type(m).__name__.lower()]
    if not norms:
        raise ValueError(f"{built.config.model_type} has no norm; use final_norm='none'.")
    return copy.deepcopy(norms[-1])


def disable_dropout(layers: nn.Module) -> None:
    """Set all dropout to 0: OPT and GPT-2 have 0.1, so that a frozen layer would differ in `train()` and `eval()`."""
    for module in layers.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("drop" in name or name in ("input_jitter_noise", "jitter_noise")) and isinstance(value, float):
                setattr(module, name, 0.0)


def init_random_layers(layers: nn.ModuleList, llm: PreTrainedModel, paths: list[str]) -> None:
    """
    Initialise decoder layers as their family does, all modules at once: in GPT-2, a parent scales its child's weights.

    Args:
        layers (`nn.ModuleList`): the layers; tensors that are initialised already keep their values.
        llm (`PreTrainedModel`): the language model on the meta device.
        paths (`list[str]`): the layers' paths in the language model.

    Raises:
        `ValueError`: if the family does not initialise some tensor.
    """
    if any(isinstance(module, QuantizedLinear) for module in layers.modules()):
        plain_layers = nn.ModuleList([llm.get_submodule(path) for path in paths])
        init_random_layers(plain_layers.to_empty(device=next(layers.parameters()).device), llm, paths)
        copy_quantized(plain_layers, layers)
        return
    tensors = layers.state_dict(keep_vars=True)
    wanted = {n: t for n, t in tensors.items() if t.is_floating_point() and not hasattr(t, "_is_hf_initialized")}
    for tensor in wanted.values():
        tensor.fill_(torch.nan)
    layers.apply(llm._init_weights)
    if unset := [name for name, tensor in wanted.items() if tensor.isnan().any()]:
        raise ValueError(
            f"weights='random' is not possible for {llm.config.get_text_config(decoder=True).model_type}: its family "
            f"does not say how to initialise {unset}. Use weights='pretrained', or another language model."
        )
    for tensor in tensors.values():
        tensor._is_hf_initialized = True


def init_unit_norm(norm: nn.Module) -> None:
    """Set a norm's weight to 1, or to 0 in families that store the weight minus one (Gemma), and its bias to 0."""
    weight = getattr(norm, "weight", None)
    if weight is not None:
        probe = copy.deepcopy(norm).float().requires_grad_(False)
        for parameter in probe.parameters():
            parameter.zero_()
        response = probe(torch.linspace(-1, 1, weight.numel(), device=weight.device)[None])
        init.constant_(weight, 0.0 if response.abs().sum() > 0 else 1.0)
    if isinstance(bias := getattr(norm, "bias", None), torch.Tensor):
        init.zeros_(bias)


def has_rotary(llm_layers: LLMLayers) -> bool:
    """Return whether the language model has rotary positions, in its own module or (GPT-J, CodeGen) in the layers."""
    inside = any(hasattr(m, "embed_positions") or hasattr(m, "rotary_dim") for m in llm_layers.layers.modules())
    # Falcon builds a rotary module even if its layers use ALiBi.
    return (llm_layers.rotary is not None or inside) and not getattr(llm_layers.config, "alibi", False)
