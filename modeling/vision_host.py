# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Inspecting a vision encoder of transformers, to use it as a host, by running it on the meta device."""

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel


# Parameters of the tokens that an embedding puts before the patches, in this order.
_PREFIX_TOKENS = ("cls_token", "class_token", "class_embedding", "distillation_token", "register_tokens")


class DeferredNorm:
    """
    Mixin that defers a norm: a call from the host's own forward returns its input, and the call with `now=True`, after
    the block has run, normalises. The module and its keys stay the same, and hooks (offloading) run at both calls.
    """

    def forward(self, hidden_states: torch.Tensor, now: bool = False) -> torch.Tensor:
        return super().forward(hidden_states) if now else hidden_states  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new_deferred, (type(self).__mro__[2],), self.__dict__


def _deferred_class(norm_class: type[nn.Module]) -> type[nn.Module]:
    # Keep the name: transformers initialises RMS norms by it.
    return type(norm_class.__name__, (DeferredNorm, norm_class), {})


def _new_deferred(norm_class: type[nn.Module]) -> nn.Module:
    return object.__new__(_deferred_class(norm_class))


@dataclass
class VisionHost:
    """
    How a vision encoder is built, and the structure of its modules and outputs.

    Args:
        kwargs (`dict[str, Any]`): arguments of its class besides the configuration.
        norm_path (`str`): path of its final norm.
        norm_is_after_pooling (`bool`): whether the norm is applied to the pooled output (CLIP; BEiT with
            `use_mean_pooling`) instead of the tokens.
        hidden_size (`int`): width of its last tokens.
        num_prefix_tokens (`int`, *optional*): number of tokens before the patches: CLS, distillation, registers.
            `None` if it has other tokens than these and the patches.
        has_cls_token (`bool`): whether the first token is a CLS token.
        takes_attention_mask (`bool`): whether its forward has an `attention_mask` over its tokens.
        pixel_dims (`int`): 4 for images, 5 for videos.
        stage_shapes (`list[tuple[int, ...]]`): shapes of its hidden states for one image, or of its feature maps if it
            is hierarchical; empty if it returns neither at the end of each stage.
        map_kwargs (`dict[str, Any]`): arguments with which its forward returns the feature maps of its stages.
    """

    kwargs: dict[str, Any]
    norm_path: str
    norm_is_after_pooling: bool
    hidden_size: int
    num_prefix_tokens: int | None
    has_cls_token: bool
    takes_attention_mask: bool
    pixel_dims: int
    stage_shapes: list[tuple[int, ...]]
    map_kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the host."""
        return AutoModel.from_config(config, dtype=torch.get_default_dtype(), **self.kwargs)

    def norm(self, model: nn.Module) -> nn.Module:
        """Return the final norm of a built host, even if PEFT has wrapped the norm."""
        for name in self.norm_path.split("."):
            model = getattr(model, name)
        return model

    def defer_norm(self, model: nn.Module) -> None:
        """Defer the norm of a built host's tokens, see [`DeferredNorm`]."""
        if not self.norm_is_after_pooling:
            norm = self.norm(model)
            norm.__class__ = _deferred_class(type(norm))


def load_host_config(name_or_path: Any, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """
    Load the configuration of a published host as `AutoConfig.from_pretrained` does, which would ask on the terminal
    whether to execute a repository's code.

    Raises:
        `ValueError`: for a configuration with code of its own, unless `trust_remote_code`.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **kwargs)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name_or_path} has code of its own (auto_map in its config.json), which is not executed. If you have "
            "read it and trust it, set trust_remote_code=True in from_host_pretrained, or `--host.trust_remote_code "
            "true` on the command line; the vision encoder itself must be one of transformers."
        ) from error


def vision_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration itself or, of an image-text model, that of its vision encoder."""
    return getattr(config, "vision_config", None) or config


def inspect_host(config: PreTrainedConfig) -> VisionHost:
    """
    Run the host of a configuration once on the meta device, without memory and arithmetic, and describe it.

    Args:
        config (`PreTrainedConfig`): the host's configuration.

    Raises:
        `ValueError`: for a model that needs other inputs than images, does not return tokens, or does not end with a
            norm.
    """
    _check_host_config(config)
    config = copy.deepcopy(config)  # building a model writes its dtype into its configuration
    config._attn_implementation = "eager"  # other kernels may not run on the meta device
    model_class: Any = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    # A pooler is built only if it contains the final norm (BEiT).
    choices: list[dict[str, Any]] = [{"add_pooling_layer": add} for add in (False, True)] if takes_pooler else [{}]
    pixel_values = torch.empty(pixel_shape(config), device="meta")
    for kwargs in choices:
        with _name_errors(config.model_type, "cannot be built"), torch.device("meta"):
            model = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **kwargs).eval()
        norm_outputs: dict[str, torch.Tensor] = {}
        for path, module in model.named_modules():
            if "norm" in type(module).__name__.lower():
                module.register_forward_hook(functools.partial(_record, norm_outputs, path))
        outputs = _call(model, pixel_values)
        tokens = getattr(outputs, "last_hidden_state", None)
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3:
            shape = f"a tensor of shape {tuple(tokens.shape)}" if isinstance(tokens, torch.Tensor) else "none"
            raise ValueError(
                f"{config.model_type} cannot be a host: the LLM block takes tokens, (batch, tokens, width), and the "
                f"last_hidden_state of {type(model).__name__} is {shape}. Bring its features into that shape yourself "
                "and use LLMBlock alone."
            )
        for norm_is_after_pooling, output in enumerate([tokens, getattr(outputs, "pooler_output", None)]):
            paths = [path for path, norm_output in norm_outputs.items() if norm_output is output]
            if paths:
                return _describe_host(model, kwargs, pixel_values, outputs, paths[0], bool(norm_is_after_pooling))
    raise ValueError(
        f"This {config.model_type} cannot be a host: {type(model).__name__} does not end with a norm, before which "
        "the LLM block stands. If the configuration has a switch for it (use_mean_pooling=False), set that in "
        "vision_config; or use LLMBlock alone on its last_hidden_state."
    )


