# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
A decoder layer at the price of the tokens that are read: the same function as its own forward, rewritten.

With `W` the input projection (D x d), `x_t` the host's tokens, `g` the gain of the layer's norm and `r_t` the inverse
norm of `W x_t`:

- Queries, output projection and feed-forward are computed for the tokens that are read alone.
- For few of them keys and values are never formed: a token's score is `r_t (Wᵀ g W_kᵀ q) · x_t` and a head's output
  `W_v g W Σ_t p_t r_t x_t`, so that what is D wide exists for the read tokens alone.
- For many of them the projections are folded with the input projection: `r_t (W_k g W) x_t` costs d, not D, an output.
- Where no norm stands between, the feed-forward's last projection is folded with the output projection.

Which one runs follows from the multiply-adds of each. Nothing is cached: a folded matrix of an earlier forward would
lose the gradient to `W`.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


class InverseNorm(torch.autograd.Function):
    """
    `(‖W x_t‖² / D + eps)^-½` of tokens `x` of shape `(batch, tokens, d)` and `W` of shape `(D, d)`, without `W x_t`.

    Computed as `‖Lᵀ x_t‖²` with `L` the Cholesky factor of `WᵀW` in float64: in float32 the form `xᵀ(WᵀW)x` loses half
    of the digits where `W` is badly conditioned, and can become negative.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        gram = weight.double().mT @ weight.double()
        # Of the size of the rounding in the Gram matrix, which may leave it just not positive definite.
        jitter = 1e-14 * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + jitter * eye)
        factor = factor.masked_fill(failed != 0, torch.nan)  # an exception would make a GPU wait
        inverse = ((x @ factor.to(x.dtype)).square().sum(-1) / len(weight) + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return inverse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight, inverse = ctx.saved_tensors
        scaled = (-gradient * inverse**3 / len(weight))[..., None] * x
        grad_x = scaled @ (weight.mT @ weight) if ctx.needs_input_grad[0] else None
        grad_weight = weight @ (scaled.flatten(0, -2).mT @ x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


@dataclass
class LayerParts:
    """
    What the rewrites take out of a decoder layer.

    Args:
        norm (`nn.Module`): the norm before the attention.
        gain (`torch.Tensor` of shape `(D,)`): of that norm.
        shift (`torch.Tensor` of shape `(D,)`, *optional*): of that norm, if it is a `LayerNorm`, which also centres.
        eps (`float`): of that norm.
        query, key, value (`tuple`): weight of shape `(heads, head_dim, D)` and bias of shape `(heads, head_dim)`.
        scaling (`float`): of the scores.
        feed_forward (`Callable`): from the layer's input and its heads side by side, for the tokens that are read, to
            what the layer's output is the sum of: the residual stream, and what `down` makes of the second.
        down (`nn.Module`, *optional*): the feed-forward's last projection; `None` where a norm follows it.
        down_multiplier (`float`): of what it makes.
        query_norm, key_norm (`nn.Module`, *optional*): norms of each head.
        soft_cap (`float`, *optional*): of the scores.
        sinks (`torch.Tensor` of shape `(heads,)`, *optional*): a score that every query has for nothing.
        has_rotary (`bool`): whether the layer uses rotary positions.
        rotary_repeats (`int`): how often the family's cosines are repeated to be those of a head.
    """

    norm: nn.Module
    gain: torch.Tensor
    shift: torch.Tensor | None
    eps: float
    query: tuple[torch.Tensor, torch.Tensor | None]
    key: tuple[torch.Tensor, torch.Tensor | None]
    value: tuple[torch.Tensor, torch.Tensor | None]
    scaling: float
    feed_forward: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    down: Any
    down_multiplier: float = 1.0
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None
    has_rotary: bool = True
    rotary_repeats: int = 1


def _by_head(linear: nn.Module, head_dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight: Any = linear.weight.mT if isinstance(linear, Conv1D) else linear.weight
    bias: Any = linear.bias
    return weight.unflatten(0, (-1, head_dim)), None if bias is None else bias.unflatten(0, (-1, head_dim))


def _split(fused, sizes: list[int], dim: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    weight, bias = fused
    biases = [None] * len(sizes) if bias is None else bias.split(sizes, dim)
    return list(zip(weight.split(sizes, dim), biases))


def _gated(layer: Any) -> LayerParts:
    """RMS norms and a gated feed-forward: LLaMA, Mistral, Qwen, SmolLM3, Gemma, Phi-3, Granite."""
    attention, norm = layer.self_attn, layer.input_layernorm
    head_dim = attention.head_dim
    if hasattr(attention, "qkv_proj"):
        num_key_value, fused = attention.num_key_value_heads, _by_head(attention.qkv_proj, head_dim)
        query, key, value = _split(fused, [len(fused[0]) - 2 * num_key_value, num_key_value, num_key_value], dim=0)
    else:
        query, key, value = (_by_head(p, head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    is_gemma = hasattr(norm, "eps")  # whose weight is stored minus one
    has_more_norms = hasattr(layer, "pre_feedforward_layernorm")
    multiplier = getattr(layer, "residual_multiplier", 1.0)

    def feed_forward(read, heads):
        update = attention.o_proj(heads)
        if has_more_norms:
            hidden_states = read + layer.post_attention_layernorm(update)
            update = layer.mlp(layer.pre_feedforward_layernorm(hidden_states))
            return hidden_states, layer.post_feedforward_layernorm(update)
        hidden_states = read + update * multiplier
        normed = layer.post_attention_layernorm(hidden_states)
        if hasattr(layer.mlp, "gate_up_proj"):
            gate, up = layer.mlp.gate_up_proj(normed).chunk(2, dim=-1)
            return hidden_states, up * layer.mlp.activation_fn(gate)
        return hidden_states, layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)

    return LayerParts(
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


def _gpt_oss(layer: Any) -> LayerParts:
    """RMS norms, experts, and attention that may sink."""

    def feed_forward(read, heads):
        hidden_states = read + layer.self_attn.o_proj(heads)
        return hidden_states, layer.mlp(layer.post_attention_layernorm(hidden_states))[0]

    return replace(_gated(layer), feed_forward=feed_forward, sinks=layer.self_attn.sinks, rotary_repeats=2)


def _layer_norm(norm: Any, attention: Any, projections: Iterable, feed_forward: Callable, **kwargs) -> LayerParts:
    query, key, value = projections
    return LayerParts(
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


def _opt(layer: Any) -> LayerParts | None:
    attention = layer.self_attn
    if not layer.do_layer_norm_before or layer.self_attn_layer_norm.weight is None:
        return None
    projections = (_by_head(p, attention.head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))

    def feed_forward(read, heads):
        hidden_states = read + attention.out_proj(heads)
        return hidden_states, layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden_states)))

    norm = layer.self_attn_layer_norm
    return _layer_norm(norm, attention, projections, feed_forward, down=layer.fc2, has_rotary=False)


def _gpt2(layer: Any) -> LayerParts:
    attention = layer.attn
    heads = [attention.num_heads] * 3

    def feed_forward(read, heads):
        hidden_states = read + attention.c_proj(heads)
        return hidden_states, layer.mlp.act(layer.mlp.c_fc(layer.ln_2(hidden_states)))

    projections = _split(_by_head(attention.c_attn, attention.head_dim), heads, dim=0)
    return _layer_norm(layer.ln_1, attention, projections, feed_forward, down=layer.mlp.c_proj, has_rotary=False)


def _gpt_neox(layer: Any) -> LayerParts:
    attention, size = layer.attention, layer.attention.head_size

    def feed_forward(read, heads):
        hidden_states = read + attention.dense(heads)
        fed = layer.post_attention_layernorm(read if layer.use_parallel_residual else hidden_states)
        return hidden_states, layer.mlp.act(layer.mlp.dense_h_to_4h(fed))

    # Query, key and value of one head stand next to each other.
    projections = _split(_by_head(attention.query_key_value, 3 * size), [size] * 3, dim=1)
    return _layer_norm(layer.input_layernorm, attention, projections, feed_forward, down=layer.mlp.dense_4h_to_h)


def _phi(layer: Any) -> LayerParts:
    attention = layer.self_attn
    projections = (_by_head(p, attention.head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))

    def feed_forward(read, heads):
        return read + attention.dense(heads), layer.mlp.activation_fn(layer.mlp.fc1(layer.input_layernorm(read)))

    norms = {"query_norm": attention.q_layernorm, "key_norm": attention.k_layernorm} if attention.qk_layernorm else {}
    return _layer_norm(layer.input_layernorm, attention, projections, feed_forward, down=layer.mlp.fc2, **norms)


# Exactly these classes, each compared with its own forward in a test; by name, as importing all takes a second.
_PARTS: dict[str, Callable[[Any], LayerParts | None]] = {
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


def find_parts(layer: nn.Module, input_projection: nn.Module) -> LayerParts | None:
    """
    The parts of a layer that can be rewritten, and `None` for one that must run as it is: of another class, or with
    modules whose weights are not all there is to them.
    """
    take = _PARTS.get(f"{type(layer).__module__}.{type(layer).__qualname__}".removeprefix("transformers.models."))
    if take is None or not all(_is_plain(module) for module in (input_projection, *layer.modules())):
        return None
    return take(layer)


def _is_plain(module: nn.Module) -> bool:
    """Not adapted, quantised, offloaded or sharded, and without hooks that would not run."""
    is_projection = hasattr(module, "in_features") or hasattr(module, "nf")
    if is_projection and type(module) not in (nn.Linear, Conv1D):
        return False
    if hasattr(module, "_hf_hook") or module._forward_pre_hooks:
        return False
    if any(getattr(hook, "__name__", "") != "output_capturing_hook" for hook in module._forward_hooks.values()):
        return False
    # Sharded or quantised tensors are wrappers.
    return not any(hasattr(parameter, "__tensor_flatten__") for parameter in module.parameters(recurse=False))


def cheapest_route(parts: LayerParts, tokens: int, read: int, hidden_size: int, batch: int) -> str:
    """
    The way with the fewest multiply-adds for one image: attention in the host's width (`"narrow"`), projections folded
    with the input projection (`"folded"`, or `"folded_keys"`: those of keys and values alone), or keys and values
    formed as the layer forms them (`"formed"`).

    Args:
        parts ([`LayerParts`]): of the layer.
        tokens (`int`): of an image.
        read (`int`): how many of them are read.
        hidden_size (`int`): d, the host's width.
        batch (`int`): images that share what is computed once in a forward.
    """
    heads, head_dim, width = parts.query[0].shape
    num_keys = 2 * parts.key[0].shape[0] * head_dim
    query = read * heads * head_dim * width
    attention = 2 * read * heads * tokens
    inverse = hidden_size**2 * (tokens + width / batch)
    folded_keys = num_keys * hidden_size * (tokens + width / batch) + attention * head_dim + inverse
    costs = {
        "formed": query + tokens * width * (hidden_size + num_keys) + attention * head_dim,
        "folded_keys": query + folded_keys,
        "folded": heads * head_dim * hidden_size * (read + width / batch) + folded_keys,
    }
    if parts.key_norm is None:
        narrow = 2 * read * heads * width * (head_dim + hidden_size)
        costs["narrow"] = query + narrow + attention * hidden_size + inverse
    return min(costs, key=lambda name: costs[name])


def folds_output(parts: LayerParts, output_projection: nn.Module, read: int) -> bool:
    """
    Whether the feed-forward's last projection is cheaper folded with the output projection (D to d): for each of its
    inputs that costs `d D`, and saves `D - d` for each of the `read` tokens of a batch.
    """
    if parts.down is None or not _is_plain(output_projection):
        return False
    hidden_size, width = cast(torch.Tensor, output_projection.weight).shape
    return read * (width - hidden_size) > hidden_size * width


def run_layer(
    parts: LayerParts,
    route: str,
    tokens: torch.Tensor,
    read: torch.Tensor,
    output_tokens: slice,
    mask: torch.Tensor | None,
    cosines: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    output_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The layer's output for the tokens that are read, projected to the host's width if there is an `output_weight`.

    Args:
        parts ([`LayerParts`]): of the layer.
        route (`str`): see [`cheapest_route`].
        tokens (`torch.Tensor` of shape `(batch, tokens, d)`): the host's tokens; with `"formed"` the layer's input for
            all of them, of shape `(batch, tokens, D)`.
        read (`torch.Tensor` of shape `(batch, read, D)`): the layer's input for the tokens that are read.
        output_tokens (`slice`): which those are.
        mask (`torch.Tensor` of shape `(batch, 1, 1, tokens)`, *optional*): added to the scores.
        cosines (`torch.Tensor` of shape `(rotary dimensions,)`, *optional*): of position 0, all 1 unless the family
            scales its attention by them.
        weight (`torch.Tensor` of shape `(D, d)`, *optional*): of the input projection; not with `"formed"`.
        output_weight (`torch.Tensor` of shape `(d, D)`, *optional*): of the output projection, to fold it.

    Returns:
        `torch.Tensor` of shape `(batch, read, D)`, or `(batch, read, d)` with `output_weight`.
    """
    cosines = cosines.repeat(parts.rotary_repeats) if cosines is not None and parts.has_rotary else None
    if route == "formed":
        query = _project(parts.norm(read), parts.query)
        wide = parts.norm(tokens)
        heads = _attend(parts, query, _project(wide, parts.key), _project(wide, parts.value), mask, cosines)
    else:
        heads = _run_in_host_width(parts, route, tokens, read, output_tokens, mask, cosines, weight)
    hidden_states, update = parts.feed_forward(read, heads.to(read.dtype))
    if output_weight is not None:
        return _project_output(parts, hidden_states, update, output_weight)
    if parts.down is not None:
        update = parts.down(update) * parts.down_multiplier
    return hidden_states + update


