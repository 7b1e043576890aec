# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of any vision encoder of transformers with an LLM block."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


@with_value_errors
@strict
class VisionWithLLMBlockConfig(WithLLMBlockConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`VisionWithLLMBlockModel`]: a vision encoder of transformers, and the block after its last
    layer.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The host's own configuration: of a ViT, DINOv2, DINOv3, BEiT, Swin, SigLIP, CLIP vision encoder, ViViT, or
            any other vision encoder that ends with a norm. Required to build a model.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block. `None` is the plain host, the baseline of every comparison.
        pooling (`"cls"`, `"mean"` or `"cls_mean"`, *optional*):
            The classifier's input: the CLS token, the mean of the patch tokens, or both concatenated (as in DINOv2's
            own classifier). When the model is built, `None` becomes `"mean"` for a host that has no CLS token or that
            itself uses the mean, and `"cls"` otherwise.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Rate of stochastic depth of the host's last layer, for a host whose own configuration has no field of this
            name; it rises linearly from 0 in the first.
        out_features (`list[str]`, *optional*):
            Stages whose feature maps [`VisionWithLLMBlockBackbone`] returns, among `stage_names`: `"stem"`,
            `"stage1"`, … of the host, and `"llm_block"`. By default the last one.
        out_indices (`list[int]`, *optional*):
            The same stages by their indices.

    Raises:
        `ValueError`: for the `vision_config` of an image-text model, if `llm_block.position` is not -1, or for a
            `drop_path_rate` that is the host's.

    Example:

    ```python
    >>> from transformers import Dinov2Config
    >>> from hf_frozen_llm import LLMBlockConfig, VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification

    >>> config = VisionWithLLMBlockConfig(
    ...     vision_config=Dinov2Config(hidden_size=192, num_hidden_layers=4, num_attention_heads=3),
    ...     llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1),
    ... )
    >>> model = VisionWithLLMBlockForImageClassification(config)
    ```"""

    model_type = "vision_with_llm_block"
    sub_configs = {"vision_config": AutoConfig, "llm_block": LLMBlockConfig}

    vision_config: dict | PreTrainedConfig | None = None
    llm_block: LLMBlockConfig | dict | None = None
    pooling: Literal["cls", "mean", "cls_mean"] | None = None
    drop_path_rate: float = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt("vision_config", kwargs)
        self._refuse_misspelt("pooling", kwargs)
        # A separate copy: the model writes its data type and its attention into it.
        self.vision_config = deepcopy(self.vision_config)
        if isinstance(self.vision_config, dict):
            vision_config = dict(self.vision_config)
            if "model_type" not in vision_config:
                raise ValueError("vision_config has no `model_type`: give the host's whole configuration.")
            self.vision_config = AutoConfig.for_model(vision_config.pop("model_type"), **vision_config)
        if self.vision_config is not None and "vision_config" in self.vision_config.sub_configs:
            raise ValueError(
                f"vision_config is of a {self.vision_config.model_type}, a model of images and text: give its own "
                "`vision_config`."
            )
        if self.drop_path_rate != 0 and self._of_host("drop_path_rate") is not None:
            raise ValueError(
                f"drop_path_rate is {self.drop_path_rate}, but a {self._of_host('model_type')} has a field of this "
                "name; set it in vision_config."
            )
        self._refuse_fields_of_host(kwargs)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        # Otherwise unset: the last stage depends on whether there is a block.
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features, out_indices)

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        if isinstance(self.llm_block, LLMBlockConfig) and self.llm_block.position != -1:
            raise ValueError(
                f"llm_block.position is {self.llm_block.position}; in a VisionWithLLMBlock model the block stands "
                "after the host's last layer (-1). Other positions require a model type for this host, such as "
                "vit_with_llm_block."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if (model_type := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {model_type}, not of a {cls.model_type}. Load the checkpoint of a "
                "plain host by from_host_pretrained(name, llm_block=…)."
            )
        cls._refuse_fields_of_host(kwargs)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _refuse_fields_of_host(cls, names: Iterable[str]) -> None:
        for name in names:
            if isinstance(vars(cls).get(name), property):
                raise ValueError(
                    f"{cls.__name__} has no {name!r} of its own: it is the host's; set it in vision_config."
                )

    # Fields of the host's configuration.

    def _of_host(self, name: str, default: Any = None) -> Any:
        return getattr(self.vision_config, name, default)

    @property  # type: ignore[misc]
    def hidden_size(self) -> int:  # type: ignore[override]
        """The width of the host's last tokens; `None` without a host."""
        widths = self._of_host("hidden_sizes")
        return widths[-1] if widths else self._of_host("hidden_size")

    @property  # type: ignore[misc]
    def num_hidden_layers(self) -> int:  # type: ignore[override]
        return self._of_host("num_hidden_layers", len(self._of_host("depths", [])))

    @property
    def image_size(self) -> int | list[int] | tuple[int, int]:
        return self._of_host("image_size", 224)

    @property
    def num_channels(self) -> int:
        return self._of_host("num_channels", 3)

    @property
    def initializer_range(self) -> float:
        return self._of_host("initializer_range", 0.02)

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages whose feature maps a backbone can return: the host's, then the block's."""
        stages = [f"stage{index + 1}" for index in range(self.num_hidden_layers)]
        return ["stem", *stages, *([] if self.llm_block is None else ["llm_block"])]


__all__ = ["VisionWithLLMBlockConfig"]
