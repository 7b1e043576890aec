# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Names of the modules to hook, and maps of their tokens."""

import pytest
import torch
from hand_grad_cam import GradCAM
from llm_files import write_llm
from model_cases import cases
from tiny_llms import tiny_config, tiny_llm
from vision_cases import POINT_BERT, VIDEOMAE, VISION, VIT

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.analysis import layer_names, reshape_transform, token_activations, token_layout


@pytest.fixture(scope="module")
def block_of(tmp_path_factory):
    llm = str(write_llm(tiny_llm(tiny_config("llama")), tmp_path_factory.mktemp("llama")))
    return lambda **fields: LLMBlockConfig(**{"llm_name_or_path": llm, "layer_index": 1, **fields})


def first_outputs(model, names, inputs):
    found, handles = {}, []
    for tap, name in names.items():

        def keep(module, arguments, output, tap=tap):
            found.setdefault(tap, output)

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


@cases()
def test_modules_have_the_tokens_of_every_model(case, block_of):
    model, inputs = case.build(block_of(residual="outer")), case.inputs(2)
    names = layer_names(model)
    assert list(names)[-5:] == ["input_projection", "feed_forward", "final_norm", "output_projection", "block"]
    expected = token_activations(model, inputs, at=list(names)).states
    model.llm_block.config.fast = False
    for tap, tokens in first_outputs(model, names, inputs).items():
        torch.testing.assert_close(tokens, expected[tap], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "block", "name"),
    [
        (VIT, {}, "vit.layers.2"),
        (VIT, {"position": 1}, "vit.layers.0"),
        (VIT, None, "vit.layers.2"),
        (VISION, {}, "dinov2.encoder.layer.2"),
        (VISION, None, "dinov2.encoder.layer.2"),
        (VIDEOMAE, {}, "videomae.encoder.layer.1.output"),
        (POINT_BERT, {}, "point_bert.layers.1"),
    ],
)
def test_name_of_the_hosts_tokens(case, block, name, block_of):
    model = case.build(None if block is None else block_of(**block))
    assert layer_names(model)["host"] == name
    assert not any(module._forward_hooks for module in model.modules())


def test_names_of_controls_and_of_a_block_alone(block_of):
    assert layer_names(VIT.build(block_of(kind="mlp")))["mlp"] == "llm_block.mlp_norm"
    names = layer_names(VIT.build(block_of(layer_index=[0, 1])))
    assert (names["feed_forward_0"], names["feed_forward_1"]) == ("llm_block.llm_layers.0", "llm_block.llm_layers.1")
    assert layer_names(LLMBlock(block_of(hidden_size=16, residual="outer"))) == {
        "input_projection": "input_projection",
        "feed_forward": "llm_layers.0",
        "final_norm": "final_norm",
        "output_projection": "output_projection",
        "block": "",
    }
    with pytest.raises(ValueError, match="has no LLM block, and so no tap points"):
        layer_names(VIDEOMAE.build(None))


def test_tokens_as_maps(block_of):
    tokens = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    maps = reshape_transform(VIT.build(block_of()))(tokens)
    assert maps.shape == (2, 3, 2, 2)
    assert all(torch.equal(maps[:, :, i // 2, i % 2], tokens[:, 1 + i]) for i in range(4))
    wide = {"pixel_values": torch.zeros(1, 3, 8, 12)}
    assert reshape_transform(VIT.build(block_of()), wide)(torch.zeros(2, 7, 3)).shape == (2, 3, 2, 3)
    assert reshape_transform(VIDEOMAE.build(block_of()))(torch.zeros(2, 8, 3)).shape == (2, 3, 2, 2, 2)
    assert reshape_transform(POINT_BERT.build(block_of()))(torch.zeros(2, 7, 3)).shape == (2, 3, 6)


@pytest.mark.parametrize("case", [VIT, VISION])
def test_grad_cam_equals_a_difference_quotient(case, block_of):
    """The mean of a channel's gradient is the change of the logit as the channel grows at all patches."""
    model, pixels = case.build(block_of()), case.inputs(1)["pixel_values"]
    model.config.return_dict = False
    layer = model.get_submodule(layer_names(model)["host"])
    with GradCAM(model, [layer], reshape_transform(model)) as cam:
        found = cam(pixels, targets=[lambda logits: logits[:, 1].sum()])
    tokens = token_activations(model, {"pixel_values": pixels}, at=["host"]).states["host"]
    layout = token_layout(model, {"pixel_values": pixels}, tokens.shape[1])
    patches, slopes = layout.take(tokens)[0], []
    for channel in range(tokens.shape[-1]):
        logits = []
        for step in (-1e-2, 1e-2):

            def shift(module, arguments, output, channel=channel, step=step):
                moved = output.clone()
                moved[:, layout.num_prefix_tokens :, channel] += step
                return moved

            handle = layer.register_forward_hook(shift)
            with torch.no_grad():
                logits.append(model(pixels)[0][0, 1])
            handle.remove()
        slopes.append((logits[1] - logits[0]) / 2e-2 / len(patches))
    expected = (patches @ torch.stack(slopes)).clamp(min=0).view(layout.shape)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    size = pixels.shape[-1] // layout.shape[0]
    centres = torch.from_numpy(found)[0].unflatten(0, (-1, size)).unflatten(2, (-1, size)).mean((1, 3))
    # Interpolation smooths the map, and leaves the order of the patches.
    assert torch.equal(centres.flatten().argsort()[-2:], expected.flatten().argsort()[-2:])
    assert found.shape == (1, *pixels.shape[2:]) and 0 <= found.min() < found.max() <= 1
