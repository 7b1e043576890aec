# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The package's models at tiny size, one `ModelCase` each. modeling/test_model_contract.py runs on all of them, so a
new model needs an entry here, and separate tests only for its special behaviour.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import RATIO, SIZES, VIDEO
from tiny_llms import randomize
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    RobertaTokenizer,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from hf_frozen_llm import (
    LLMBlockConfig,
    MeterImageProcessor,
    MeterProcessor,
    MeterWithLLMBlockConfig,
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MeterWithLLMBlockModel,
    MMTransformerWithLLMBlockConfig,
    MMTransformerWithLLMBlockForMotionForecasting,
    MMTransformerWithLLMBlockModel,
    MotionProcessor,
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    PointBertWithLLMBlockModel,
    PointCloudProcessor,
    SQA3DWithLLMBlockConfig,
    SQA3DWithLLMBlockForQuestionAnswering,
    SQA3DWithLLMBlockModel,
    VectorNetWithLLMBlockConfig,
    VectorNetWithLLMBlockForMotionForecasting,
    VectorNetWithLLMBlockModel,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    VideoMAEWithLLMBlockModel,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    VisionWithLLMBlockModel,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
    ViTWithLLMBlockModel,
)


Tensors = dict[str, torch.Tensor]
Model = Any
PROJECTIONS = {"llm_block.input_projection.weight", "llm_block.output_projection.weight"}
CONTROLS: dict[str, dict[str, Any]] = {
    "pretrained, frozen": {},
    "random, frozen": {"weights": "random"},
    "random, trained": {"weights": "random", "trainable": True},
    "pretrained, trained": {"trainable": True},
    "MLP": {"kind": "mlp"},
    "projections": {"kind": "projections"},
    "identity": {"kind": "identity"},
    "shuffled, linear skip": {"weights": "shuffled", "residual": "outer_linear"},
    "pretrained, balanced": {"input_scale": "balanced"},
}


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


def cases(
    are_meant: Callable[[ModelCase], Any] = lambda case: True, **marks: pytest.MarkDecorator
) -> pytest.MarkDecorator:
    """Run a test on all cases or on those selected; `marks` are for single cases, by their names."""
    chosen = [pytest.param(c, id=name, marks=marks.get(name, ())) for name, c in CASES.items() if are_meant(c)]
    return pytest.mark.parametrize("case", chosen)


def host_of(model: Model) -> Model:
    return getattr(model, model.base_model_prefix)


def names_of_layer(model: Model) -> set[str]:
    return {n for n, _ in model.named_parameters() if n.startswith(("llm_block.llm_layers.", "llm_block.final_norm."))}


