# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The fast path: compute a decoder layer only for the query tokens, as the same function in a cheaper form.

The query tokens are those whose output is wanted. With `W` the input projection (D x d), `x_t` the host's tokens, `g`
the gain of the layer's norm and `r_t` the inverse norm of `W x_t`:

- Queries, output projection and feed-forward are computed only for the query tokens.
- For few query tokens, keys and values are never computed: a token's score is `r_t (Wᵀ g W_kᵀ q) · x_t` and a head's
  output `W_v g W Σ_t p_t r_t x_t`, so that only the query tokens need D-wide tensors.
- For many query tokens, the projections are folded with the input projection: an output channel of `r_t (W_k g W) x_t`
  costs d multiply-adds instead of D.
- If no norm separates them, the feed-forward's last projection is folded with the output projection.

The cheapest form is chosen by its multiply-adds. Nothing is cached: a folded matrix of an earlier forward would lose
the gradient to `W`.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .llm_layer_weights import LayerWeights, Projection, is_plain
from .quantized_linear import QuantizedWeight, Weight, linear, multiply


AttentionPlan = Literal["explicit_kv", "host_width", "folded_qkv", "folded_kv"]


@dataclass(frozen=True)
class LayerPlan:
    """
    How one forward of a block computes its last LLM layer.

    Args:
        output_tokens (`slice`): the query tokens.
        weights ([`LayerWeights`], *optional*): the layer's weights for the fast path; `None` calls the layer itself.
        attention (`str`, *optional*, defaults to `"explicit_kv"`): see [`choose_attention_plan`].
        folds_output (`bool`, *optional*, defaults to `False`): whether the feed-forward's last projection is folded
            with the output projection.
        uses_sdpa (`bool`, *optional*, defaults to `True`): whether keys and values, if they are computed, go through
            PyTorch's SDPA. Its kernels have no second derivatives and no forward mode, which eager attention has.
    """

    output_tokens: slice
    weights: LayerWeights | None = None
    attention: AttentionPlan = "explicit_kv"
    folds_output: bool = False
    uses_sdpa: bool = True

    @property
    def attends_to_host_tokens(self) -> bool:
        """Whether only the query tokens pass the input projection, whose weight the attention uses for the others."""
        return self.attention != "explicit_kv"


def inverse_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """
    Return `(‖W x_t‖² / D + eps)^-½` of tokens `x` of shape `(batch, tokens, d)` and `W` of shape `(D, d)`.

    If `d < D`, `‖W x_t‖²` of more than 2d tokens is computed as `‖Lᵀ x_t‖²` with `L` the Cholesky factor of `WᵀW` in
    float64. In float32 the form `xᵀ(WᵀW)x` loses half of the digits if `W` is badly conditioned, and can become
    negative, but its derivatives of every order are as accurate as those of `W x_t`: they are taken from it, and the
    value from the factor or from `W x_t`.
    """
    width, hidden_size = weight.shape
    if hidden_size >= width:
        squares = F.linear(x, weight).square().sum(-1)
    else:
        # Few tokens are projected faster than WᵀW is factorised. A compiled model must not look at their number.
        is_faster = not torch.compiler.is_compiling() and x[..., 0].numel() <= 2 * hidden_size
        factor = weight.detach().mT if is_faster else _gram_factor(weight.detach()).to(x.dtype)
        squares = (x.detach() @ factor).square().sum(-1)
        # A forward that nothing differentiates, backward or forward, saves the form.
        if torch.is_grad_enabled() or torch.jit.is_tracing() or forward_ad._current_level >= 0:
            form = (x @ (weight.mT @ weight) * x).sum(-1)
            squares = squares + (form - form.detach())
    return (squares / width + eps).rsqrt()