def _project_output(parts: LayerParts, hidden_states, update, output_weight: torch.Tensor) -> torch.Tensor:
    """`W_out (h + W_down u)` as `W_out h + (W_out W_down) u`."""
    down, dtype = parts.down, output_weight.dtype
    weight = down.weight.mT if isinstance(down, Conv1D) else down.weight
    folded = output_weight @ weight.to(dtype)
    if down.bias is not None:
        hidden_states = hidden_states + down.bias * parts.down_multiplier
    update = F.linear(update.to(dtype), folded) * parts.down_multiplier
    return F.linear(hidden_states.to(dtype), output_weight) + update


def _run_in_host_width(
    parts: LayerParts, route: str, tokens, read, output_tokens: slice, mask, cosines, weight
) -> torch.Tensor:
    """The heads side by side, for the tokens that are read."""
    # In float32 at least, under autocast too: d is small.
    with nullcontext() if tokens.device.type == "meta" else torch.autocast(tokens.device.type, enabled=False):
        x, weight = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (tokens, weight))
        if parts.shift is not None:
            weight = weight - weight.mean(dim=0)
        inverse = InverseNorm.apply(x, weight, parts.eps)
        gained = parts.gain.to(weight.dtype)[:, None] * weight
        scaled = x * inverse[..., None]
        if route == "folded":
            query = _project_folded(parts, scaled[:, output_tokens], gained, parts.query)
        else:
            query = _project(parts.norm(read).to(parts.query[0].dtype), parts.query)
        if route == "narrow":
            return _attend_in_host_width(parts, scaled, gained, query, mask, cosines)
        key, value = (_project_folded(parts, scaled, gained, which) for which in (parts.key, parts.value))
        return _attend(parts, query.to(key.dtype), key, value, mask, cosines)


