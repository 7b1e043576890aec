# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Taking decoder layers out of a language model and calling them directly, without causal mask and positions."""

import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_bidirectional_mask

from .checkpoint_files import check_quantization


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
# Modules with "Attention" in their name that mix tokens by a recurrence instead of a softmax over all of them; Kimi
# Linear and RecurrentGemma are names of families, which have layers of both kinds.
_NOT_SELF_ATTENTION = re.compile("(?<!Kimi)Linear|Lightning|Rwkv|Recurrent(?!Gemma)|Delta|Mamba")


@dataclass
class LLMLayers:
    """
    Decoder layers of a language model, and what is needed to load and call them.

    Args:
        llm (`PreTrainedModel`): the language model on the meta device, with all its layers.
        stack_path (`str`): where its layers are, such as `layers` or `decoder.layers`.
        indices (`list[int]`): the layers taken, counted from 0.
        layers (`nn.ModuleList`): those layers.
        final_norm (`nn.Module`, *optional*): the norm after its last layer.
        final_norm_path (`str`, *optional*): where that norm is.
        rotary (`nn.Module`, *optional*): its rotary embedding, on the CPU.
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
    """Whether the family's layers give the same with SDPA: not those with ALiBi, sinks, or soft-capped scores."""
    model_class = cast(type[PreTrainedModel], MODEL_MAPPING[type(llm_config)])
    soft_cap = getattr(llm_config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return model_class._supports_sdpa and soft_cap is None


def build_llm(llm_config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """
    The language model on the meta device: it takes no memory and reads no weights.

    Raises:
        `ValueError`: for a model that is not a decoder, is quantised in a way that cannot be read, or that
            transformers cannot build.
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
    llm_config = copy.deepcopy(llm_config)
    vars(llm_config).pop("quantization_config", None)  # tensors are dequantised when they are read
    attention = llm_config.get_text_config(decoder=True)._attn_implementation
    if attention in (None, "sdpa") and not has_sdpa(llm_config):
        attention = "eager"
    kwargs = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"):
            return AutoModel.from_config(llm_config, dtype=dtype, **kwargs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"transformers cannot build this {name} ({type(error).__name__}: {error}).") from error


def _find_stack(llm: PreTrainedModel, num_layers: int) -> str:
    stacks = [n for n, m in llm.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    if not stacks:
        name = f"{llm.config.get_text_config(decoder=True).model_type} ({type(llm).__name__})"
        raise ValueError(f"{name} has no stack of {num_layers} decoder layers, each of which runs once.")
    # Beside a vision tower of the same depth, the language model's stack is named as such.
    return min(stacks, key=lambda n: (not re.search(r"decoder|language_model|text_model", n), n.count("."), len(n)))


def _check_layer(layer: nn.Module, index: int, text_config: PreTrainedConfig) -> None:
    """Refuses by name a layer that cannot stand alone between two projections."""
    where = f"Layer {index} of {text_config.model_type} ({type(layer).__name__})"
    layer_types = getattr(text_config, "layer_types", None) or []
    layer_type = layer_types[index] if index < len(layer_types) else ""
    names = [type(m).__name__ for m in layer.modules()]
    has_attention = any("Attention" in name and not _NOT_SELF_ATTENTION.search(name) for name in names)
    if not has_attention or layer_type in ("linear_attention", "conv", "mamba"):
        kind = layer_type or "recurrent or convolutional"
        raise ValueError(f"{where} has no self-attention ({kind}). Choose a layer_index with self-attention.")
    if any(isinstance(m, nn.Conv1d) or "Mamba" in type(m).__name__ for m in layer.modules()):
        raise ValueError(f"{where} also mixes tokens by a convolution or recurrence, which depends on their order.")
    if any("Indexer" in type(m).__name__ for m in layer.modules()):
        raise ValueError(f"{where} attends to a selection of earlier tokens, which depends on their order.")
    causal = [m.is_causal for m in layer.modules() if hasattr(m, "is_causal")]
    if causal and not any(causal):
        raise ValueError(f"{where} is not a decoder layer: its attention is not causal in the language model.")
    is_encoder = type(text_config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(text_config, "is_decoder", False)
    if is_encoder and not causal:
        raise ValueError(f"{where} is not a decoder layer: llm_config.is_decoder is False.")
    parameters = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    if any(getattr(m, "is_kv_shared_layer", False) for m in layer.modules()):
        raise ValueError(f"{where} reads the keys and values of an earlier layer, so it cannot run alone.")
    if "per_layer_input" in parameters and getattr(text_config, "hidden_size_per_layer_input", None):
        raise ValueError(f"{where} needs an embedding of the input words for each layer, so it cannot run alone.")


def build_llm_layers(llm_config: PreTrainedConfig, layer_index: int | list[int], dtype: torch.dtype) -> LLMLayers:
    """
    Builds a language model on the meta device and takes layers out of it.

    Args:
        llm_config (`PreTrainedConfig`): the language model's configuration.
        layer_index (`int` or `list[int]`): layers, negative from the end.
        dtype (`torch.dtype`): of the layers' parameters.

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
    # Without a mask SDPA is causal wherever a module says so, and flash attention keeps to a window.
    for module in layer.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = None  # type: ignore[assignment]
    # Mistral's reads it from the configuration, whose validation takes no `None` in some families.
    object.__setattr__(text_config, "sliding_window", None)


def disable_dropout(layers: nn.Module) -> None:
    """A frozen layer adds no noise: OPT and GPT-2 come with dropout 0.1, and `train()` would differ from `eval()`."""
    for module in layers.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("drop" in name or name in ("input_jitter_noise", "jitter_noise")) and isinstance(value, float):
                setattr(module, name, 0.0)


def has_rotary(llm_layers: LLMLayers) -> bool:
    """Whether the language model has rotary positions, in a module of its own or (GPT-J, CodeGen) in the layer."""
    inside = any(hasattr(m, "embed_positions") or hasattr(m, "rotary_dim") for m in llm_layers.layers.modules())
    # Falcon builds a rotary module even where its layers use ALiBi.
    return (llm_layers.rotary is not None or inside) and not getattr(llm_layers.config, "alibi", False)


def rotary_embeddings(rotary: nn.Module | None, config: PreTrainedConfig, index: int, num_positions: int) -> Any:
    """
    The family's own rotary embeddings at positions 0 to `num_positions - 1`, on the CPU, in the structure that its
    layers take. Position 0 is the identity rotation, times the family's attention scaling (YaRN, LongRoPE).
    """
    if rotary is None:
        return None
    kwargs = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kwargs["layer_type"] = config.layer_types[index]
        if config.rope_parameters.get(config.layer_types[index], {}) is None:
            return None  # a layer without positions among layers with them
    positions = torch.arange(num_positions, device="cpu")[None]
    if hasattr(rotary, "mrope_section"):
        positions = positions.expand(3, 1, -1)  # time, height and width, equal for the tokens of a text
    return rotary(torch.zeros(1, num_positions, config.hidden_size, device="cpu"), positions, **kwargs)


def attention_bias(
    attention_mask: torch.Tensor | None, hidden_states: torch.Tensor, causal: bool
) -> torch.Tensor | None:
    """
    The additive mask of `(batch, 1, 1 or tokens, tokens)`, or `None` where every token sees every token.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding.
        hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`): gives size, device and data type.
        causal (`bool`): whether a token sees only itself and those before it.
    """
    if attention_mask is None and not causal:
        return None
    batch, tokens, _ = hidden_states.shape
    device = hidden_states.device
    # The lowest number of the narrowest type on the way (eager attention takes its softmax in float32): a lower one
    # would become -inf there, and a row of nothing but padding NaN.
    lowest = max(torch.finfo(hidden_states.dtype).min, torch.finfo(torch.float32).min)
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        lowest = max(lowest, torch.finfo(torch.get_autocast_dtype(device.type)).min)
    masked = torch.zeros(1, 1, 1, tokens, dtype=torch.bool, device=device)
    if attention_mask is not None:
        masked = ~attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
    if causal:
        # A token always sees itself: padding before the first token would otherwise see nothing at all.
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
        masked = (masked | later) & ~torch.eye(tokens, dtype=torch.bool, device=device)
    return hidden_states.new_zeros(masked.shape).masked_fill(masked, lowest).expand(batch, -1, -1, -1)


def _layer_arguments(bias, position_ids, position_embeddings) -> dict[str, Any]:
    """Everything that a decoder layer of any family may ask for, by the names the families use."""
    return {
        "attention_mask": bias,
        "position_ids": position_ids,
        "position_embeddings": position_embeddings,
        "past_key_values": None,
        "past_key_value": None,
        "layer_past": None,
        "use_cache": False,
        "output_attentions": False,
        "alibi": None,
        "position_bias": None,
        "shared_kv_states": {},  # a layer may put its keys and values there for later ones
    }


def accepted_arguments(layer: nn.Module) -> frozenset[str]:
    """The arguments of `_layer_arguments` that this layer's `forward` takes."""
    parameters = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    names = set(_layer_arguments(None, None, None)) & set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names.add("position_embeddings")
    return frozenset(names)


def call_layer(
    layer: nn.Module,
    accepted: frozenset[str],
    config: PreTrainedConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool,
    position_ids: torch.Tensor,
    position_embeddings: Any,
) -> torch.Tensor:
    """
    Calls a decoder layer of any family directly.

    Args:
        layer (`nn.Module`): the layer.
        accepted (`frozenset[str]`): see [`accepted_arguments`].
        config (`PreTrainedConfig`): the configuration that the layer's modules hold.
        hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`): its input.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding.
        causal (`bool`): whether a token sees only itself and those before it.
        position_ids (`torch.Tensor` of shape `(1, tokens)`): all zero without positions.
        position_embeddings: the rotary embeddings at these positions, in the family's own structure.
    """
    batch, tokens, _ = hidden_states.shape
    if config._attn_implementation in ("eager", "sdpa", None):
        bias = attention_bias(attention_mask, hidden_states, causal)
    elif causal:
        raise ValueError(
            "attention='causal' works with attn_implementation 'sdpa' or 'eager', not "
            f"{config._attn_implementation!r}."
        )
    else:
        # In the form that flash or flex attention takes.
        bias = cast(Any, create_bidirectional_mask(config, hidden_states, attention_mask))
    arguments = _layer_arguments(bias, position_ids, position_embeddings)
    if config.model_type == "bloom":
        arguments["alibi"] = hidden_states.new_zeros(batch * config.n_head, 1, tokens)
    elif config.model_type == "mpt":
        arguments["position_bias"] = hidden_states.new_zeros(config.n_heads, 1, tokens)
        arguments["attention_mask"] = None if bias is None else bias < 0  # True = not seen
    elif config.model_type in ("falcon", "xglm"):
        # These insist on a mask, XGLM on one of exactly this shape.
        bias = hidden_states.new_zeros(batch, 1, 1, tokens) if bias is None else bias
        arguments["attention_mask"] = bias.expand(batch, 1, tokens, tokens)
    output = layer(hidden_states, **{name: arguments[name] for name in accepted})
    return output[0] if isinstance(output, (tuple, list)) else output


def expand_positions(position_embeddings: Any, tokens: int, like: torch.Tensor) -> Any:
    """Rotary embeddings of position 0 repeated for every token, in the device and (if real) data type of `like`."""
    return tree_map(
        lambda p: p.to(like.device, like.dtype if p.is_floating_point() else None).expand(
            p.shape[0], tokens, *p.shape[2:]
        ),
        position_embeddings,
    )