def frozen_names(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def assert_same_state(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


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


VIT = ModelCase(
    config_class=ViTWithLLMBlockConfig,
    base_class=ViTWithLLMBlockModel,
    model_class=ViTWithLLMBlockForImageClassification,
    fields={**SIZES, "image_size": 8, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 3, 8, 8)},
    num_tokens=5,
    finish=lambda model, hidden_states: model.classifier(model.vit.layernorm(hidden_states)[:, 0]),
    refused=[
        (pixels(2, 3, 12, 12), ["pixel_values", "12", "8", "image_size", "interpolate_pos_encoding"]),
        (pixels(2, 3, 8, 16), ["pixel_values", "16", "image_size"]),
        (pixels(2, 1, 8, 8), ["pixel_values", "num_channels", "3", "1"]),
        (pixels(2, 4, 8, 8), ["pixel_values", "num_channels", "4"]),
        (pixels(3, 8, 8), ["pixel_values"]),
        ({}, ["pixel_values"]),
    ],
    targets=labels,
    head=("classifier",),
    auto_class=AutoModelForImageClassification,
    plain_class=ViTForImageClassification,
    positions=(-1, 0, 1, 2, 3),
    layers=lambda model, inputs: list(model.vit.layers),
    base_kwargs={"add_pooling_layer": False},
    processor=lambda: ViTImageProcessor(size={"height": 8, "width": 8}),
    sample=image,
    pipeline="image-classification",
)
VISION = ModelCase(
    config_class=VisionWithLLMBlockConfig,
    base_class=VisionWithLLMBlockModel,
    model_class=VisionWithLLMBlockForImageClassification,
    fields={"vision_config": {"model_type": "dinov2", **RATIO, "use_mask_token": False}, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 3, 16, 16)},
    num_tokens=17,
    finish=lambda model, hidden_states: model.classifier(layer_norm(model.host.layernorm, hidden_states)[:, 0]),
    refused=[
        (pixels(3, 16, 16), ["pixel_values"]),
        (pixels(2, 1, 16, 16), ["pixel_values"]),
        ({}, ["pixel_values"]),
    ],
    targets=labels,
    head=("classifier",),
    auto_class=AutoModelForImageClassification,
    processor=lambda: ViTImageProcessor(size={"height": 16, "width": 16}),
    sample=image,
    pipeline="image-classification",
)
# Neither a head nor a loss.
VISION_ENCODER = ModelCase(
    config_class=VisionWithLLMBlockConfig,
    base_class=VisionWithLLMBlockModel,
    model_class=VisionWithLLMBlockModel,
    fields={"vision_config": {"model_type": "ijepa", **SIZES}},
    inputs=VISION.inputs,
    num_tokens=16,
    finish=lambda model, hidden_states: layer_norm(model.host.layernorm, hidden_states),
    refused=VISION.refused,
    output="last_hidden_state",
)
VIDEOMAE = ModelCase(
    config_class=VideoMAEWithLLMBlockConfig,
    base_class=VideoMAEWithLLMBlockModel,
    model_class=VideoMAEWithLLMBlockForVideoClassification,
    fields={**VIDEO, "patch_size": 8, "tubelet_size": 2, "num_hidden_layers": 2, "num_labels": 3},
    inputs=lambda batch: {"pixel_values": randn(batch, 4, 3, 16, 16)},
    num_tokens=8,
    finish=lambda model, hidden_states: model.classifier(model.fc_norm(hidden_states.mean(1))),
    refused=[
        (pixels(*shape), [r"\(batch, frames, channels, height, width\) = \(batch, 4, 3, 16, 16\)"])
        for shape in [(2, 3, 4, 16, 16), (2, 4, 1, 16, 16), (2, 8, 3, 16, 16), (2, 4, 3, 32, 32), (4, 3, 16, 16)]
    ]
    + [({}, ["pixel_values"])],
    targets=labels,
    head=("fc_norm", "classifier"),
    auto_class=AutoModelForVideoClassification,
    plain_class=VideoMAEForVideoClassification,
    positions=(-1, 0, 1),
    layers=lambda model, inputs: list(model.videomae.encoder.layer),
    processor=lambda: VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    sample=lambda: [image()] * 4,
)
POINT_BERT = ModelCase(
    config_class=PointBertWithLLMBlockConfig,
    base_class=PointBertWithLLMBlockModel,
    model_class=PointBertWithLLMBlockForPointCloudClassification,
    fields={
        "num_groups": 6,
        "group_size": 4,
        "encoder_hidden_size": 16,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_labels": 3,
        "drop_path_rate": 0.0,
        "classifier_dropout": 0.0,
    },
    inputs=lambda batch: {"points": randn(batch, 32, 3)},
    num_tokens=7,
    finish=lambda model, hidden_states: model.classifier(model.point_bert.layernorm(hidden_states)),
    refused=[
        ({"points": torch.zeros(2, 32, 6)}, [r"\(2, 32, 6\); it must be \(batch, points, 3\)"]),
        ({"points": torch.zeros(32, 3)}, [r"it must be \(batch, points, 3\)"]),
        (
            {"points": torch.zeros(2, 5, 3)},
            ["Point clouds of 5 points cannot be grouped: num_groups is 6 and group_size 4"],
        ),
        ({}, ["points"]),
    ],
    targets=labels,
    head=("classifier",),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: [
        lambda hidden_states, layer=layer: layer(hidden_states, model.point_bert.embeddings(**inputs)[1])
        for layer in model.point_bert.layers
    ],
    processor=lambda: PointCloudProcessor(num_points=32),
    sample=lambda: np.random.default_rng(0).normal(size=(50, 3)),
)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def pairs(batch: int) -> Tensors:
    """Images and texts of 6 tokens; every second text ends with padding."""
    input_ids = torch.arange(6 * batch).view(batch, 6) % 17 + 3
    attention_mask = torch.ones_like(input_ids)
    input_ids[1::2, 4:], attention_mask[1::2, 4:] = 1, 0
    return {"pixel_values": randn(batch, 3, 8, 8), "input_ids": input_ids, "attention_mask": attention_mask}


