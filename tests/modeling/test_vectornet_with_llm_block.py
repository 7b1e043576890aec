# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""VectorNet with an LLM block: numbers of public modules after the paper's description, losses, node completion."""

import math

import pytest
import torch
from motion_cases import VECTORNET
from paths import shared_dir
from references import relative_error
from safetensors.torch import load_file

from hf_frozen_llm import VectorNetWithLLMBlockConfig, VectorNetWithLLMBlockForMotionForecasting


NAMES = {
    f"subgraph.sglayer{i + 1}.{old}": f"vectornet.subgraph.layers.{i}.{new}"
    for i in range(3)
    for old, new in (("linear", "linear"), ("lm", "norm"))
}
NAMES |= {f"globalgraph.attention_layer.Proj_{p}": f"vectornet.layers.0.{p.lower()}_proj" for p in "QKV"}
NAMES |= {
    f"{old}.mlp.{i}": f"decoder.{new}.{part}"
    for i, part in ((0, "fc1"), (1, "norm"), (3, "fc2"))
    for old, new in (("decoder", "trajectory_mlp"), ("node_decoder", "node_mlp"))
}
variants = pytest.mark.parametrize("variant", ["plain", "paper"])


@pytest.fixture(scope="module")
def reference():
    return load_file(shared_dir() / "fixtures/motion/reimpl_vectornet_tiny.safetensors")


def build(reference, variant, attn="sdpa"):
    config = VectorNetWithLLMBlockConfig(
        num_vector_features=7,
        num_modes=1,
        hidden_size=32,
        decoder_hidden_size=16,
        normalize_polylines=variant == "paper",
        use_identifier=variant == "paper",
        trajectory_loss="l2",
        node_completion_weight=float(variant == "paper"),
    )
    model = VectorNetWithLLMBlockForMotionForecasting._from_config(config, attn_implementation=attn).eval()
    prefix, state = f"{variant}.state_dict.", {}
    for name, tensor in reference.items():
        if name.startswith(prefix):
            module, _, parameter = name.removeprefix(prefix).rpartition(".")
            state[f"{NAMES[module]}.{parameter}"] = tensor
    model.load_state_dict(state)
    return model


def inputs_of(reference):
    return {
        "polyline_vectors": reference["input.vectors"],
        "vector_mask": reference["input.vector_mask"],
        "polyline_mask": reference["input.polyline_mask"],
    }


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@variants
def test_numbers(variant, attn, reference):
    model, inputs = build(reference, variant, attn), inputs_of(reference)
    mask, seen = inputs["polyline_mask"].bool(), {}
    model.vectornet.subgraph.register_forward_hook(lambda module, args, out: seen.update(features=out))
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        nodes, identifiers = model.vectornet.embed(inputs["polyline_vectors"], inputs["vector_mask"].bool())
    assert_close(seen["features"][mask], reference[f"{variant}.polyline_features"][mask])
    assert_close(nodes[mask], reference[f"{variant}.polyline_features_normalised"][mask])
    assert_close(identifiers[mask], reference[f"{variant}.identifier"][mask])
    assert_close(out.hidden_states[-1][mask], reference[f"{variant}.global_output"][mask])
    assert_close(out.trajectories[:, 0], reference[f"{variant}.trajectory"])
    assert torch.equal(out.scores, torch.ones(3, 1))


@variants
def test_gradients(variant, reference):
    model, inputs = build(reference, variant), inputs_of(reference)
    inputs["polyline_vectors"] = inputs["polyline_vectors"].clone().requires_grad_()
    out = model(**inputs, labels=reference["input.future_offsets"].cumsum(1))
    assert_close(out.loss, reference[f"{variant}.mse_of_offsets"].squeeze())
    out.loss.backward()
    gradient, expected = inputs["polyline_vectors"].grad, reference[f"{variant}.grad.vectors"]
    assert relative_error(gradient, expected) < 1e-5
    for name in ("globalgraph.attention_layer.Proj_K", "subgraph.sglayer1.linear"):
        ours = model.get_parameter(f"{NAMES[name]}.weight").grad
        assert relative_error(ours, reference[f"{variant}.grad.{name}.weight"]) < 1e-5


