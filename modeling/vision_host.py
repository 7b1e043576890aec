# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What a vision encoder of transformers must have to be a host, found out by running it on the meta device."""

import copy
import functools
import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel


# Tokens that an embedding puts before the patches, in this order, by the names of their parameters.
_PREFIX_TOKENS = ("cls_token", "class_token", "class_embedding", "distillation_token", "register_tokens")


class DeferredNorm:
    """
    Mixin that makes a norm wait: the host's own forward calls it and nothing happens, until the block has run and it
    is called with `now=True`. It stays the same module with the same keys, and hooks (offloading) see both calls.
    """

    def forward(self, hidden_states: torch.Tensor, now: bool = False) -> torch.Tensor:
        return super().forward(hidden_states) if now else hidden_states  # type: ignore[misc]

    def __reduce_ex__(self, protocol):
        return _new_deferred, (type(self).__mro__[2],), self.__dict__


def _deferred_class(norm_class: type[nn.Module]) -> type[nn.Module]:
    # The name stays: transformers initialises RMS norms by it.
    return type(norm_class.__name__, (DeferredNorm, norm_class), {})


def _new_deferred(norm_class: type[nn.Module]) -> nn.Module:
    return object.__new__(_deferred_class(norm_class))


@dataclass
class VisionHost:
    """
    How a vision encoder is built and where its parts are.

    Args:
        kwargs (`dict[str, Any]`): arguments of its class beside the configuration.
        norm_path (`str`): where its final norm is.
        norm_is_after_pooling (`bool`): whether it normalises what it has pooled (CLIP; BEiT with `use_mean_pooling`)
            instead of its tokens.
        hidden_size (`int`): width of its last tokens.
        num_prefix_tokens (`int`, *optional*): tokens before the patches: CLS, distillation, registers. `None` if
            these and the patches are not all of its tokens.
        has_cls_token (`bool`): whether the first token is a CLS token.
        takes_attention_mask (`bool`): whether its forward has an `attention_mask` over its tokens.
        pixel_dims (`int`): 4 for images, 5 for videos.
        stage_shapes (`list[tuple[int, ...]]`): shapes of its hidden states for one image, or of its feature maps if it
            is hierarchical; empty if it returns neither at the end of each stage.
        map_kwargs (`dict[str, Any]`): arguments of its forward that make it return the feature maps of its stages.
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
        return AutoModel.from_config(config, dtype=torch.get_default_dtype(), **self.kwargs)

    def norm(self, model: nn.Module) -> nn.Module:
        """The final norm of a built host, also if PEFT has wrapped that."""
        for name in self.norm_path.split("."):
            model = getattr(model, name)
        return model

    def defer_norm(self, model: nn.Module) -> None:
        """Makes the norm of the host's tokens wait for `now=True`."""
        if not self.norm_is_after_pooling:
            norm = self.norm(model)
            norm.__class__ = _deferred_class(type(norm))


