# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""mmTransformer with an LLM block: the numbers of the released modules, the paper's losses, padding, and options."""

import json

import pytest
import torch
from motion_cases import MMTRANSFORMER
from paths import shared_dir
from references import relative_error
from safetensors.torch import load_file
from transformers import AutoModel

from hf_frozen_llm import (
    MMTransformerWithLLMBlockConfig,
    MMTransformerWithLLMBlockForMotionForecasting,
    MMTransformerWithLLMBlockModel,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.conversion import convert_released_checkpoint, read_released_checkpoint
from hf_frozen_llm.modeling.motion_forecasting import MotionErrors, confidence_loss


TASK = "motion-forecasting"


@pytest.fixture(scope="module")
def released():
    return load_file(shared_dir() / "fixtures/motion/official_mmtransformer_tiny.safetensors")


@pytest.fixture(scope="module")
def state(released):
    prefix = "state_dict."
    return {name.removeprefix(prefix): tensor for name, tensor in released.items() if name.startswith(prefix)}


def convert(state, **fields):
    return convert_released_checkpoint({"state_dict": state}, TASK, num_attention_heads=2, **fields)


def inputs_of(released):
    agents, lanes = released["input.VALID_LEN"].unbind(1)
    return {
        "agent_history": released["input.HISTORY"],
        "agent_positions": released["input.POS"],
        "lanes": released["input.LANE"],
        "agent_mask": torch.arange(4) < agents[:, None],
        "lane_mask": torch.arange(5) < lanes[:, None],
    }


def assert_close(ours, theirs, name=""):
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_numbers_of_the_released_modules(released, state):
    model, inputs = convert(state), inputs_of(released)
    assert type(model) is MMTransformerWithLLMBlockForMotionForecasting and not model.training
    with torch.no_grad():
        out = model(**inputs)
    assert out.trajectories.shape == (3, 6, 30, 2) and out.scores.shape == (3, 6)
    assert_close(out.trajectories, released["output.trajectories"][:, 0])
    assert_close(out.scores, released["output.confidence"][:, 0])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_intermediate_numbers_of_the_released_modules(attn, released, state):
    """Of all agents and lanes, not of the target alone."""
    model, inputs = convert(state), inputs_of(released)
    model.set_attn_implementation(attn)
    host, seen = model.mmtransformer, {}
    lane_mask, agent_mask = inputs["lane_mask"], inputs["agent_mask"]
    modules = {
        "inter.lane_features": host.lane_embeddings.subgraph,
        "inter.lane_embedded": host.lane_embeddings,
        "inter.motion_proposals": host.motion_extractor,
        "inter.position_features": host.position_fc2,
        "inter.fused_proposals": host.proposal_fusion,
        "inter.map_proposals": host.lane_decoder,
        "inter.agent_summary": host.agent_summary,
        "inter.social_input": host.agent_fusion,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    host.lane_encoder.register_forward_hook(lambda m, args, out: seen.update({"inter.lane_memory": out[-1][0]}))
    host.social_layers[-1].register_forward_hook(
        lambda m, args, out: seen.update({"inter.social_memory": out[0][:, :4]})
    )
    with torch.no_grad():
        model(**inputs)
    for name, ours in seen.items():
        expected = released[name]
        mask = lane_mask if name.startswith("inter.lane") else agent_mask
        assert_close(ours.reshape(expected.shape)[mask], expected[mask], name)


def test_gradients_of_the_released_modules(released, state):
    """In float64, so that only the rounding of the released numbers counts."""
    model, inputs = convert(state).double(), inputs_of(released)
    for name in ("agent_history", "agent_positions", "lanes"):
        inputs[name] = inputs[name].double().requires_grad_()
    out = model(**inputs)
    truth = released["input.FUTURE"][:, 0, :, :2].cumsum(1)
    value = (out.trajectories - truth[:, None]).square().mean() + (out.scores * torch.arange(1, 7)).mean()
    value.backward()
    assert_close(value, released["grad.scalar"].squeeze())
    assert_close(inputs["agent_history"].grad, released["grad.input.HISTORY"])
    assert_close(inputs["agent_positions"].grad, released["grad.input.POS"])
    # The repeated points of lane 1 are ties of the maximum, whose gradient may be split.
    kept = [0, 2, 3, 4]
    assert_close(inputs["lanes"].grad[:, kept], released["grad.input.LANE"][:, kept])
    converted = read_released_checkpoint({"state_dict": state}, TASK, num_attention_heads=2)
    ours = {released_name: model.get_parameter(name).grad for name, released_name in converted.sources.items()}
    names = [name for name in released if name.startswith("grad.") and not name.startswith(("grad.input", "grad.sca"))]
    assert len(names) > 3
    for name in names:
        assert relative_error(ours[name.removeprefix("grad.")], released[name]) < 1e-5, name


def test_names_and_shapes_of_the_published_size():
    file = shared_dir() / "fixtures/motion/mmtransformer_full_state_dict_shapes.json"
    shapes = json.loads(file.read_text())
    full = {name: torch.zeros(shape) for name, shape in shapes.items()}
    converted = read_released_checkpoint({"state_dict": full}, TASK, num_attention_heads=2)
    default = MMTransformerWithLLMBlockConfig()
    assert converted.config.to_diff_dict() == default.to_diff_dict()
    model = MMTransformerWithLLMBlockForMotionForecasting(default)
    assert {name: t.shape for name, t in model.state_dict().items()} == {
        name: t.shape for name, t in converted.tensors.items()
    }
    assert sum(p.numel() for p in model.parameters()) == 2_208_989
    assert set(converted.sources.values()) | set(converted.left_out) == set(full)
    assert {name.split(".")[1] for name in converted.left_out} == {"hist_tf", "social_dec", "prediction_header"}


def test_the_social_decoder_of_the_checkpoint(released, state):
    """It is left out, as the released forward does, or converted; then the proposals attend to the other agents."""
    plain, model = convert(state), convert(state, num_social_decoder_layers=2)
    inputs, seen = inputs_of(released), {}
    decoder = model.decoder.social_decoder
    decoder.register_forward_hook(lambda module, args, out: seen.update(args=args, out=out))
    with torch.no_grad():
        assert (model(**inputs).trajectories - plain(**inputs).trajectories).abs().max() > 0.1
        (proposals, agents, mask), decoded = seen["args"], seen["out"]
        assert_close(proposals, released["inter.map_proposals"][:, 0])
        assert_close(agents[mask], released["inter.social_memory"][mask])
        for scene in range(3):
            alone = decoder(proposals[scene : scene + 1], agents[scene : scene + 1, mask[scene]])
            assert_close(alone[0], decoded[scene])
    with pytest.raises(ValueError, match="num_social_decoder_layers is given as 3, but the checkpoint's tensors show"):
        convert(state, num_social_decoder_layers=3)


def test_file_and_command(released, state, tmp_path, capsys):
    torch.save({"state_dict": state}, tmp_path / "demo.pt")
    command = ["convert", str(tmp_path / "demo.pt"), "--task", TASK, "--output", str(tmp_path / "out")]
    main([*command, "--num-attention-heads", "2"])
    printed = capsys.readouterr().out
    assert "stacked_transformer.query_embed.weight -> mmtransformer.motion_extractor.queries (6, 16)" in printed
    assert "social_dec.norm.weight: left out, not used by the released code; num_social_decoder_layers" in printed
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert_close(outputs(model, inputs_of(released)), outputs(convert(state), inputs_of(released)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"surprise": torch.zeros(2)},
            r"a released mmTransformer does not have: \['surprise",
        ),
        (lambda s: {n: t for n, t in s.items() if ".fusion2.3." not in n}, "lacks tensors that the model needs"),
        (lambda s: {n: t for n, t in s.items() if ".pos_emb.0." not in n}, r"lacks stacked_transformer\.pos_emb\.0"),
    ],
)
def test_bad_checkpoints_are_refused(change, message, state):
    with pytest.raises(ValueError, match=message):
        convert(change(state))
    with pytest.raises(ValueError, match=r"do not show num_attention_heads: give it \(2 in the released models\)"):
        convert_released_checkpoint(state, TASK)
    with pytest.raises(ValueError, match="is of motion-forecasting, not of image-classification"):
        convert_released_checkpoint(state, "image-classification", num_attention_heads=2)