def test_node_completion(reference):
    model, inputs = build(reference, "paper"), inputs_of(reference)
    chosen, labels = reference["input.masked_polyline"], reference["input.future_offsets"].cumsum(1)
    hidden = torch.nn.functional.one_hot(chosen, 6).bool()
    mask, rows = inputs["polyline_mask"].bool(), torch.arange(3)
    with torch.no_grad():
        out = model(**inputs, hidden_polylines=hidden, labels=labels, output_hidden_states=True)
        nodes = out.hidden_states[-1]
        whole, _ = model.vectornet.embed(inputs["polyline_vectors"], inputs["vector_mask"].bool())
        predicted = model.decoder.node_mlp(nodes[rows, chosen])
        losses = model._complete_nodes(nodes, whole, hidden)
    assert_close(nodes[mask], reference["paper.masked.global_output"][mask])
    assert_close(out.trajectories[:, 0], reference["paper.masked.trajectory"])
    assert_close(predicted, reference["paper.masked.node_prediction"])
    assert_close(whole[rows, chosen], reference["paper.masked.node_target"])
    assert_close(losses * 32, reference["paper.masked.huber_sum_per_scene"])
    assert_close(losses.mean(), reference["paper.masked.huber_mean"].squeeze())
    offsets = out.trajectories[:, 0].diff(dim=1, prepend=torch.zeros(3, 1, 2))
    error = (offsets - reference["input.future_offsets"]).square().mean()
    torch.testing.assert_close(out.loss, error + losses.mean(), rtol=1e-5, atol=1e-6)


def test_node_completion_in_training(block):
    """It hides polylines at random, never the target, only with labels, and in training only."""
    model = VECTORNET.build(block(), node_completion_weight=1.0, node_completion_ratio=0.9)
    inputs, labels = VECTORNET.inputs(2), VECTORNET.targets(2)["labels"]
    plain, seen = model(**inputs, labels=labels), []
    assert plain.loss < model(**inputs, labels=labels, hidden_polylines=torch.tensor([[0, 1, 0, 1]] * 2)).loss
    model._complete_nodes = lambda nodes, whole, hidden: seen.append(hidden) or torch.zeros(2)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, plain.loss)
    model.train()
    assert torch.equal(model(**inputs).trajectories, plain.trajectories) and not seen
    for _ in range(4):
        model(**inputs, labels=labels)
    hidden = torch.cat(seen)
    assert not hidden[:, 0].any() and hidden[:, 1:].any() and not hidden[1::2, 3].any()
    del model._complete_nodes
    model(**inputs, labels=labels).loss.backward()
    assert model.decoder.node_mlp.fc1.weight.grad.abs().sum() > 0


def test_gaussian_loss(block):
    """By hand, for one known step."""
    model = VECTORNET.build(block(), trajectory_loss="gaussian")
    inputs, labels = VECTORNET.inputs(1), VECTORNET.targets(1)["labels"]
    labels[:, 1:] = float("nan")
    out = model(**inputs, labels=labels)
    nodes, identifiers = model.vectornet.embed(inputs["polyline_vectors"], inputs["vector_mask"].bool())
    offsets, log_variances, logits = model.decoder(
        model._run_graph(nodes, identifiers, inputs["polyline_mask"].bool())[:, 0]
    )
    first, spread = offsets[0, :, 0] - labels[0, 0], log_variances[0, :, 0].clamp(-7, 7)
    likelihoods = 0.5 * (spread + first.square() / spread.exp()).mean(-1)
    best = first.norm(dim=-1).argmin()
    expected = likelihoods[best] - math.log(logits.softmax(-1)[0, best].item())
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", [-1, 0])
def test_padding_and_order_change_nothing(position, block):
    model = VECTORNET.build(block(position=position), num_hidden_layers=1)
    inputs = VECTORNET.inputs(1)
    expected = VECTORNET.output_of(model, 1)
    with torch.no_grad():
        more = {n: torch.cat([t, torch.zeros_like(t)], 1) for n, t in inputs.items()}
        more["polyline_vectors"][:, 4:] = 5
        longer = {n: torch.cat([t, torch.zeros_like(t)], 2) if n != "polyline_mask" else t for n, t in more.items()}
        longer["polyline_vectors"][:, :, 5:] = -9
        order = [0, 3, 1, 2]
        for changed in (more, longer, {n: t[:, order] for n, t in inputs.items()}):
            torch.testing.assert_close(model(**changed).trajectories, expected, rtol=1e-5, atol=2e-6)
        vectors = inputs["polyline_vectors"].masked_fill(~inputs["vector_mask"].bool()[..., None], 3)
        torch.testing.assert_close(model(**{**inputs, "polyline_vectors": vectors}).trajectories, expected)