def _project(hidden_states: torch.Tensor, projection: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
    """`(batch, tokens, heads, head_dim)`."""
    weight, bias = projection
    flat = F.linear(hidden_states, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return flat.unflatten(-1, weight.shape[:2])


def _total_bias(parts: LayerParts, projection: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor | None:
    """What the norm's shift and the projection's bias add for every token, `(heads, head_dim)`."""
    weight, bias = projection
    if parts.shift is None:
        return bias
    shift = weight @ parts.shift
    return shift if bias is None else shift + bias


def _project_folded(parts: LayerParts, scaled: torch.Tensor, gained: torch.Tensor, projection) -> torch.Tensor:
    """Like `_project`, of host tokens divided by the norm of their projections."""
    weight, bias = projection[0], _total_bias(parts, projection)
    folded = weight.flatten(0, 1).to(gained.dtype) @ gained
    flat = F.linear(scaled, folded, None if bias is None else bias.flatten().to(gained.dtype))
    return flat.unflatten(-1, weight.shape[:2])


def _rotate(heads: torch.Tensor, cosines: torch.Tensor | None) -> torch.Tensor:
    """The rotation of position 0, which is none, times the family's attention scaling."""
    if cosines is None:
        return heads
    rotary, rest = heads.split([len(cosines), heads.shape[-1] - len(cosines)], dim=-1)
    return torch.cat([rotary * cosines.to(heads.device, heads.dtype), rest], dim=-1)


def _attend(parts: LayerParts, query, key, value, mask, cosines) -> torch.Tensor:
    """Attention of `(batch, tokens, heads, head_dim)`; the heads side by side."""
    query = query if parts.query_norm is None else parts.query_norm(query)
    key = key if parts.key_norm is None else parts.key_norm(key)
    query, key = _rotate(query, cosines), _rotate(key, cosines)
    groups = query.shape[2] // key.shape[2]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if parts.soft_cap is None and parts.sinks is None:
        mask = None if mask is None else mask.to(query.dtype)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=parts.scaling)
    else:
        weights = _softmax(parts, query @ key.mT * parts.scaling, mask, (-1, 1, 1))
        heads = weights.to(value.dtype) @ value
    return heads.transpose(1, 2).flatten(2)


def _softmax(parts: LayerParts, scores, mask, heads_shape: tuple[int, ...]) -> torch.Tensor:
    """Attention weights of scores whose heads are in the dimensions of `heads_shape`."""
    if parts.soft_cap is not None:
        scores = parts.soft_cap * torch.tanh(scores / parts.soft_cap)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if parts.sinks is None:
        return scores.softmax(dim=-1, dtype=dtype)
    sinks = parts.sinks.to(scores.dtype).view(heads_shape).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1, dtype=dtype)[..., :-1]


def _attend_in_host_width(parts: LayerParts, scaled, gained, query, mask, cosines) -> torch.Tensor:
    """The same without keys and values: over the host's tokens, divided by the norm of their projections."""
    query = query if parts.query_norm is None else parts.query_norm(query)
    query = _rotate(_rotate(query, cosines), cosines)  # and the keys' share
    query = query.unflatten(2, (parts.key[0].shape[0], -1))
    wide = torch.einsum("brkgc,kcD->brkgD", query, parts.key[0])
    # `reshape` makes of many narrow products one.
    wide = (wide.to(gained.dtype).reshape(-1, len(gained)) @ gained).view(*query.shape[:-1], -1)
    scores = torch.einsum("brkgd,btd->brkgt", wide, scaled) * parts.scaling
    if parts.soft_cap is not None or parts.sinks is not None:
        # A bias of the keys moves all scores of a query alike, which only a plain softmax does not see.
        if (bias := _total_bias(parts, parts.key)) is not None:
            moved = torch.einsum("brkgc,kc->brkg", query, bias) * parts.scaling
            scores = scores + moved[..., None].to(scores.dtype)
    weights = _softmax(parts, scores, None if mask is None else mask[:, :, :, None], (*query.shape[2:4], 1))
    mean = torch.einsum("brkgt,btd->brkgd", weights, scaled)
    heads = torch.einsum("brkgD,kcD->brkgc", (mean @ gained.mT).to(query.dtype), parts.value[0])
    if (bias := _total_bias(parts, parts.value)) is not None:
        total = 1.0 if parts.sinks is None else weights.sum(dim=-1, keepdim=True).to(heads.dtype)
        heads = heads + bias[:, None] * total
    return heads.flatten(2)


__all__ = ["LayerParts", "cheapest_route", "find_parts", "folds_output", "run_layer"]