def test_checkpoint_gets_a_block(state, block):
    """The host's weights are the released ones; those of the block are new."""
    model = convert(state, llm_block=block())
    assert model.llm_block.bytes_read > 0
    plain = convert(state)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


# The losses of the paper


@pytest.fixture(scope="module")
def paper():
    return json.loads((shared_dir() / "fixtures/motion/rts_losses_from_paper_formulas.json").read_text())


def test_losses_of_the_paper(paper):
    """With region 2 of 3 for every scene; the proposals of a region are consecutive."""
    offsets, logits = (torch.tensor(paper[name]) for name in ("step_offsets", "confidence_logits"))
    labels = torch.tensor(paper["ground_truth_offsets"]).cumsum(1)
    config = MMTransformerWithLLMBlockConfig(
        **{**MMTRANSFORMER.fields, "num_proposals": 12, "num_future_steps": 8},
        region_centers=[[1000.0, 0.0], [-1000.0, 0.0], [0.0, 0.0]],
    )
    model = MMTransformerWithLLMBlockForMotionForecasting(config)
    with torch.no_grad():
        model.decoder.loss_scales.copy_(torch.tensor(paper["sigma"]))
    loss = model._compute_loss(MotionErrors(offsets, labels), logits)
    torch.testing.assert_close(loss.item(), paper["total_with_batch_means"], rtol=0, atol=1e-6)
    plain = MMTransformerWithLLMBlockForMotionForecasting(
        MMTransformerWithLLMBlockConfig(**{**MMTRANSFORMER.fields, "num_proposals": 12, "num_future_steps": 8})
    )
    vanilla = plain._compute_loss(MotionErrors(offsets, labels), logits)
    scenes = paper["per_scene"]
    expected = sum(scene["vanilla_reg"] + scene["vanilla_KL_over_all_K"] / 12 for scene in scenes) / 3
    torch.testing.assert_close(vanilla.item(), expected, rtol=0, atol=1e-6)
    errors = MotionErrors(offsets, labels)
    assert errors.at_the_end().argmin(1).tolist() == [scene["vanilla_best_proposal"] for scene in scenes]
    divergence = confidence_loss(logits, errors.at_the_end()) * 12
    torch.testing.assert_close(divergence, torch.tensor([scene["vanilla_KL_over_all_K"] for scene in scenes]))


