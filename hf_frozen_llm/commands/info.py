# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm info`: describe a checkpoint without loading it."""

from pathlib import Path
from typing import Any

import torch

from hf_frozen_llm.flops import build_on_meta, count_flops
from hf_frozen_llm.hub.licences import UNKNOWN, find_licence
from hf_frozen_llm.hub.weights import weight_names
from hf_frozen_llm.modeling.checkpoint_files import digest_tensors
from hf_frozen_llm.modeling.configuration_llm_block import LLMBlockConfig
from hf_frozen_llm.modeling.llm_checkpoint import LLMCheckpoint
from hf_frozen_llm.modeling.llm_layer_reader import find_saved_layer
from hf_frozen_llm.modeling.quantized_linear import QuantizedLinear
from hf_frozen_llm.training.results import count_parameters, load_own_config


def describe_checkpoint(name_or_path: str, verify: bool = False) -> dict[str, str]:
    """
    Describe a checkpoint of this package.

    Args:
        name_or_path (`str`): folder or Hub id.
        verify (`bool`, *optional*, defaults to `False`): whether to read the LLM layer that it holds, and to compare
            it with the fingerprint of the layer that was saved.

    Returns:
        `dict[str, str]`: model, host, LLM and its licence, layer, whether the layer is included, fingerprint,
            parameters and FLOPs.

    Raises:
        `OSError`: if there is no such checkpoint.
        `ValueError`: if it is not one of this package, or if the layer is not the one that was saved.
    """
    config = load_own_config(name_or_path)
    model = build_on_meta(config)
    host = getattr(config, "vision_config", config)
    architecture = (config.architectures or [type(model).__name__])[0]
    has_classes = type(model).__name__.endswith("Classification")
    facts = {
        "model": f"{architecture} ({config.model_type})" + (f", {config.num_labels} labels" if has_classes else ""),
        "host": ", ".join(
            f"{name} {getattr(host, name)}"
            for name in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size")
            if hasattr(host, name)
        ),
    }
    block: Any = config.llm_block
    if block is None:
        facts["LLM block"] = "none, the plain host"
    else:
        place = "after the last layer" if block.position == -1 else f"after {block.position} layers"
        facts["LLM block"] = f"kind {block.kind}, {place} of the host"
        facts["input scale"] = f"{block.input_scale:g}" + (", as released" if block.input_scale == 1 else "")
        facts["LLM"] = f"{block.llm_name_or_path or UNKNOWN} at revision {block.llm_revision or UNKNOWN}"
        facts["licence of the LLM"] = find_licence(block.llm_name_or_path)
        if block.kind == "llm":
            text_config = block.llm_config.get_text_config(decoder=True)
            facts["layer"] = (
                f"{block.layer_index} of {text_config.num_hidden_layers} ({block.llm_config.model_type}, width "
                f"{text_config.hidden_size}), weights {block.weights}, {'trained' if block.trainable else 'frozen'}"
            )
            facts["bytes of the layer"] = describe_bytes(model)
            is_included = any(".llm_layers." in f".{name}" for name in weight_names(name_or_path))
            facts["layer's weights"] = "included" if is_included else "left out, loading reads them from the LLM again"
            if verify:
                facts["verified"] = verify_layer(name_or_path, block) if is_included else "nothing, it has no layer"
            facts["update of the layer"] = describe_update(name_or_path, type(model), is_included)
            facts["fingerprint"] = block.fingerprint or "none, the layer is not (or no longer) that of the LLM"
    facts["parameters"] = ", ".join(f"{count:,} {name}" for name, count in count_parameters(model).items())
    forward, step = count_flops(config, batch_size=64)
    facts["GFLOP for one input"] = f"{forward / 1e9:,.3f} forward, {step / 1e9:,.3f} in a training step of 64"
    return facts


def describe_bytes(model: Any) -> str:
    """Return the bytes of an LLM layer in memory, and the bits of a weight with its share of scales."""
    block = model._get_llm_block()
    tensors = block._named_llm_tensors().values()
    linears = [m for m in block.modules() if isinstance(m, QuantizedLinear)]
    size = f"{sum(tensor.nbytes for tensor in tensors):,}"
    if not linears:
        return f"{size}, as {str(block._dtype_of_layers()).removeprefix('torch.')}"
    stored = sum(p.nbytes for m in linears for name, p in m.named_parameters() if name != "bias")
    bits = 8 * stored / sum(m.out_features * m.in_features for m in linears)
    return f"{size}, as {block.config.quantization} ({bits:.1f} bits per weight with its scales)"


def verify_layer(name_or_path: str, config: LLMBlockConfig) -> str:
    """
    Compare the LLM layer that a checkpoint holds with the fingerprint of the one that was saved.

    Raises:
        `ValueError`: if they differ.
    """
    with LLMCheckpoint(name_or_path) as checkpoint:
        tensors = {name: checkpoint.read(key) for name, key in find_saved_layer(checkpoint).items()}
    if config.saved_fingerprint is None:
        if config.final_norm != "pretrained":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("final_norm.")}
        # The fingerprint is of the types in the LLM's checkpoint; another type here has another one.
        is_equal = digest_tensors(tensors) == config.fingerprint
        return "the layer is the LLM's" if is_equal else f"{UNKNOWN}: config.json has no saved_fingerprint"
    if digest_tensors(tensors) != config.saved_fingerprint:
        raise ValueError(
            f"{name_or_path} is damaged: its LLM layer is not the one that was saved (saved_fingerprint "
            f"{config.saved_fingerprint[:16]}… of its config.json). Save or copy it again."
        )
    return "the layer is the one that was saved"


def describe_update(name_or_path: str, model_class: Any, is_included: bool) -> str:
    """Return by how much the first LLM layer changes standard-normal tokens; this reads the weights of the folder."""
    if not is_included or not Path(name_or_path).is_dir():
        return "not measured: only of a local folder with the layer's weights (otherwise llm_block.update_ratio)"
    block = model_class.from_pretrained(name_or_path)._get_llm_block()
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = torch.randn(1, 64, block.config.hidden_size, generator=generator)
    return f"{block.update_ratio(tokens.to(block.dtype)):.3g} times its input, for standard-normal tokens"
