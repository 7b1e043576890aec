# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VideoMAE with an LLM block: published checkpoints, the classifier on the first token."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llms import randomize
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
from vision_cases import VIDEOMAE

from hf_frozen_llm import VideoMAEWithLLMBlockForVideoClassification


@pytest.fixture
def published(tmp_path):
    """(folder, model): a plain VideoMAE under the names of published checkpoints, with two separate biases."""
    torch.manual_seed(0)
    model = VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE.fields))
    randomize(model, seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention.key.bias"):
                parameter.zero_()
    folder = tmp_path / "videomae"
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    names = {"attention.attention.query.bias": "q_bias", "attention.attention.value.bias": "v_bias"}
    for name in list(state):
        if name.endswith("attention.key.bias"):
            del state[name]
        for ending, published_name in names.items():
            if name.endswith(ending):
                state[name.removesuffix(ending) + "attention.attention." + published_name] = state.pop(name)
    assert any(name.endswith("q_bias") for name in state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, model.eval()


def test_classifier_on_the_first_token_without_a_block():
    plain = VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE.fields, use_mean_pooling=False)).eval()
    model = VIDEOMAE.build(None, use_mean_pooling=False)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, out = (called(**VIDEOMAE.inputs(2), **VIDEOMAE.targets(2)) for called in (plain, model))
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)


def test_published_weights_of_the_plain_host(published, block):
    folder, plain = published
    model, info = VideoMAEWithLLMBlockForVideoClassification.from_pretrained(
        folder, llm_block=block(), output_loading_info=True
    )
    assert not info["unexpected_keys"] and all(key.startswith("llm_block.") for key in info["missing_keys"])
    without = VideoMAEWithLLMBlockForVideoClassification.from_pretrained(folder, llm_block=None)
    expected = VIDEOMAE.output_of(plain)
    torch.testing.assert_close(VIDEOMAE.output_of(without), expected)
    assert not torch.allclose(VIDEOMAE.output_of(model), expected, atol=1e-3)


def test_from_host_pretrained(published, block):
    model = VideoMAEWithLLMBlockForVideoClassification.from_host_pretrained(
        published[0], llm_block=block(), num_labels=5
    )
    assert VIDEOMAE.output_of(model).shape == (2, 5)
    model.freeze_host()
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"llm_block", "fc_norm", "classifier"}