def test_region_based_training_learns_its_weights(block):
    model = MMTRANSFORMER.build(block(), num_proposals=6, region_centers=[[0.0, 5.0], [5.0, 0.0]]).train()
    MMTRANSFORMER.loss_of(model).backward()
    assert (model.decoder.loss_scales.grad != 0).all()
    assert MMTRANSFORMER.build(None).decoder.loss_scales is None


def test_unknown_future_steps_count_nowhere(block):
    """NaN is unknown; the offset after an unknown step is unknown, too."""
    model, inputs = MMTRANSFORMER.build(block()), MMTRANSFORMER.inputs(2)
    labels = MMTRANSFORMER.targets(2)["labels"]
    whole = model(**inputs, labels=labels)
    first = model(**{name: tensor[:1] for name, tensor in inputs.items()}, labels=labels[:1]).loss
    labels[1] = float("nan")  # a scene without a future, as in a test split
    torch.testing.assert_close(model(**inputs, labels=labels).loss, first)
    assert model(**inputs, labels=torch.full_like(labels, float("nan"))).loss == 0
    shorter = labels[:1].clone()
    shorter[:, 4:] = float("nan")
    offsets = whole.trajectories[:1].diff(dim=2, prepend=torch.zeros(1, 3, 1, 2))
    errors, truncated = MotionErrors(offsets, shorter), MotionErrors(offsets[:, :, :4], shorter[:, :4])
    torch.testing.assert_close(errors.of_offsets("huber"), truncated.of_offsets("huber"))
    torch.testing.assert_close(errors.at_the_end(), truncated.at_the_end())
    shorter[:, 1] = float("nan")
    assert MotionErrors(offsets, shorter).known_offsets[0].tolist() == [True, False, False, True] + [False] * 2


