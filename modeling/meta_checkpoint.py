# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""LLaMA checkpoints in Meta's format: `params.json` beside one or more `consolidated.*.pth`."""

import json
import re
from pathlib import Path
from typing import cast

import torch
from transformers import LlamaConfig

from .checkpoint_files import ByteSource, PickleFile, unpermute_rotary_heads


# From Meta's names of a layer's tensors to transformers'.
META_LAYER = {
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
# The dimension along which a tensor is split over the files, if not 0; `None` if each file has the whole tensor.
_SPLIT_DIM = {"attention.wo": 1, "feed_forward.w2": 1, "attention_norm": None, "ffn_norm": None, "norm": None}


def is_meta_folder(folder: str) -> bool:
    """Return whether a folder is in Meta's format and not in transformers', which is preferred."""
    if Path(folder, "config.json").is_file():
        return False
    return Path(folder, "params.json").is_file() and any(Path(folder).glob("consolidated.*.pth"))


def read_meta_config(folder: str) -> LlamaConfig:
    """
    Read the configuration from `params.json` (github.com/meta-llama/llama-models, `models/llama3/args.py`).

    Raises:
        `ValueError`: if the file is not the `params.json` of a LLaMA.
    """
    path = Path(folder, "params.json")
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
        dim, num_heads = params["dim"], params["n_heads"]
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"n_heads is {num_heads}, dim {dim}")
        inner = params.get("hidden_dim")
        if inner is None:
            multiple = params["multiple_of"]
            inner = int((params.get("ffn_dim_multiplier") or 1.0) * int(8 * dim / 3))
            inner = -(-inner // multiple) * multiple
        rope = {"rope_type": "default", "rope_theta": params.get("rope_theta", 10000.0)}
        if params.get("use_scaled_rope"):
            # LLaMA 3.2 1B and 3B have the factor 32, LLaMA 3.1 and larger ones 8.
            rope |= {"rope_type": "llama3", "factor": 32.0 if dim < 4096 else 8.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        return LlamaConfig(
            hidden_size=dim,
            intermediate_size=inner,
            num_hidden_layers=params["n_layers"],
            num_attention_heads=num_heads,
            num_key_value_heads=params.get("n_kv_heads") or num_heads,
            head_dim=params.get("head_dim") or dim // num_heads,
            rms_norm_eps=params["norm_eps"],
            rope_parameters=rope,
            vocab_size=params["vocab_size"] if params.get("vocab_size", -1) > 0 else 32000,
        )
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the params.json of a LLaMA ({error!r}). Copy it again.") from error


class MetaFile:
    """
    The tensors of a folder's `consolidated.*.pth` under transformers' names, concatenated over the files.

    Raises:
        `ValueError`: if a file between others is missing, or a file cannot be read.
    """

    def __init__(self, folder: str):
        self.path = folder
        self.config = read_meta_config(folder)
        paths = sorted(Path(folder).glob("consolidated.*.pth"))
        expected = [f"consolidated.{number:02d}.pth" for number in range(len(paths))]
        if [path.name for path in paths] != expected:
            found = ", ".join(path.name for path in paths)
            raise ValueError(f"{folder} has {found}: files are missing between them. Copy it completely.")
        self.files = [PickleFile(str(path)) for path in paths]
        self._names = {}
        for name in self.files[0].keys():
            if layer := re.fullmatch(r"layers\.(\d+)\.(.+?)(\.weight)?", name):
                # A tensor without a name in transformers keeps its own, by which it is refused.
                new_name = META_LAYER[layer[2]] if layer[2] in META_LAYER and layer[3] else layer[2]
                self._names[f"model.layers.{layer[1]}.{new_name}{layer[3] or ''}"] = name
        if "norm.weight" in self.files[0].keys():
            self._names["model.norm.weight"] = "norm.weight"

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self.files)

    def keys(self) -> list[str]:
        return list(self._names)

    def size_of(self, key: str) -> tuple[int, str]:
        sizes = [file.size_of(self._names[key]) for file in self.files]
        return sizes[0][0] if self._split_dim(key) is None else sum(size for size, _ in sizes), sizes[0][1]

    def byte_ranges(self, key: str) -> list[tuple[ByteSource, int, int]]:
        return []  # its files are memory-mapped

    def _split_dim(self, key: str) -> int | None:
        name = re.sub(r"^layers\.\d+\.|\.weight$", "", self._names[key])
        return _SPLIT_DIM.get(name, 0)

    def read(self, key: str) -> torch.Tensor:
        dim, name = self._split_dim(key), self._names[key]
        if dim is None:
            return self.files[0].read(name)
        try:
            tensor = torch.cat([file.read(name) for file in self.files], dim=dim)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{self.path}: {name} of its files cannot be joined ({error}). Copy them again."
            ) from error
        if projection := re.search(r"\.([qk])_proj\.", key):
            heads = self.config.num_attention_heads if projection[1] == "q" else self.config.num_key_value_heads
            return unpermute_rotary_heads(tensor, cast(int, heads))
        return tensor

    def close(self) -> None:
        for file in self.files:
            file.close()