def _gram_factor(weight: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of `WᵀW` in float64; `WᵀW` may be singular."""
    gram = weight.double().mT @ weight.double()
    info = torch.finfo(gram.dtype)
    # Rounding errors may leave the Gram matrix just not positive definite. They are relative to its diagonal.
    jitter = 2 * info.eps * len(gram) * gram.diagonal() + info.tiny
    factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(jitter))
    return factor.masked_fill(failed != 0, torch.nan)  # an exception would synchronise with the GPU


def choose_attention_plan(
    weights: LayerWeights, num_tokens: int, num_query_tokens: int, hidden_size: int, batch_size: int
) -> AttentionPlan:
    """
    Choose the attention plan with the fewest multiply-adds for one image.

    - `"explicit_kv"`: project all tokens to the layer's width, and compute keys and values as the layer does;
    - `"host_width"`: attend to the host's tokens, without keys and values;
    - `"folded_kv"`: fold the key and value projections with the input projection;
    - `"folded_qkv"`: fold the query projection, too.

    Args:
        weights ([`LayerWeights`]): the layer's weights.
        num_tokens (`int`): tokens of an image.
        num_query_tokens (`int`): tokens of an image whose output is wanted.
        hidden_size (`int`): d, the host's width.
        batch_size (`int`): images of a forward, which share its folded matrices.
    """
    heads, head_dim, width = weights.query[0].shape
    key_value_width = 2 * weights.key[0].shape[0] * head_dim
    query = num_query_tokens * heads * head_dim * width
    attention = 2 * num_query_tokens * heads * num_tokens
    gram_matrix = hidden_size**2 * width / batch_size if hidden_size < width else 0
    norms = num_tokens * hidden_size * min(hidden_size, width) + gram_matrix
    folded_kv = key_value_width * hidden_size * (num_tokens + width / batch_size) + attention * head_dim + norms
    folded_query = heads * head_dim * hidden_size * (num_query_tokens + width / batch_size)
    costs: dict[AttentionPlan, float] = {
        "explicit_kv": query + num_tokens * width * (hidden_size + key_value_width) + attention * head_dim,
        "folded_kv": query + folded_kv,
        "folded_qkv": folded_query + folded_kv,
    }
    if weights.key_norm is None:
        from_and_to_host_width = 2 * num_query_tokens * heads * width * (head_dim + hidden_size)
        costs["host_width"] = query + from_and_to_host_width + attention * hidden_size + norms
    return min(costs, key=lambda plan: costs[plan])


def folds_output(weights: LayerWeights, output_projection: nn.Module, num_query_tokens: int) -> bool:
    """
    Return whether the feed-forward's last projection is cheaper folded with the output projection (D to d): folding
    costs `d D` multiply-adds for each of its inputs, and saves `D - d` for each of the batch's query tokens.
    """
    if weights.down is None or not is_plain(output_projection):
        return False
    hidden_size, width = cast(torch.Tensor, output_projection.weight).shape
    return num_query_tokens * (width - hidden_size) > hidden_size * width


def run_layer(
    plan: LayerPlan,
    tokens: torch.Tensor,
    query_tokens: torch.Tensor,
    mask: torch.Tensor | None,
    cosines: torch.Tensor | None,
    input_weight: torch.Tensor | None = None,
    output_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Compute the layer's output for the query tokens, projected to the host's width if there is an `output_weight`.

    Args:
        plan ([`LayerPlan`]): a plan with weights.
        tokens (`torch.Tensor` of shape `(batch, tokens, d)`): the host's tokens; with `"explicit_kv"` the layer's
            input, of shape `(batch, tokens, D)`.
        query_tokens (`torch.Tensor` of shape `(batch, query tokens, D)`): the layer's input for the query tokens.
        mask (`torch.Tensor` of shape `(batch, 1, 1, tokens)`, *optional*): added to the attention scores.
        cosines (`torch.Tensor` of shape `(rotary dimensions,)`, *optional*): the rotary cosines at position 0, all 1
            unless the family scales its attention by them.
        input_weight (`torch.Tensor` of shape `(D, d)`, *optional*): weight of the input projection; not with
            `"explicit_kv"`.
        output_weight (`torch.Tensor` of shape `(d, D)`, *optional*): weight of the output projection, to fold it.

    Returns:
        `torch.Tensor` of shape `(batch, query tokens, D)`, or `(batch, query tokens, d)` with `output_weight`.
    """
    weights = cast(LayerWeights, plan.weights)
    cosines = cosines.repeat(weights.rotary_repeats) if cosines is not None and weights.has_rotary else None
    if plan.attention == "explicit_kv":
        query = _project(weights.norm(query_tokens), weights.query)
        normed = weights.norm(tokens)
        heads = _attend(plan, query, _project(normed, weights.key), _project(normed, weights.value), mask, cosines)
    else:
        heads = _attend_to_host_tokens(plan, tokens, query_tokens, mask, cosines, cast(torch.Tensor, input_weight))
    hidden_states, update = weights.feed_forward(query_tokens, heads.to(query_tokens.dtype))
    if output_weight is not None:
        return _project_output(weights, hidden_states, update, output_weight)
    if weights.down is not None:
        update = weights.down(update) * weights.down_multiplier
    return hidden_states + update


def _project_output(
    weights: LayerWeights, hidden_states: torch.Tensor, update: torch.Tensor, output_weight: torch.Tensor
) -> torch.Tensor:
    """Compute `W_out (h + W_down u)` as `W_out h + (W_out W_down) u`."""
    down, dtype = weights.down, output_weight.dtype
    if isinstance(down.weight, QuantizedWeight):
        folded = multiply(output_weight, down.weight, transposed=True)
    else:
        down_weight = down.weight.mT if isinstance(down, Conv1D) else down.weight
        folded = output_weight @ down_weight.to(dtype)
    if down.bias is not None:
        hidden_states = hidden_states + down.bias * weights.down_multiplier
    update = F.linear(update.to(dtype), folded) * weights.down_multiplier
    return F.linear(hidden_states.to(dtype), output_weight) + update


def _attend_to_host_tokens(
    plan: LayerPlan,
    tokens: torch.Tensor,
    query_tokens: torch.Tensor,
    mask: torch.Tensor | None,
    cosines: torch.Tensor | None,
    input_weight: torch.Tensor,
) -> torch.Tensor:
    """Return the concatenated attention heads of the query tokens."""
    weights = cast(LayerWeights, plan.weights)
    # In float32 at least, under autocast too: d is small.
    with nullcontext() if tokens.device.type == "meta" else torch.autocast(tokens.device.type, enabled=False):
        x, input_weight = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (tokens, input_weight))
        if weights.shift is not None:
            input_weight = input_weight - input_weight.mean(dim=0)
        inverse = inverse_norm(x, input_weight, weights.eps)
        gained = weights.gain.to(input_weight.dtype)[:, None] * input_weight
        if plan.attention == "host_width":
            query = _project(weights.norm(query_tokens).to(weights.query[0].dtype), weights.query)
            return _attend_without_keys(weights, x, inverse, gained, query, mask, cosines)
        scaled = x * inverse[..., None]
        if plan.attention == "folded_qkv":
            query = _project_folded(weights, scaled[:, plan.output_tokens], gained, weights.query)
        else:
            query = _project(weights.norm(query_tokens).to(weights.query[0].dtype), weights.query)
        key, value = (_project_folded(weights, scaled, gained, p) for p in (weights.key, weights.value))
        return _attend(plan, query.to(key.dtype), key, value, mask, cosines)


