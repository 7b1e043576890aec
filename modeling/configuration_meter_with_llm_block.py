# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a METER with an LLM block."""

from copy import deepcopy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, PreTrainedConfig, RobertaConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


# CLIP ViT-B/32 without its last layer, and RoBERTa-base.
VISION_DEFAULTS = {"num_hidden_layers": 11, "patch_size": 32}
TEXT_DEFAULTS = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


@with_value_errors
@strict
class MeterWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`MeterWithLLMBlockModel`]: a CLIP vision encoder, a RoBERTa, and the layers that fuse their
    tokens. The defaults are those of METER ("An Empirical Study of Training End-to-End Vision-and-Language
    Transformers", CVPR 2022) with a CLIP ViT-B/32 at 224 pixels, as the paper has it.

    Args:
        vision_config (`dict` or `CLIPVisionConfig`, *optional*):
            The vision encoder. `num_hidden_layers` counts the layers that run: METER leaves out CLIP's last one.
        text_config (`dict` or `RobertaConfig`, *optional*):
            The text encoder.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the tokens in the fusion layers.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of fusion layers, of images and of texts each.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads of a fusion layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the fusion layers' feed-forward networks.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the fusion layers' feed-forward networks.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the fusion layers' outputs.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the fusion layers' attention probabilities.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of the fusion layers' norms.
        type_vocab_size (`int`, *optional*, defaults to 2):
            Number of token types: texts and images. (METER's NLVR2 has a third one, of second images.)
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights outside the two encoders.
        contrastive_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the contrastive loss of images and texts that are encoded separately, in the model for
            image-text retrieval. At 0 the model has no such embeddings, as METER; otherwise a search can find its
            candidates by them.
        projection_dim (`int`, *optional*, defaults to 256):
            Width of these embeddings.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block on the image tokens, after the fusion. `None` is the plain METER, the baseline of every
            comparison.

    Raises:
        `ValueError`: for an encoder of another kind, if `llm_block.position` is not -1, if `hidden_size` is not a
            multiple of `num_attention_heads`, or if `contrastive_loss_weight` is negative.

    Example:

    ```python
    >>> from hf_frozen_llm import LLMBlockConfig, MeterWithLLMBlockConfig, MeterWithLLMBlockForVisualQuestionAnswering

    >>> config = MeterWithLLMBlockConfig(
    ...     num_labels=3129, llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = MeterWithLLMBlockForVisualQuestionAnswering(config)
    ```"""

    model_type = "meter_with_llm_block"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": RobertaConfig, "llm_block": LLMBlockConfig}
    is_decoder = False  # the attention of transformers' BERT, of which the fusion layers consist, needs it

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    contrastive_loss_weight: float = 0.0
    projection_dim: int = 256
    llm_block: LLMBlockConfig | dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vision_config", "text_config"):
            self._refuse_misspelt(name, {key: value for key, value in kwargs.items() if key not in self.sub_configs})
        # Separate copies: the model writes its data type and its attention into them.
        self.vision_config = _parse("vision_config", self.vision_config, CLIPVisionConfig, VISION_DEFAULTS)
        self.text_config = _parse("text_config", self.text_config, RobertaConfig, TEXT_DEFAULTS)
        super().__post_init__(**kwargs)

    @classmethod
    def from_host_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        text_name_or_path: Any = None,
        text_revision: str | None = None,
        image_size: int | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "MeterWithLLMBlockConfig":
        r"""
        Read the configuration of the model that `from_host_pretrained` of the models gives, without any weights.

        Args:
            pretrained_model_name_or_path (`str`):
                Hub id or folder of a CLIP, whose last layer is left out as METER does, or of a plain METER.
            text_name_or_path (`str`, *optional*):
                Hub id or folder of a RoBERTa, required with a CLIP.
            text_revision (`str`, *optional*):
                Branch, tag or commit of the RoBERTa; `revision` is that of the first model.
            image_size (`int`, *optional*):
                Side of the images. By default that of the checkpoint.
            revision (`str`, *optional*):
                Branch, tag or commit.
            kwargs:
                Fields of the configuration.
        """
        if text_name_or_path is None:
            config = cls.from_pretrained(pretrained_model_name_or_path, revision=revision or "main", **kwargs)
        else:
            vision_config = CLIPVisionConfig.from_pretrained(
                pretrained_model_name_or_path, revision=revision or "main"
            )
            vision_config.num_hidden_layers -= 1
            text_config = RobertaConfig.from_pretrained(text_name_or_path, revision=text_revision or "main")
            config = cls(vision_config=vision_config, text_config=text_config, **kwargs)
        if image_size is not None:
            encoder: Any = config.vision_config  # no longer a dictionary
            encoder.image_size = image_size
        return config

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        if isinstance(self.llm_block, LLMBlockConfig) and self.llm_block.position != -1:
            raise ValueError(
                f"llm_block.position is {self.llm_block.position}; in a METER the block stands after the fusion (-1)."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.contrastive_loss_weight < 0 or self.projection_dim < 1:
            raise ValueError(
                f"contrastive_loss_weight is {self.contrastive_loss_weight} and projection_dim {self.projection_dim}; "
                "the weight must be at least 0, and the width at least 1."
            )


def _parse(name: str, given: Any, config_class: type[PreTrainedConfig], defaults: dict[str, Any]) -> PreTrainedConfig:
    """Return a copy of an encoder's configuration, which may be given as a dictionary or left out."""
    fields = dict(defaults if given is None else given if isinstance(given, dict) else {})
    model_type = (
        fields.pop("model_type", config_class.model_type)
        if given is None or isinstance(given, dict)
        else (given.model_type)
    )
    if model_type != config_class.model_type:
        raise ValueError(f"{name} is of a {model_type}; a METER has a {config_class.model_type}: give its own.")
    return deepcopy(given) if isinstance(given, PreTrainedConfig) else config_class(**fields)


__all__ = ["MeterWithLLMBlockConfig"]
