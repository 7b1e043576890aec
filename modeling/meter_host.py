# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The plain METER: a CLIP vision encoder and a RoBERTa, whose tokens attend to each other in fusion layers.

Source: "An Empirical Study of Training End-to-End Vision-and-Language Transformers" (CVPR 2022), section 3, and its
released code (github.com/zdou0830/METER, `meter/modules/meter_module.py`), whose outputs this module reproduces.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertIntermediate,
    BertOutput,
    BertPooler,
    BertSelfAttention,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_meter_with_llm_block import MeterWithLLMBlockConfig


IMAGE_LAYERS = "cross_modal_image_layers"


@dataclass
class MeterModelOutput(ModelOutput):
    """
    Outputs of a METER.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, image tokens, hidden_size)`): the image tokens, CLS first.
        text_last_hidden_state (`torch.Tensor` of shape `(batch, text tokens, hidden_size)`): the text tokens.
        pooler_output (`torch.Tensor` of shape `(batch, 2 * hidden_size)`): the pooled text and the pooled image.
        hidden_states (`tuple[torch.Tensor]`, *optional*): the image tokens before and after each fusion layer.
        attentions (`tuple[torch.Tensor]`, *optional*): the self-attention of the image tokens in each fusion layer.
    """

    last_hidden_state: torch.Tensor | None = None
    text_last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MeterTokens:
    """Tokens of texts and images in the width of the fusion layers, with their masks `(batch, tokens)`."""

    text: torch.Tensor
    image: torch.Tensor
    text_mask: torch.Tensor | None
    image_mask: torch.Tensor | None


class MeterFusionLayer(GradientCheckpointingLayer):
    """A post-norm layer of one modality: self-attention, attention to the other modality, feed-forward network."""

    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.crossattention = BertAttention(config, is_cross_attention=True)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        other: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        other_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states, _ = self.attention(hidden_states, attention_mask)
        hidden_states, _ = self.crossattention(
            hidden_states, encoder_hidden_states=other, encoder_attention_mask=other_mask
        )
        return self.output(self.intermediate(hidden_states), hidden_states)


