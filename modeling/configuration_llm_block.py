# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the LLM block, and what every host configuration adds to its host's own."""

import dataclasses
from copy import deepcopy
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig


# The mixin below is no dataclass: as a subclass of PreTrainedConfig it would reset defaults that a host has changed.
if TYPE_CHECKING:
    _HostConfig = PreTrainedConfig
else:
    _HostConfig = object

# Keys of a serialized configuration, or arguments of `PreTrainedConfig`, that are not attributes of the class.
_PRETRAINED_CONFIG_KEYS = {
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
}


def own_fields(config_class: type) -> dict[str, Any]:
    """Names and types of a configuration class's fields without those that every configuration has."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name: field.type for field in dataclasses.fields(config_class) if field.name not in common}


def with_value_errors(cls):
    """Makes a wrong choice or type a plain `ValueError`: the error of `strict` is not one."""
    init = cls.__init__

    @wraps(init)
    def __init__(self, *args, **kwargs):
        try:
            init(self, *args, **kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    cls.__init__ = __init__
    return cls


@with_value_errors
@strict
class LLMBlockConfig(PreTrainedConfig):
    r"""
    Configuration of an [`LLMBlock`]: which layer of which language model, and how it is used inside a vision encoder.

    Building a configuration opens no file and no socket; `llm_config`, `llm_revision` and `fingerprint` are filled in
    when the model is built.

    Args:
        llm_name_or_path (`str`, *optional*):
            The language model: a Hub repository id, a local folder, or a path (local, or `owner/repository/file` on
            the Hub) that ends in `.gguf`.
        llm_revision (`str`, *optional*):
            Branch, tag or commit of the Hub repository. Replaced by the commit once the model has been built.
        kind (`"llm"`, `"mlp"` or `"projections"`, *optional*, defaults to `"llm"`):
            What stands between the two projections: the layers of the language model, or one of the paper's controls
            of the same width, for which only the language model's configuration is read. `"mlp"` is GELU and a
            LayerNorm (table 6), `"projections"` nothing. What is said of the layer below does not concern these.
        layer_index (`int` or `list[int]`, *optional*, defaults to -1):
            The decoder layer, or layers in the order in which they are applied. Negative values count from the end.
            The paper takes the last layer of LLaMA-7B, 31 (section 4).
        llm_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model's own configuration. Embedded so that a saved model needs no other repository.
        hidden_size (`int`, *optional*):
            Width of the host's tokens. Filled in by the host's configuration; required where the block is used alone.
        weights (`"pretrained"` or `"random"`, *optional*, defaults to `"pretrained"`):
            Whether the layer is read from the language model or initialised as that model's family initialises it.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the layer (and a `"pretrained"` final norm) is trained instead of frozen.
        position (`int`, *optional*, defaults to -1):
            Where the block stands among the host's layers: -1 after the last, 0 before the first, `k` after layer `k`.
        attention (`"bidirectional"` or `"causal"`, *optional*, defaults to `"bidirectional"`):
            Whether a token sees every token or only itself and those before it. The paper drops the causal mask.
        rotary (`bool`, *optional*, defaults to `False`):
            Whether tokens get rotary positions 0, 1, 2, … instead of all being at position 0. An error for a language
            model without rotary embeddings.
        final_norm (`"unit"`, `"pretrained"` or `"none"`, *optional*, defaults to `"unit"`):
            The norm after the layer: the language model's norm type in its neutral state, frozen (what the released
            code does); its own final norm with its weights; or none.
        residual (`"none"`, `"inner"`, `"outer"` or `"hybrid"`, *optional*, defaults to `"none"`):
            Extra residual connections: none (the paper), around the layer, around the whole block, or both (the modes
            of R-LLM, arXiv 2403.17343).
        layer_dtype (`str`, *optional*):
            Data type of the layer and its norm: `"float64"`, `"float32"`, `"bfloat16"` or `"float16"`. `None` is the
            model's. It wins over `from_pretrained(dtype=…)`.
        fast (`bool`, *optional*, defaults to `True`):
            Whether an exact, cheaper way to compute the block may be used where there is one; `False` always runs the
            language model's own layer.
        save_weights (`bool`, *optional*, defaults to `True`):
            Whether `save_pretrained` writes the layer (self-contained) or leaves it out (light: loading reads the
            language model again). In a saved folder it says what that folder holds. A layer that is random, trainable
            or changed since it was read is always written.
        fingerprint (`str`, *optional*):
            SHA-256 of the layer's tensors as stored in the language model's checkpoint. Checked whenever the layer is
            read again.

    Raises:
        `ValueError`: for an unknown key (the nearest valid one is named), a value outside its choices, or values that
            contradict each other.

    Example:

    ```python
    >>> from hf_frozen_llm import LLMBlock, LLMBlockConfig

    >>> config = LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1, hidden_size=192)
    >>> block = LLMBlock(config)
    ```"""

    model_type = "llm_block"
    sub_configs = {"llm_config": AutoConfig}

    llm_name_or_path: str | None = None
    llm_revision: str | None = None
    kind: Literal["llm", "mlp", "projections"] = "llm"
    layer_index: int | list[int] = -1
    llm_config: dict | PreTrainedConfig | None = None
    hidden_size: int | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    trainable: bool = False
    position: int = -1
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    rotary: bool = False
    final_norm: Literal["unit", "pretrained", "none"] = "unit"
    residual: Literal["none", "inner", "outer", "hybrid"] = "none"
    layer_dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    fast: bool = True
    save_weights: bool = True
    fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        for key in kwargs:
            if key not in _PRETRAINED_CONFIG_KEYS and not hasattr(type(self), key):
                nearest = get_close_matches(key, sorted(own_fields(LLMBlockConfig)), n=1, cutoff=0)[0]
                raise ValueError(f"LLMBlockConfig has no key {key!r}; did you mean {nearest!r}?")
        if isinstance(self.llm_config, dict):
            llm_config = dict(self.llm_config)
            if "model_type" not in llm_config:
                raise ValueError("llm_config has no `model_type`: give the language model's whole configuration.")
            self.llm_config = AutoConfig.for_model(llm_config.pop("model_type"), **llm_config)
        indices = self.layer_index if isinstance(self.layer_index, list) else [self.layer_index]
        if not indices or any(isinstance(index, bool) for index in indices) or len(set(indices)) != len(indices):
            raise ValueError(f"layer_index is {self.layer_index!r}; give an int or a list of different ints.")
        if self.hidden_size is not None and self.hidden_size < 1:
            raise ValueError(f"hidden_size is {self.hidden_size}; it is the width of the host's tokens, at least 1.")
        if self.weights == "random" and self.final_norm == "pretrained":
            raise ValueError(
                "final_norm='pretrained' contradicts weights='random': a random layer has no pretrained norm. "
                "Use final_norm='unit' or 'none'."
            )
        if self.kind != "llm":
            of_a_layer = {"weights": "pretrained", "trainable": False, "attention": "bidirectional", "rotary": False}
            if wrong := [name for name, default in of_a_layer.items() if getattr(self, name) != default]:
                raise ValueError(f"kind={self.kind!r} has no LLM layer, so {', '.join(wrong)} cannot be set.")
        super().__post_init__(**kwargs)


class WithLLMBlockConfigMixin(_HostConfig):
    """The `llm_block` sub-configuration of a host configuration; stands before the host's own class in the bases."""

    sub_configs = {"llm_block": LLMBlockConfig}

    if TYPE_CHECKING:
        hidden_size: int
        num_hidden_layers: int
        llm_block: LLMBlockConfig | dict | None

    def __post_init__(self, **kwargs):
        self._refuse_misspelt("llm_block", kwargs)
        # A copy of its own: building the model fills it in, and one LLMBlockConfig may be given to several hosts.
        self.llm_block = deepcopy(self.llm_block)
        self._read_llm_block()
        super().__post_init__(**kwargs)
        self.complete_llm_block()

    def _refuse_misspelt(self, name: str, kwargs: dict[str, Any]) -> None:
        # Not every unknown key can be refused: a host's configuration takes any.
        if wrong := get_close_matches(name, kwargs, n=1, cutoff=0.7):
            raise ValueError(f"{type(self).__name__} has no key {wrong[0]!r}; did you mean {name!r}?")

    def _read_llm_block(self) -> None:
        if isinstance(self.llm_block, dict):
            self.llm_block = LLMBlockConfig(**self.llm_block)

    def complete_llm_block(self) -> None:
        """Makes `llm_block` an [`LLMBlockConfig`] of this host; the model calls it again, should it have been set."""
        self._read_llm_block()
        if isinstance(self.llm_block, LLMBlockConfig):
            if self.llm_block.hidden_size not in (None, self.hidden_size):
                raise ValueError(
                    f"llm_block.hidden_size is {self.llm_block.hidden_size} but the host's hidden_size is "
                    f"{self.hidden_size}; leave llm_block.hidden_size out, the host fills it in."
                )
            self.llm_block.hidden_size = self.hidden_size

    def check_position(self) -> None:
        """For hosts whose layers are called one by one: the block may stand anywhere among them."""
        if isinstance(self.llm_block, LLMBlockConfig) and not -1 <= self.llm_block.position <= self.num_hidden_layers:
            raise ValueError(
                f"llm_block.position is {self.llm_block.position}; with num_hidden_layers={self.num_hidden_layers} it "
                f"is -1 (after the last layer), 0 (before the first) or k up to {self.num_hidden_layers} (after layer "
                "k)."
            )

    @property
    def num_recorded_layers(self) -> int:
        """Layers that `output_hidden_states` records: the host's and the block."""
        return self.num_hidden_layers + (self.llm_block is not None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        # An override belongs into the dictionary before it is read, so that it is checked like any other value.
        if "llm_block" in kwargs:
            override = kwargs.pop("llm_block")
            stored = config_dict.get("llm_block")
            if isinstance(stored, dict) and override is not None:
                override = _override_stored_block(stored, override)
            config_dict = {**config_dict, "llm_block": override}
        return super().from_dict(config_dict, **kwargs)


def _override_stored_block(stored: dict[str, Any], override: dict[str, Any] | LLMBlockConfig) -> dict[str, Any]:
    """Merges `from_pretrained(folder, llm_block=…)` into the block that the folder was saved with."""
    if isinstance(override, LLMBlockConfig):
        # What an object leaves at its default stays as stored; whether the layer is the same is checked when loading.
        default = LLMBlockConfig()
        fields = sorted(set(own_fields(LLMBlockConfig)) - {"llm_config"})
        override = {f: getattr(override, f) for f in fields if getattr(override, f) != getattr(default, f)}
    moved = override.get("llm_name_or_path", stored.get("llm_name_or_path")) != stored.get("llm_name_or_path")
    # The stored commit means nothing in another place; the fingerprint still says whether the layer is the same.
    return {**stored, **({"llm_revision": None} if moved else {}), **override}


__all__ = ["LLMBlockConfig"]
