# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Converting the names and shapes of a language model's published tensors to those of its modules."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from .llm_checkpoint import LLMCheckpoint


def find_keys(
    checkpoint: LLMCheckpoint,
    path: str,
    expected: set[str],
    base_model_prefix: str,
    build_llm: Callable[[], PreTrainedModel],
) -> dict[str, str]:
    """
    Find the tensors of a module in a checkpoint, by today's names or older ones.

    Args:
        checkpoint ([`LLMCheckpoint`]): the checkpoint to search.
        path (`str`): path of the module in the language model.
        expected (`set[str]`): names of the module's tensors.
        base_model_prefix (`str`): the prefix of the language model's published keys, such as `model`.
        build_llm (`Callable`): returns the language model on the meta device; called only to try older names.

    Returns:
        `dict[str, str]`: from names below `path` to keys of the checkpoint; empty if there are none.
    """
    found = checkpoint.keys_under(path, expected, base_model_prefix)
    return found or find_renamed_keys(build_llm(), path, checkpoint.keys())


def find_renamed_keys(llm: PreTrainedModel, path: str, keys: Iterable[str]) -> dict[str, str]:
    """
    Find the tensors of a module in a checkpoint with older names (EXAONE: `transformer.h.3` for `layers.3`), by
    transformers' own renaming.

    Args:
        llm (`PreTrainedModel`): the language model on the meta device.
        path (`str`): path of the module in the language model.
        keys (`Iterable[str]`): keys of the checkpoint.

    Returns:
        `dict[str, str]`: from today's names below `path` to keys of the checkpoint; empty if there are none.
    """
    renamings = [entry for entry in get_model_conversion_mapping(llm) if isinstance(entry, WeightRenaming)]
    found = {}
    for key in keys:
        name = key
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        name = name.removeprefix(f"{llm.base_model_prefix}.")
        if name.startswith(f"{path}."):
            found[name.removeprefix(f"{path}.")] = key
    return found


def convert_tensors(
    llm: PreTrainedModel, path: str, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """
    Convert tensors of a module to today's names and fused shapes by transformers' own conversion mapping; return them
    and the names of those that the module has no place for.
    """
    dtype = reduce(torch.promote_types, {t.dtype for t in tensors.values() if t.is_floating_point()})
    nn.Module.to(llm, dtype)  # on the meta device: the converter casts to the type it finds there
    loading_info, _ = convert_and_load_state_dict_in_model(
        model=llm,
        state_dict={f"{path}.{name}": tensor for name, tensor in tensors.items()},
        load_config=LoadStateDictConfig(weight_mapping=cast(list, get_model_conversion_mapping(llm)), dtype=dtype),
    )
    converted = {n: t for n, t in llm.get_submodule(path).state_dict().items() if not t.is_meta}
    return converted, {name.removeprefix(f"{path}.") for name in loading_info.unexpected_keys}


__all__ = ["convert_tensors", "find_keys"]