def test_wrong_labels_are_refused(block):
    model, inputs = MMTRANSFORMER.build(block()), MMTRANSFORMER.inputs(2)
    with pytest.raises(ValueError, match=r"labels has the shape \(2, 5, 2\); it must be .* \(2, 6, 2\)"):
        model(**inputs, labels=torch.zeros(2, 5, 2))


# Padding, lanes, tokens of the block

every_choice = pytest.mark.parametrize("tokens", ["agents_and_lanes", "proposals_and_lanes"])


def outputs(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return torch.cat([out.trajectories.flatten(1), out.scores], dim=1)


@every_choice
@pytest.mark.parametrize("with_block", [True, False])
def test_padding_changes_nothing(tokens, with_block, block):
    model = MMTRANSFORMER.build(block() if with_block else None, llm_block_tokens=tokens, num_social_decoder_layers=1)
    inputs = MMTRANSFORMER.inputs(1)
    agents, lanes = inputs["agent_mask"][0].bool(), inputs["lane_mask"][0].bool()
    inputs = {name: tensor[:, lanes if name.startswith("lane") else agents] for name, tensor in inputs.items()}
    expected = outputs(model, inputs)
    padded = {}
    for name, tensor in inputs.items():
        padding = torch.zeros_like(tensor) if "mask" in name else 7 * torch.randn_like(tensor)
        padded[name] = torch.cat([tensor, padding], dim=1)
    torch.testing.assert_close(outputs(model, padded), expected, rtol=1e-5, atol=2e-6)


@every_choice
def test_order_of_agents_and_lanes_changes_nothing(tokens, block):
    model = MMTRANSFORMER.build(block(), llm_block_tokens=tokens)
    inputs = MMTRANSFORMER.inputs(2)
    orders = {"agent": [0, 2, 1], "lane": [3, 1, 0, 2]}
    permuted = {
        name: tensor[:, orders["lane" if name.startswith("lane") else "agent"]] for name, tensor in inputs.items()
    }
    torch.testing.assert_close(outputs(model, permuted), outputs(model, inputs), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("with_block", [True, False])
def test_a_scene_without_lanes(with_block, block):
    """It is the same alone, without any lane, and beside a scene with lanes, whatever the padding holds."""
    model = MMTRANSFORMER.build(block() if with_block else None)
    inputs = MMTRANSFORMER.inputs(2)
    inputs["lane_mask"][1] = 0
    agents = {name: tensor[1:] for name, tensor in inputs.items() if "lane" not in name}
    alone = [
        outputs(model, agents),
        outputs(model, {**agents, "lanes": inputs["lanes"][1:, :0], "lane_mask": inputs["lane_mask"][1:, :0]}),
        outputs(model, {**agents, "lanes": inputs["lanes"][1:], "lane_mask": inputs["lane_mask"][1:]}),
    ]
    for change in (0, 9):
        inputs["lanes"][1] += change
        alone.append(outputs(model, inputs)[1:])
    for result in alone:
        torch.testing.assert_close(result, alone[0], rtol=1e-5, atol=2e-6)
    inputs["lane_mask"][1] = 1
    assert (outputs(model, inputs)[1:] - alone[0]).abs().max() > 1e-3
    model.train()(**agents, labels=torch.zeros(1, 6, 2)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_choice
def test_only_the_tokens_that_the_head_uses_are_computed(tokens, block):
    model, inputs = MMTRANSFORMER.build(block(), llm_block_tokens=tokens), MMTRANSFORMER.inputs(2)
    expected, seen = outputs(model, inputs), []
    run = model.llm_block.forward
    model.llm_block.forward = lambda *args, **kwargs: seen.append(run(*args, **kwargs)) or seen[-1]
    outputs(model, inputs)
    assert seen[-1].shape[1] == {"agents_and_lanes": 1, "proposals_and_lanes": 3}[tokens]
    model.config.output_hidden_states = True
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=2e-6)
    assert seen[-1].shape[1] == {"agents_and_lanes": 3 + 4, "proposals_and_lanes": 3 * 3 + 4}[tokens]


def test_block_on_proposals_and_lanes(block):
    """By hand: the block sees every agent's proposals, then the lanes; the head gets the target's proposals."""
    fields = {"llm_block_tokens": "proposals_and_lanes"}
    model, inputs = MMTRANSFORMER.build(block(), **fields), MMTRANSFORMER.inputs(2)
    base = MMTRANSFORMER.build(block(), MMTransformerWithLLMBlockModel, **fields)
    base.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")})
    with torch.no_grad():
        tokens, proposals = model.mmtransformer.encode(*model.mmtransformer.complete_inputs(**inputs))
        mask = torch.cat([inputs["agent_mask"].repeat_interleave(3, 1), inputs["lane_mask"]], 1)
        after = model.llm_block(torch.cat([proposals.flatten(1, 2), tokens[:, 3:]], 1), mask)
        out = base(**inputs)
        torch.testing.assert_close(out.proposals.flatten(1, 2), after[:, :9], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.last_hidden_state, torch.cat([tokens[:, :3], after[:, 9:]], 1))
        offsets, logits = model.decoder(tokens[:, 0], after[:, :3])
    expected = torch.cat([offsets.cumsum(-2).flatten(1), logits.softmax(-1)], 1)
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=2e-6)


def test_attentions_of_agents_and_lanes(block):
    """Neither attends to the other before the block, nor to padding."""
    model = MMTRANSFORMER.build(block(), attn_implementation="eager")
    inputs = MMTRANSFORMER.inputs(2)
    with torch.no_grad():
        *host, of_llm = model(**inputs, output_attentions=True).attentions
    mask = torch.cat([inputs["agent_mask"], inputs["lane_mask"]], 1).bool()
    for attention in host:
        assert (attention[:, :, :3, 3:] == 0).all() and (attention[:, :, 3:, :3] == 0).all()
    for attention in (*host, of_llm):
        assert (attention.transpose(1, 3)[~mask] == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 15, "num_attention_heads": 3}, "hidden_size is 15; it must be even and a multiple"),
        ({"num_attention_heads": 5}, "hidden_size is 24; .* a multiple of num_attention_heads, 5"),
        ({"region_centers": []}, r"region_centers is \[\]; give a list of \[x, y\]"),
        ({"region_centers": [[1.0]]}, r"region_centers is \[\[1\.0\]\]"),
        ({"region_centers": [[0.0, 1.0], [1.0, 0.0]]}, "num_proposals is 3; it must be a multiple .* regions, 2"),
        ({"llm_block_tokens": "lanes"}, "llm_block_tokens"),
        ({"llm_block": {"llm_name_or_path": "x", "position": 1}}, r"llm_block\.position is 1; an mmTransformer has"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MMTransformerWithLLMBlockConfig(**{**MMTRANSFORMER.fields, **fields})


def test_initialisation():
    model = MMTransformerWithLLMBlockForMotionForecasting(MMTransformerWithLLMBlockConfig(num_proposals=4))
    queries = model.mmtransformer.motion_extractor.queries
    torch.testing.assert_close(queries @ queries.T, torch.eye(4), rtol=0, atol=1e-5)
    weight = model.decoder.trajectory_fc1.weight
    bound = (6 / (256 + 256)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert not model.decoder.trajectory_fc1.bias.any()


def test_an_output_of_zero_is_constant_velocity(block):
    model, inputs = MMTRANSFORMER.build(block(), add_constant_velocity=True), MMTRANSFORMER.inputs(2)
    with torch.no_grad():
        difference = model(**inputs).trajectories
        model.config.add_constant_velocity = False
        difference -= model(**inputs).trajectories
    steps = torch.arange(1, 7)[:, None] * inputs["agent_history"][:, 0, -1, :2][:, None]
    torch.testing.assert_close(difference, steps[:, None].expand_as(difference), rtol=0, atol=1e-5)
