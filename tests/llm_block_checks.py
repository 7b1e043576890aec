# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Blocks of tiny LLMs, and checks of their outputs and of their frozen layers."""

import torch
from tiny_llms import MIXTURES, decoder_stack
from transformers import AutoModel

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig


WIDTH, TOKENS = 24, 9
# rounding of norms and softmax, which transformers computes in float32
TOLERANCE = 2e-5


def dtype_of(family):
    return torch.float32 if family in MIXTURES else torch.float64


def build_block(folder, attn_implementation=None, **fields):
    """Build a block through `AutoModel`, with the same random weights at every call."""
    config = LLMBlockConfig(**{"llm_name_or_path": folder, "layer_index": 1, "hidden_size": WIDTH, **fields})
    torch.manual_seed(0)
    kwargs = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    return AutoModel.from_config(config, **kwargs).eval()


def read_block(folder, **fields):
    """Build a block by its constructor alone."""
    return LLMBlock(
        LLMBlockConfig(**{"llm_name_or_path": str(folder), "layer_index": 1, "hidden_size": WIDTH, **fields})
    )


def vit_config(**fields):
    return ViTWithLLMBlockConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
        **fields,
    )


def tokens(family, batch=2, count=TOKENS, width=WIDTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, width, generator=generator, dtype=torch.float64).to(dtype_of(family))


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


def frozen_names(model):
    return {n for n, p in model.named_parameters() if not p.requires_grad}


def layer_names(model):
    return {n for n, _ in model.named_parameters() if "llm_layers." in n or "final_norm." in n}


def assert_frozen(model):
    assert layer_names(model)
    assert frozen_names(model) == layer_names(model)


def assert_holds_layer(block, llm, index=1, position=0):
    expected = decoder_stack(llm)[0][index].state_dict()
    actual = block.llm_layers[position].state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(actual[name].dtype)), name
