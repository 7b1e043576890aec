# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Hand-written float64 references of the LLM block: no transformers code, every norm and softmax in float64.

Weights are plain dictionaries with the LLM's own names, such as the state dictionaries of the layers.
"""

import contextlib

import torch
from torch import nn


def rms_norm(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) + bias


def rotary_tables(tokens, head_dim, theta):
    """cos and sin of positions 0, 1, 2, …; computed in float32, as in every LLaMA implementation."""
    inverse = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    angles = torch.arange(tokens).float()[:, None] * inverse[None, :]
    angles = torch.cat((angles, angles), -1)
    return angles.cos().double(), angles.sin().double()


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def attend(q, k, v, scaling, mask, causal):
    """Attention of (batch, heads, tokens, width); `mask` is (batch, tokens), True = token."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
    tokens = scores.shape[-1]
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    seen = seen[None, None]
    if mask is not None:
        seen = seen & mask[:, None, None, :].bool()
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def heads_of(x, count):
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, count, -1).transpose(1, 2)


def merge(x):
    batch, _, tokens, _ = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, -1)


def llama_layer(x, weights, heads, kv_heads, eps, mask=None, causal=False, rotary_theta=None):
    w = weights
    h = rms_norm(x, w["input_layernorm.weight"], eps)
    q = heads_of(h @ w["self_attn.q_proj.weight"].T, heads)
    k = heads_of(h @ w["self_attn.k_proj.weight"].T, kv_heads)
    v = heads_of(h @ w["self_attn.v_proj.weight"].T, kv_heads)
    if rotary_theta is not None:
        cos, sin = rotary_tables(x.shape[1], q.shape[-1], rotary_theta)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    attended = attend(q, k, v, q.shape[-1] ** -0.5, mask, causal)
    x = x + merge(attended) @ w["self_attn.o_proj.weight"].T
    h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
    gate = h @ w["mlp.gate_proj.weight"].T
    gate = gate / (1 + torch.exp(-gate))
    return x + (gate * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def opt_layer(x, weights, heads, mask=None, causal=False, pre_norm=True):
    w = weights

    def linear(name, value):
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, value):
        return layer_norm(value, w[f"{name}.weight"], w[f"{name}.bias"])

    h = norm("self_attn_layer_norm", x) if pre_norm else x
    q, k, v = (heads_of(linear(f"self_attn.{n}_proj", h), heads) for n in "qkv")
    attended = attend(q, k, v, q.shape[-1] ** -0.5, mask, causal)
    x = x + linear("self_attn.out_proj", merge(attended))
    if not pre_norm:
        x = norm("self_attn_layer_norm", x)
    h = norm("final_layer_norm", x) if pre_norm else x
    x = x + linear("fc2", linear("fc1", h).clamp(min=0))
    return x if pre_norm else norm("final_layer_norm", x)


def block(x, input_projection, output_projection, layers, norm=None, residual="none", input_scale=1.0, skip=None):
    """The whole LLM block; `layers`, `norm` and `skip` are functions of the hidden states."""
    hidden = input_scale * (x @ input_projection.T)
    out = hidden
    for layer in layers:
        out = layer(out)
    if norm is not None:
        out = norm(out)
    if residual in ("inner", "hybrid"):
        out = hidden + out
    out = out @ output_projection.T
    if skip is not None:
        x = torch.where(skip(x) > 0, skip(x), 0.01 * skip(x))
    return x + out if residual in ("outer", "hybrid", "outer_linear") else out


def relative_error(actual, expected):
    """Largest difference over the largest expected magnitude."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


@contextlib.contextmanager
def transformers_in_full_precision():
    """transformers' RMSNorm and eager softmax compute in float32 even in a float64 model; here they keep float64."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    plain_forward, plain_softmax = LlamaRMSNorm.forward, nn.functional.softmax

    def forward(self, hidden_states):
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def softmax(x, dim=None, dtype=None, **kwargs):
        return plain_softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    LlamaRMSNorm.forward, nn.functional.softmax = forward, softmax
    try:
        yield
    finally:
        LlamaRMSNorm.forward, nn.functional.softmax = plain_forward, plain_softmax
