# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
METER with an LLM block.

Source: github.com/zdou0830/METER (`meter/modules`) for the heads and their losses; "Frozen Transformers in Language
Models Are Effective Visual Encoder Layers" (ICLR 2024), section 4.4, for the position of the block.
"""

import math
from typing import Any, cast

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, RobertaConfig, RobertaModel
from transformers import initialization as init
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig, own_fields
from .configuration_meter_with_llm_block import MeterWithLLMBlockConfig
from .meter_heads import (
    LOGIT_SCALE,
    ImageTextRetrievalOutput,
    MeterClassificationHead,
    contrastive_loss,
    embed_first_token,
)
from .meter_host import IMAGE_LAYERS, MeterFusionLayer, MeterModel, MeterModelOutput, MeterTokens
from .modeling_llm_block import LLMBlock
from .pretrained_model import HUB_KWARGS, PreTrainedModelWithLLMBlock


# transformers before 5.23 has no such argument and needs none, as it does not resolve negative indices.
_HIDDEN_STATES = OutputRecorder(MeterFusionLayer, layer_name=IMAGE_LAYERS)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"
# Both heads use only the pooled image, which is made of the CLS token.
CLS_TOKEN = slice(0, 1)


class MeterWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: MeterWithLLMBlockConfig
    base_model_prefix = "meter"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    _can_record_outputs = {
        "hidden_states": _HIDDEN_STATES,
        "attentions": OutputRecorder(BertSelfAttention, index=1, layer_name=IMAGE_LAYERS),
    }

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: a text of 8 tokens."""
        vision_config = cast(Any, self.config.vision_config)
        shape = (1, vision_config.num_channels, vision_config.image_size, vision_config.image_size)
        return {
            "pixel_values": torch.zeros(shape, dtype=self.dtype),
            "input_ids": torch.zeros(1, 8, dtype=torch.long),
        }

    def _build(self, config: MeterWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.meter = MeterModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.meter.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.meter.set_input_embeddings(value)

    @classmethod
    def from_host_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        text_name_or_path: Any = None,
        text_revision: str | None = None,
        image_size: int | None = None,
        llm_block: LLMBlockConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Load published encoders, or a plain METER, and add a block.

        Args:
            pretrained_model_name_or_path (`str`):
                Hub id or folder of a CLIP, whose last layer is left out as METER does, or of a plain METER.
            text_name_or_path (`str`, *optional*):
                Hub id or folder of a RoBERTa, required with a CLIP. The fusion layers are new.
            text_revision (`str`, *optional*):
                Branch, tag or commit of the RoBERTa; `revision` is that of the first model.
            image_size (`int`, *optional*):
                Side of the images; the position embeddings are interpolated to it. By default that of the checkpoint.
            llm_block (`LLMBlockConfig` or `dict`, *optional*):
                The block; `None` is the plain host.
            kwargs:
                `num_labels`, `id2label` and `label2id`; fields of [`MeterWithLLMBlockConfig`]; and arguments of
                `from_pretrained`.

        Raises:
            `ValueError`: if a checkpoint is of another kind of model, or lacks weights of the host.
        """
        if text_name_or_path is None:
            loaded = cls._from_host(pretrained_model_name_or_path, llm_block=llm_block, **kwargs)
        else:
            hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
            revision = kwargs.pop("revision", None)
            vision = _load_encoder(pretrained_model_name_or_path, CLIPVisionModel, revision, hub_kwargs)
            text = _load_encoder(text_name_or_path, RobertaModel, text_revision, hub_kwargs)
            names = {*own_fields(MeterWithLLMBlockConfig), "num_labels", "id2label", "label2id", "problem_type"}
            fields = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
            config = MeterWithLLMBlockConfig(
                vision_config=vision.config, text_config=text.config, llm_block=llm_block, **fields
            )
            state = {f"meter.vision_model.{name}": tensor for name, tensor in vision.state_dict().items()}
            state |= {f"meter.text_model.{name}": tensor for name, tensor in text.state_dict().items()}
            loaded = cls.from_pretrained(None, config=config, state_dict=state, **kwargs)
        if image_size is not None:
            (loaded[0] if isinstance(loaded, tuple) else loaded).resize_images(image_size)
        return loaded

    def resize_images(self, image_size: int) -> None:
        r"""
        Change the side of the model's images, as METER does: the position embeddings of the patches are interpolated
        (bicubic, without antialiasing), that of the CLS token is kept.

        Args:
            image_size (`int`): the new side, in pixels.
        """
        config = cast(Any, self.config.vision_config)
        if image_size < config.patch_size:
            raise ValueError(f"image_size is {image_size}, less than a patch of {config.patch_size} pixels.")
        embeddings = self.meter.vision_model.embeddings
        positions = embeddings.position_embedding.weight
        side, new_side = math.isqrt(len(positions) - 1), image_size // config.patch_size
        grid = positions.detach()[1:].T.reshape(1, -1, side, side)
        grid = nn.functional.interpolate(grid.float(), size=(new_side, new_side), mode="bicubic").to(grid.dtype)
        config.image_size = image_size
        resized = type(embeddings)(config).to(positions)
        table = torch.cat([positions.detach()[:1], grid.flatten(2)[0].T])
        resized.load_state_dict({**embeddings.state_dict(), "position_embedding.weight": table})
        self.meter.vision_model.embeddings = resized

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
        output_tokens: slice | None = None,
        **kwargs: Any,
    ) -> MeterModelOutput:
        """Run the encoders, the fusion layers, the block on the image tokens, and the poolers."""
        tokens = self.meter.encode(pixel_values, input_ids, attention_mask, pixel_mask)
        return self._fuse(tokens, output_tokens, **kwargs)

    def _fuse(self, tokens: MeterTokens, output_tokens: slice | None = None, **kwargs: Any) -> MeterModelOutput:
        text, image = self.meter.fuse(tokens)
        image = self._run_layers([], image, tokens.image_mask, output_tokens, **kwargs)
        return MeterModelOutput(
            last_hidden_state=image, text_last_hidden_state=text, pooler_output=self.meter.pool(text, image)
        )


def _load_encoder(
    name_or_path: Any, model_class: Any, revision: str | None, hub_kwargs: dict[str, Any]
) -> CLIPVisionModel | RobertaModel:
    """Load a published encoder; CLIP without its last layer, and RoBERTa without a pooler."""
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub_kwargs)
    is_text = model_class is RobertaModel
    known = (RobertaConfig.model_type,) if is_text else ("clip", CLIPVisionConfig.model_type)
    if (model_type := fields.get("model_type")) not in known:
        raise ValueError(
            f"{name_or_path} is of a {model_type}, and the {'text' if is_text else 'vision'} encoder of a METER is a "
            f"{' or '.join(known)}."
        )
    config = model_class.config_class.from_pretrained(name_or_path, revision=revision, **hub_kwargs)
    kwargs = {"add_pooling_layer": False} if is_text else {}
    if not is_text:
        config.num_hidden_layers -= 1
    model, info = model_class.from_pretrained(
        name_or_path, config=config, revision=revision, output_loading_info=True, **kwargs, **hub_kwargs
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name_or_path} lacks weights of the encoder: {missing[:3]}{' …' if missing[3:] else ''}.")
    return model


class MeterWithLLMBlockModel(MeterWithLLMBlockPreTrainedModel):
    r"""
    A METER with an LLM block on the image tokens after the fusion, without a head.

    Args:
        config ([`MeterWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MeterModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(images, num_channels, image_size, image_size)`): normalised images.
            input_ids (`torch.LongTensor` of shape `(batch, text tokens)`): texts; one for each image, or equally many
                in a row for each image, which is then encoded once.
            attention_mask (`torch.Tensor` of shape `(batch, text tokens)`, *optional*): 1 = token, 0 = padding.
            pixel_mask (`torch.Tensor` of shape `(images, image_size, image_size)`, *optional*): 1 = pixel, 0 =
                padding.

        Returns:
            `MeterModelOutput`: `last_hidden_state`, the image tokens behind the block, `text_last_hidden_state`, and
            `pooler_output`, the pooled text and the pooled image. With `output_hidden_states=True`, `hidden_states`
            are those of the image tokens from the first fusion layer on, and the block adds one; with
            `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        return self._encode(pixel_values, input_ids, attention_mask, pixel_mask, **kwargs)


class MeterWithLLMBlockForVisualQuestionAnswering(MeterWithLLMBlockPreTrainedModel):
    r"""
    A METER with an LLM block and a classifier of answers on the pooled text and image.

    Args:
        config ([`MeterWithLLMBlockConfig`]): the model's configuration; `num_labels` is the number of answers, and
            `id2label` their text.
    """

    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self._build(config)
        self.classifier = MeterClassificationHead(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(images, num_channels, image_size, image_size)`): normalised images.
            input_ids (`torch.LongTensor` of shape `(batch, text tokens)`): questions; one for each image, or equally
                many in a row for each image.
            attention_mask (`torch.Tensor` of shape `(batch, text tokens)`, *optional*): 1 = token, 0 = padding.
            pixel_mask (`torch.Tensor` of shape `(images, image_size, image_size)`, *optional*): 1 = pixel, 0 =
                padding.
            labels (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): the score of each answer, 0 to 1.

        Returns:
            `SequenceClassifierOutput`: `logits` of shape `(batch, num_labels)`, with `loss` if `labels` are given:
            binary cross entropy, summed over the answers.
        """
        outputs = self._encode(pixel_values, input_ids, attention_mask, pixel_mask, CLS_TOKEN, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"labels has the shape {tuple(labels.shape)}; it must be (batch, num_labels) = "
                    f"{tuple(logits.shape)}, with a score of each answer."
                )
            # Trainer counts the entries of labels, here all answers of all questions.
            count = cast(Any, kwargs).get("num_items_in_batch")
            questions = len(logits) if count is None else count / self.num_labels
            targets = labels.to(logits.dtype)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / questions
        return SequenceClassifierOutput(loss=loss, logits=logits)


class MeterWithLLMBlockForImageTextRetrieval(MeterWithLLMBlockPreTrainedModel):
    r"""
    A METER with an LLM block that compares images and texts: `match_head` classifies pairs, `rank_head` scores them.
    Without weights of its own, the rank head begins as the row of the match head for the class of matches. With
    `config.contrastive_loss_weight`, it also embeds images and texts separately, to find the candidates of a search.

    Args:
        config ([`MeterWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: MeterWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.match_head = nn.Linear(2 * config.hidden_size, 2)
        self.rank_head = nn.Linear(2 * config.hidden_size, 1)
        self.has_embeddings = config.contrastive_loss_weight > 0
        if self.has_embeddings:
            self.image_projection, self.text_projection = (
                nn.Linear(config.hidden_size, config.projection_dim, bias=False) for _ in range(2)
            )
            self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.rank_head:  # after `match_head`
            init.copy_(self.rank_head.weight, self.match_head.weight[1:])
            init.copy_(self.rank_head.bias, self.match_head.bias[1:])
        if module is self and self.has_embeddings:
            init.constant_(self.logit_scale, LOGIT_SCALE)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Embed images, without texts.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, num_channels, image_size, image_size)`): normalised images.
            pixel_mask (`torch.Tensor` of shape `(images, image_size, image_size)`, *optional*): 1 = pixel, 0 =
                padding.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(images, projection_dim)`, the embeddings, of
            length 1, and the outputs of the vision encoder.

        Raises:
            `ValueError`: if `config.contrastive_loss_weight` is 0.
        """
        self._check_embeddings()
        pixel_values = self.meter.check_images(pixel_values, pixel_mask)
        mask = None if pixel_mask is None else self.meter.image_token_mask(pixel_mask)
        outputs = self.meter.run_vision_model(pixel_values, mask, **kwargs)
        outputs.pooler_output = embed_first_token(
            self.image_projection, self.meter.project_image(outputs.last_hidden_state)
        )
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Embed texts, without images.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, text tokens)`): texts.
            attention_mask (`torch.Tensor` of shape `(batch, text tokens)`, *optional*): 1 = token, 0 = padding.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(batch, projection_dim)`, the embeddings, of length
            1, and the outputs of the text encoder.

        Raises:
            `ValueError`: if `config.contrastive_loss_weight` is 0.
        """
        self._check_embeddings()
        outputs = self.meter.run_text_model(
            self.meter.check_texts(input_ids, attention_mask), attention_mask, **kwargs
        )
        embeddings = embed_first_token(self.text_projection, self.meter.project_text(outputs.last_hidden_state))
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=embeddings,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_embeddings(self) -> None:
        if not self.has_embeddings:
            raise ValueError(
                "contrastive_loss_weight is 0: the model compares images and texts only together. Train it with a "
                "weight, such as 1, for embeddings of images and of texts."
            )

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageTextRetrievalOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(images, num_channels, image_size, image_size)`): normalised images.
            input_ids (`torch.LongTensor` of shape `(batch, text tokens)`): texts; one for each image, or equally many
                in a row for each image, which is then encoded once.
            attention_mask (`torch.Tensor` of shape `(batch, text tokens)`, *optional*): 1 = token, 0 = padding.
            pixel_mask (`torch.Tensor` of shape `(images, image_size, image_size)`, *optional*): 1 = pixel, 0 =
                padding.
            labels (`torch.LongTensor` of shape `(batch,)` or `(groups, pairs)`, *optional*): 1 for pairs that match, 0
                for others. In two dimensions, pairs in a row form a group in which one matches.

        Returns:
            `ImageTextRetrievalOutput`: with `loss` if `labels` are given: the cross entropy of `match_logits`, to
            which groups add that of their `scores`, and `config.contrastive_loss_weight` the contrastive loss.
        """
        tokens = self.meter.encode(pixel_values, input_ids, attention_mask, pixel_mask)
        outputs = self._fuse(tokens, CLS_TOKEN, **kwargs)
        match_logits = self.match_head(outputs.pooler_output)
        scores = self.rank_head(outputs.pooler_output)[:, 0]
        loss = logits_per_image = None
        if self.has_embeddings:
            texts = tokens.image.shape[0] // cast(torch.Tensor, pixel_values).shape[0]
            images = embed_first_token(self.image_projection, tokens.image[::texts])
            logits_per_image = self.logit_scale.exp() * images @ embed_first_token(self.text_projection, tokens.text).T
        if labels is not None:
            if labels.numel() != len(scores) or labels.ndim > 2:
                raise ValueError(
                    f"labels has the shape {tuple(labels.shape)}; it must be ({len(scores)},), a label of each pair, "
                    "or (groups, pairs) with as many entries."
                )
            count = cast(Any, kwargs).get("num_items_in_batch")
            loss = fixed_cross_entropy(match_logits, labels.flatten(), count)
            if labels.ndim == 2:
                groups = None if count is None else count / labels.shape[1]
                loss = loss + fixed_cross_entropy(scores.view_as(labels), labels.argmax(dim=1), groups)
            if logits_per_image is not None:
                is_match = (labels.flatten() == 1).to(scores.dtype)
                matches = is_match.sum().clamp(min=1) if count is None else count * is_match.mean()
                contrastive = contrastive_loss(logits_per_image, is_match) / matches
                loss = loss + self.config.contrastive_loss_weight * contrastive
        return ImageTextRetrievalOutput(
            loss=loss, match_logits=match_logits, scores=scores, logits_per_image=logits_per_image
        )


__all__ = [
    "MeterWithLLMBlockForImageTextRetrieval",
    "MeterWithLLMBlockForVisualQuestionAnswering",
    "MeterWithLLMBlockModel",
    "MeterWithLLMBlockPreTrainedModel",
]
