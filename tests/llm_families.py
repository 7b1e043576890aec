# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Every family of causal language models that the installed transformers can build, at a tiny size.

The tests include families of a new transformers version automatically, and fail until the package supports the family
or `REFUSED` lists it.
"""

import dataclasses

from transformers import CONFIG_MAPPING, EncodecConfig, PreTrainedConfig, T5Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


# by the name of the configuration's field
SIZES = {
    64: "vocab_size vocab_size_per_layer_input unpadded_vocab_size output_vocab_size n_positions n_ctx max_seq_len "
    "max_position_embeddings original_max_position_embeddings",
    48: "intermediate_size ffn_dim ffn_hidden_size dim_ff dff intermediate_size_mlp n_inner shared_intermediate_size "
    "dense_intermediate_size prefix_dense_intermediate_size d_inner",
    32: "hidden_size d_model n_embd word_embed_proj_dim embedding_dim emb_dim embedding_size input_embedding_size "
    "output_embedding_size attention_hidden_size lru_width sliding_window attention_chunk_size mamba_d_ssm "
    "num_attn_head_channels",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size qk_head_dim q_lora_rank "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size kv_lora_rank o_lora_rank attention_head_dim",
    8: "head_dim dim_head kv_channels swa_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim mamba_head_dim mamba_d_head mamba_n_heads mamba_num_heads index_head_dim "
    "hidden_size_per_layer_input",
    4: "num_hidden_layers n_layer n_layers num_layers num_blocks num_attention_heads n_head n_heads num_heads "
    "attention_heads swa_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "linear_num_key_heads linear_num_value_heads linear_num_heads rotary_dim state_size ssm_state_size mamba_d_state",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk "
    "moe_k top_k_experts o_groups eos_token_id",
    1: "n_group topk_group num_expert_group n_groups num_shared_experts n_shared_experts moe_num_shared_experts "
    "first_k_dense_replace bos_token_id",
    0: "pad_token_id",
}
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}

# The oldest supported transformers has no defaults for the parts of a composed model.
COMPOSED = {"text_encoder": T5Config(), "audio_encoder": EncodecConfig(), "decoder": {}}

# additional fields of families whose own rules or defaults do not fit those sizes
EXTRA = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "musicgen": COMPOSED,
    "musicgen_melody": COMPOSED,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def small_config(model_type):
    """Return the configuration of a tiny language model of the family."""
    return shrink(CONFIG_MAPPING[model_type], EXTRA.get(model_type, {}))


def shrink(config_class, extra):
    names = {field.name for field in dataclasses.fields(config_class)}
    sizes = {name: size for name, size in SIZE_OF.items() if name in names}
    if "kv_lora_rank" in names:
        sizes["num_key_value_heads"] = 4  # latent attention has as many heads of keys as of queries
    inner = {}
    if config_class.sub_configs:
        default = vars(config_class(**extra))
        inner = {
            name: shrink(type(v), EXTRA.get(v.model_type, {}))
            for name, v in default.items()
            if isinstance(v, PreTrainedConfig)
        }
    return config_class(**{**sizes, **inner, **extra})


# part of the error message -> the families refused with it
REFUSED = {
    "is an encoder-decoder": "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen "
    "musicgen_melody mvp pegasus plbart prophetnet whisper",
    "is not a decoder layer": "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert "
    "reformer rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod",
    "has no self-attention": "falcon_mamba mamba mamba2 rwkv xlm xlstm",
    "mixes tokens by a convolution or recurrence": "falcon_h1 inkling2_loop_text inkling2_text inkling_text zamba "
    "zamba2 zaya",
    "attends to a selection of earlier tokens": "axk2 deepseek_v32 deepseek_v4 glm_moe_dsa hy_v4 qwen4_exp "
    "qwen4_exp_text",
    "needs an embedding of the input words": "gemma3n_text",
    "cannot run without its whole language model": "cpmant xlnet",
    "has no stack of": "blt hrm_text longcat_flash",
    "can build without a head": "gemma4_assistant gemma4_unified_assistant trocr",
}
REASONS = {family: reason for reason, families in REFUSED.items() for family in families.split()}
# multimodal models whose towers need timm or have rules of their own; their language models are families here
NOT_BUILT = {"gemma3n", "dots3_note"}
FAMILIES = sorted(f for f in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if f not in {*REASONS, *NOT_BUILT})
REFUSED_HERE = sorted(f for f in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if f in {*REASONS} - NOT_BUILT)
