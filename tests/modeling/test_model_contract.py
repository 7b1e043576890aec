# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Outputs and training of every model of the package, for any task: the models are the cases of model_cases.py.
Loading and saving are in test_model_files_contract.py.
"""

import contextlib
import copy
import re

import pytest
import torch
from model_case import host_of
from model_cases import CASES, CONTROLS, PROJECTIONS, assert_same_state, cases, frozen_names, names_of_layer
from references import relative_error, transformers_in_full_precision
from tiny_llms import randomize


# Heads in the host of every case, and in the LLM.
HOST_HEADS, LLM_HEADS = 2, 4
every_case = cases()
every_position = pytest.mark.parametrize(
    ("case", "position"),
    [pytest.param(c, position, id=f"{name}-{position}") for name, c in CASES.items() for position in c.positions],
)
every_control = pytest.mark.parametrize("control", CONTROLS)
either_attention = pytest.mark.parametrize("attn", ["sdpa", "eager"])
case_with_positions = cases(lambda case: len(case.positions) > 1)
case_with_loss = cases(lambda case: case.targets(1))
vit_row = pytest.mark.host_table("equals AutoModel", host="vit_class")


# The host without a block


def assert_runs_as(model, plain, inputs, names, loss, attn):
    """The outputs of these names, hidden states, attentions and gradients, bit for bit."""
    flags = {"output_hidden_states": True, "output_attentions": attn == "eager"}
    out, expected = (called(**inputs, **flags) for called in (model, plain))
    assert all(torch.equal(out[name], expected[name]) for name in names)
    for name in ("hidden_states", "attentions") if attn == "eager" else ("hidden_states",):
        assert len(out[name]) == len(expected[name]) >= model.config.num_hidden_layers
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(out[name], expected[name]))
    loss(out).backward()
    loss(expected).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        ours = gradients[name] if name in gradients else gradients[f"{model.base_model_prefix}.{name}"]
        assert ours is parameter.grad is None or torch.equal(ours, parameter.grad), name
    return out, expected


@either_attention
@every_case
def test_without_a_block_it_is_its_host(case, attn):
    model = case.build(None, case.base_class, attn_implementation=attn)
    assert model.llm_block is None and not any("llm_block" in name for name in model.state_dict())
    host = copy.deepcopy(host_of(model))
    assert_runs_as(
        model, host, case.inputs(2), ["last_hidden_state"], lambda out: out.last_hidden_state.square().sum(), attn
    )


@pytest.mark.parametrize("way", ["published", "config"])
@either_attention
@cases(lambda case: case.plain_class, vit=vit_row)
def test_without_a_block_it_is_the_class_of_transformers(case, attn, way, block, tmp_path):
    """transformers' class is unchanged: it loads and runs as before after one of ours has been built."""
    config = case.plain_class.config_class(**case.fields)
    plain = randomize(case.plain_class._from_config(config, attn_implementation=attn), seed=1).eval()
    plain.save_pretrained(tmp_path)
    if way == "published":
        model, info = case.model_class.from_pretrained(tmp_path, attn_implementation=attn, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    else:
        model = case.build(None, attn_implementation=attn)
        model.load_state_dict(plain.state_dict())
    inputs = {**case.inputs(2), **case.targets(2)}
    out, expected = assert_runs_as(model, plain, inputs, [case.output, "loss"], lambda out: out.loss, attn)
    assert type(out) is type(expected)
    case.build(block())
    again = case.plain_class.from_pretrained(tmp_path, attn_implementation=attn)
    assert torch.equal(case.output_of(again), expected[case.output])


@every_position
def test_block_that_adds_nothing_leaves_the_host(case, position, block):
    model = case.build(block(position=position, residual="outer"), case.base_class)
    torch.nn.init.zeros_(model.llm_block.output_projection.weight)
    host = case.build(None, case.base_class)
    assert_same_state(host_of(host).state_dict(), host_of(model).state_dict())
    with torch.no_grad():
        out, expected = (called(**case.inputs(2), output_hidden_states=True) for called in (model, host))
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, rtol=1e-6, atol=1e-6)
    place = model.config.num_hidden_layers if position == -1 else position
    states = [*out.hidden_states[: place + 1], *out.hidden_states[place + 2 :]]
    assert len(states) == len(expected.hidden_states)
    for ours, theirs in zip(states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@every_case
def test_same_seed_same_host_with_and_without_block(case, block):
    """The two rows of a comparison start from the same host weights."""
    states = []
    for llm_block in (None, block()):
        torch.manual_seed(3)
        states.append(host_of(case.model_class(case.config_class(**case.fields, llm_block=llm_block))).state_dict())
    assert_same_state(*states)


# The block in its place


@either_attention
@every_position
def test_block_stands_at_its_position(case, position, attn, block):
    """Every hidden state computed by hand; the block adds one, and one attention, at its position."""
    model, inputs, seen = case.build(block(position=position), attn_implementation=attn), case.inputs(2), []
    model.llm_block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=attn == "eager")
        states, count = out.hidden_states, model.config.num_hidden_layers
        place = count if position == -1 else position
        assert len(states) == count + 2 and {state.shape for state in states} == {
            (2, case.num_tokens, model.config.hidden_size)
        }
        ((before, after),) = seen
        assert torch.equal(before, states[place]) and torch.equal(after, states[place + 1])
        torch.testing.assert_close(after, model.llm_block(before, case.token_mask(inputs)), rtol=1e-5, atol=1e-6)
        layers = case.layers(model, inputs)
        assert len(layers) == count or case.positions == (-1,)
        for index, layer in enumerate(layers):
            shift = index >= place
            assert torch.equal(layer(states[index + shift]), states[index + shift + 1])
        assert torch.equal(case.finish(model, states[-1]), out[case.output])
    torch.testing.assert_close(case.output_of(model), out[case.output], rtol=1e-4, atol=1e-5)
    if attn == "eager":
        heads = [HOST_HEADS] * place + [LLM_HEADS] + [HOST_HEADS] * (count - place)
        assert [a.shape for a in out.attentions] == [(2, h, case.num_tokens, case.num_tokens) for h in heads]
        for attention in out.attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))


