# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What other libraries need to look into a model: names of the modules to hook, and maps instead of tokens."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from .activations import _evaluating, _find_block, _find_host_norm, _first, _hook, tap_points, token_layout


def layer_names(model: Any) -> dict[str, str]:
    """
    Return the names of the modules whose outputs are a model's tokens, for `model.get_submodule`.

    The fast path does not call the modules inside the block, or only with some of the tokens: set
    `model.llm_block.config.fast = False` before hooking them. If the head reads only the CLS token, the gradients of
    all others are zero behind the last attention; `"host"` and `"input_projection"` are before that of the block.

    Args:
        model (`PreTrainedModel`):
            A model of this package, or a block alone. It is run once on its `dummy_inputs`.

    Returns:
        `dict[str, str]`: by tap point, in the order of [`tap_points`]. Those whose tokens are no module's output are
        left out: `attention`, and `host` in a few hosts.

    Raises:
        `ValueError`: as [`tap_points`].

    Example:

    ```python
    >>> from hf_frozen_llm import LLMBlock, LLMBlockConfig
    >>> from hf_frozen_llm.analysis import layer_names

    >>> layer_names(LLMBlock(LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", hidden_size=192)))
    {'input_projection': 'input_projection', 'feed_forward': 'llm_layers.0', 'final_norm': 'final_norm', 'output_projection': 'output_projection'}
    ```"""  # noqa: E501
    taps, block = tap_points(model), _find_block(model)
    names = {} if block is model else _name_of_host(model, block)
    if block is not None:
        prefix, layers = model._llm_block_prefix, [tap for tap in taps if tap.startswith("feed_forward")]
        names |= {tap: f"{prefix}{tap}" for tap in ("input_projection", "final_norm", "output_projection")}
        names |= {tap: f"{prefix}llm_layers.{index}" for index, tap in enumerate(layers)}
        names |= {"mlp": f"{prefix}mlp_norm", "block": prefix.rstrip(".")}
    return {tap: names[tap] for tap in taps if tap in names}


def reshape_transform(model: Any, inputs: Mapping[str, Any] | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Return a function from a model's tokens to feature maps, as pytorch-grad-cam takes it.

    Args:
        model (`PreTrainedModel`):
            A model of this package.
        inputs (`Mapping[str, Any]`, *optional*):
            The arguments of its forward, if images have another size than that of the configuration.

    Returns:
        `Callable`: from `(batch, tokens, channels)` to `(batch, channels, rows, columns)` without the prefix tokens;
        of a video to `(batch, channels, times, rows, columns)`, of other inputs to `(batch, channels, tokens)`.
    """
    inputs = model.dummy_inputs if inputs is None else inputs

    def to_maps(tokens: torch.Tensor) -> torch.Tensor:
        layout = token_layout(model, inputs, tokens.shape[1])
        return layout.take(tokens).unflatten(1, layout.shape).movedim(-1, 1)

    return to_maps


@torch.no_grad()
def _name_of_host(model: Any, block: Any) -> dict[str, str]:
    """Return the first module whose output is the tokens that the block, or without one the final norm, gets."""
    outputs: dict[str, Any] = {}
    tokens: list[torch.Tensor] = []

    def keep(name: str, arguments: dict[str, Any], output: Any) -> None:
        outputs.setdefault(name, output)

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        reader = _find_host_norm(model) if block is None else block
        _hook(stack, reader, lambda arguments, output: tokens.append(_first(arguments)), is_before=True)
        for name, module in getattr(model, model.base_model_prefix).named_modules(prefix=model.base_model_prefix):
            if not isinstance(module, nn.ModuleList):
                _hook(stack, module, partial(keep, name))
        model(**{name: value.to(model.device) for name, value in model.dummy_inputs.items()})
    found = [name for name, output in outputs.items() if output is tokens[0]]
    return {"host": found[0]} if found else {}
