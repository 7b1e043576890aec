# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the LLM block, and the mixin that adds it to a host's configuration."""

import dataclasses
import math
from copy import deepcopy
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig


# The mixin below is not a dataclass: a subclass of PreTrainedConfig would reset defaults that a host has changed.
if TYPE_CHECKING:
    _HostConfig = PreTrainedConfig
else:
    _HostConfig = object

_Config = TypeVar("_Config")

# More layers than any decoder has: a larger number is of a damaged or hostile configuration.
MAX_LAYERS = 1000

# Keys of a serialised configuration, or arguments of `PreTrainedConfig`, that are not attributes of the class.
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
    """Return the names and types of a configuration class's fields, without those that every configuration has."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name: field.type for field in dataclasses.fields(config_class) if field.name not in common}


def refuse_too_many_layers(config: dict[str, Any]) -> None:
    """
    Refuse a serialised configuration of a language model with too many layers, as configurations build lists of them.

    Raises:
        `ValueError`: for more than `MAX_LAYERS`.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            refuse_too_many_layers(value)
        elif str(key).endswith(("layers", "n_layer")) and isinstance(value, (int, float)) and value > MAX_LAYERS:
            raise ValueError(f"{key} is {value}; at most {MAX_LAYERS} layers are supported.")


def with_value_errors(cls: type[_Config]) -> type[_Config]:
    """Raise a `ValueError` for a wrong choice or type: the error of `strict` is not one."""
    init = cls.__init__

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@with_value_errors
@strict
class LLMBlockConfig(PreTrainedConfig):
    r"""
    Configuration of an [`LLMBlock`]: which layer of which language model, and how it is used inside a vision encoder.

    Building a configuration opens neither files nor sockets; `llm_config`, `llm_revision` and `fingerprint` are filled
    in when the model is built.

    Args:
        llm_name_or_path (`str`, *optional*):
            The language model: a Hub repository id, a local folder, or a path (local, or `owner/repository/file` on
            the Hub) ending in `.gguf`.
        llm_revision (`str`, *optional*):
            Branch, tag or commit of the Hub repository. Building the model replaces it by the commit.
        kind (`"llm"`, `"identity"`, `"mlp"` or `"projections"`, *optional*, defaults to `"llm"`):
            The module between the two projections: the layers of the language model, or a control of the same width,
            which needs only the language model's configuration. `"identity"` is the block without its layers, with
            the unit norm after them; `"mlp"` is GELU and a LayerNorm (table 6 of the paper), `"projections"` nothing.
            The layer-related fields below do not apply to these controls.
        layer_index (`int` or `list[int]`, *optional*, defaults to -1):
            The decoder layer, or layers in the order in which they are applied. Negative values count from the end.
            The paper uses the last layer of LLaMA-7B, 31 (section 4).
        llm_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model's own configuration, embedded so that a saved model needs no other repository.
        hidden_size (`int`, *optional*):
            Width of the host's tokens. Filled in by the host's configuration; required if the block has no host.
        weights (`"pretrained"`, `"random"` or `"shuffled"`, *optional*, defaults to `"pretrained"`):
            Whether the layer is read from the language model; randomly initialised, as in the model's family; or read
            with the entries of each tensor permuted at random, which keeps their statistics and no structure.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the layer (and a `"pretrained"` final norm) is trained instead of frozen.
        position (`int`, *optional*, defaults to -1):
            The block's place among the host's layers: -1 after the last, 0 before the first, `k` after layer `k`.
        attention (`"bidirectional"` or `"causal"`, *optional*, defaults to `"bidirectional"`):
            Whether a token sees every token, as in the paper, or only itself and those before it.
        rotary (`bool`, *optional*, defaults to `False`):
            Whether tokens get rotary positions 0, 1, 2, … instead of all being at position 0. An error for a language
            model without rotary embeddings.
        final_norm (`"unit"`, `"pretrained"` or `"none"`, *optional*, defaults to `"unit"`):
            The norm after the layer: the language model's norm type in its neutral state, frozen (as in the released
            code); the language model's own final norm with its weights; or none.
        residual (`"none"`, `"inner"`, `"outer"`, `"hybrid"` or `"outer_linear"`, *optional*, defaults to `"none"`):
            Additional residual connections: none (the paper), around the layer, around the whole block, both, or
            around the whole block through a trained `LeakyReLU(Linear(d, d))` (the modes of R-LLM, arXiv 2403.17343).
        input_scale (`float` or `"balanced"`, *optional*, defaults to 1.0):
            Fixed factor of the layer's input, `h = input_scale * input_projection(x)`. 1.0 is the released
            construction, which feeds a layer tokens that are much smaller than the residual stream that it reads in
            its language model. `"balanced"` is the largest factor at which, at initialisation, the (first) layer
            changes standard-normal tokens of the host by exactly their own norm; building the model replaces it by
            this number.
        layer_dtype (`str`, *optional*):
            Data type of the layer and its norm: `"float64"`, `"float32"`, `"bfloat16"` or `"float16"`. `None` is the
            model's. It overrides `from_pretrained(dtype=…)`.
        quantization (`"int8"` or `"int4"`, *optional*):
            Stores the weights of the frozen layer's linear modules in 8 bits, with a scale for each output channel,
            or in 4, with a scale and a minimum for each 32 inputs. Norms, biases and the projections stay in floating
            point, and nothing else is ever rounded: not the tokens, not the gradients. Not for layers with experts.
        fast (`bool`, *optional*, defaults to `True`):
            Whether the block may be computed in an exact, cheaper form if there is one, and only for the tokens that
            the head uses; `False` always runs the language model's own layer, for all tokens.
        save_weights (`bool`, *optional*, defaults to `True`):
            Whether `save_pretrained` writes the layer (self-contained) or leaves it out (light: loading reads the
            language model again). In a saved folder it says whether the folder holds the layer. A layer that is
            random, trainable or modified since it was read is always written.
        fingerprint (`str`, *optional*):
            SHA-256 of the layer's tensors as stored in the language model's checkpoint, checked whenever the layer is
            read again.
        saved_fingerprint (`str`, *optional*):
            SHA-256 of the layer's tensors as a saved folder holds them, written by `save_pretrained`. Loading checks
            it unless it changes their data type; `hf-frozen-llm info --verify` always does.

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
    kind: Literal["llm", "identity", "mlp", "projections"] = "llm"
    layer_index: int | list[int] = -1
    llm_config: dict | PreTrainedConfig | None = None
    hidden_size: int | None = None
    weights: Literal["pretrained", "random", "shuffled"] = "pretrained"
    trainable: bool = False
    position: int = -1
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    rotary: bool = False
    final_norm: Literal["unit", "pretrained", "none"] = "unit"
    residual: Literal["none", "inner", "outer", "hybrid", "outer_linear"] = "none"
    input_scale: int | float | Literal["balanced"] = 1.0
    layer_dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    quantization: Literal["int8", "int4"] | None = None
    fast: bool = True
    save_weights: bool = True
    fingerprint: str | None = None
    saved_fingerprint: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key in kwargs:
            if key not in _PRETRAINED_CONFIG_KEYS and not hasattr(type(self), key):
                nearest = get_close_matches(key, sorted(own_fields(LLMBlockConfig)), n=1, cutoff=0)[0]
                raise ValueError(f"LLMBlockConfig has no key {key!r}; did you mean {nearest!r}?")
        if isinstance(self.llm_config, dict):
            llm_config = dict(self.llm_config)
            if "model_type" not in llm_config:
                raise ValueError("llm_config has no `model_type`: give the language model's whole configuration.")
            refuse_too_many_layers(llm_config)
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
        if self.quantization is not None and (self.trainable or self.weights == "shuffled"):
            setting = "trainable=True" if self.trainable else "weights='shuffled'"
            raise ValueError(
                f"quantization={self.quantization!r} contradicts {setting}: only a frozen layer, read or random, is "
                "quantised. Use quantization=None."
            )
        if self.input_scale != "balanced":
            scale = cast(float, self.input_scale)
            if isinstance(scale, bool) or not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"input_scale is {scale!r}; it is a positive number, or 'balanced'.")
            self.input_scale = float(scale)
        if self.kind != "llm":
            if self.input_scale == "balanced":
                raise ValueError(f"input_scale='balanced' needs an LLM layer, and kind={self.kind!r} has none.")
            if self.kind == "identity" and self.final_norm != "unit":
                raise ValueError(
                    f"kind='identity' is the block without its layers, with final_norm='unit', not "
                    f"{self.final_norm!r}. Without a norm it is kind='projections'."
                )
            layer_fields = {"weights": "pretrained", "trainable": False, "attention": "bidirectional", "rotary": False}
            layer_fields["quantization"] = None
            if wrong := [name for name, default in layer_fields.items() if getattr(self, name) != default]:
                raise ValueError(f"kind={self.kind!r} has no LLM layer, so {', '.join(wrong)} cannot be set.")
        super().__post_init__(**kwargs)


class WithLLMBlockConfigMixin(_HostConfig):
    """Adds the `llm_block` sub-configuration to a host's configuration class, before which it is a base class."""

    sub_configs = {"llm_block": LLMBlockConfig}

    if TYPE_CHECKING:
        hidden_size: int
        num_hidden_layers: int
        llm_block: LLMBlockConfig | dict | None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt("llm_block", kwargs)
        # A copy: building the model fills it in, and one LLMBlockConfig may be given to several hosts.
        self.llm_block = deepcopy(self.llm_block)
        self._parse_llm_block()
        super().__post_init__(**kwargs)
        self.complete_llm_block()

    def _refuse_misspelt(self, name: str, kwargs: dict[str, Any]) -> None:
        # Only misspelt keys can be refused: a host's configuration accepts unknown keys.
        if wrong := get_close_matches(name, kwargs, n=1, cutoff=0.7):
            raise ValueError(f"{type(self).__name__} has no key {wrong[0]!r}; did you mean {name!r}?")

    def _parse_llm_block(self) -> None:
        if isinstance(self.llm_block, dict):
            self.llm_block = LLMBlockConfig(**self.llm_block)

    def complete_llm_block(self) -> None:
        """Make `llm_block` an [`LLMBlockConfig`] of this host; models call it, too, in case it has been set since."""
        self._parse_llm_block()
        if isinstance(self.llm_block, LLMBlockConfig):
            if self.llm_block.hidden_size not in (None, self.hidden_size):
                raise ValueError(
                    f"llm_block.hidden_size is {self.llm_block.hidden_size} but the host's hidden_size is "
                    f"{self.hidden_size}; leave llm_block.hidden_size out, the host fills it in."
                )
            self.llm_block.hidden_size = self.hidden_size

    def check_position(self) -> None:
        """Refuse a position of the block that is not among the host's layers."""
        if isinstance(self.llm_block, LLMBlockConfig) and not -1 <= self.llm_block.position <= self.num_hidden_layers:
            raise ValueError(
                f"llm_block.position is {self.llm_block.position}; with num_hidden_layers={self.num_hidden_layers} it "
                f"is -1 (after the last layer), 0 (before the first) or k up to {self.num_hidden_layers} (after layer "
                "k)."
            )

    @property
    def num_recorded_layers(self) -> int:
        """Number of layers that `output_hidden_states` records: the host's and the block."""
        return self.num_hidden_layers + (self.llm_block is not None)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # A block is added to a plain host on purpose: transformers would warn of another model type.
        if config_dict.get("model_type") == super().model_type:
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # Merge an override into the dictionary before it is parsed, so that it is checked like any other value.
        if "llm_block" in kwargs:
            override = kwargs.pop("llm_block")
            stored = config_dict.get("llm_block")
            if isinstance(stored, dict) and override is not None:
                override = _override_stored_block(stored, override)
            config_dict = {**config_dict, "llm_block": override}
        return super().from_dict(config_dict, **kwargs)


def _override_stored_block(stored: dict[str, Any], override: dict[str, Any] | LLMBlockConfig) -> dict[str, Any]:
    """Merge `from_pretrained(folder, llm_block=…)` into the block's stored configuration."""
    if isinstance(override, LLMBlockConfig):
        # Fields at their defaults keep the stored values; loading checks that the layer is the same.
        default = LLMBlockConfig()
        fields = sorted(set(own_fields(LLMBlockConfig)) - {"llm_config"})
        override = {f: getattr(override, f) for f in fields if getattr(override, f) != getattr(default, f)}
    moved = override.get("llm_name_or_path", stored.get("llm_name_or_path")) != stored.get("llm_name_or_path")
    # The stored commit does not apply to another repository; the fingerprint still identifies the layer.
    return {**stored, **({"llm_revision": None} if moved else {}), **override}


__all__ = ["LLMBlockConfig"]
