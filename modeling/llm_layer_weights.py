# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The weights of a decoder layer in the form that the fast path needs, for each supported layer class."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .quantized_linear import QuantizedLinear, Weight


# A weight of shape `(heads, head_dim, D)` and a bias of shape `(heads, head_dim)`.
Projection = tuple[Weight, torch.Tensor | None]
# From the layer's input for the query tokens and their concatenated attention heads to the residual stream after the
# attention and the input of the feed-forward's last projection (its output, where `down` is `None`).
FeedForward = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class LayerWeights:
    """
    The weights of a decoder layer that the fast path uses.

    Args:
        norm (`nn.Module`): the norm before the attention.
        gain (`torch.Tensor` of shape `(D,)`): the norm's weight.
        shift (`torch.Tensor` of shape `(D,)`, *optional*): the norm's bias, for a `LayerNorm`, which also centres.
        eps (`float`): the norm's epsilon.
        query, key, value (`tuple`): weight of shape `(heads, head_dim, D)` and bias of shape `(heads, head_dim)`.
        scaling (`float`): factor of the attention scores.
        feed_forward (`Callable`): takes the layer's input for the query tokens and their concatenated attention heads;
            returns the residual stream after the attention and the input of `down`. The layer's output is the sum of
            the first and of `down` applied to the second.
        down (`nn.Module`, *optional*): the feed-forward's last projection; `None` where a norm follows it.
        down_multiplier (`float`): factor of the output of `down`.
        query_norm, key_norm (`nn.Module`, *optional*): norms of each head.
        soft_cap (`float`, *optional*): bound of the soft-capped attention scores.
        sinks (`torch.Tensor` of shape `(heads,)`, *optional*): the score of each head's attention sink.
        has_rotary (`bool`): whether the layer uses rotary positions.
        rotary_repeats (`int`): how often the family's cosines are repeated to cover the rotary dimensions of a head.
    """

    norm: nn.Module
    gain: torch.Tensor
    shift: torch.Tensor | None
    eps: float
    query: Projection
    key: Projection
    value: Projection
    scaling: float
    feed_forward: FeedForward
    down: Any
    down_multiplier: float = 1.0
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None
    has_rotary: bool = True
    rotary_repeats: int = 1


def _by_head(linear: nn.Module, head_dim: int) -> Projection:
    weight: Any = linear.weight.mT if isinstance(linear, Conv1D) else linear.weight
    bias: Any = linear.bias
    return weight.unflatten(0, (-1, head_dim)), None if bias is None else bias.unflatten(0, (-1, head_dim))


def _split(fused: Projection, sizes: list[int], dim: int) -> list[Projection]:
    weight, bias = fused
    biases = [None] * len(sizes) if bias is None else bias.split(sizes, dim)
    return list(zip(weight.split(sizes, dim), biases))


def _gated(layer: Any) -> LayerWeights:
    """Take the weights of a layer with RMS norms and a gated feed-forward: LLaMA, Mistral, Qwen, Gemma, Phi-3, …"""
    attention, norm = layer.self_attn, layer.input_layernorm
    head_dim = attention.head_dim
    if hasattr(attention, "qkv_proj"):
        num_key_value, fused = attention.num_key_value_heads, _by_head(attention.qkv_proj, head_dim)
        query, key, value = _split(fused, [fused[0].shape[0] - 2 * num_key_value, num_key_value, num_key_value], dim=0)
    else:
        query, key, value = (_by_head(p, head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    is_gemma = hasattr(norm, "eps")  # Gemma stores the weight minus one
    has_more_norms = hasattr(layer, "pre_feedforward_layernorm")
    multiplier = getattr(layer, "residual_multiplier", 1.0)

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        update = attention.o_proj(heads)
        if has_more_norms:
            hidden_states = query_tokens + layer.post_attention_layernorm(update)
            update = layer.mlp(layer.pre_feedforward_layernorm(hidden_states))
            return hidden_states, layer.post_feedforward_layernorm(update)
        hidden_states = query_tokens + update * multiplier
        normed = layer.post_attention_layernorm(hidden_states)
        if hasattr(layer.mlp, "gate_up_proj"):
            gate, up = layer.mlp.gate_up_proj(normed).chunk(2, dim=-1)
            return hidden_states, up * layer.mlp.activation_fn(gate)
        return hidden_states, layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)

    return LayerWeights(
        norm=norm,
        gain=1.0 + norm.weight if is_gemma else norm.weight,
        shift=None,
        eps=norm.eps if is_gemma else norm.variance_epsilon,
        query=query,
        key=key,
        value=value,
        scaling=attention.scaling,
        feed_forward=feed_forward,
        down=None if has_more_norms else getattr(layer.mlp, "down_proj", None),
        down_multiplier=multiplier,
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        soft_cap=getattr(attention, "attn_logit_softcapping", None),
        has_rotary=getattr(attention, "use_rope", True),
    )


def _gpt_oss(layer: Any) -> LayerWeights:
    """Take the weights of a layer with RMS norms, experts and attention sinks."""

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = query_tokens + layer.self_attn.o_proj(heads)
        return hidden_states, layer.mlp(layer.post_attention_layernorm(hidden_states))[0]

    return replace(_gated(layer), feed_forward=feed_forward, sinks=layer.self_attn.sinks, rotary_repeats=2)


def _with_layer_norm(
    norm: Any, attention: Any, projections: Iterable[Projection], feed_forward: FeedForward, **kwargs: Any
) -> LayerWeights:
    query, key, value = projections
    return LayerWeights(
        norm=norm,
        gain=norm.weight,
        shift=norm.bias,
        eps=norm.eps,
        query=query,
        key=key,
        value=value,
        scaling=attention.scaling,
        feed_forward=feed_forward,
        **kwargs,
    )


def _opt(layer: Any) -> LayerWeights | None:
    attention = layer.self_attn
    if not layer.do_layer_norm_before or layer.self_attn_layer_norm.weight is None:
        return None
    projections = (_by_head(p, attention.head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = query_tokens + attention.out_proj(heads)
        return hidden_states, layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden_states)))

    norm = layer.self_attn_layer_norm
    return _with_layer_norm(norm, attention, projections, feed_forward, down=layer.fc2, has_rotary=False)


