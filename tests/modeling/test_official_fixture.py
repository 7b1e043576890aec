# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A tiny ViT with a LLaMA layer, converted from its released names, equals the released code numerically."""

import json

import pytest
import torch
from llm_files import write_tensors
from paths import shared_dir
from references import relative_error
from safetensors import safe_open
from transformers import LlamaConfig

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


TOLERANCE = 2e-6
LLAMA_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# names of published ViT checkpoints
VIT_NAMES = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
VIT_LAYER_NAMES = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}


@pytest.fixture(scope="module")
def released():
    with safe_open(shared_dir() / "fixtures" / "official_vit_llama_tiny.safetensors", "pt") as f:
        return json.loads(f.metadata()["config"]), {name: f.get_tensor(name) for name in f.keys()}


def published_vit_state(state, depth):
    """The released model's ViT under the names of the ViT checkpoints on the Hub."""
    out = {}
    for old, new in VIT_NAMES.items():
        for name in (old, f"{old}.weight", f"{old}.bias"):
            if name in state:
                out[name.replace(old, new)] = state[name]
    for i in range(depth):
        before, after = f"blocks.{i}", f"vit.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for part, value in zip(("query", "key", "value"), state[f"{before}.attn.qkv.{kind}"].chunk(3)):
                out[f"{after}.attention.attention.{part}.{kind}"] = value
            for old, new in VIT_LAYER_NAMES.items():
                out[f"{after}.{new}.{kind}"] = state[f"{before}.{old}.{kind}"]
    return out


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, released, tmp_path_factory):
    config, tensors = released
    llama = config["llama"]
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    layer = llama["first_layer"]
    llm = {}
    for old, new in LLAMA_NAMES.items():
        llm[f"model.layers.{layer}.{new}.weight"] = state[f"llama.layers.0.{old}.weight"]
    llm_folder = write_tensors(
        LlamaConfig(
            vocab_size=8,
            hidden_size=llama["dim"],
            intermediate_size=llm[f"model.layers.{layer}.mlp.gate_proj.weight"].shape[0],
            num_hidden_layers=llama["n_layers"],
            num_attention_heads=llama["n_heads"],
            rms_norm_eps=llama["norm_eps"],
        ),
        llm,
        tmp_path_factory.mktemp("llama"),
    )
    vit_config = ViTWithLLMBlockConfig(
        hidden_size=config["embed_dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["num_heads"],
        intermediate_size=config["embed_dim"] * config["mlp_ratio"],
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        qkv_bias=config["qkv_bias"],
        layer_norm_eps=config["layer_norm_eps"],
        num_labels=config["num_classes"],
    )
    folder = write_tensors(vit_config, published_vit_state(state, config["depth"]), tmp_path_factory.mktemp("vit"))
    model, info = ViTWithLLMBlockForImageClassification.from_pretrained(
        folder,
        llm_block=LLMBlockConfig(llm_name_or_path=str(llm_folder), layer_index=layer),
        attn_implementation=request.param,
        output_loading_info=True,
    )
    assert not info["unexpected_keys"] and all(k.startswith("llm_block.") for k in info["missing_keys"])
    model.llm_block.input_projection.weight.data.copy_(state["llama_dim_mapper1.weight"])
    model.llm_block.output_projection.weight.data.copy_(state["llama_dim_mapper2.weight"])
    assert torch.equal(model.llm_block.final_norm.weight, state["llama.norm.weight"])
    return model.eval()


def test_released_model(model, released):
    tensors = released[1]
    seen = {}
    hooks = [
        model.llm_block.register_forward_pre_hook(lambda m, args: seen.update(before_block=args[0])),
        model.llm_block.register_forward_hook(lambda m, args, out: seen.update(after_block=out)),
        model.llm_block.final_norm.register_forward_hook(lambda m, args, out: seen.update(llm_out=out)),
    ]
    out = model(tensors["pixel_values"], labels=tensors["labels"], output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for name in ("before_block", "llm_out", "after_block"):
        assert relative_error(seen[name], tensors[name]) < TOLERANCE, name
    assert relative_error(out.logits, tensors["logits"]) < TOLERANCE
    assert relative_error(out.loss, tensors["loss"]) < TOLERANCE
    # All tokens, and only the CLS token.
    for output in (out, model(tensors["pixel_values"], labels=tensors["labels"])):
        model.zero_grad()
        output.loss.backward()
        assert relative_error(output.logits, tensors["logits"]) < TOLERANCE
        assert relative_error(model.llm_block.input_projection.weight.grad, tensors["grad_mapper1"]) < TOLERANCE
        assert relative_error(model.llm_block.output_projection.weight.grad, tensors["grad_mapper2"]) < TOLERANCE


def test_block_alone(model, released):
    tensors = released[1]
    with torch.no_grad():
        assert relative_error(model.llm_block(tensors["before_block"]), tensors["after_block"]) < TOLERANCE


def test_after_save_and_load(model, released, tmp_path):
    tensors = released[1]
    model.save_pretrained(tmp_path)
    again = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert relative_error(again(tensors["pixel_values"]).logits, tensors["logits"]) < TOLERANCE
