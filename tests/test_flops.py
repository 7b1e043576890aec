# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of every model type, with a sum of the outputs as the loss, equal those with the models' losses."""

import pytest
import torch
from paths import REPO
from torch.utils import _device
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import meta_device_safe_creation_ops

from hf_frozen_llm import (
    ForecastMAEWithLLMBlockConfig,
    LLMBlockConfig,
    MeterWithLLMBlockConfig,
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
    MMTransformerWithLLMBlockConfig,
    PointBertWithLLMBlockConfig,
    VectorNetWithLLMBlockConfig,
    VideoMAEWithLLMBlockConfig,
    VisionWithLLMBlockConfig,
    ViTWithLLMBlockConfig,
)
from hf_frozen_llm.flops import build_on_meta, count_flops


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
IMAGES = {"image_size": 32, "patch_size": 8}
DINOV2 = {"model_type": "dinov2", "mlp_ratio": 2, **IMAGES, **SIZES}
METER = {"vision_config": {**SIZES, **IMAGES}, "text_config": {**SIZES, "vocab_size": 9}}
CONFIGS = {
    "vit": (ViTWithLLMBlockConfig, {**SIZES, **IMAGES}),
    "vision": (VisionWithLLMBlockConfig, {"vision_config": DINOV2}),
    "videomae": (VideoMAEWithLLMBlockConfig, {**SIZES, **IMAGES, "num_frames": 4}),
    "point_bert": (PointBertWithLLMBlockConfig, {**SIZES, "num_groups": 16, "group_size": 8}),
    "meter": (MeterWithLLMBlockConfig, {**SIZES, **METER}),
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
}


def make_config(name, with_block=True):
    config_class, fields = CONFIGS[name]
    block = LLMBlockConfig(llm_config=LLAMA, weights="random") if with_block else None
    return config_class(**fields, num_labels=7, llm_block=block)


# For one input of 4: forward, training step, training step with a frozen host; of the plain host and with the block.
COUNTS = {
    ("vit", False): (758464, 2078784, 758912),
    ("vit", True): (945344, 2637376, 1270336),
    ("vision", False): (828096, 2287680, 828544),
    ("vision", True): (1014976, 2846272, 1339968),
    ("videomae", False): (1966528, 5113152, 1967424),
    ("videomae", True): (4719040, 11535680, 8193344),
    ("point_bert", False): (110153472, 330349824, 110193408),
    ("point_bert", True): (111550464, 333811712, 113583616),
    ("meter", False): (2354560, 6867072, 2364544),
    ("meter", True): (2541440, 7425664, 2885760),
}


@pytest.mark.parametrize(("name", "with_block"), list(COUNTS))
def test_counts(name, with_block):
    config = make_config(name, with_block)
    forward, step = count_flops(config, batch_size=4)
    frozen_forward, frozen_step = count_flops(config, batch_size=4, freeze_host=True)
    assert (forward, step, frozen_step) == COUNTS[name, with_block] and frozen_forward == forward


def test_two_models_of_one_type():
    config = make_config("meter")
    assert type(build_on_meta(config)) is MeterWithLLMBlockForVisualQuestionAnswering
    config.architectures = ["MeterWithLLMBlockForImageTextRetrieval"]
    model = build_on_meta(config)
    assert type(model) is MeterWithLLMBlockForImageTextRetrieval
    head = 2 * config.hidden_size
    in_questions = head**2 + 7 * head  # multiply-adds of the classifier of answers
    assert COUNTS["meter", True][0] - count_flops(config, batch_size=4)[0] == 2 * (in_questions - 3 * head)


def test_products_by_hand():
    """Multiply-adds for an image of 16 patches and a CLS token, from the sizes above."""
    patches, tokens, width, heads, inner, num_labels = 16, 17, 32, 2, 48, 7
    vit_layer = 4 * tokens * width**2 + 2 * heads * tokens**2 * (width // heads) + 2 * tokens * width * inner
    vit = patches * 3 * 8 * 8 * width + 2 * vit_layer + width * num_labels
    assert 2 * vit == COUNTS["vit", False][0]
    # the block, for one token, without keys and values
    llm_width, llm_heads, llm_inner, head_dim, batch_size = 64, 4, 96, 16, 4
    projections = 2 * width * llm_width
    inverse_norms = tokens * width**2 + width**2 * llm_width // batch_size
    folded_query = llm_heads * (head_dim * llm_width + llm_width * width)
    attention = 2 * llm_heads * tokens * width
    folded_value = llm_heads * (width * llm_width + llm_width * head_dim)
    rest_of_layer = 2 * llm_width**2 + 3 * llm_width * llm_inner
    block = projections + inverse_norms + folded_query + attention + folded_value + rest_of_layer
    assert 2 * (vit + block) == COUNTS["vit", True][0]


def test_counts_in_the_documentation():
    """Of a ViT-S, plain and with a LLaMA-7B layer, at 64 images a step."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 1}
    block = LLMBlockConfig(llm_config={"model_type": "llama", **sizes}, weights="random")
    host = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
    counts = [
        count_flops(ViTWithLLMBlockConfig(**host, llm_block=llm_block), batch_size=64) for llm_block in (block, None)
    ]
    (forward, step), (plain_forward, plain_step) = ([f"{count / 1e9:.2f}" for count in pair] for pair in counts)
    text = (REPO / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert f"takes {forward} GFLOP an image instead of 90.81, a training step {step} instead of 192.58" in text
    assert f"the plain ViT-S takes {plain_forward} and {plain_step} " in text


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_models_own_loss_has_the_same_count(name):
    model = build_on_meta(make_config(name)).train()
    with torch.device("meta"):
        inputs = {key: tensor[:1].expand(4, *tensor.shape[1:]) for key, tensor in model.dummy_inputs.items()}
        labels = torch.zeros(4, 7) if name == "meter" else torch.zeros(4, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(**inputs, labels=labels).loss.backward()
    assert counter.get_total_flops() / 4 == count_flops(make_config(name), batch_size=4)[1]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_counts_after_a_model_was_loaded(name):
    """While transformers loads, it replaces functions of torch, and `torch.device` may then remember the replaced."""
    _device._device_constructors.cache_clear()
    try:
        with meta_device_safe_creation_ops(), torch.device("meta"):
            torch.zeros(1)
        assert count_flops(make_config(name), batch_size=4)[0] == COUNTS[name, True][0]
    finally:
        _device._device_constructors.cache_clear()


@pytest.mark.parametrize(
    ("config_class", "expected"),
    [
        (VectorNetWithLLMBlockConfig, {"plain": (0.076, 0.227), "fast": (0.559, 1.278), "slow": (39.285, 78.996)}),
        (MMTransformerWithLLMBlockConfig, {"plain": (0.78, 2.338), "fast": (1.263, 3.389), "slow": (39.988, 81.107)}),
        (ForecastMAEWithLLMBlockConfig, {"plain": (2.515, 7.54), "fast": (3.002, 8.609), "slow": (81.234, 165.984)}),
    ],
)
def test_scenes_of_the_papers_size(config_class, expected):
    """96 or 192 agents and lanes, with a LLaMA-7B layer of which only the target's token is computed, or all of it."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 1}
    llama = {"llm_config": {"model_type": "llama", **sizes}, "weights": "random"}
    blocks = {"plain": None, "fast": LLMBlockConfig(**llama), "slow": LLMBlockConfig(**llama, fast=False)}
    for name, block in blocks.items():
        counts = count_flops(config_class(llm_block=block), batch_size=32)
        assert tuple(round(count / 1e9, 3) for count in counts) == expected[name], name