@case_with_positions
def test_position_minus_one_is_after_the_last(case, block):
    count = case.build(None).config.num_hidden_layers
    assert torch.equal(*(case.output_of(case.build(block(position=position))) for position in (-1, count)))


@case_with_positions
def test_position_outside_the_host_is_refused(case, block):
    count = case.fields["num_hidden_layers"]
    with pytest.raises(ValueError, match=rf"llm_block\.position is {count + 1}; with num_hidden_layers={count}"):
        case.config_class(**case.fields, llm_block=block(position=count + 1))


@cases(lambda case: case.head)
def test_base_model_under_the_head(case, block):
    model = case.build(block())
    base = case.base_class(copy.deepcopy(model.config), **case.base_kwargs).eval()
    names = case.names_of_head(model)
    base.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name not in names})
    with torch.no_grad():
        out = base(**case.inputs(2), output_hidden_states=True)
        assert out.last_hidden_state.shape == (2, case.num_tokens, model.config.hidden_size)
        # The head may request only its own tokens from the block.
        torch.testing.assert_close(
            case.finish(model, out.hidden_states[-1]), case.output_of(model), rtol=1e-5, atol=1e-6
        )


@every_case
def test_outputs_follow_the_config_and_return_dict(case, block):
    model, inputs = case.build(block()), case.inputs(2)
    with torch.no_grad():
        assert model(**inputs).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(**inputs).hidden_states) == model.config.num_hidden_layers + 2
        model.config.output_hidden_states = False
        out = model(**inputs, **case.targets(2))
        as_tuple = model(**inputs, **case.targets(2), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(out.to_tuple())
    assert all(torch.equal(one, other) for one, other in zip(as_tuple, out.to_tuple()))
    assert torch.equal(as_tuple[1 if case.targets(2) else 0], out[case.output])


@every_case
def test_sdpa_equals_eager(case, block):
    outputs = []
    for attn in ("sdpa", "eager"):
        model = case.build(block(), attn_implementation=attn)
        assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {attn}
        outputs.append(case.output_of(model))
    assert relative_error(*outputs) < 1e-5


@pytest.mark.parametrize(
    ("case", "inputs", "patterns"),
    [pytest.param(c, *refused, id=f"{name}-{i}") for name, c in CASES.items() for i, refused in enumerate(c.refused)],
)
@pytest.mark.parametrize("with_block", [True, False])
def test_wrong_inputs_are_refused(case, inputs, patterns, with_block, block):
    model = case.build(block() if with_block else None)
    with pytest.raises(ValueError) as error:
        model(**inputs)
    assert all(re.search(pattern, str(error.value)) for pattern in patterns), error.value


# Training


@every_case
def test_frozen_set(case, block, tmp_path):
    for model_class in {case.model_class, case.base_class}:
        model = case.build(block(), model_class)
        model.save_pretrained(tmp_path)
        for change in (
            lambda m: m,
            lambda m: m.train(),
            copy.deepcopy,
            lambda m: m.to(torch.bfloat16),
            lambda m: m.float(),
            lambda m: m.requires_grad_(True).train(),
            lambda m: copy.deepcopy(m).eval(),
            lambda m: type(m).from_pretrained(tmp_path),
            lambda m: m.train(),
        ):
            model = change(model)
            assert frozen_names(model) == names_of_layer(model) != set()


@pytest.mark.parametrize("layer_dtype", [None, "bfloat16"])
@every_case
def test_gradients_reach_all_but_the_layer(case, layer_dtype, block):
    model = case.build(block(layer_dtype=layer_dtype)).train()
    assert model.dtype == torch.float32
    layer_dtypes = {p.dtype for p in model.llm_block.llm_layers.parameters()}
    assert layer_dtypes == {torch.bfloat16 if layer_dtype else torch.float32}
    assert {p.dtype for p in host_of(model).parameters()} == {torch.float32}
    case.loss_of(model).backward()
    of_layer = names_of_layer(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == (name in of_layer), name
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert PROJECTIONS | (case.names_of_head(model) - case.invariant) <= with_gradient
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.get_input_embeddings().parameters())


@every_case
def test_freeze_host_and_counts(case, block, capsys):
    model = case.build(block())
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for name, p in model.named_parameters() if name in names_of_layer(model))
    assert model.num_parameters() == total
    assert model.num_parameters(only_trainable=True) == total - frozen
    model.print_trainable_parameters()
    line = capsys.readouterr().out
    assert f"{total - frozen:,d}" in line and f"{total:,d}" in line
    model.freeze_host()
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == PROJECTIONS | case.names_of_head(model)
    case.loss_of(model).backward()
    assert all(p.grad is None for p in host_of(model).parameters())