def groups(batch: int) -> Tensors:
    """One match in each group of two."""
    labels = torch.tensor([[1, 0], [0, 1]] * batch)[: batch // 2]
    return {"labels": labels if batch % 2 == 0 else ones(batch)}


def fused(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    """The pooled texts, which the block does not change, and the pooled images."""
    text, _ = model.meter.fuse(model.meter.encode(**pairs(len(hidden_states)), pixel_mask=None))
    return model.meter.pool(text, hidden_states)


def tokenizer() -> RobertaTokenizer:
    """The special tokens of RoBERTa, a space, and some letters."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"acdeorst"]
    return RobertaTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METER_QUESTIONS = ModelCase(
    config_class=MeterWithLLMBlockConfig,
    base_class=MeterWithLLMBlockModel,
    model_class=MeterWithLLMBlockForVisualQuestionAnswering,
    fields={
        **SIZES,
        **NO_DROPOUT,
        "vision_config": {**SIZES, "hidden_size": 16, "num_hidden_layers": 1, "image_size": 8},
        "text_config": {
            **{**SIZES, **NO_DROPOUT, "hidden_size": 20, "num_hidden_layers": 1},
            **{"vocab_size": 20, "max_position_embeddings": 12, "type_vocab_size": 1},
        },
        "num_labels": 3,
    },
    inputs=pairs,
    num_tokens=5,
    finish=lambda model, hidden_states: model.classifier(fused(model, hidden_states)),
    refused=[
        ({**pairs(2), **pixels(2, 3, 12, 12)}, ["pixel_values", r"\(batch, 3, 8, 8\)", "image_size"]),
        ({**pairs(2), **pixels(2, 1, 8, 8)}, ["pixel_values", "num_channels"]),
        ({**pairs(2), "pixel_values": None}, ["pixel_values"]),
        ({**pairs(2), "input_ids": None}, ["input_ids"]),
        (
            {**pairs(2), "input_ids": ones(3, 6)},
            [r"input_ids has the shape \(3, 6\)", "2 images"],
        ),
        ({**pairs(2), "input_ids": ones(2, 11)}, ["has 11 tokens", "allows 10", "truncation"]),
        ({**pairs(2), "attention_mask": ones(2, 7)}, [r"attention_mask has the shape \(2, 7\).*\(2, 6\)"]),
        ({**pairs(2), "pixel_mask": ones(2, 4, 8)}, [r"pixel_mask has the shape \(2, 4, 8\).*\(2, 8, 8\)"]),
        ({**pairs(2), "labels": ones(2)}, [r"labels has the shape \(2,\)", r"\(batch, num_labels\) = \(2, 3\)"]),
    ],
    targets=lambda batch: {"labels": torch.eye(3)[torch.arange(batch) % 3]},
    head=("classifier",),
    auto_class=AutoModelForVisualQuestionAnswering,
    processor=lambda: MeterProcessor(
        MeterImageProcessor({"shortest_edge": 8}), tokenizer(), ["cat", "dog", "bird"], max_length=6
    ),
    sample=lambda: {"images": image(), "text": "cats"},
)
METER_RETRIEVAL = dataclasses.replace(
    METER_QUESTIONS,
    model_class=MeterWithLLMBlockForImageTextRetrieval,
    finish=lambda model, hidden_states: model.match_head(fused(model, hidden_states)),
    refused=[
        *METER_QUESTIONS.refused[:-1],
        (
            {**pairs(2), "labels": ones(3)},
            [r"labels has the shape \(3,\)", r"\(groups, pairs\)"],
        ),
    ],
    targets=groups,
    output="match_logits",
    head=("match_head", "rank_head"),
    invariant={"rank_head.bias"},  # the scores of a group are compared
    auto_class=None,
)


def padded(num_valid: list[int], num_padded: int, batch: int) -> torch.Tensor:
    """Masks: of each example, this many tokens, in turn, then padding."""
    counts = torch.tensor([num_valid[index % len(num_valid)] for index in range(batch)])
    return (torch.arange(num_padded) < counts[:, None]).float()


def scenes(batch: int) -> Tensors:
    """Three agents and four lanes, some of them padding."""
    return {
        "agent_history": randn(batch, 3, 5, 4),
        "agent_positions": randn(batch, 3, 2),
        "lanes": randn(batch, 4, 6, 5),
        "agent_mask": padded([3, 2], 3, batch),
        "lane_mask": padded([3, 4], 4, batch),
    }


def traffic(num_agents: int, num_lanes: int) -> dict[str, Any]:
    steps = np.arange(6.0)
    return {
        "positions": np.stack([np.stack([steps + y, steps * y], axis=1) for y in range(num_agents)]),
        "timestamps": steps / 10,
        "target": 0,
        "lanes": [{"centerline": [[-5, y], [20, y + 2]], "is_intersection": y > 2} for y in range(num_lanes)],
    }


def futures(batch: int) -> Tensors:
    return {"labels": randn(batch, 6, 2).cumsum(dim=1)}


def finish_mmtransformer(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    """The head reads the target's proposals, too."""
    inputs = model.mmtransformer.complete_inputs(**scenes(2))
    _, proposals = model.mmtransformer.encode(*inputs)
    return model.decoder(hidden_states[:, 0], proposals[:, 0])[0].cumsum(dim=-2)


MMTRANSFORMER = ModelCase(
    config_class=MMTransformerWithLLMBlockConfig,
    base_class=MMTransformerWithLLMBlockModel,
    model_class=MMTransformerWithLLMBlockForMotionForecasting,
    fields={
        "num_future_steps": 6,
        "num_proposals": 3,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "position_hidden_size": 8,
        "lane_hidden_size": 6,
        "decoder_hidden_size": 16,
    },
    inputs=scenes,
    num_tokens=7,
    finish=finish_mmtransformer,
    refused=[
        ({"agent_history": torch.zeros(2, 3, 5, 4)}, ["agent_history and agent_positions"]),
        (
            {"agent_history": torch.zeros(2, 7, 4), "agent_positions": torch.zeros(2, 3, 2)},
            [r"\(2, 7, 4\); it must be \(batch, agents, steps, 4\)", "num_history_features"],
        ),
        (
            {"agent_history": torch.zeros(2, 3, 7, 5), "agent_positions": torch.zeros(2, 3, 2)},
            [r"\(2, 3, 7, 5\)", "num_history_features"],
        ),
        ({**scenes(2), "agent_positions": torch.zeros(2, 4, 2)}, [r"agent_positions .* must be \(2, 3, 2\)"]),
        ({**scenes(2), "lanes": torch.zeros(2, 4, 6, 4)}, [r"lanes has the shape \(2, 4, 6, 4\)", "attributes"]),
        ({**scenes(2), "lane_mask": torch.ones(2, 5)}, [r"lane_mask has the shape \(2, 5\); it must be \(2, 4\)"]),
        ({**scenes(2), "agent_mask": torch.ones(2, 4)}, [r"agent_mask has the shape \(2, 4\)"]),
        ({}, ["agent_history"]),
    ],
    targets=futures,
    output="trajectories",
    head=("decoder",),
    token_mask=lambda inputs: torch.cat([inputs["agent_mask"], inputs["lane_mask"]], dim=1),
    processor=lambda: MotionProcessor(num_history_steps=6, num_lane_points=6),
    sample=lambda: traffic(3, 4),
)


def polylines(batch: int) -> Tensors:
    """Four polylines of up to five vectors, some of them padding."""
    return {
        "polyline_vectors": randn(batch, 4, 5, 9),
        "vector_mask": padded([5, 3, 4, 5], 5, batch * 4).reshape(batch, 4, 5),
        "polyline_mask": padded([4, 3], 4, batch),
    }


VECTORNET = ModelCase(
    config_class=VectorNetWithLLMBlockConfig,
    base_class=VectorNetWithLLMBlockModel,
    model_class=VectorNetWithLLMBlockForMotionForecasting,
    fields={
        "num_future_steps": 6,
        "num_modes": 3,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "decoder_hidden_size": 64,
        "trajectory_loss": "huber",
    },
    inputs=polylines,
    num_tokens=4,
    finish=lambda model, hidden_states: model.decoder(hidden_states[:, 0])[0].cumsum(dim=-2),
    refused=[
        (
            {"polyline_vectors": torch.zeros(2, 4, 5, 6)},
            [r"\(2, 4, 5, 6\); it must be \(batch, polylines, vectors, 9\)", "num_vector_features"],
        ),
        ({"polyline_vectors": torch.zeros(4, 5, 9)}, [r"\(4, 5, 9\)"]),
        ({**polylines(2), "vector_mask": torch.ones(2, 4, 6)}, [r"vector_mask .* must be \(2, 4, 5\)"]),
        ({**polylines(2), "polyline_mask": torch.ones(2, 5)}, [r"polyline_mask .* must be \(2, 4\)"]),
        ({}, ["polyline_vectors"]),
    ],
    targets=futures,
    output="trajectories",
    head=("decoder",),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: [
        lambda nodes, layer=layer: layer(
            nodes,
            model.vectornet.embed(inputs["polyline_vectors"], inputs["vector_mask"].bool())[1],
            inputs["polyline_mask"].bool(),
        )[0]
        for layer in model.vectornet.layers
    ],
    token_mask=lambda inputs: inputs["polyline_mask"],
    processor=lambda: MotionProcessor(format="polylines", num_history_steps=6, num_lane_points=6),
    sample=lambda: traffic(2, 2),
)


def rooms(batch: int) -> Tensors:
    """Points, a situation and a question, and annotated objects; words and objects end with padding."""
    return {
        "points": randn(batch, 40, 5),
        "situation_embeds": randn(batch, 6, 7),
        "situation_mask": padded([6, 4], 6, batch),
        "question_embeds": randn(batch, 5, 7).flip(1),
        "question_mask": padded([3, 5], 5, batch),
        "object_centers": randn(batch, 16, 3) * padded([16, 12], 16, batch)[..., None],
        "object_mask": padded([16, 12], 16, batch),
    }


def answers(batch: int) -> Tensors:
    """Answers, poses, and the labels of the detector."""
    classes = torch.arange(16 * batch).view(batch, 16) % 4 * padded([16, 12], 16, batch).long()
    return {
        "labels": torch.eye(3)[torch.arange(batch) % 3],
        "situation_labels": randn(batch, 7),
        "object_classes": classes,
        "object_size_residuals": randn(batch, 16, 3) / 4,
        "vote_labels": randn(batch, 40, 3).repeat(1, 1, 3),
        "vote_mask": torch.arange(40 * batch).view(batch, 40) % 3 > 0,
    }


def texts_of(model: Model, batch: int) -> Any:
    inputs = rooms(batch)
    return model.sqa3d.encode_texts(
        *((inputs[f"{name}_embeds"], inputs[f"{name}_mask"], None) for name in ("situation", "question"))
    )


def finish_sqa3d(model: Model, hidden_states: torch.Tensor) -> torch.Tensor:
    batch = len(hidden_states)
    mask = rooms(batch)["object_mask"].bool()
    return model.answer(model.sqa3d.pool(texts_of(model, batch), hidden_states, mask)[0])[0]


SQA3D = ModelCase(
    config_class=SQA3DWithLLMBlockConfig,
    base_class=SQA3DWithLLMBlockModel,
    model_class=SQA3DWithLLMBlockForQuestionAnswering,
    fields={
        "num_point_features": 2,
        "num_samples": [20, 12, 8, 6],
        "num_neighbors": [6, 5, 4, 4],
        "radii": [0.8, 1.2, 1.6, 2.0],
        "point_channels": [[8, 12], [12, 16], [16, 16], [16, 16]],
        "propagation_channels": [[16, 16], [16, 12]],
        "vote_radius": 1.0,
        "vote_num_neighbors": 4,
        "proposal_size": 10,
        "num_object_classes": 4,
        "mean_sizes": [[1.0, 0.5, 0.8], [0.4, 0.6, 1.0], [2.0, 1.5, 0.5], [0.5, 0.5, 0.5]],
        "object_tokens": "annotated",
        "word_embedding_size": 7,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pooler_hidden_size": 16,
        "pooler_output_size": 20,
        "num_labels": 3,
        "hidden_dropout_prob": 0.0,
        "word_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
        "answer_loss_weight": 1.0,
        "box_loss_weight": 0.1,
        "vote_loss_weight": 0.01,
    },
    inputs=rooms,
    num_tokens=16,
    finish=finish_sqa3d,
    refused=[
        (
            {**rooms(2), "points": torch.zeros(2, 40, 4)},
            [r"\(2, 40, 4\); it must be \(batch, points, 5\)", "features"],
        ),
        ({**rooms(2), "points": torch.zeros(40, 5)}, [r"points has the shape \(40, 5\)"]),
        ({**rooms(2), "points": torch.zeros(2, 0, 5)}, [r"points has the shape \(2, 0, 5\)"]),
        ({**rooms(2), "points": None}, ["You have to specify points"]),
        ({**rooms(2), "situation_embeds": None}, ["situation_embeds or situation_ids"]),
        ({**rooms(2), "question_ids": ones(2, 5)}, ["question_embeds or question_ids, and only one"]),
        ({**rooms(2), "question_embeds": None, "question_ids": ones(2, 5)}, ["question_ids .* set vocab_size"]),
        ({**rooms(2), "question_embeds": torch.zeros(2, 5, 8)}, [r"\(2, 5, 8\)", "word_embedding_size"]),
        ({**rooms(2), "question_mask": torch.ones(2, 6)}, [r"question_mask has the shape \(2, 6\).* \(2, 5\)"]),
        ({**rooms(2), "object_centers": None}, ["object_centers and object_mask", "annotated"]),
        ({**rooms(2), "object_mask": torch.ones(2, 3)}, [r"object_mask \(2, 3\)"]),
        ({**rooms(2), "labels": torch.ones(2, 4)}, [r"labels has the shape \(2, 4\)", r"\(2, 3\)"]),
        (
            {**rooms(2), "situation_labels": torch.ones(2, 6)},
            [r"situation_labels has the shape \(2, 6\)", r"\(2, 7\)"],
        ),
        ({**rooms(2), "vote_labels": torch.ones(2, 40, 9)}, ["need object_classes and object_size_residuals"]),
    ],
    targets=answers,
    head=("classifier", "situation_head"),
    positions=(-1, 0, 1),
    layers=lambda model, inputs: model.sqa3d.fusion_layers(texts_of(model, 2), inputs["object_mask"].bool()),
    token_mask=lambda inputs: inputs["object_mask"],
)
CASES = {
    "vit": VIT,
    "vision": VISION,
    "vision_encoder": VISION_ENCODER,
    "videomae": VIDEOMAE,
    "point_bert": POINT_BERT,
    "meter_questions": METER_QUESTIONS,
    "meter_retrieval": METER_RETRIEVAL,
    "vectornet": VECTORNET,
    "mmtransformer": MMTRANSFORMER,
    "sqa3d": SQA3D,
}
