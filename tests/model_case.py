# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A model of the package at tiny size, as the tests of all models take it, and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_llms import randomize
from transformers import AutoModel

from hf_frozen_llm import (
    LLMBlockConfig,
)


Tensors = dict[str, torch.Tensor]
Model = Any


@dataclass
class ModelCase:
    """
    A model of the package. It need not classify: its inputs, targets and main output have the names given here.

    Args:
        config_class (`type`): the configuration's class.
        base_class (`type`): the model without a head.
        model_class (`type`): the model with its head, or `base_class`.
        fields (`dict[str, Any]`): the configuration without the block, and without dropout, so that results repeat.
        inputs (`Callable[[int], dict[str, Tensor]]`): inputs of this many examples.
        num_tokens (`int`): tokens of an example.
        finish (`Callable[[model, Tensor], Tensor]`): the final norm and the head by hand, from the last hidden state
            to the main output.
        refused (`list[tuple[dict, list[str]]]`): wrong inputs, and patterns that the error must all match.
        targets (`Callable[[int], dict[str, Tensor]]`, *optional*): targets of this many examples for the loss;
            not for models without a loss.
        output (`str`, *optional*, defaults to `"logits"`): the main output.
        head (`tuple[str, ...]`, *optional*): modules besides the host and the block.
        invariant (`set[str]`, *optional*): parameters of the head on which the loss does not depend.
        auto_class (`type` or `None`, *optional*, defaults to `AutoModel`): the Auto class of `model_class`, if it
            has one.
        plain_class (`type`, *optional*): transformers' own class of the same function without a block.
        positions (`tuple[int, ...]`, *optional*): the possible positions of the block.
        layers (`Callable[[model, dict[str, Tensor]], list[Callable]]`, *optional*): the host's layers as functions of
            only the hidden states, for a model whose block can run before some of them.
        token_mask (`Callable[[dict[str, Tensor]], Tensor]`, *optional*): the mask of the block's tokens, for a model
            that pads them.
        base_kwargs (`dict[str, Any]`, *optional*): arguments of `base_class` that omit modules that no head uses.
        processor (`Callable[[], Any]`, *optional*): builds the processor.
        sample (`Callable[[], Any]`, *optional*): one example for the processor, or a dictionary of its arguments.
        pipeline (`str`, *optional*): transformers' pipeline that takes the sample.
    """

    config_class: type
    base_class: type
    model_class: type
    fields: dict[str, Any]
    inputs: Callable[[int], Tensors]
    num_tokens: int
    finish: Callable[[Model, torch.Tensor], torch.Tensor]
    refused: list[tuple[dict[str, Any], list[str]]]
    targets: Callable[[int], Tensors] = lambda batch: {}
    output: str = "logits"
    head: tuple[str, ...] = ()
    invariant: set[str] = field(default_factory=set)
    auto_class: type | None = AutoModel
    plain_class: type | None = None
    positions: tuple[int, ...] = (-1,)
    layers: Callable[[Model, Tensors], list[Callable]] = lambda model, inputs: []
    token_mask: Callable[[Tensors], torch.Tensor | None] = lambda inputs: None
    base_kwargs: dict[str, Any] = field(default_factory=dict)
    processor: Callable[[], Any] | None = None
    sample: Callable[[], Any] | None = None
    pipeline: str | None = None

    @property
    def loader(self) -> Any:
        """The class that loads a saved `model_class`."""
        return self.auto_class or self.model_class

    def process(self, processor: Any) -> Tensors:
        sample = self.sample()
        arguments = ((), sample) if isinstance(sample, dict) else ((sample,), {})
        return processor(*arguments[0], **arguments[1], return_tensors="pt")

    def build(self, llm_block: LLMBlockConfig | None, model_class: type | None = None, **fields: Any) -> Model:
        """Build a model with the same weights at every call; the host's are random, its norms' too."""
        config = self.config_class(**{**self.fields, "llm_block": llm_block, **fields})
        torch.manual_seed(2)
        model = (model_class or self.model_class)(config)
        randomize(host_of(model), seed=1)
        if llm_block is not None:
            torch.nn.init.normal_(model.llm_block.output_projection.weight, std=0.3)
        return model.eval()

    def output_of(self, model: Model, batch: int = 2) -> torch.Tensor:
        with torch.no_grad():
            return model(**self.inputs(batch))[self.output]

    def loss_of(self, model: Model, batch: int = 2, **kwargs: Any) -> torch.Tensor:
        outputs = model(**self.inputs(batch), **self.targets(batch), **kwargs)
        return outputs.loss if self.targets(batch) else outputs[self.output].square().mean()

    def names_of_head(self, model: Model) -> set[str]:
        return {name for name, _ in model.named_parameters() if name.partition(".")[0] in self.head}


def host_of(model: Model) -> Model:
    return getattr(model, model.base_model_prefix)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def labels(batch: int) -> Tensors:
    return {"labels": torch.arange(batch) % 3}


def pixels(*shape: int) -> Tensors:
    return {"pixel_values": torch.zeros(shape)}


def layer_norm(norm: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """The host's own final norm does nothing when the host calls it; the block comes before it."""
    return torch.nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def padded(num_valid: list[int], num_padded: int, batch: int) -> torch.Tensor:
    """Masks: of each example, this many tokens, in turn, then padding."""
    counts = torch.tensor([num_valid[index % len(num_valid)] for index in range(batch)])
    return (torch.arange(num_padded) < counts[:, None]).float()
