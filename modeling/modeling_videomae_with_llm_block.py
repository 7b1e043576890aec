# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VideoMAE with an LLM block."""

from typing import Any, cast

import torch
from torch import nn
from transformers import VideoMAEModel
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.models.videomae.modeling_videomae import (
    VideoMAELayer,
    VideoMAEPatchEmbeddings,
    VideoMAESelfAttention,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_videomae_with_llm_block import VideoMAEWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .pretrained_model import PreTrainedModelWithLLMBlock
from .stochastic_depth import add_stochastic_depth


# transformers before 5.23 has no such argument and needs none, as it does not resolve negative indices.
_HIDDEN_STATES = OutputRecorder(VideoMAELayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


# transformers renames them for its own model type only; before 5.23, for none.
_PUBLISHED_BIASES = {rf"\.attention\.{name[0]}_bias$": f".attention.{name}.bias" for name in ("query", "value")}


class VideoMAEWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: VideoMAEWithLLMBlockConfig
    base_model_prefix = "videomae"
    main_input_name = "pixel_values"
    input_modalities = ["video"]
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": VideoMAESelfAttention}
    # Only in older transformers, not in published checkpoints: a softmax is invariant to it.
    _keys_to_ignore_on_load_missing = [r"attention\.key\.bias$"]
    _keys_to_ignore_on_load_unexpected = [r"attention\.key\.bias$"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("key_mapping", _PUBLISHED_BIASES)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device."""
        return {"pixel_values": torch.zeros(1, *self._pixel_shape(), dtype=self.dtype)}

    def _pixel_shape(self) -> tuple[int, ...]:
        config = self.config
        return config.num_frames, config.num_channels, *self.videomae.embeddings.patch_embeddings.image_size

    def _build(self, config: VideoMAEWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.videomae = VideoMAEModel(config)
        add_stochastic_depth(self.videomae.encoder.layer, config.drop_path_rate, "VideoMAE")
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.videomae.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.videomae.embeddings.patch_embeddings = cast(VideoMAEPatchEmbeddings, value)

    def _encode(
        self, pixel_values: torch.Tensor | None, output_tokens: slice | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Run VideoMAE's modules in order, with the block at its position."""
        videomae = self.videomae
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        expected = self._pixel_shape()
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; it must be (batch, frames, channels, "
                f"height, width) = (batch, {', '.join(map(str, expected))}), by num_frames, num_channels and "
                "image_size of the configuration. Use the model's video processor."
            )
        pixel_values = pixel_values.to(videomae.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = videomae.embeddings(pixel_values, None)
        hidden_states = self._run_layers(videomae.encoder.layer, hidden_states, output_tokens=output_tokens, **kwargs)
        if videomae.layernorm is not None:
            hidden_states = videomae.layernorm(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)


class VideoMAEWithLLMBlockModel(VideoMAEWithLLMBlockPreTrainedModel):
    r"""
    A VideoMAE encoder with an LLM block among its layers, without a head.

    Args:
        config ([`VideoMAEWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: VideoMAEWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_frames, num_channels, height, width)`): normalised
                frames.

        Returns:
            `BaseModelOutput`: `last_hidden_state` of shape `(batch, tokens, hidden_size)`; a token is a tube of
            `tubelet_size` frames and `patch_size` pixels. With `output_hidden_states=True`, the block adds one hidden
            state at its position; with `output_attentions=True` (and eager attention), each LLM layer adds one
            attention.
        """
        return self._encode(pixel_values, **kwargs)


class VideoMAEWithLLMBlockForVideoClassification(VideoMAEWithLLMBlockPreTrainedModel):
    r"""
    A VideoMAE encoder with an LLM block and a linear classifier on the normalised mean of the tokens
    (`use_mean_pooling`, as VideoMAE and the paper do) or on the first token.

    Args:
        config ([`VideoMAEWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: VideoMAEWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self._build(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, config.fc_norm_eps) if config.use_mean_pooling else None
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_frames, num_channels, height, width)`): normalised
                frames.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): classes, 0 to `config.num_labels - 1`.

        Returns:
            `ImageClassifierOutput`: with `loss` if `labels` are given.
        """
        output_tokens = slice(0, 1) if self.fc_norm is None else None
        hidden_states = cast(torch.Tensor, self._encode(pixel_values, output_tokens, **kwargs).last_hidden_state)
        pooled = hidden_states[:, 0] if self.fc_norm is None else self.fc_norm(hidden_states.mean(dim=1))
        logits = self.classifier(pooled)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)


__all__ = [
    "VideoMAEWithLLMBlockForVideoClassification",
    "VideoMAEWithLLMBlockModel",
    "VideoMAEWithLLMBlockPreTrainedModel",
]