def _gpt2(layer: Any) -> LayerWeights:
    attention = layer.attn
    heads = [attention.num_heads] * 3

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = query_tokens + attention.c_proj(heads)
        return hidden_states, layer.mlp.act(layer.mlp.c_fc(layer.ln_2(hidden_states)))

    projections = _split(_by_head(attention.c_attn, attention.head_dim), heads, dim=0)
    return _with_layer_norm(layer.ln_1, attention, projections, feed_forward, down=layer.mlp.c_proj, has_rotary=False)


def _gpt_neox(layer: Any) -> LayerWeights:
    attention, size = layer.attention, layer.attention.head_size

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = query_tokens + attention.dense(heads)
        normed = layer.post_attention_layernorm(query_tokens if layer.use_parallel_residual else hidden_states)
        return hidden_states, layer.mlp.act(layer.mlp.dense_h_to_4h(normed))

    # Query, key and value of each head are adjacent rows.
    projections = _split(_by_head(attention.query_key_value, 3 * size), [size] * 3, dim=1)
    return _with_layer_norm(layer.input_layernorm, attention, projections, feed_forward, down=layer.mlp.dense_4h_to_h)


def _phi(layer: Any) -> LayerWeights:
    attention = layer.self_attn
    projections = (_by_head(p, attention.head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))

    def feed_forward(query_tokens: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed = layer.input_layernorm(query_tokens)
        return query_tokens + attention.dense(heads), layer.mlp.activation_fn(layer.mlp.fc1(normed))

    norms = {"query_norm": attention.q_layernorm, "key_norm": attention.k_layernorm} if attention.qk_layernorm else {}
    return _with_layer_norm(layer.input_layernorm, attention, projections, feed_forward, down=layer.mlp.fc2, **norms)


# Exactly these classes, each compared with its own forward by a test. Named, as importing all of them takes a second.
_LAYER_CLASSES: dict[str, Callable[[Any], LayerWeights | None]] = {
    "gemma.modeling_gemma.GemmaDecoderLayer": _gated,
    "gemma2.modeling_gemma2.Gemma2DecoderLayer": _gated,
    "gemma3.modeling_gemma3.Gemma3DecoderLayer": _gated,
    "gpt2.modeling_gpt2.GPT2Block": _gpt2,
    "gpt_neox.modeling_gpt_neox.GPTNeoXLayer": _gpt_neox,
    "gpt_oss.modeling_gpt_oss.GptOssDecoderLayer": _gpt_oss,
    "granite.modeling_granite.GraniteDecoderLayer": _gated,
    "llama.modeling_llama.LlamaDecoderLayer": _gated,
    "mistral.modeling_mistral.MistralDecoderLayer": _gated,
    "opt.modeling_opt.OPTDecoderLayer": _opt,
    "phi.modeling_phi.PhiDecoderLayer": _phi,
    "phi3.modeling_phi3.Phi3DecoderLayer": _gated,
    "qwen2.modeling_qwen2.Qwen2DecoderLayer": _gated,
    "qwen3.modeling_qwen3.Qwen3DecoderLayer": _gated,
    "smollm3.modeling_smollm3.SmolLM3DecoderLayer": _gated,
}


def find_layer_weights(layer: nn.Module, input_projection: nn.Module) -> LayerWeights | None:
    """
    Return the weights of a layer that the fast path can compute; `None` if its class is not listed or a module is not
    plain (see [`is_plain`]), so that its own forward must run.

    Args:
        layer (`nn.Module`): the decoder layer.
        input_projection (`nn.Module`): the block's projection before it.
    """
    layer_class = f"{type(layer).__module__}.{type(layer).__qualname__}".removeprefix("transformers.models.")
    take_weights = _LAYER_CLASSES.get(layer_class)
    if take_weights is None or not all(is_plain(module) for module in (input_projection, *layer.modules())):
        return None
    return take_weights(layer)


def is_plain(module: nn.Module) -> bool:
    """
    Return whether a module is neither adapted, quantised by others, offloaded nor sharded, and has no hook to skip.
    """
    is_projection = hasattr(module, "in_features") or hasattr(module, "nf")
    if is_projection and type(module) not in (nn.Linear, Conv1D, QuantizedLinear):
        return False
    if hasattr(module, "_hf_hook") or module._forward_pre_hooks:
        return False
    if any(getattr(hook, "__name__", "") != "output_capturing_hook" for hook in module._forward_hooks.values()):
        return False
    # Sharded and quantised tensors are tensor subclasses that wrap others.
    return not any(hasattr(parameter, "__tensor_flatten__") for parameter in module.parameters(recurse=False))


__all__ = ["LayerWeights", "Projection", "find_layer_weights", "is_plain"]