def _project(hidden_states: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Project to `(batch, tokens, heads, head_dim)`."""
    weight, bias = projection
    flat = linear(hidden_states, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return flat.unflatten(-1, weight.shape[:2])


def _total_bias(weights: LayerWeights, projection: Projection) -> torch.Tensor | None:
    """Return the sum of the norm's projected shift and the projection's bias, of shape `(heads, head_dim)`."""
    weight, bias = projection
    if weights.shift is None:
        return bias
    if isinstance(weight, QuantizedWeight):
        shift = multiply(weights.shift, weight.flatten(0, 1)).view(weight.shape[:2])
    else:
        shift = weight @ weights.shift
    return shift if bias is None else shift + bias


def _project_folded(
    weights: LayerWeights, scaled: torch.Tensor, gained: torch.Tensor, projection: Projection
) -> torch.Tensor:
    """Project, as `_project`, the host's tokens `scaled` by their inverse norms, by a folded matrix."""
    weight, bias = projection[0], _total_bias(weights, projection)
    if isinstance(weight, QuantizedWeight):
        folded = multiply(gained.mT, weight.flatten(0, 1)).mT
    else:
        folded = weight.flatten(0, 1).to(gained.dtype) @ gained
    flat = F.linear(scaled, folded, None if bias is None else bias.flatten().to(gained.dtype))
    return flat.unflatten(-1, weight.shape[:2])


def _rotate(heads: torch.Tensor, cosines: torch.Tensor | None) -> torch.Tensor:
    """Apply the rotation of position 0, the identity, times the family's attention scaling."""
    if cosines is None:
        return heads
    rotary, rest = heads.split([len(cosines), heads.shape[-1] - len(cosines)], dim=-1)
    return torch.cat([rotary * cosines.to(heads.device, heads.dtype), rest], dim=-1)


def _attend(
    plan: LayerPlan,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    cosines: torch.Tensor | None,
) -> torch.Tensor:
    """Attend with queries, keys and values of shape `(batch, tokens, heads, head_dim)`; concatenate the heads."""
    weights = cast(LayerWeights, plan.weights)
    query = query if weights.query_norm is None else weights.query_norm(query)
    key = key if weights.key_norm is None else weights.key_norm(key)
    query, key = _rotate(query, cosines), _rotate(key, cosines)
    groups = query.shape[2] // key.shape[2]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if plan.uses_sdpa and weights.soft_cap is None and weights.sinks is None:
        mask = None if mask is None else mask.to(query.dtype)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=weights.scaling)
    else:
        probabilities = _softmax(weights, query @ key.mT * weights.scaling, mask, (-1, 1, 1))
        heads = probabilities.to(value.dtype) @ value
    return heads.transpose(1, 2).flatten(2)