def test_a_scene_of_the_target_alone(block):
    model, inputs = VECTORNET.build(block()), VECTORNET.inputs(1)
    with torch.no_grad():
        alone = model(**{name: tensor[:, :1] for name, tensor in inputs.items()})
        inputs["polyline_mask"][:, 1:] = 0
        torch.testing.assert_close(model(**inputs).trajectories, alone.trajectories, rtol=1e-5, atol=2e-6)


def test_only_the_target_is_computed(block):
    model, seen = VECTORNET.build(block()), []
    run = model.llm_block.forward
    model.llm_block.forward = lambda *args, **kwargs: seen.append(run(*args, **kwargs)) or seen[-1]
    VECTORNET.output_of(model)
    assert seen[-1].shape[1] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 15}, "hidden_size is 15; it must be even"),
        ({"num_attention_heads": 5}, "a multiple of num_attention_heads, 5"),
        ({"num_vector_features": 3}, "num_vector_features is 3; a vector has at least start and end"),
        ({"node_completion_weight": -1.0}, "node_completion_weight is -1.0"),
        ({"node_completion_ratio": 1.0}, "node_completion_ratio 1.0; the weight is not negative, the share between"),
        ({"trajectory_loss": "l1"}, "trajectory_loss"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VectorNetWithLLMBlockConfig(**{**VECTORNET.fields, **fields})


def test_an_output_of_zero_is_constant_velocity(block):
    """The velocity is that of the target's last vector that is real."""
    model, inputs = VECTORNET.build(block(), add_constant_velocity=True), VECTORNET.inputs(2)
    inputs["vector_mask"][1, 0, 3:] = 0
    last = inputs["polyline_vectors"][[0, 1], 0, [4, 2]]
    with torch.no_grad():
        difference = model(**inputs).trajectories
        model.config.add_constant_velocity = False
        difference -= model(**inputs).trajectories
    steps = torch.arange(1, 7)[:, None] * (last[:, 2:4] - last[:, :2])[:, None]
    torch.testing.assert_close(difference, steps[:, None].expand_as(difference), rtol=0, atol=1e-5)


@torch.no_grad()
def test_scaled_coordinates_are_read_by_the_subgraph_alone():
    plain, scaled = (VECTORNET.build(None, coordinate_scale=scale).double() for scale in (1.0, 0.25))
    vectors = VECTORNET.inputs(2)["polyline_vectors"].double()
    smaller = torch.cat([vectors[..., :4] / 4, vectors[..., 4:]], dim=-1)
    mask = torch.ones(vectors.shape[:3], dtype=torch.bool)
    (nodes, identifiers), (expected, _) = scaled.vectornet.embed(vectors, mask), plain.vectornet.embed(smaller, mask)
    torch.testing.assert_close(nodes, expected)
    torch.testing.assert_close(identifiers, plain.vectornet.embed(vectors, mask)[1])
    assert not torch.allclose(nodes, plain.vectornet.embed(vectors, mask)[0])
