# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VideoMAE with an LLM block: the plain host's function and checkpoints, positions, saving, bad input."""

import pytest
import torch
from references import relative_error
from safetensors.torch import load_file, save_file
from tiny_llms import randomize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from hf_frozen_llm import (
    LLMBlockConfig,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    VideoMAEWithLLMBlockModel,
)


FIELDS = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "tubelet_size": 2,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "num_labels": 3,
}


@pytest.fixture
def block(llm_folder):
    return LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], layer_index=1)


@pytest.fixture
def build(block):
    def make(use_block=True, **fields):
        torch.manual_seed(0)
        config = VideoMAEWithLLMBlockConfig(**{**FIELDS, "llm_block": block if use_block else None, **fields})
        model = VideoMAEWithLLMBlockForVideoClassification(config)
        randomize(model.videomae, seed=1)
        return model.eval()

    return make


def clips(batch=2):
    return torch.randn(batch, 4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def published(tmp_path):
    """(folder, model): a plain VideoMAE under the names of published checkpoints, which store two biases apart."""
    torch.manual_seed(0)
    model = VideoMAEForVideoClassification(VideoMAEConfig(**FIELDS))
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


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_without_a_block_it_is_the_plain_host(use_mean_pooling):
    torch.manual_seed(0)
    plain = VideoMAEForVideoClassification(VideoMAEConfig(**FIELDS, use_mean_pooling=use_mean_pooling)).eval()
    config = VideoMAEWithLLMBlockConfig(**FIELDS, use_mean_pooling=use_mean_pooling)
    ours = VideoMAEWithLLMBlockForVideoClassification(config).eval()
    ours.load_state_dict(plain.state_dict())
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        expected, out = plain(clips(), labels=labels), ours(clips(), labels=labels)
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)


def test_published_weights_of_the_plain_host(published, block):
    folder, plain = published
    model, info = VideoMAEWithLLMBlockForVideoClassification.from_pretrained(
        folder, llm_block=block, output_loading_info=True
    )
    assert not info["unexpected_keys"] and all(key.startswith("llm_block.") for key in info["missing_keys"])
    without = VideoMAEWithLLMBlockForVideoClassification.from_pretrained(folder, llm_block=None)
    with torch.no_grad():
        torch.testing.assert_close(without(clips()).logits, plain(clips()).logits)
        assert not torch.allclose(model(clips()).logits, plain(clips()).logits, atol=1e-3)


def test_from_host_pretrained(published, block):
    model = VideoMAEWithLLMBlockForVideoClassification.from_host_pretrained(
        published[0], llm_block=block, num_labels=5
    )
    assert model(clips()).logits.shape == (2, 5)
    model.freeze_host()
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"llm_block", "fc_norm", "classifier"}


@pytest.mark.parametrize("position", [-1, 0, 1])
def test_block_stands_at_its_position(position, build, block):
    block.position = position
    model = build()
    seen = []
    model.llm_block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        out = model(clips(), output_hidden_states=True)
    states = out.hidden_states
    place = 2 if position == -1 else position
    assert len(states) == 4
    torch.testing.assert_close(seen[0], states[place])
    torch.testing.assert_close(states[place + 1], model.llm_block(states[place]))


def test_attentions(build):
    model = build(attn_implementation="eager")
    with torch.no_grad():
        attentions = model(clips(), output_attentions=True).attentions
    assert [tuple(a.shape) for a in attentions] == [(2, 2, 8, 8)] * 2 + [(2, 4, 8, 8)]


def test_gradients_and_what_is_frozen(build):
    model = build().train()
    model(clips(), labels=torch.tensor([1, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith(("llm_block.llm_layers", "llm_block.final_norm"))
        assert parameter.requires_grad != is_frozen
        assert is_frozen == (parameter.grad is None), name


def test_fast_path_gives_the_same(build):
    model = build().train()
    results = []
    for fast in (True, False):
        model.llm_block.config.fast = fast
        model.zero_grad()
        out = model(clips(16), labels=torch.arange(16) % 3)
        out.loss.backward()
        results.append((out.logits.detach(), model.llm_block.input_projection.weight.grad.clone()))
    for ours, theirs in zip(*results):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("save_weights", [True, False])
def test_save_and_load_by_the_auto_classes(save_weights, build, block, tmp_path):
    block.save_weights = save_weights
    model = build()
    model.save_pretrained(tmp_path)
    again = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(again) is VideoMAEWithLLMBlockForVideoClassification
    assert type(AutoConfig.from_pretrained(tmp_path)) is VideoMAEWithLLMBlockConfig
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is VideoMAEWithLLMBlockModel
    with torch.no_grad():
        torch.testing.assert_close(again(clips()).logits, model(clips()).logits, rtol=1e-5, atol=1e-6)
        assert base(clips()).last_hidden_state.shape == (2, 8, 24)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 16, 16), (2, 4, 1, 16, 16), (2, 8, 3, 16, 16), (2, 4, 3, 32, 32), (4, 3, 16, 16)]
)
def test_pixels_of_another_shape_are_refused(shape, build):
    with pytest.raises(ValueError, match=r"\(batch, frames, channels, height, width\) = \(batch, 4, 3, 16, 16\)"):
        build()(torch.zeros(shape))


def test_position_outside_the_host_is_refused(block):
    block.position = 3
    with pytest.raises(ValueError, match=r"llm_block\.position is 3; with num_hidden_layers=2"):
        VideoMAEWithLLMBlockConfig(**FIELDS, llm_block=block)


def test_no_pixels_are_refused(build):
    with pytest.raises(ValueError, match="pixel_values"):
        build()()