def _softmax(
    weights: LayerWeights, scores: torch.Tensor, mask: torch.Tensor | None, heads_shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the attention probabilities of scores whose heads are in the dimensions of `heads_shape`."""
    if weights.soft_cap is not None:
        scores = weights.soft_cap * torch.tanh(scores / weights.soft_cap)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if weights.sinks is None:
        return scores.softmax(dim=-1, dtype=dtype)
    sinks = weights.sinks.to(scores.dtype).view(heads_shape).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1, dtype=dtype)[..., :-1]


def _multiply_heads(x: torch.Tensor, weight: Weight, transposed: bool = False) -> torch.Tensor:
    """Multiply `(batch, tokens, heads, queries of a head, channels)` by a weight `(heads, head_dim, D)`."""
    if isinstance(weight, torch.Tensor):
        return torch.einsum("brkgc,kcD->brkgD" if transposed else "brkgD,kcD->brkgc", x, weight)
    by_head = x.permute(2, 0, 1, 3, 4)
    product = multiply(by_head.flatten(1, 3), weight, transposed)
    return product.unflatten(1, by_head.shape[1:4]).permute(1, 2, 0, 3, 4)


def _attend_without_keys(
    weights: LayerWeights,
    x: torch.Tensor,
    inverse: torch.Tensor,
    gained: torch.Tensor,
    query: torch.Tensor,
    mask: torch.Tensor | None,
    cosines: torch.Tensor | None,
) -> torch.Tensor:
    """
    Attend, without keys and values, to the host's tokens `x` with the inverse norms `inverse`; concatenate the heads.
    """
    query = query if weights.query_norm is None else weights.query_norm(query)
    query = _rotate(_rotate(query, cosines), cosines)  # the second time for the keys
    query = query.unflatten(2, (weights.key[0].shape[0], -1))
    folded_query = _multiply_heads(query, weights.key[0], transposed=True)
    # `reshape` makes one matrix product out of many small ones.
    folded_query = (folded_query.to(gained.dtype).reshape(-1, len(gained)) @ gained).view(*query.shape[:-1], -1)
    # Scores and probabilities are scaled by the inverse norms: scaled tokens would be one more tensor to keep.
    inverse = inverse[:, None, None, None]
    scores = torch.einsum("brkgd,btd->brkgt", folded_query, x) * (inverse * weights.scaling)
    if weights.soft_cap is not None or weights.sinks is not None:
        # A bias of the keys moves all scores of a query alike: only a plain softmax is invariant to it.
        if (bias := _total_bias(weights, weights.key)) is not None:
            moved = torch.einsum("brkgc,kc->brkg", query, bias) * weights.scaling
            scores = scores + moved[..., None].to(scores.dtype)
    mask = None if mask is None else mask[:, :, :, None]
    probabilities = _softmax(weights, scores, mask, (*query.shape[2:4], 1))
    mean = torch.einsum("brkgt,btd->brkgd", probabilities * inverse, x)
    heads = _multiply_heads((mean @ gained.mT).to(query.dtype), weights.value[0])
    if (bias := _total_bias(weights, weights.value)) is not None:
        total = 1.0 if weights.sinks is None else probabilities.sum(dim=-1, keepdim=True).to(heads.dtype)
        heads = heads + bias[:, None] * total
    return heads.flatten(2)


__all__ = ["AttentionPlan", "LayerPlan", "choose_attention_plan", "folds_output", "run_layer"]