def _check_host_config(config: PreTrainedConfig) -> None:
    name = config.model_type
    if hasattr(config, "llm_block"):
        raise ValueError(f"{name} cannot be a host: it has an LLM block already. Give the configuration of its host.")
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"{name} cannot be a host: transformers has no AutoModel for it.")
    if name == "vit_mae":
        raise ValueError(
            "vit_mae cannot be a host: it drops and shuffles tokens at random. Load its checkpoint as a ViT: "
            "ViTWithLLMBlockModel.from_host_pretrained(name, llm_block=…)."
        )


def _describe_host(
    model: PreTrainedModel,
    kwargs: dict[str, Any],
    pixel_values: torch.Tensor,
    outputs: Any,
    norm_path: str,
    norm_is_after_pooling: bool,
) -> VisionHost:
    tokens, maps = outputs.last_hidden_state, getattr(outputs, "reshaped_hidden_states", None)
    # Tokens of the embeddings, not of a head: AIMv2's attention pooling has a `cls_token`, too.
    prefix = {
        path.rpartition(".")[2]: parameter.shape[-2] if parameter.ndim > 1 else 1
        for path, parameter in model.named_parameters()
        if path.rpartition(".")[2] in _PREFIX_TOKENS and "embed" in path
    }
    num_patches = maps[-1].numel() // tokens.shape[-1] if maps else _num_patches(model.config, pixel_values.shape)
    is_complete = num_patches is not None and sum(prefix.values()) + num_patches == tokens.shape[1]
    host = VisionHost(
        kwargs=kwargs,
        norm_path=norm_path,
        norm_is_after_pooling=norm_is_after_pooling,
        hidden_size=tokens.shape[-1],
        num_prefix_tokens=sum(prefix.values()) if is_complete else None,
        has_cls_token=any(prefix.get(token) == 1 for token in _PREFIX_TOKENS[:3]),
        takes_attention_mask="attention_mask" in inspect.signature(model.forward).parameters,
        pixel_dims=pixel_values.ndim,
        stage_shapes=[
            tuple(state.shape)
            for state in getattr(outputs, "hidden_states", None) or ()
            if isinstance(state, torch.Tensor)
        ],
    )
    if maps:
        _find_feature_maps(host, model, pixel_values)
    return host


def _record(outputs: dict[str, torch.Tensor], path: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    outputs[path] = output


def pixel_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the shape of the `pixel_values` of one image or video, as a host's configuration gives it."""
    size = getattr(config, "image_size", getattr(config, "crop_size", 224))
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", getattr(config, "in_chans", 3)), height, width)
    frames = getattr(config, "num_frames", getattr(config, "frames_per_clip", None))
    return (1, *shape) if frames is None else (1, frames, *shape)


def patch_grid(patch_size: int | Sequence[int], height: int, width: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches of an image of `height x width` pixels."""
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return height // patch_height, width // patch_width


def _num_patches(config: PreTrainedConfig, shape: tuple[int, ...]) -> int | None:
    """Return the number of patches of an image or a video; `None` if the configuration has no patch size."""
    tubelet, patch = getattr(config, "tubelet_size", 1), getattr(config, "patch_size", None)
    if not isinstance(tubelet, int):
        tubelet, *patch = tubelet
    if patch is None:
        return None
    rows, columns = patch_grid(patch, *shape[-2:])
    frames = shape[1] // tubelet if len(shape) == 5 else 1
    return frames * rows * columns


@contextmanager
def _name_errors(name: str, problem: str) -> Iterator[None]:
    """Name the host and its problem in any error."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} cannot be a host: it {problem} ({type(error).__name__}: {error}).") from error


def _call(model: PreTrainedModel, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
    problem = (
        f"does not run with this configuration on pixel_values of shape {tuple(pixel_values.shape)} alone, in "
        f"{type(model).__name__}"
    )
    # Not on the meta device on which `from_pretrained` builds: BEiT caches tensors that its forward creates.
    with _name_errors(model.config.model_type, problem), torch.no_grad(), torch.device("cpu"):
        return model(pixel_values, return_dict=True, output_hidden_states=True, **kwargs)


def _find_feature_maps(host: VisionHost, model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    """Find the feature maps of a hierarchical host at the end of each stage, before they are downsampled."""
    kwargs = {"output_hidden_states_before_downsampling": True}
    maps = _call(model, pixel_values, **kwargs).reshaped_hidden_states
    host.stage_shapes = [tuple(feature_map.shape) for feature_map in maps]
    # Swin V2 ignores the argument, and Hiera's maps have another layout.
    if maps[0].shape[-2:] != maps[1].shape[-2:] or maps[-1].shape[1] != host.hidden_size:
        host.stage_shapes = []
    host.map_kwargs = kwargs


__all__ = ["VisionHost", "inspect_host", "load_host_config", "patch_grid", "pixel_shape", "vision_config_of"]
