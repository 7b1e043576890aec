# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Forecast-MAE with an LLM block: its published modules written out as functions of their state dictionary, padding,
options, and the loss.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from motion_cases import FORECAST_MAE, traffic
from paths import shared_dir
from torch.nn import functional as F
from transformers import AutoModel

from hf_frozen_llm import (
    ForecastMAEWithLLMBlockConfig,
    ForecastMAEWithLLMBlockForMotionForecasting,
    ForecastMAEWithLLMBlockModel,
    MotionProcessor,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.conversion import convert_released_checkpoint, read_released_checkpoint
from hf_frozen_llm.modeling.forecast_mae_layers import MaskedBatchNorm, NeighborhoodAttention


TASK = "motion-forecasting"


def outputs(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return torch.cat([out.trajectories.flatten(1), out.scores], dim=1)


# The published model, as functions of its state dictionary


def make_state(width=32, depth=2, levels=((2, 3), (4, 5)), modes=4, steps=7):
    """Random tensors with the published names; `levels` are the heads and kernels of the history encoder."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name, *shape, bias=True):
        state[f"net.{name}.weight"] = torch.randn(shape, generator=generator) * 0.3
        if bias:
            state[f"net.{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3

    def add_batch_norm(name, size):
        add(name, size)
        state[f"net.{name}.running_mean"] = torch.randn(size, generator=generator)
        state[f"net.{name}.running_var"] = torch.rand(size, generator=generator) + 0.5
        state[f"net.{name}.num_batches_tracked"] = torch.tensor(5)

    def add_mlp(name, size, hidden_size):
        add(f"{name}.fc1", hidden_size, size)
        add(f"{name}.fc2", size, hidden_size)

    sizes = [width // 2 ** (len(levels) - 1 - level) for level in range(len(levels))]
    add("hist_embed.embed.proj", sizes[0], 4, 3)
    for level, (size, (heads, kernel)) in enumerate(zip(sizes, levels)):
        for layer in range(2):
            name = f"hist_embed.levels.{level}.blocks.{layer}"
            add(f"{name}.norm1", size)
            add(f"{name}.norm2", size)
            add(f"{name}.attn.qkv", 3 * size, size)
            add(f"{name}.attn.proj", size, size)
            state[f"net.{name}.attn.rpb"] = torch.randn(heads, 2 * kernel - 1, generator=generator)
            add_mlp(f"{name}.mlp", size, 3 * size)
        if level < len(levels) - 1:
            add(f"hist_embed.levels.{level}.downsample.reduction", 2 * size, size, 3, bias=False)
            add(f"hist_embed.levels.{level}.downsample.norm", 2 * size)
        add(f"hist_embed.norm{level}", size)
        add(f"hist_embed.lateral_convs.{level}", width, size, 3)
    add("hist_embed.fpn_conv", width, width, 3)
    for name, shape in {
        "first_conv.0": (8, 3, 1),
        "first_conv.3": (16, 8, 1),
        "second_conv.0": (16, 32, 1),
        "second_conv.3": (width, 16, 1),
    }.items():
        add(f"lane_embed.{name}", *shape)
    add_batch_norm("lane_embed.first_conv.1", 8)
    add_batch_norm("lane_embed.second_conv.1", 16)
    add("pos_embed.0", width, 4)
    add("pos_embed.2", width, width)
    for layer in range(depth):
        for norm in ("norm1", "norm2"):
            add(f"blocks.{layer}.{norm}", width)
        state[f"net.blocks.{layer}.attn.in_proj_weight"] = torch.randn(3 * width, width, generator=generator) * 0.3
        state[f"net.blocks.{layer}.attn.in_proj_bias"] = torch.randn(3 * width, generator=generator)
        add(f"blocks.{layer}.attn.out_proj", width, width)
        add_mlp(f"blocks.{layer}.mlp", width, 2 * width)
    add("norm", width)
    state["net.actor_type_embed"] = torch.randn(4, width, generator=generator)
    state["net.lane_type_embed"] = torch.randn(1, 1, width, generator=generator)
    add("decoder.multimodal_proj", modes * width, width)
    for name, size in (("loc", 2 * steps), ("pi", 1)):
        for index, shape in ((0, (20, width)), (2, (width, 20)), (4, (size, width))):
            add(f"decoder.{name}.{index}", *shape)
    for index, shape in ((0, (20, width)), (2, (2 * steps, 20))):
        add(f"dense_predictor.{index}", *shape)
    return state


class Published:
    """The forward of the published model, for one scene without padding."""

    def __init__(self, state, num_heads):
        self.state, self.num_heads = state, num_heads

    def apply(self, function, name, x, *args, **kwargs):
        return function(x, self.state[f"net.{name}.weight"], self.state.get(f"net.{name}.bias"), *args, **kwargs)

    def norm(self, name, x):
        return self.apply(lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias), name, x)

    def mlp(self, name, x):
        return self.apply(F.linear, f"{name}.fc2", F.gelu(self.apply(F.linear, f"{name}.fc1", x)))

    def neighborhood_attention(self, name, x):
        """A loop over queries, with the window and the index of the bias as NATTEN defines them."""
        bias = self.state[f"net.{name}.rpb"]
        heads, kernel = bias.shape[0], (bias.shape[1] + 1) // 2
        steps, radius = len(x), kernel // 2
        query, key, value = self.apply(F.linear, f"{name}.qkv", x).reshape(steps, 3, heads, -1).unbind(1)
        rows = []
        for i in range(steps):
            start = max(i - radius, 0) + (i + radius >= steps) * (steps - i - radius - 1)
            first = radius + (i < radius) * (radius - i) + (i + radius >= steps) * (steps - i - 1 - radius)
            window = slice(start, start + kernel)
            scores = (query[i] * key[window]).sum(-1) * query.shape[-1] ** -0.5 + bias[:, first : first + kernel].T
            rows.append((scores.softmax(0)[..., None] * value[window]).sum(0).flatten())
        return self.apply(F.linear, f"{name}.proj", torch.stack(rows))

    def history(self, x):
        x = self.apply(F.conv1d, "hist_embed.embed.proj", x.T[None], padding=1)[0].T
        laterals = []
        for level in range(2):
            for layer in range(2):
                name = f"hist_embed.levels.{level}.blocks.{layer}"
                x = x + self.neighborhood_attention(f"{name}.attn", self.norm(f"{name}.norm1", x))
                x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))
            lateral = self.norm(f"hist_embed.norm{level}", x).T[None]
            laterals.append(self.apply(F.conv1d, f"hist_embed.lateral_convs.{level}", lateral, padding=1))
            if level == 0:
                name = "hist_embed.levels.0.downsample"
                x = self.apply(F.conv1d, f"{name}.reduction", x.T[None], stride=2, padding=1)[0].T
                x = self.norm(f"{name}.norm", x)
        scale = laterals[0].shape[-1] / laterals[1].shape[-1]
        merged = laterals[0] + F.interpolate(laterals[1], scale_factor=scale, mode="linear", align_corners=False)
        return self.apply(F.conv1d, "hist_embed.fpn_conv", merged, padding=1)[0, :, -1]

    def lane(self, points):
        def batch_norm(name, x):
            statistics = (self.state[f"net.lane_embed.{name}.{part}"] for part in ("running_mean", "running_var"))
            weights = (self.state[f"net.lane_embed.{name}.{part}"] for part in ("weight", "bias"))
            return F.batch_norm(x, *statistics, *weights)

        x = self.apply(F.conv1d, "lane_embed.first_conv.0", points.T[None])
        x = self.apply(F.conv1d, "lane_embed.first_conv.3", batch_norm("first_conv.1", x).relu())
        x = torch.cat([x.amax(-1, keepdim=True).expand_as(x), x], dim=1)
        x = self.apply(F.conv1d, "lane_embed.second_conv.0", x)
        x = self.apply(F.conv1d, "lane_embed.second_conv.3", batch_norm("second_conv.1", x).relu())
        return x.amax(-1)[0]

    def __call__(self, agent_history, agent_poses, agent_types, lanes, lane_poses):
        agents = torch.stack([self.history(history) for history in agent_history])
        agents = agents + self.state["net.actor_type_embed"][agent_types]
        tokens = torch.stack([self.lane(lane) for lane in lanes]) + self.state["net.lane_type_embed"][0]
        positions = F.gelu(self.apply(F.linear, "pos_embed.0", torch.cat([agent_poses, lane_poses])))
        x = torch.cat([agents, tokens]) + self.apply(F.linear, "pos_embed.2", positions)
        attention = torch.nn.MultiheadAttention(x.shape[-1], self.num_heads, batch_first=True)
        for layer in range(2):
            name = f"net.blocks.{layer}.attn."
            attention.load_state_dict({n.removeprefix(name): t for n, t in self.state.items() if n.startswith(name)})
            normed = self.norm(f"blocks.{layer}.norm1", x)[None]
            x = x + attention(normed, normed, normed)[0][0]
            x = x + self.mlp(f"blocks.{layer}.mlp", self.norm(f"blocks.{layer}.norm2", x))
        target = self.norm("norm", x)[0]
        modes = self.apply(F.linear, "decoder.multimodal_proj", target).reshape(-1, len(target))
        results = []
        for name in ("loc", "pi"):
            x = modes
            for index in (0, 2):
                x = self.apply(F.linear, f"decoder.{name}.{index}", x).relu()
            results.append(self.apply(F.linear, f"decoder.{name}.4", x))
        return results[0].unflatten(-1, (-1, 2)), results[1][:, 0].softmax(0)


def test_numbers_of_the_published_modules():
    state = make_state()
    model = convert_released_checkpoint({"state_dict": state}, TASK, num_attention_heads=4)
    assert type(model) is ForecastMAEWithLLMBlockForMotionForecasting and not model.training
    published = Published(state, num_heads=4)
    for steps in (20, 11):
        inputs = FORECAST_MAE.inputs(2)
        inputs["agent_history"] = torch.randn(2, 3, steps, 4, generator=torch.Generator().manual_seed(steps))
        with torch.no_grad():
            out = model(**inputs)
        masks = inputs.pop("agent_mask").bool(), inputs.pop("lane_mask").bool()
        for scene in range(2):
            alone = {name: tensor[scene][masks[name.startswith("lane")][scene]] for name, tensor in inputs.items()}
            with torch.no_grad():
                trajectories, scores = published(**alone)
            torch.testing.assert_close(out.trajectories[scene], trajectories, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(out.scores[scene], scores, rtol=1e-4, atol=1e-5)


def test_configuration_shown_by_the_tensors():
    converted = read_released_checkpoint(make_state(), TASK, num_attention_heads=4)
    config = ForecastMAEWithLLMBlockConfig(
        num_future_steps=7,
        num_modes=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        history_attention_heads=[2, 4],
        history_kernel_sizes=[3, 5],
        lane_hidden_size=8,
        decoder_hidden_size=20,
    )
    assert converted.config.to_diff_dict() == config.to_diff_dict()
    assert {name.split(".")[1] for name in converted.left_out} == {"dense_predictor"}


def test_a_pretrained_host_gets_a_new_head():
    state = {name: tensor for name, tensor in make_state().items() if not name.startswith("net.de")}
    others = ["decoder_embed.weight", "future_embed.fpn_conv.weight", "lane_mask_token", "history_pred.bias"]
    state |= {f"net.{name}": torch.zeros(2) for name in others}
    torch.manual_seed(0)
    model = convert_released_checkpoint(state, TASK, num_attention_heads=4, num_modes=5)
    assert model.config.num_modes == 5 and model.config.num_future_steps == 60
    weight = state["net.blocks.1.attn.in_proj_weight"][32:64]
    assert torch.equal(model.forecast_mae.layers[1].attention.k_proj.weight, weight)
    assert model(**FORECAST_MAE.inputs(1)).trajectories.isfinite().all()


def test_file_and_command(tmp_path, capsys):
    torch.save({"state_dict": make_state(), "epoch": 3}, tmp_path / "last.ckpt")
    command = ["convert", str(tmp_path / "last.ckpt"), "--task", TASK, "--output", str(tmp_path / "out")]
    main([*command, "--num-attention-heads", "4"])
    assert "net.actor_type_embed -> forecast_mae.agent_type_embeddings (4, 32)" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "out")
    expected = convert_released_checkpoint(make_state(), TASK, num_attention_heads=4)
    torch.testing.assert_close(outputs(model, FORECAST_MAE.inputs(2)), outputs(expected, FORECAST_MAE.inputs(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"net.surprise": torch.zeros(2)}, r"a released Forecast-MAE does not have: \['net\.surprise"),
        (lambda s: {n: t for n, t in s.items() if ".pos_embed.2." not in n}, "lacks tensors that the model needs"),
        (lambda s: {n: t for n, t in s.items() if ".first_conv.0." not in n}, r"lacks net\.lane_embed\.first_conv\.0"),
    ],
)
def test_bad_checkpoints_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        convert_released_checkpoint(change(make_state()), TASK, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"do not show num_attention_heads: give it \(8 in the released models\)"):
        convert_released_checkpoint(make_state(), TASK)


def test_number_of_parameters_of_the_published_size():
    """Without the predictor of the other agents, which only its training uses."""
    with torch.device("meta"):
        model = ForecastMAEWithLLMBlockForMotionForecasting(ForecastMAEWithLLMBlockConfig())
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.endswith(("relative_bias", "mode_projection.weight", "levels.2.1.mlp.fc1.weight"))
    }
    history = "forecast_mae.history_encoder.levels"
    assert shapes == {
        **{
            f"{history}.{level}.{layer}.attention.relative_bias": (2 ** (level + 1), size)
            for level, size in enumerate((5, 5, 9))
            for layer in range(2)
        },
        f"{history}.2.1.mlp.fc1.weight": (384, 128),
        "decoder.mode_projection.weight": (768, 128),
    }


# Neighbourhood attention and masked statistics


@pytest.mark.parametrize(("steps", "kernel"), [(9, 3), (9, 5), (5, 5), (3, 5), (1, 3)])
def test_neighborhood_attention(steps, kernel):
    """By a loop; a history that is shorter than the kernel attends to all its steps."""
    torch.manual_seed(0)
    attention = NeighborhoodAttention(8, 2, kernel)
    torch.nn.init.normal_(attention.relative_bias)
    x = torch.randn(2, steps, 8)
    ours = attention(x)
    query, key, value = attention.qkv(x).reshape(2, steps, 3, 2, 4).unbind(2)
    for i in range(steps):
        near = sorted(range(steps), key=lambda j: abs(j - i) + 0.1 * (j > i))
        start = min(max(i - kernel // 2, 0), max(steps - kernel, 0))
        window = list(range(start, min(start + kernel, steps)))
        assert steps <= kernel or set(near[:1]) <= set(window)
        scores = torch.einsum("bhd,bkhd->bhk", query[:, i], key[:, window]) / 2
        scores = scores + torch.stack([attention.relative_bias[:, j - i + kernel - 1] for j in window], dim=-1)
        heads = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), value[:, window])
        torch.testing.assert_close(ours[:, i], attention.o_proj(heads.flatten(1)))


def test_statistics_of_lanes_ignore_padding():
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    points, mask = torch.randn(4, 3, 5), torch.tensor([True, False, True, True])
    torch.testing.assert_close(ours(points, mask)[mask], theirs(points[mask]))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_var.clone()
    ours(points[:0], mask[:0])
    assert torch.equal(ours.running_var, before)


# Padding, lanes, tokens of the block


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_block", [True, False])
def test_padding_changes_nothing(with_block, training, block):
    """In training, too, where lanes are normalised over the batch."""
    model = FORECAST_MAE.build(block() if with_block else None).train(training)
    inputs = FORECAST_MAE.inputs(1)
    agents, lanes = inputs["agent_mask"][0].bool(), inputs["lane_mask"][0].bool()
    inputs = {name: tensor[:, lanes if name.startswith("lane") else agents] for name, tensor in inputs.items()}
    expected = outputs(model, inputs)
    padded = {}
    for name, tensor in inputs.items():
        padding = torch.zeros_like(tensor)
        if tensor.is_floating_point() and "mask" not in name:
            padding = 7 * torch.randn_like(tensor)
        padded[name] = torch.cat([tensor, padding], dim=1)
    torch.testing.assert_close(outputs(model, padded), expected, rtol=1e-5, atol=2e-6)


def test_order_of_agents_and_lanes_changes_nothing(block):
    model, inputs = FORECAST_MAE.build(block()), FORECAST_MAE.inputs(2)
    orders = {"agent": [0, 2, 1], "lane": [3, 1, 0, 2]}
    permuted = {
        name: tensor[:, orders["lane" if name.startswith("lane") else "agent"]] for name, tensor in inputs.items()
    }
    torch.testing.assert_close(outputs(model, permuted), outputs(model, inputs), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("with_block", [True, False])
def test_a_scene_without_lanes(with_block, block):
    """It is the same alone, without any lane, and beside a scene with lanes, whatever the padding holds."""
    model = FORECAST_MAE.build(block() if with_block else None)
    inputs = FORECAST_MAE.inputs(2)
    inputs["lane_mask"][1] = 0
    agents = {name: tensor[1:] for name, tensor in inputs.items() if "lane" not in name}
    empty = {name: tensor[1:, :0] for name, tensor in inputs.items() if "lane" in name}
    alone = [outputs(model, agents), outputs(model, {**agents, **empty})]
    for change in (0, 9):
        inputs["lanes"][1] += change
        alone.append(outputs(model, inputs)[1:])
    for result in alone:
        torch.testing.assert_close(result, alone[0], rtol=1e-5, atol=2e-6)
    inputs["lane_mask"][1] = 1
    assert (outputs(model, inputs)[1:] - alone[0]).abs().max() > 1e-3
    model.train()(**agents, labels=torch.zeros(1, 6, 2)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_only_the_token_that_the_head_uses_is_computed(block):
    model, inputs = FORECAST_MAE.build(block()), FORECAST_MAE.inputs(2)
    expected, seen = outputs(model, inputs), []
    run = model.llm_block.forward
    model.llm_block.forward = lambda *args, **kwargs: seen.append(run(*args, **kwargs)) or seen[-1]
    outputs(model, inputs)
    assert seen[-1].shape[1] == 1
    model.config.output_hidden_states = True
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=2e-6)
    assert seen[-1].shape[1] == 7


def test_types_count_and_default_to_vehicles(block):
    model, inputs = FORECAST_MAE.build(block()), FORECAST_MAE.inputs(2)
    vehicles = {**inputs, "agent_types": torch.zeros(2, 3, dtype=torch.long)}
    without = {name: tensor for name, tensor in inputs.items() if name != "agent_types"}
    assert torch.equal(outputs(model, vehicles), outputs(model, without))
    assert (outputs(model, inputs) - outputs(model, without)).abs().max() > 1e-4


# The loss


def test_loss_by_hand(block):
    model, inputs = FORECAST_MAE.build(block()), FORECAST_MAE.inputs(2)
    labels = FORECAST_MAE.targets(2)["labels"]
    labels[1, 4:] = float("nan")
    out = model(**inputs, labels=labels)
    expected = []
    for scene, steps in ((0, 6), (1, 4)):
        ours, truth = out.trajectories[scene, :, :steps], labels[scene, :steps]
        best = (ours - truth).norm(dim=-1).mean(-1).argmin()
        score = -out.scores[scene, best].log()
        expected.append(F.smooth_l1_loss(ours[best], truth) + score)
    torch.testing.assert_close(out.loss, torch.stack(expected).mean())
    labels[0] = float("nan")
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected[1])
    assert model(**inputs, labels=torch.full_like(labels, float("nan"))).loss == 0


def test_deviations_from_constant_velocity(block):
    inputs, labels = FORECAST_MAE.inputs(2), FORECAST_MAE.targets(2)["labels"]
    plain, model = FORECAST_MAE.build(block()), FORECAST_MAE.build(block(), add_constant_velocity=True)
    steps = torch.arange(1.0, 7)[:, None] * inputs["agent_history"][:, 0, -1, :2][:, None]
    out, expected = model(**inputs, labels=labels), plain(**inputs, labels=labels - steps)
    torch.testing.assert_close(out.trajectories, expected.trajectories + steps[:, None])
    torch.testing.assert_close(out.loss, expected.loss)


def test_drop_path(block):
    model, inputs = FORECAST_MAE.build(block(), drop_path_rate=0.5), FORECAST_MAE.inputs(2)
    assert torch.equal(outputs(model, inputs), outputs(model, inputs))
    model.train()
    assert not torch.equal(outputs(model, inputs), outputs(model, inputs))
    assert [layer.drop_path_rate for layer in model.forecast_mae.layers] == [0, 0.5]


# Configurations and the processor


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size is 24; it must be a multiple of num_attention_heads, 5"),
        ({"history_kernel_sizes": [3]}, r"history_attention_heads is \[1, 2\] and history_kernel_sizes \[3\]"),
        ({"history_kernel_sizes": [3, 4]}, r"history_kernel_sizes is \[3, 4\]; its numbers must be odd"),
        ({"history_attention_heads": [5, 2]}, r"levels of the history encoder are \[12, 24\] wide"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1\.0"),
        ({"llm_block": {"llm_name_or_path": "x", "position": 3}}, r"llm_block\.position is 3"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ForecastMAEWithLLMBlockConfig(**{**FORECAST_MAE.fields, **fields})


def test_initialisation():
    model = ForecastMAEWithLLMBlockModel(ForecastMAEWithLLMBlockConfig())
    host = model.forecast_mae
    assert 0.015 < host.agent_type_embeddings.std() < 0.025 and 0.015 < host.lane_embedding.std() < 0.025
    weight = host.layers[0].mlp.fc1.weight
    bound = (6 / (128 + 512)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert 0 < host.history_encoder.levels[0][0].attention.relative_bias.abs().max() < 0.1


def test_inputs_of_the_processor():
    """The target heads along x; speeds are of the scene, or follow from its positions."""
    scene = traffic(2, 1)
    scene["positions"] = scene["positions"] * 2.0
    processor = MotionProcessor(format="poses", forward_axis="x", num_history_steps=6, num_lane_points=4)
    scene["types"] = ["vehicle", "cyclist"]
    scene["positions"][1, 2] = float("nan")
    batch = processor(scene)
    assert batch["agent_types"].tolist() == [[0, 2]]
    history = batch["agent_history"][0]
    torch.testing.assert_close(history[0, :, :2], torch.tensor([[0.0, 0.0]] + [[2.0, 0.0]] * 5))
    assert history[1, :, 3].tolist() == [1, 1, 0, 1, 1, 1] and not history[1, 2:4, :3].any()
    torch.testing.assert_close(history[0, :, 2], torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(batch["agent_poses"][0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(batch["agent_poses"][0, 1, 2:].norm(), torch.tensor(1.0))
    center = batch["lane_poses"][0, 0, :2]
    points = batch["lanes"][0, 0, :, :2] + center
    torch.testing.assert_close(points[1:3].mean(0), center)
    assert batch["lanes"][0, 0, :, 2].tolist() == [1] * 4
    scene["velocities"] = scene["positions"] * [1.0, 0.0]
    changes = processor(scene)["agent_history"][0, 0, :, 2]
    torch.testing.assert_close(changes, torch.tensor([0.0] + [2.0] * 5))
    near = MotionProcessor(format="poses", num_history_steps=6, num_lane_points=4, lane_radius=3.0)(scene)["lanes"][0]
    assert 0 < near[0, :, 2].sum() < 4


def test_real_scenario_of_argoverse_2():
    """As av2-api reads it, in the frame of the focal track's box, along x."""
    folder = shared_dir() / "fixtures/motion"
    expected = json.loads((folder / "official_av2_forecasting_scenario.json").read_text())
    (file,) = folder.glob("av2_forecasting_scenario/*/scenario_*.parquet")
    table = pd.read_parquet(file)
    tracks = sorted(table.track_id.unique())
    places = table.track_id.map(tracks.index).to_numpy(), table.timestep.to_numpy()
    scene = {"timestamps": np.arange(110) / 10, "target": tracks.index(expected["focal_track_id"])}
    scene["types"] = table.groupby("track_id").object_type.first()[tracks].tolist()
    for name, columns in (
        ("positions", ["position_x", "position_y"]),
        ("velocities", ["velocity_x", "velocity_y"]),
        ("headings", ["heading"]),
    ):
        scene[name] = np.full((len(tracks), 110, len(columns)), np.nan)
        scene[name][places] = table[columns].to_numpy()
    scene["headings"] = scene["headings"][..., 0]
    prepared = MotionProcessor(preset="forecast_mae").prepare(scene)

    def turned(point):
        """From a frame along y to one along x."""
        return [point[1], -point[0]]

    focal = expected["focal_normalised"]
    start = -prepared["agent_history"][0, :, :2].sum(axis=0)
    np.testing.assert_allclose(start, turned(focal["first"]), atol=1e-5)
    np.testing.assert_allclose(prepared["labels"][0], turned(focal["first_future"]), atol=1e-5)
    np.testing.assert_allclose(prepared["labels"][-1], turned(focal["last"]), atol=1e-5)
    speeds = np.linalg.norm(scene["velocities"][scene["target"]], axis=-1)
    np.testing.assert_allclose(prepared["agent_history"][0, :, 2].sum(), speeds[49] - speeds[0], atol=1e-9)
    now = scene["positions"][:, 49]
    is_near = np.linalg.norm(now - now[scene["target"]], axis=-1) <= 150
    assert sorted(prepared["agents"]) == np.flatnonzero(is_near).tolist() and prepared["agent_poses"][0].tolist() == [
        0,
        0,
        1,
        0,
    ]
    groups = {"vehicle": 0, "pedestrian": 1}
    assert prepared["agent_types"].tolist() == [groups.get(scene["types"][agent], 3) for agent in prepared["agents"]]


def test_preset():
    processor = MotionProcessor(preset="forecast_mae")
    assert processor.format == "poses" and processor.heading == "box_yaw" and processor.forward_axis == "x"
    assert (processor.num_history_steps, processor.num_future_steps, processor.num_lane_points) == (50, 60, 20)
    assert MotionProcessor(preset="forecast_mae", num_history_steps=20, heading="last_step").heading == "last_step"
    for change, message in (
        ({"types": ["bus"]}, "types has 1 names for 2 agents"),
        ({"velocities": [[0.0, 0.0]]}, r"velocities has the shape \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            MotionProcessor(num_history_steps=6)({**traffic(2, 0), **change})
