# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Calling decoder layers of any family directly, without causal mask and positions."""

import inspect
import re
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .llm_layer import LLMLayers, has_sdpa


class LLMLayerCaller:
    """
    Calls the decoder layers of a block. It holds no layer: they are submodules of the block.

    Args:
        llm_layers ([`LLMLayers`]): the layers on the meta device, as taken out of the language model.
        llm_config (`PreTrainedConfig`): the language model's configuration.
        rotary (`bool`): whether tokens get rotary positions 0, 1, 2, … instead of all being at position 0.
        causal (`bool`): whether a token sees only itself and those before it.

    Raises:
        `ValueError`: if the layers cannot be called without their whole language model.
    """

    def __init__(self, llm_layers: LLMLayers, llm_config: PreTrainedConfig, rotary: bool, causal: bool):
        self.config = llm_layers.config
        self.indices = llm_layers.indices
        self.rotary = rotary
        self.causal = causal
        self.rotary_embedding = llm_layers.rotary
        self._has_sdpa = has_sdpa(llm_config)
        self._accepted = [_accepted_arguments(layer) for layer in llm_layers.layers]
        self._position_zero: list[Any] = []
        dtype = next(p.dtype for p in llm_layers.layers.parameters() if p.is_floating_point())
        hidden_states = torch.empty(1, 2, self.config.hidden_size, device="meta", dtype=dtype)
        for i, layer in enumerate(llm_layers.layers):
            self._try(i, layer, hidden_states)

    def _try(self, i: int, layer: nn.Module, hidden_states: torch.Tensor) -> None:
        """Compute the rotary embeddings of position 0, and call a layer once on the meta device."""
        try:
            with torch.device("cpu"):  # `from_pretrained` builds models on the meta device
                embeddings = rotary_embeddings(self.rotary_embedding, self.config, self.indices[i], 1)
            self._position_zero.append(embeddings)
            with torch.no_grad():
                self.call(i, layer, hidden_states, None)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            # Experts are chosen by values, which meta tensors lack: of RuntimeErrors only those about shapes count.
            if isinstance(error, RuntimeError) and not re.search("must match|reduction dim|multiplied", str(error)):
                return
            raise ValueError(
                f"Layer {self.indices[i]} of {self.config.model_type} ({type(layer).__name__}) cannot run without its "
                f"whole language model: {error}."
            ) from error

    def set_attn_implementation(self, attn_implementation: str | None) -> None:
        """Set the attention implementation of the layers, as far as their family supports it."""
        if attn_implementation == "sdpa" and not self._has_sdpa:
            attn_implementation = "eager"
        if attn_implementation is not None and attn_implementation != self.config._attn_implementation:
            self.config._attn_implementation_internal = attn_implementation

    def cosines(self, i: int) -> torch.Tensor | None:
        """Return the rotary cosines of layer `i` at position 0, of shape `(rotary dimensions,)`."""
        embeddings = self._position_zero[i]
        return None if embeddings is None else embeddings[0].flatten()

    def call(
        self, i: int, layer: nn.Module, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Call layer `i`.

        Args:
            i (`int`): the layer's place among the block's layers.
            layer (`nn.Module`): the layer.
            hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`): its input.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding.
        """
        config, device = self.config, hidden_states.device
        batch, tokens, _ = hidden_states.shape
        if self.rotary:
            position_ids = torch.arange(tokens, device=device)[None]
            embeddings = rotary_embeddings(self.rotary_embedding, config, self.indices[i], tokens)
        else:
            position_ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
            embeddings = self._position_zero[i]
        embeddings = None if embeddings is None else _expand_positions(embeddings, tokens, hidden_states)
        if config._attn_implementation in ("eager", "sdpa", None):
            bias = attention_bias(attention_mask, hidden_states, self.causal)
        elif self.causal:
            raise ValueError(
                "attention='causal' works with attn_implementation 'sdpa' or 'eager', not "
                f"{config._attn_implementation!r}."
            )
        else:
            # In the form that flash or flex attention takes.
            bias = cast(Any, create_bidirectional_mask(config, hidden_states, attention_mask))
        arguments = _layer_arguments(bias, position_ids, embeddings)
        if config.model_type == "bloom":
            arguments["alibi"] = hidden_states.new_zeros(batch * config.n_head, 1, tokens)
        elif config.model_type == "mpt":
            arguments["position_bias"] = hidden_states.new_zeros(config.n_heads, 1, tokens)
            arguments["attention_mask"] = None if bias is None else bias < 0  # True = masked
        elif config.model_type in ("falcon", "xglm"):
            # Falcon and XGLM require a mask; XGLM requires exactly this shape.
            bias = hidden_states.new_zeros(batch, 1, 1, tokens) if bias is None else bias
            arguments["attention_mask"] = bias.expand(batch, 1, tokens, tokens)
        output = layer(hidden_states, **{name: arguments[name] for name in self._accepted[i]})
        return output[0] if isinstance(output, (tuple, list)) else output


def rotary_embeddings(rotary: nn.Module | None, config: PreTrainedConfig, index: int, num_positions: int) -> Any:
    """
    Compute the family's own rotary embeddings at positions 0 to `num_positions - 1`, on the CPU, in the structure that
    its layers take. Position 0 is the identity rotation, times the family's attention scaling (YaRN, LongRoPE).
    """
    if rotary is None:
        return None
    kwargs = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kwargs["layer_type"] = config.layer_types[index]
        if config.rope_parameters.get(config.layer_types[index], {}) is None:
            return None  # a layer without positions among layers with them
    positions = torch.arange(num_positions, device="cpu")[None]
    if hasattr(rotary, "mrope_section"):
        positions = positions.expand(3, 1, -1)  # time, height and width: equal for tokens of text
    return rotary(torch.zeros(1, num_positions, config.hidden_size, device="cpu"), positions, **kwargs)


def attention_bias(
    attention_mask: torch.Tensor | None, hidden_states: torch.Tensor, causal: bool
) -> torch.Tensor | None:
    """
    Return the additive mask of shape `(batch, 1, 1 or tokens, tokens)`, or `None` if every token sees every token.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding.
        hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`): sets the mask's size, device and data type.
        causal (`bool`): whether a token sees only itself and those before it.
    """
    if attention_mask is None and not causal:
        return None
    batch, tokens, _ = hidden_states.shape
    device = hidden_states.device
    # The lowest number of the narrowest data type used (eager attention computes its softmax in float32): a lower one
    # would overflow to -inf, and a row of only padding would become NaN.
    lowest = max(torch.finfo(hidden_states.dtype).min, torch.finfo(torch.float32).min)
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        lowest = max(lowest, torch.finfo(torch.get_autocast_dtype(device.type)).min)
    masked = torch.zeros(1, 1, 1, tokens, dtype=torch.bool, device=device)
    if attention_mask is not None:
        masked = ~attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
    if causal:
        # A token always sees itself: otherwise padding before the first token would see nothing.
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
        masked = (masked | later) & ~torch.eye(tokens, dtype=torch.bool, device=device)
    return hidden_states.new_zeros(masked.shape).masked_fill(masked, lowest).expand(batch, -1, -1, -1)


def _layer_arguments(
    bias: torch.Tensor | None, position_ids: torch.Tensor | None, position_embeddings: Any
) -> dict[str, Any]:
    """Return the arguments of decoder layers of all families, by the names that the families use."""
    return {
        "attention_mask": bias,
        "position_ids": position_ids,
        "position_embeddings": position_embeddings,
        "past_key_values": None,
        "past_key_value": None,
        "layer_past": None,
        "use_cache": False,
        "output_attentions": False,
        "alibi": None,
        "position_bias": None,
        "shared_kv_states": {},  # where a layer may put its keys and values for later layers
    }


def _accepted_arguments(layer: nn.Module) -> frozenset[str]:
    """Return the names of the arguments of `_layer_arguments` that a layer's `forward` takes."""
    parameters = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    names = set(_layer_arguments(None, None, None)) & set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names.add("position_embeddings")
    return frozenset(names)


def _expand_positions(position_embeddings: Any, tokens: int, like: torch.Tensor) -> Any:
    """Expand rotary embeddings of position 0 to all tokens, on the device and (if real) in the data type of `like`."""
    return tree_map(
        lambda p: p.to(like.device, like.dtype if p.is_floating_point() else None).expand(
            p.shape[0], tokens, *p.shape[2:]
        ),
        position_embeddings,
    )


__all__ = ["LLMLayerCaller", "attention_bias"]
