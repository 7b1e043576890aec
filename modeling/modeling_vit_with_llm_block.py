# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""ViT with an LLM block."""

from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import ViTModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer, ViTPatchEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_vit_with_llm_block import ViTWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .pretrained_model import PreTrainedModelWithLLMBlock
from .stochastic_depth import add_stochastic_depth


# transformers before 5.23 has no such argument and needs none, as it does not resolve negative indices.
_HIDDEN_STATES = OutputRecorder(ViTLayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


class ViTWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: ViTWithLLMBlockConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _can_record_outputs = {"hidden_states": _HIDDEN_STATES, "attentions": ViTAttention}

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device."""
        shape = (1, self.config.num_channels, *self.vit.embeddings.image_size)
        return {"pixel_values": torch.zeros(shape, dtype=self.dtype)}

    def _build(self, config: ViTWithLLMBlockConfig, add_pooling_layer: bool) -> None:
        config.complete_llm_block()
        self.vit = ViTModel(config, add_pooling_layer=add_pooling_layer)
        add_stochastic_depth(self.vit.layers, config.drop_path_rate, "ViT")
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.vit.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vit.embeddings.patch_embeddings = cast(ViTPatchEmbeddings, value)

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        interpolate_pos_encoding: bool | None,
        attention_mask: torch.Tensor | None,
        output_tokens: slice | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Run the ViT's modules in order, with the block at its position. The last hidden state may be that of
        only the `output_tokens`, see `_run_layers`.
        """
        vit, config = self.vit, self.config
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; it must be (batch, {config.num_channels}, "
                f"height, width): config.num_channels is {config.num_channels}. Use the model's image processor."
            )
        pixel_values = pixel_values.to(vit.embeddings.patch_embeddings.projection.weight.dtype)
        if not interpolate_pos_encoding and tuple(pixel_values.shape[2:]) != tuple(vit.embeddings.image_size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[2:])} pixels, config.image_size is "
                f"{tuple(vit.embeddings.image_size)}: resize them with the model's image processor, or pass "
                "interpolate_pos_encoding=True."
            )
        hidden_states = vit.embeddings(pixel_values, interpolate_pos_encoding=bool(interpolate_pos_encoding))
        layer_mask = create_bidirectional_mask(
            config=config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        layers = [partial(layer, attention_mask=layer_mask, **kwargs) for layer in vit.layers]
        hidden_states = self._run_layers(layers, hidden_states, attention_mask, output_tokens, **kwargs)
        hidden_states = vit.layernorm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=vit.pooler(hidden_states) if vit.pooler is not None else None,
        )


class ViTWithLLMBlockModel(ViTWithLLMBlockPreTrainedModel):
    r"""
    A ViT with an LLM block among its layers, without a head.

    Args:
        config ([`ViTWithLLMBlockConfig`]): the model's configuration.
        add_pooling_layer (`bool`, *optional*, defaults to `True`): whether to add the ViT's pooler.
    """

    def __init__(self, config: ViTWithLLMBlockConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self._build(config, add_pooling_layer)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            interpolate_pos_encoding (`bool`, *optional*): whether to interpolate the position embeddings for images of
                another size than `config.image_size`.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding, the CLS
                token included.

        Returns:
            `BaseModelOutputWithPooling`: with `output_hidden_states=True`, the block adds one hidden state at its
            position; with `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        return self._encode(pixel_values, interpolate_pos_encoding, attention_mask, **kwargs)


class ViTWithLLMBlockForImageClassification(ViTWithLLMBlockPreTrainedModel):
    r"""
    A ViT with an LLM block and a linear classifier on the CLS token.

    Args:
        config ([`ViTWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: ViTWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self._build(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): classes, 0 to `config.num_labels - 1`.
            interpolate_pos_encoding (`bool`, *optional*): whether to interpolate the position embeddings for images of
                another size than `config.image_size`.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding, the CLS
                token included.

        Returns:
            `ImageClassifierOutput`: with `loss` if `labels` are given.
        """
        cls_token = slice(0, 1)
        outputs = self._encode(pixel_values, interpolate_pos_encoding, attention_mask, cls_token, **kwargs)
        logits = self.classifier(cast(torch.Tensor, outputs.last_hidden_state)[:, 0])
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)


__all__ = ["ViTWithLLMBlockForImageClassification", "ViTWithLLMBlockModel", "ViTWithLLMBlockPreTrainedModel"]