@case_with_loss
def test_learns(case, block):
    """A few steps reduce the loss, and the LLM layer stays as it is."""
    model = case.build(block()).train()
    before = copy.deepcopy(model.llm_block.llm_layers.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = case.loss_of(model, batch=6)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert_same_state(model.llm_block.llm_layers.state_dict(), before)


@case_with_loss
def test_num_items_in_batch_reaches_the_loss(case, block):
    """Trainer counts every element of the labels."""
    model = case.build(block())
    # Trainer counts the entries of the labels.
    scaled = case.loss_of(model, num_items_in_batch=torch.tensor(8))
    torch.testing.assert_close(scaled, case.loss_of(model) * case.targets(2)["labels"].numel() / 8)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
@every_case
def test_fast_path_equals_plain_path(case, dtype, bound, block):
    """The output and every gradient."""
    model = case.build(block()).to(dtype).train()
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in case.inputs(16).items()}
    results = []
    for fast in (True, False):
        model.llm_block.config.fast = fast
        model.zero_grad()
        with transformers_in_full_precision() if dtype == torch.float64 else contextlib.nullcontext():
            outputs = model(**inputs, **case.targets(16))
            (outputs.loss if case.targets(16) else outputs[case.output].square().mean()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        every_gradient = torch.cat([gradient.flatten() for gradient in gradients.values()])
        results.append([outputs[case.output], *(gradients[name] for name in sorted(PROJECTIONS)), every_gradient])
    assert not all(torch.equal(fast_one, plain_one) for fast_one, plain_one in zip(*results)), "one and the same path"
    for fast_one, plain_one in zip(*results):
        assert relative_error(fast_one, plain_one) < bound


@every_control
@every_case
def test_one_switch_says_what_is_trained(case, control, block):
    model = case.build(block(**CONTROLS[control])).train()
    case.loss_of(model).backward()
    trained = {name.partition(".")[0] for name, p in model.llm_block.named_parameters() if p.requires_grad}
    of_control = {"llm_layers"} if model.llm_block.config.trainable else {"mlp_norm"} if control == "MLP" else set()
    of_skip = {"skip_projection"} if model.llm_block.config.residual == "outer_linear" else set()
    assert trained == {"input_projection", "output_projection", *of_control, *of_skip}
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with torch.no_grad():
        states = model.eval()(**case.inputs(2), output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 2
