# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Any vision encoder of transformers with an LLM block after its last layer, before its final norm."""

from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_vision_with_llm_block import VisionWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .pretrained_model import HUB_KWARGS, PreTrainedModelWithLLMBlock, needs_all_tokens
from .stochastic_depth import add_stochastic_depth
from .vision_host import inspect_host, load_host_config, patch_grid, pixel_shape, vision_config_of


class VisionWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    """Base class whose host is named by the host's own `base_model_prefix`, so that published checkpoints load."""

    config: VisionWithLLMBlockConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # The block's own class defines what is recorded in it.
    _can_record_outputs = {"attentions": OutputRecorder(LLMBlock)}

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device."""
        shape = pixel_shape(cast(PreTrainedConfig, self.config.vision_config))
        return {"pixel_values": torch.zeros(shape, dtype=self.dtype)}

    def _build(self, config: VisionWithLLMBlockConfig) -> None:
        if config.vision_config is None:
            raise ValueError(
                "vision_config is not set. Give the host's configuration, or load the checkpoint of a plain host by "
                "from_host_pretrained(name, llm_block=…)."
            )
        config.complete_llm_block()
        host_config = cast(Any, config.vision_config)
        self._host = inspect_host(host_config)
        if config.hidden_size != self._host.hidden_size:
            raise ValueError(
                f"The last tokens of this {host_config.model_type} are {self._host.hidden_size} wide, but its "
                f"configuration says hidden_size={config.hidden_size}. Such a host cannot be wrapped; use "
                f"LLMBlock(LLMBlockConfig(hidden_size={self._host.hidden_size}, …)) on its last_hidden_state."
            )
        if config.pooling is None:
            takes_mean = not self._host.has_cls_token or getattr(host_config, "use_mean_pooling", False)
            config.pooling = "mean" if takes_mean else "cls"
        if config.pooling != "mean" and not self._host.has_cls_token:
            raise ValueError(f"pooling={config.pooling!r}, but {host_config.model_type} has no CLS token. Use 'mean'.")
        if config.pooling != "cls" and self._host.num_prefix_tokens is None:
            raise ValueError(
                f"pooling={config.pooling!r}, but it is unknown which tokens of {host_config.model_type} are patches. "
                "Use 'cls' if it has a CLS token, or LLMBlock alone on its last_hidden_state."
            )
        host = self._host.build(host_config)
        if config.drop_path_rate != 0:
            depth = config.num_hidden_layers
            stacks = [m for m in host.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
            add_stochastic_depth(stacks[0] if stacks else [host], config.drop_path_rate, host_config.model_type)
        if config.llm_block is not None:
            self._host.defer_norm(host)
        self.base_model_prefix = type(host).base_model_prefix
        setattr(self, self.base_model_prefix, host)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    @property
    def host(self) -> PreTrainedModel:
        """The vision encoder. With a block, its own outputs have not passed its final norm."""
        return getattr(self, self.base_model_prefix)

    def get_input_embeddings(self) -> nn.Module:
        return self.host.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.host.set_input_embeddings(value)

    @classmethod
    def from_host_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        llm_block: LLMBlockConfig | dict[str, Any] | None = None,
        pooling: Literal["cls", "mean", "cls_mean"] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Load a published plain host, and add a block behind it.

        Args:
            pretrained_model_name_or_path (`str`):
                Hub id or folder of the host: its base model, or one with a head.
            llm_block (`LLMBlockConfig` or `dict`, *optional*):
                The block; `None` is the plain host.
            pooling (`"cls"`, `"mean"` or `"cls_mean"`, *optional*):
                See [`VisionWithLLMBlockConfig`].
            kwargs:
                `num_labels`, `id2label` and `label2id`, which replace a classifier of another size; `out_features` and
                other fields of the new model's configuration; fields of the host's configuration; `trust_remote_code`,
                without which code in the host's repository is not executed; and arguments of `from_pretrained`.

        Raises:
            `ValueError`: if the checkpoint lacks weights of the host, if its classifier does not fit and no labels are
                given, or if the model cannot be a host.
        """
        hub_kwargs = {name: kwargs[name] for name in (*HUB_KWARGS, "revision", "subfolder") if name in kwargs}
        # Fields of the whole model's configuration, which the host's would take, too.
        own = ("out_features", "out_indices", "output_attentions", "output_hidden_states", "return_dict")
        own_kwargs = {name: kwargs.pop(name) for name in own if name in kwargs}
        model_kwargs = {n: kwargs.pop(n) for n in ("attn_implementation", "dtype", "torch_dtype") if n in kwargs}
        gives_labels = not {"num_labels", "id2label", "label2id"}.isdisjoint(kwargs)
        host_config, kwargs = load_host_config(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        if isinstance(host_config, VisionWithLLMBlockConfig):
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a plain host but a saved model of this class: load it by "
                "from_pretrained."
            )
        labels = {name: getattr(host_config, name) for name in ("id2label", "label2id", "problem_type")}
        vision_config = vision_config_of(host_config)
        if vision_config is not host_config:
            fields = {name: kwargs.pop(name) for name in list(kwargs) if hasattr(vision_config, name)}
            vision_config = type(vision_config).from_dict({**vision_config.to_dict(), **fields})
        if "drop_path_rate" in kwargs:  # the host's configuration would have taken it
            own_kwargs["drop_path_rate"] = kwargs.pop("drop_path_rate")
        config = VisionWithLLMBlockConfig(
            vision_config=vision_config, llm_block=llm_block, pooling=pooling, **labels, **own_kwargs
        )
        return cls._from_host(
            pretrained_model_name_or_path,
            replaces_classifier=gives_labels,
            config=config,
            **hub_kwargs,
            **model_kwargs,
            **kwargs,
        )

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        output_tokens: slice | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutput, Any]:
        """
        Run the host up to its final norm, the block, and the norm. Return the outputs, whose `hidden_states` end with
        the block's, and the host's own outputs. The last hidden state is that of only the `output_tokens`, unless
        hidden states or attentions are recorded, or [`needs_all_tokens`].
        """
        host = self.host
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        if pixel_values.ndim != self._host.pixel_dims or pixel_values.shape[-3] != self.config.num_channels:
            frames = "frames, " if self._host.pixel_dims == 5 else ""
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; it must be (batch, {frames}"
                f"{self.config.num_channels}, height, width). Use the host's image processor."
            )
        inputs: dict[str, Any] = {**kwargs, "return_dict": True}
        inputs.pop("num_items_in_batch", None)  # an argument of the loss
        if attention_mask is not None:
            if not self._host.takes_attention_mask:
                raise ValueError(f"{type(host).__name__} takes no attention_mask.")
            inputs["attention_mask"] = attention_mask
        for name in ("output_hidden_states", "output_attentions"):
            inputs[name] = kwargs.get(name, getattr(self.config, name))
        # Indices of a selection count the block, too: the host must return all of its hidden states.
        selection = inputs["output_hidden_states"]
        inputs["output_hidden_states"] = selection is not None and selection is not False
        outputs = host(pixel_values, **inputs)
        hidden_states, states = outputs.last_hidden_state, outputs.get("hidden_states")
        attentions = outputs.get("attentions")
        if self.llm_block is not None:
            records_attentions = bool(inputs["output_attentions"])
            if records_attentions or inputs["output_hidden_states"] or needs_all_tokens(self.llm_block):
                output_tokens = None
            block = self._run_llm_block(
                hidden_states, attention_mask, output_tokens, output_attentions=records_attentions, return_dict=True
            )
            hidden_states = cast(torch.Tensor, block.last_hidden_state)
            states = None if states is None else (*states, hidden_states)
            attentions = None if attentions is None else (*attentions, *cast(tuple, block.attentions))
            if not self._host.norm_is_after_pooling:
                hidden_states = self._final_norm(hidden_states)
        if states is not None and not isinstance(selection, bool):
            indices = [selection] if isinstance(selection, int) else selection
            chosen = {index % len(states) for index in indices if -len(states) <= index < len(states)}
            states = tuple(state if index in chosen else None for index, state in enumerate(states))
        encoded = BaseModelOutput(last_hidden_state=hidden_states, hidden_states=states, attentions=attentions)
        return encoded, outputs

    def _final_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_deferred = self.llm_block is not None and not self._host.norm_is_after_pooling
        return self._host.norm(self.host)(hidden_states, **({"now": True} if is_deferred else {}))

    @capture_outputs(tie_last_hidden_states=False)
    def _run_llm_block(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_tokens: slice | None,
        output_attentions: bool,
    ) -> BaseModelOutput:
        block = cast(LLMBlock, self.llm_block)
        hidden_states = block(hidden_states, attention_mask, output_tokens, fast=not output_attentions)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Pool the tokens to `(batch, hidden_size)`, or twice as wide for `"cls_mean"`."""
        pooled = []
        if self.config.pooling != "mean":
            pooled.append(hidden_states[:, 0])
        if self.config.pooling != "cls":
            patches = hidden_states[:, self._host.num_prefix_tokens :]
            if attention_mask is None:
                pooled.append(patches.mean(dim=1))
            else:
                weights = attention_mask[:, self._host.num_prefix_tokens :, None].to(patches.dtype)
                pooled.append((patches * weights).sum(dim=1) / weights.sum(dim=1))
        if self._host.norm_is_after_pooling:
            pooled = [self._final_norm(vector) for vector in pooled]
        return torch.cat(pooled, dim=-1)


class VisionWithLLMBlockModel(VisionWithLLMBlockPreTrainedModel):
    r"""
    A vision encoder of transformers with an LLM block after its last layer, without a head.

    Args:
        config ([`VisionWithLLMBlockConfig`]): the model's configuration.

    Raises:
        `ValueError`: if the model of `vision_config` cannot be a host, or lacks the CLS token that `pooling` needs.
    """

    def __init__(self, config: VisionWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images; videos
                `(batch, frames, num_channels, height, width)` if the host takes videos.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding, for hosts
                that take one.
            kwargs: other arguments of the host's own `forward`, such as `interpolate_pos_encoding`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state`, normalised if the host normalises its tokens (CLIP and
            BEiT with `use_mean_pooling` normalise only the pooled output); `pooler_output`, the classifier's input
            (`config.pooling`). With `output_hidden_states=True` the block adds one hidden state; with
            `output_attentions=True` (and eager attention) each LLM layer adds one attention.
        """
        outputs, _ = self._encode(pixel_values, attention_mask, **kwargs)
        hidden_states = cast(torch.Tensor, outputs.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self._pool(hidden_states, attention_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VisionWithLLMBlockForImageClassification(VisionWithLLMBlockPreTrainedModel):
    r"""
    A vision encoder of transformers with an LLM block after its last layer and a linear classifier on
    `config.pooling`.

    Args:
        config ([`VisionWithLLMBlockConfig`]): the model's configuration.

    Raises:
        `ValueError`: if the model of `vision_config` cannot be a host, or lacks the CLS token that `pooling` needs.
    """

    def __init__(self, config: VisionWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self._build(config)
        width = self._host.hidden_size * (2 if config.pooling == "cls_mean" else 1)
        self.classifier = nn.Linear(width, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images; videos
                `(batch, frames, num_channels, height, width)` if the host takes videos.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): classes, 0 to `config.num_labels - 1`.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding, for hosts
                that take one.
            kwargs: other arguments of the host's own `forward`, such as `interpolate_pos_encoding`.

        Returns:
            `ImageClassifierOutput`: with `loss` if `labels` are given.
        """
        cls_token = slice(0, 1) if self.config.pooling == "cls" else None
        outputs, _ = self._encode(pixel_values, attention_mask, cls_token, **kwargs)
        logits = self.classifier(self._pool(cast(torch.Tensor, outputs.last_hidden_state), attention_mask))
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class VisionWithLLMBlockBackbone(BackboneMixin, VisionWithLLMBlockPreTrainedModel):
    r"""
    Feature maps of a vision encoder with an LLM block, for the detection and segmentation models of transformers
    (`UperNetConfig(backbone_config=config)` and the like).

    The maps are those at the end of the host's stages (`"stem"`, `"stage1"`, …) and the block's (`"llm_block"`). Each
    is normalised: by the host's final norm if its width fits, else by a `LayerNorm` of its own, as in transformers'
    Swin backbone.

    Args:
        config ([`VisionWithLLMBlockConfig`]): the model's configuration; `out_features` names the stages.

    Raises:
        `ValueError`: if the host's hidden states cannot be laid out as feature maps.
    """

    def __init__(self, config: VisionWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        host = self._host
        is_map = bool(host.map_kwargs)
        widths = [shape[1] if is_map else shape[-1] for shape in host.stage_shapes]
        fits = host.pixel_dims == 4 and len(widths) == config.num_hidden_layers + 1
        if not fits or (not is_map and host.num_prefix_tokens is None):
            raise ValueError(
                f"The hidden states of {cast(Any, config.vision_config).model_type} cannot be laid out as the feature "
                f"maps of {config.num_hidden_layers} stages. Use VisionWithLLMBlockModel and its hidden_states."
            )
        self.num_features = [*widths, *([] if self.llm_block is None else [host.hidden_size])]
        # Norms of all stages, so that `out_features` can be changed later.
        own_norms = {name: width for name, width in self.out_feature_channels.items() if width != host.hidden_size}
        self.hidden_states_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in own_norms.items()})
        self.post_init()

    # Not stored in the configuration: the default, the last stage, depends on whether there is a block.
    @property
    def out_features(self) -> Any:
        return self.config.out_features or [self.stage_names[-1]]

    @out_features.setter
    def out_features(self, out_features: Any) -> None:
        self.config.out_features = out_features

    @property
    def out_indices(self) -> Any:
        return [self.stage_names.index(stage) for stage in self.out_features]

    @out_indices.setter
    def out_indices(self, out_indices: Any) -> None:
        self.config.out_indices = out_indices

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding, for hosts
                that take one.
            kwargs: other arguments of the host's own `forward`, such as `interpolate_pos_encoding`.

        Returns:
            `BackboneOutput`: `feature_maps`, one `(batch, channels, height, width)` for each of `out_features`.
        """
        outputs, host_outputs = self._encode(pixel_values, attention_mask, None, **self._host.map_kwargs, **kwargs)
        states = cast(tuple[torch.Tensor, ...], outputs.hidden_states)
        if self._host.map_kwargs:
            maps = [feature_map.permute(0, 2, 3, 1) for feature_map in host_outputs.reshaped_hidden_states]
            grid = maps[-1].shape[1:3]
            maps += [state.unflatten(1, grid) for state in states[len(maps) :]]
        else:
            height, width = cast(torch.Tensor, pixel_values).shape[-2:]
            grid = patch_grid(cast(Any, self.config.vision_config).patch_size, height, width)
            maps = [state[:, self._host.num_prefix_tokens :].unflatten(1, grid) for state in states]
        feature_maps = []
        for stage, feature_map in zip(self.stage_names, maps):
            if stage in self.out_features:
                own_norm = self.hidden_states_norms[stage] if stage in self.hidden_states_norms else None
                feature_map = self._final_norm(feature_map) if own_norm is None else own_norm(feature_map)
                feature_maps.append(feature_map.permute(0, 3, 1, 2).contiguous())
        return BackboneOutput(
            feature_maps=cast(Any, tuple(feature_maps)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "VisionWithLLMBlockBackbone",
    "VisionWithLLMBlockForImageClassification",
    "VisionWithLLMBlockModel",
    "VisionWithLLMBlockPreTrainedModel",
]
