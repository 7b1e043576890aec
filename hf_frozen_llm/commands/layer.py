# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm layer`: describe a language model, and write some of its layers to a small folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_frozen_llm.hub.checkpoint import UNKNOWN, find_licence
from hf_frozen_llm.modeling.layer_cache import write_layer
from hf_frozen_llm.modeling.llm_checkpoint import LLMCheckpoint, load_llm_config
from hf_frozen_llm.modeling.llm_conversion import find_keys
from hf_frozen_llm.modeling.llm_layer import LLMLayers, build_llm_layers


def describe_llm(name_or_path: str, layer_index: int | None = None, revision: str | None = None) -> dict[str, str]:
    """
    Describe a language model. Only the headers of its weights are read; of a `.bin` file, names and shapes.

    Args:
        name_or_path (`str`): Hub id, folder or `.gguf` file, as `llm_block.llm_name_or_path`.
        layer_index (`int`, *optional*): the layer whose parameters and bytes are counted; by default the last one
            that is there.
        revision (`str`, *optional*): branch, tag or commit.

    Returns:
        `dict[str, str]`: family, layers, hidden size, the layer's parameters, bytes and types, licence.

    Raises:
        `OSError`: if it cannot be reached or holds no weights.
        `ValueError`: if its layers are not supported.
    """
    config, commit = load_llm_config(name_or_path, revision, {})
    built = build_llm_layers(config, -1 if layer_index is None else layer_index, torch.float32)
    num_layers = built.config.num_hidden_layers
    with LLMCheckpoint(name_or_path, commit or revision) as checkpoint:
        stored = find_stored_layers(checkpoint, built, num_layers)
        if layer_index is None and stored[-1] != built.indices[0]:
            built = build_llm_layers(config, stored[-1], torch.float32)
        keys = find_layer_keys(checkpoint, built, built.layer_path(built.indices[0]), built.layers[0])
        sizes = [checkpoint.size_of(key) for key in keys.values()]
    parameters = sum(p.numel() for p in built.layers.parameters())
    there = f"of which {', '.join(map(str, stored))} {'is' if len(stored) == 1 else 'are'} here"
    return {
        "language model": f"{name_or_path} at revision {commit or UNKNOWN}",
        "family": config.model_type,
        "layers": f"{num_layers}, {there if len(stored) < num_layers else f'layer_index 0 to {num_layers - 1}'}",
        "hidden size": str(built.config.hidden_size),
        f"layer {built.indices[0]}": f"{parameters:,} parameters in {sum(size for size, _ in sizes):,} bytes",
        "stored as": ", ".join(sorted({kind for _, kind in sizes})),
        "licence": find_licence(name_or_path),
    }


def extract_layers(
    name_or_path: str, layer_index: Sequence[int], output: str | Path, revision: str | None = None
) -> None:
    """
    Write layers of a language model and its final norm into a folder that replaces the language model: its whole
    configuration, and these tensors under their published names, in their stored types (from a GGUF file: float32).

    Args:
        name_or_path (`str`): Hub id, folder or `.gguf` file.
        layer_index (`Sequence[int]`): the layers, negative from the end.
        output (`str` or `Path`): a new or empty folder.
        revision (`str`, *optional*): branch, tag or commit.

    Raises:
        `FileExistsError`: if the folder is not empty.
        `OSError`, `ValueError`: as [`describe_llm`].
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already; extract into a new or empty folder.")
    config, commit = load_llm_config(name_or_path, revision, {})
    built = build_llm_layers(config, list(layer_index), torch.float32)
    modules: list[tuple[str, Any]] = [
        (built.layer_path(index), layer) for index, layer in zip(built.indices, built.layers)
    ]
    if built.final_norm is not None and built.final_norm.state_dict():
        modules.append((str(built.final_norm_path), built.final_norm))
    with LLMCheckpoint(name_or_path, commit or revision) as checkpoint:
        tensors = {}
        for path, module in modules:
            keys = list(find_layer_keys(checkpoint, built, path, module).values())
            checkpoint.prefetch(path, keys)
            tensors.update({key: checkpoint.read(key).contiguous() for key in keys})
    licence = find_licence(name_or_path)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary, "layers")
        folder.mkdir()
        vars(config).pop("quantization_config", None)  # tensors are dequantised when they are read
        config.save_pretrained(folder)
        about = {} if commit is None else {"repository": name_or_path, "commit": commit}
        write_layer(str(folder / "model.safetensors"), tensors, about).close()
        card = f"license: {licence}\n" if not licence.startswith(UNKNOWN) else ""
        layers = ", ".join(map(str, built.indices))
        Path(folder, "README.md").write_text(
            f"---\n{card}base_model: {name_or_path}\n---\n\nLayers {layers} and the final norm of {name_or_path} "
            f"(revision {commit or UNKNOWN}), for `llm_block.llm_name_or_path` of hf_frozen_llm. The licence of the "
            "language model applies.\n",
            encoding="utf-8",
        )
        folder.replace(output)


def find_stored_layers(checkpoint: LLMCheckpoint, built: LLMLayers, num_layers: int) -> list[int]:
    """Return the indices of the layers that a checkpoint holds; all of them for one with older names."""
    expected, prefix = set(built.layers[0].state_dict()), built.llm.base_model_prefix
    indices = range(num_layers)
    return [i for i in indices if checkpoint.keys_under(built.layer_path(i), expected, prefix)] or list(indices)


def find_layer_keys(checkpoint: LLMCheckpoint, built: LLMLayers, path: str, module: torch.nn.Module) -> dict[str, str]:
    """Return the keys of the checkpoint by the names below the module's path."""
    keys = find_keys(checkpoint, path, set(module.state_dict()), built.llm.base_model_prefix, lambda: built.llm)
    if not keys:
        stored = find_stored_layers(checkpoint, built, built.config.num_hidden_layers)
        raise ValueError(
            f"{checkpoint.name_or_path} has no tensors of {path}: the checkpoint lacks that layer. It holds "
            f"layer_index {', '.join(map(str, stored))}."
        )
    return keys
