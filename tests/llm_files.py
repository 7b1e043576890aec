# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Functions that write a tiny LLM as a checkpoint: safetensors, files of torch.save, GGUF."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_llm(model, folder, layout="single", shard_size=20_000):
    """Writes `model` as a checkpoint folder.

    Args:
        layout (`str`): `"single"` and `"sharded"` safetensors as transformers' save_pretrained writes them, `"bin"`
            (one file) and `"bin_sharded"` as older versions wrote them with torch.save.
        shard_size (`int`): largest shard in bytes.
    """
    folder = Path(folder)
    if layout == "single":
        model.save_pretrained(folder)
        return folder
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if layout == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    shards = split(state, shard_size)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"pytorch_model-{i:05d}-of-{len(shards):05d}.bin"
        torch.save(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {"total_size": nbytes(state)}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def write_tensors(config, tensors, folder):
    """Writes `tensors` under the names they are given as a single-file safetensors checkpoint of `config`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def split(state, size):
    shards, room = [{}], size
    for name, tensor in state.items():
        if nbytes({name: tensor}) > room and shards[-1]:
            shards.append({})
            room = size
        shards[-1][name] = tensor
        room -= nbytes({name: tensor})
    return shards


def nbytes(state):
    return sum(t.numel() * t.element_size() for t in state.values())


def permute_rows(weight, heads):
    """llama.cpp's order of the rows of q and k: pairs (i, i + half) of a head become neighbours."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def write_gguf(model, path, quantization="F32", layers=None, more_tensors=None, more_keys=None):
    """
    Writes a model as llama.cpp's converter does.

    Args:
        quantization (`str`): of the matrices, a name of `gguf.GGMLQuantizationType`.
        layers (`list[int]`, *optional*): only these layers are written.
        more_tensors (`dict[str, torch.Tensor]`, *optional*): written beside the model's, by their names in the file.
        more_keys (`dict[str, Any]`, *optional*): written beside the model's, by the writer's methods.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), GGUF_NAMES.get(config.model_type, config.model_type))
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "rms_norm_eps", None) is not None:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    elif config.model_type == "nemotron":
        writer.add_layer_norm_rms_eps(config.norm_eps)  # as transformers reads it
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.norm_epsilon)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    for method, value in (more_keys or {}).items():
        getattr(writer, method)(value)
    for name, tensor in {**gguf_tensors(model, layers), **(more_tensors or {})}.items():
        array = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else gguf.GGMLQuantizationType[quantization]
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def gguf_tensors(model, layers=None):
    """
    The model's tensors under llama.cpp's names and as it stores them: LLaMA's q and k permuted, the gate and up
    projections of experts apart, one added to Gemma's and Nemotron's norms.
    """
    import gguf

    config, out = model.config, {}
    name_in_file = GGUF_NAMES.get(config.model_type, config.model_type)
    architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == name_in_file)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and layers is not None and int(layer[1]) not in layers:
            continue
        if config.model_type == "llama" and ".q_proj." in name:
            tensor = permute_rows(tensor, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            tensor = permute_rows(tensor, config.num_key_value_heads)
        if config.model_type in ("gemma2", "gemma3_text", "nemotron") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith("shared_expert_gate.weight"):
            tensor = tensor[0]
        if ".experts." in name:
            parts = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}[name.rpartition(".")[2]]
            for part, stored in zip(parts, tensor.chunk(len(parts), dim=1)):
                out[f"blk.{layer[1]}.ffn_{part}_exps.weight"] = stored.contiguous()
            continue
        out[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor
    out.pop(None, None)  # a tied head, where llama.cpp has no name for it
    return out
