# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Blocks of every layer class of the fast path, in full float64 precision where a test asks for it."""

import functools

import torch
from torch import nn

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.modeling.llm_layer_weights import find_layer_weights


FAMILIES = [
    *("llama", "llama_yarn", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "granite"),
    *("phi3", "opt", "gpt2", "gpt_neox", "phi", "gpt_oss"),
]
ATTENTION_PLANS = ["host_width", "folded_qkv", "folded_kv", "explicit_kv"]


def build_block(folder, width=24, dtype=torch.float32, **fields):
    fields = {"llm_name_or_path": folder, "layer_index": 1, "hidden_size": width, **fields}
    torch.manual_seed(0)
    block = LLMBlock(LLMBlockConfig(**fields)).to(dtype)
    for projection in (block.input_projection, block.output_projection):
        nn.init.normal_(projection.weight, std=0.3)
    return block


def padding():
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 4:], mask[1, 7] = 0, 0
    return mask


def weights_of(block):
    return find_layer_weights(block.llm_layers[-1], block.input_projection)


def keep_float64(block):
    """transformers' RMS norms compute in float32 even in a float64 model, and its grouped experts not at all."""
    block._caller.config._experts_implementation = "eager"
    for module in block.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = functools.partial(float64_norm, module)


def float64_norm(module, x):
    is_gemma = hasattr(module, "eps")
    eps, weight = (module.eps, 1 + module.weight) if is_gemma else (module.variance_epsilon, module.weight)
    return weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
