# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny LLMs of many families with random weights, norms and biases too."""

import json
import re

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


# Names that most configs share; every family gets those it knows from its own entry below.
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT2_LIKE = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# DeepSeek's latent attention: heads of 8 without and 8 with rotary
LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
ENCODER_DECODER = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
LAYER_TYPES = ["full_attention", "sliding_attention", "full_attention"]

# name of the case -> (model_type, config keys)
FAMILIES = {
    "llama": ("llama", GROUPED),
    "llama_yarn": (
        "llama",
        {
            **GROUPED,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 10000.0,
            },
        },
    ),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral_window": ("mistral", {**GROUPED, "sliding_window": 3}),
    "ministral": ("ministral", {**GROUPED, "head_dim": 8}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "gemma": ("gemma", {**COMMON, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 32}),
    "gemma3_text": (
        "gemma3_text",
        {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 32, "layer_types": LAYER_TYPES},
    ),
    "phi": ("phi", {**COMMON, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", GROUPED),
    "opt": ("opt", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_350m": ("opt", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", GPT2_LIKE),
    "gpt_neo": (
        "gpt_neo",
        {
            **COMMON,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
        },
    ),
    "gptj": ("gptj", {**GPT2_LIKE, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {**COMMON, "rotary_pct": 0.5}),
    "gpt_bigcode": ("gpt_bigcode", GPT2_LIKE),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", {**COMMON, "multi_query": True, "parallel_attn": True, "bias": False}),
    "falcon_alibi": ("falcon", {**COMMON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon_new": ("falcon", {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
    "olmo3": ("olmo3", {**GROUPED, "sliding_window": 32}),
    "smollm3": ("smollm3", GROUPED),
    "cohere": ("cohere", {**GROUPED, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**GROUPED, "sliding_window": 32}),
    "granite": ("granite", {**GROUPED, "residual_multiplier": 0.5, "attention_multiplier": 0.3}),
    "glm": ("glm", {**GROUPED, "head_dim": 8}),
    "glm4": ("glm4", {**GROUPED, "head_dim": 8}),
    "stablelm": ("stablelm", GROUPED),
    "starcoder2": ("starcoder2", {**GROUPED, "sliding_window": None}),
    "nemotron": ("nemotron", {**GROUPED, "head_dim": 8}),
    "persimmon": ("persimmon", {**COMMON, "hidden_act": "relu2"}),
    "codegen": ("codegen", {**GPT2_LIKE, "rotary_dim": 4, "n_ctx": 64}),
    "biogpt": ("biogpt", COMMON),
    "exaone4": ("exaone4", {**GROUPED, "sliding_window": 32}),
    "apertus": ("apertus", GROUPED),
    "arcee": ("arcee", GROUPED),
    "helium": ("helium", {**GROUPED, "head_dim": 8}),
    "seed_oss": ("seed_oss", {**GROUPED, "head_dim": 8}),
    "bitnet": ("bitnet", GROUPED),
    "ernie4_5": ("ernie4_5", {**GROUPED, "head_dim": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**GROUPED, "head_dim": 8}),
    "diffllama": ("diffllama", GROUPED),
    "mixtral": ("mixtral", {**GROUPED, **EXPERTS}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "olmoe": ("olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {**GROUPED, **EXPERTS}),
    "granitemoe": ("granitemoe", {**GROUPED, **EXPERTS}),
    "deepseek_v2": ("deepseek_v2", LATENT),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "gpt_oss": ("gpt_oss", {**GROUPED, **EXPERTS, "head_dim": 8, "sliding_window": 32, "layer_types": LAYER_TYPES}),
    "llama4_text": (
        "llama4_text",
        {
            **GROUPED,
            **EXPERTS,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 32,
        },
    ),
    "nanochat": ("nanochat", GROUPED),
}
# softcapped or old attention code: transformers has eager only
EAGER_ONLY = {"gemma2", "gpt_oss", "bloom", "mpt", "gptj", "gpt_neo", "codegen"}
# torch has no float64 grouped_mm
MIXTURES = {
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "phimoe",
    "granitemoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
}
# the whole model adds something of its own around the layer (alibi, chunks) or stays causal whatever it is asked
NO_ORACLE = {
    "gpt_neo",
    "gptj",
    "codegen",
    "bloom",
    "mpt",
    "falcon",
    "falcon_alibi",
    "falcon_new",
    "llama4_text",
    "mistral_window",
}
NO_SDPA_ORACLE = {"stablelm", "nemotron"}
NO_FINAL_NORM = {"opt_350m"}

# case -> (model_type, config keys, layer): layers without self-attention, and models that are no decoder
NO_SELF_ATTENTION = {
    "mamba": ("mamba", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}, 1),
    "mamba2": (
        "mamba2",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
        },
        1,
    ),
    "rwkv": ("rwkv", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32}, 1),
    "jamba": (
        "jamba",
        {
            **GROUPED,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "num_experts": 2,
        },
        1,
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **GROUPED,
            "head_dim": 8,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
        1,
    ),
    "lfm2": ("lfm2", {**GROUPED, "layer_types": ["full_attention", "conv", "full_attention"]}, 1),
}
NOT_DECODERS = {
    "t5": ("t5", {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}),
    "bart": ("bart", ENCODER_DECODER),
    "bert": ("bert", COMMON),
    "roberta": ("roberta", COMMON),
    "vit": (
        "vit",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 8,
            "patch_size": 4,
        },
    ),
    "clip": ("clip", {}),
    "whisper": ("whisper", {**ENCODER_DECODER, "pad_token_id": 0}),
}
# families that need more than the generic call gives: run right, or refused by name
MAY_BE_REFUSED = {
    "xglm": (
        "xglm",
        {
            "vocab_size": 64,
            "d_model": 32,
            "num_layers": 3,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
    "openai-gpt": ("openai-gpt", {k: v for k, v in GPT2_LIKE.items() if "token" not in k}),
    "ctrl": ("ctrl", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "dff": 48}),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **GROUPED,
            "intermediate_size": [48, 48, 48],
            "head_dim": 8,
            "layer_types": LAYER_TYPES,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0, 0.0],
        },
    ),
}


def tiny_config(family, **overrides):
    """The config of one case of the tables above (`family` is the case's name)."""
    for table in (FAMILIES, NO_SELF_ATTENTION, NOT_DECODERS, MAY_BE_REFUSED):
        if family in table:
            model_type, keys = table[family][:2]
            # a deep copy: configs keep and change the dicts they are given
            return AutoConfig.for_model(model_type, **json.loads(json.dumps({**keys, **overrides})))
    raise KeyError(family)


def randomize(model, seed=0, std=0.15):
    """Adds noise to every parameter and persistent buffer, so that no norm is neutral and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = model.state_dict(keep_vars=True)
        for name in sorted(state):
            tensor = state[name]
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * std)
    return model


def tiny_llm(config, seed=0, dtype=torch.float32, **kwargs):
    """The whole causal LM of `config` with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kwargs)
    return randomize(model, seed).to(dtype).eval()


def decoder_stack(model):
    """The decoder's `ModuleList` of layers, and its dotted path in `model`."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    # beside a tower of the same depth the language model's is named as such
    name, stack = min(found, key=lambda item: (not re.search("decoder|language|text", item[0]), len(item[0])))
    return stack, name


def final_norm(model):
    """The LLM's own final norm: the norm that stands after the layer stack."""
    _, path = decoder_stack(model)
    parent = model.get_submodule(path.rpartition(".")[0])
    names = [n for n, _ in parent.named_children()]
    after = [n for n in names[names.index(path.rpartition(".")[2]) + 1 :] if "norm" in n or n == "ln_f"]
    return getattr(parent, after[0]) if after else getattr(parent, "final_layer_norm", None)


# A host: 3 layers, 4 patches and a CLS token.
HOST = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}


def published_vit(folder, with_head=True, **fields):
    """A tiny plain ViT with random weights, written as transformers' save_pretrained writes published checkpoints."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(**{**HOST, **fields})
    torch.manual_seed(1)
    model = ViTForImageClassification(config) if with_head else ViTModel(config)
    model = randomize(model, seed=1).eval()
    model.save_pretrained(folder)
    return model