def vision_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration itself, or that of the vision encoder in a model of images and text."""
    return getattr(config, "vision_config", None) or config


def inspect_host(config: PreTrainedConfig) -> VisionHost:
    """
    Runs the host of a configuration once on the meta device, where that costs neither memory nor arithmetic.

    Args:
        config (`PreTrainedConfig`): the host's configuration.

    Raises:
        `ValueError`: for a model that does not take images alone, does not return tokens, or does not end with a norm.
    """
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
    config = copy.deepcopy(config)  # building a model writes its dtype into its configuration
    config._attn_implementation = "eager"  # other kernels may not run on the meta device
    model_class: Any = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    # A pooler is only built where the final norm is in it (BEiT).
    choices: list[dict[str, Any]] = [{"add_pooling_layer": add} for add in (False, True)] if takes_pooler else [{}]
    for kwargs in choices:
        with _explained(name, "cannot be built"), torch.device("meta"):
            model = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **kwargs).eval()
        pixel_values = torch.empty(_pixel_shape(config), device="meta")
        norm_outputs: dict[str, torch.Tensor] = {}
        for path, module in model.named_modules():
            if "norm" in type(module).__name__.lower():
                module.register_forward_hook(functools.partial(_record, norm_outputs, path))
        outputs = _call(model, pixel_values)
        tokens = getattr(outputs, "last_hidden_state", None)
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3:
            shape = f"a tensor of shape {tuple(tokens.shape)}" if isinstance(tokens, torch.Tensor) else "none"
            raise ValueError(
                f"{name} cannot be a host: the LLM block takes tokens, (batch, tokens, width), and the "
                f"last_hidden_state of {type(model).__name__} is {shape}. Bring its features into that shape yourself "
                "and use LLMBlock alone."
            )
        for norm_is_after_pooling, output in enumerate([tokens, getattr(outputs, "pooler_output", None)]):
            paths = [path for path, norm_output in norm_outputs.items() if norm_output is output]
            if not paths:
                continue
            maps = getattr(outputs, "reshaped_hidden_states", None)
            # Not those of a head: AIMv2's attention pooling has a `cls_token`, too.
            prefix = {
                path.rpartition(".")[2]: parameter.shape[-2] if parameter.ndim > 1 else 1
                for path, parameter in model.named_parameters()
                if path.rpartition(".")[2] in _PREFIX_TOKENS and "embed" in path
            }
            num_patches = maps[-1].numel() // tokens.shape[-1] if maps else _num_patches(config, pixel_values.shape)
            is_complete = num_patches is not None and sum(prefix.values()) + num_patches == tokens.shape[1]
            host = VisionHost(
                kwargs=kwargs,
                norm_path=paths[0],
                norm_is_after_pooling=bool(norm_is_after_pooling),
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
    raise ValueError(
        f"This {name} cannot be a host: {type(model).__name__} does not end with a norm, before which the LLM block "
        "stands. Where the configuration has a switch for it (use_mean_pooling=False), set that in vision_config; or "
        "use LLMBlock alone on its last_hidden_state."
    )


def _record(outputs: dict[str, torch.Tensor], path: str, module: nn.Module, args, output: torch.Tensor) -> None:
    outputs[path] = output


def _pixel_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    size = getattr(config, "image_size", getattr(config, "crop_size", 224))
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", getattr(config, "in_chans", 3)), height, width)
    frames = getattr(config, "num_frames", getattr(config, "frames_per_clip", None))
    return (1, *shape) if frames is None else (1, frames, *shape)


def patch_grid(patch_size: int | Sequence[int], height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of `height x width` pixels."""
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return height // patch_height, width // patch_width


def _num_patches(config: PreTrainedConfig, pixel_shape: tuple[int, ...]) -> int | None:
    """Patches of an image or a video; `None` where the configuration does not say."""
    tubelet, patch = getattr(config, "tubelet_size", 1), getattr(config, "patch_size", None)
    if not isinstance(tubelet, int):
        tubelet, *patch = tubelet
    if patch is None:
        return None
    rows, columns = patch_grid(patch, *pixel_shape[-2:])
    frames = pixel_shape[1] // tubelet if len(pixel_shape) == 5 else 1
    return frames * rows * columns


@contextmanager
def _explained(name: str, problem: str):
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} cannot be a host: it {problem} ({type(error).__name__}: {error}).") from error


def _call(model: PreTrainedModel, pixel_values: torch.Tensor, **kwargs) -> Any:
    problem = (
        f"does not run with this configuration on pixel_values of shape {tuple(pixel_values.shape)} alone, in "
        f"{type(model).__name__}"
    )
    # Not in the meta device's context of `from_pretrained`: BEiT caches tensors that it makes in its forward.
    with _explained(model.config.model_type, problem), torch.no_grad(), torch.device("cpu"):
        return model(pixel_values, return_dict=True, output_hidden_states=True, **kwargs)


def _find_feature_maps(host: VisionHost, model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    """Hierarchical hosts: the maps at the end of each stage, not those already merged for the next one."""
    kwargs = {"output_hidden_states_before_downsampling": True}
    maps = _call(model, pixel_values, **kwargs).reshaped_hidden_states
    host.stage_shapes = [tuple(feature_map.shape) for feature_map in maps]
    # Swin V2 does not hand the argument on, and Hiera lays out its maps in another way.
    if maps[0].shape[-2:] != maps[1].shape[-2:] or maps[-1].shape[1] != host.hidden_size:
        host.stage_shapes = []
    host.map_kwargs = kwargs


__all__ = ["VisionHost", "inspect_host", "patch_grid", "vision_config_of"]