class MeterModel(PreTrainedModel):
    """The plain host: both encoders, the fusion layers and the poolers."""

    config: MeterWithLLMBlockConfig
    base_model_prefix = "meter"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["MeterFusionLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings", "RobertaLayer"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(MeterFusionLayer, layer_name=IMAGE_LAYERS),
        "attentions": OutputRecorder(BertSelfAttention, index=1, layer_name=IMAGE_LAYERS),
    }

    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__(config)
        vision_config = cast(CLIPVisionConfig, config.vision_config)
        text_config = cast(RobertaConfig, config.text_config)
        self.vision_model = CLIPVisionModel(vision_config)
        self.text_model = RobertaModel(text_config, add_pooling_layer=False)
        self.cross_modal_text_transform = nn.Linear(text_config.hidden_size, config.hidden_size)
        self.cross_modal_image_transform = nn.Linear(vision_config.hidden_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.cross_modal_text_layers, self.cross_modal_image_layers = (
            nn.ModuleList(MeterFusionLayer(config) for _ in range(config.num_hidden_layers)) for _ in range(2)
        )
        self.cross_modal_text_pooler = BertPooler(config)
        self.cross_modal_image_pooler = BertPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def encode(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
    ) -> MeterTokens:
        """Encode images and texts separately. `k` texts in a row may share an image, which is encoded once."""
        pixel_values, input_ids = self._check_inputs(pixel_values, input_ids, attention_mask, pixel_mask)
        image_mask = None if pixel_mask is None else self.image_token_mask(pixel_mask)
        image = self.encode_image(pixel_values, image_mask)
        if input_ids.shape[0] != image.shape[0]:
            texts = input_ids.shape[0] // image.shape[0]
            image = image.repeat_interleave(texts, dim=0)
            image_mask = None if image_mask is None else image_mask.repeat_interleave(texts, dim=0)
        return MeterTokens(self.encode_text(input_ids, attention_mask), image, attention_mask, image_mask)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode texts, `(batch, text tokens, hidden_size)`."""
        return self.project_text(self.run_text_model(input_ids, attention_mask).last_hidden_state)

    def encode_image(self, pixel_values: torch.Tensor, image_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode images, `(batch, image tokens, hidden_size)`."""
        return self.project_image(self.run_vision_model(pixel_values, image_mask).last_hidden_state)

    def run_text_model(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        return self.text_model(input_ids, attention_mask=attention_mask, **{**kwargs, "return_dict": True})

    def run_vision_model(self, pixel_values: torch.Tensor, image_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        """Return the output of CLIP, whose final norm is applied to every token."""
        vision_model, mask = self.vision_model, None
        if image_mask is not None:
            dtype = vision_model.post_layernorm.weight.dtype
            tokens = torch.empty(*image_mask.shape, 1, dtype=dtype, device=pixel_values.device)
            mask = create_bidirectional_mask(vision_model.config, inputs_embeds=tokens, attention_mask=image_mask)
        outputs = vision_model(pixel_values, attention_mask=mask, **{**kwargs, "return_dict": True})
        outputs.last_hidden_state = vision_model.post_layernorm(outputs.last_hidden_state)
        return outputs

    def project_text(self, hidden_states: torch.Tensor) -> torch.Tensor:
        text_type = torch.zeros(1, 1, dtype=torch.long, device=hidden_states.device)
        return self.cross_modal_text_transform(hidden_states) + self.token_type_embeddings(text_type)

    def project_image(self, hidden_states: torch.Tensor) -> torch.Tensor:
        image_type = torch.ones(1, 1, dtype=torch.long, device=hidden_states.device)
        return self.cross_modal_image_transform(hidden_states) + self.token_type_embeddings(image_type)

    def image_token_mask(self, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask of the image tokens: a patch is padding if none of its pixels is one of the image."""
        patch_size = cast(Any, self.config.vision_config).patch_size
        patches = nn.functional.max_pool2d(pixel_mask[:, None].float(), patch_size).flatten(1).long()
        return nn.functional.pad(patches, (1, 0), value=1)

    def fuse(self, tokens: MeterTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the fusion layers; in each one both modalities attend to the previous layer's tokens of the other."""
        text, image = tokens.text, tokens.image

        def make_mask(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> Any:
            return create_bidirectional_mask(
                self.config, inputs_embeds=queries, attention_mask=mask, encoder_hidden_states=keys
            )

        text_masks = make_mask(text, text, tokens.text_mask), make_mask(text, image, tokens.image_mask)
        image_masks = make_mask(image, image, tokens.image_mask), make_mask(image, text, tokens.text_mask)
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers):
            text, image = text_layer(text, image, *text_masks), image_layer(image, text, *image_masks)
        return text, image

    def pool(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], dim=-1)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MeterModelOutput:
        text, image = self.fuse(self.encode(pixel_values, input_ids, attention_mask, pixel_mask))
        return MeterModelOutput(
            last_hidden_state=image, text_last_hidden_state=text, pooler_output=self.pool(text, image)
        )

    def _check_inputs(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and the texts if they, and their masks, have shapes that fit."""
        pixel_values = self.check_images(pixel_values, pixel_mask)
        images = pixel_values.shape[0]  # `len` would be a constant in an exported model
        return pixel_values, self.check_texts(input_ids, attention_mask, images)

    def check_images(self, pixel_values: torch.Tensor | None, pixel_mask: torch.Tensor | None) -> torch.Tensor:
        vision_config = cast(CLIPVisionConfig, self.config.vision_config)
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        expected = (vision_config.num_channels, vision_config.image_size, vision_config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; it must be (batch, channels, height, width) "
                f"= (batch, {', '.join(map(str, expected))}), by num_channels and image_size of vision_config. Use "
                "the model's processor."
            )
        shape = (pixel_values.shape[0], *expected[1:])
        if pixel_mask is not None and pixel_mask.shape != shape:
            raise ValueError(f"pixel_mask has the shape {tuple(pixel_mask.shape)}; it must be {tuple(shape)}.")
        return pixel_values

    def check_texts(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, images: int = 1
    ) -> torch.Tensor:
        text_config = cast(RobertaConfig, self.config.text_config)
        if input_ids is None:
            raise ValueError("You have to specify input_ids")
        if input_ids.ndim != 2 or input_ids.shape[0] % images:
            raise ValueError(
                f"input_ids has the shape {tuple(input_ids.shape)}; it must be (batch, text tokens), with a text, or "
                f"equally many texts in a row, for each of the {images} images of pixel_values."
            )
        longest = text_config.max_position_embeddings - cast(int, text_config.pad_token_id) - 1
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens; text_config.max_position_embeddings allows {longest}. "
                "Truncate the texts: processor(…, truncation=True, max_length=…)."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be {tuple(input_ids.shape)}."
            )
        return input_ids


__all__ = ["MeterModel", "MeterModelOutput"]
