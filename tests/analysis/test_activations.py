# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The tokens at the tap points equal a naive evaluation of the block, and taking them changes nothing."""

import copy

import peft
import pytest
import references
import torch
from fast_layer_checks import FAMILIES, build_block, keep_float64, padding, weights_of
from llm_files import write_llm
from model_cases import CONTROLS, cases
from references import relative_error, transformers_in_full_precision
from tiny_llms import decoder_stack, tiny_config, tiny_llm
from vision_cases import VIDEOMAE, VISION, VIT

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.analysis import tap_points, token_activations, token_layout
from hf_frozen_llm.modeling.fast_llm_layer import LayerPlan, _attend, _project
from hf_frozen_llm.modeling.llm_layer_call import attention_bias


SINGLE_LAYER = ["host", "input_projection", "attention", "feed_forward", "final_norm", "output_projection"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    llm = tiny_llm(tiny_config("llama"))
    return llm, str(write_llm(llm, tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def block_of(llama):
    return lambda **fields: LLMBlockConfig(**{"llm_name_or_path": llama[1], "layer_index": 1, **fields})


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return lambda family: str(write_llm(tiny_llm(tiny_config(family)), tmp_path_factory.mktemp(family)))


def naive_llama(block, llm, x, mask=None):
    """The tokens at the tap points and the attention probabilities, by hand, from the LLM's own weights."""
    config, w = llm.config, {k: v.double() for k, v in decoder_stack(llm)[0][1].state_dict().items()}
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    states = {"host": x, "input_projection": block.config.input_scale * x @ block.input_projection.weight.T}
    h = states["input_projection"]
    normed = references.rms_norm(h, w["input_layernorm.weight"], eps)
    q = references.heads_of(normed @ w["self_attn.q_proj.weight"].T, heads)
    k = references.heads_of(normed @ w["self_attn.k_proj.weight"].T, config.num_key_value_heads)
    v = references.heads_of(normed @ w["self_attn.v_proj.weight"].T, config.num_key_value_heads)
    if block.config.rotary:
        tables = references.rotary_tables(x.shape[1], q.shape[-1], config.rope_parameters["rope_theta"])
        q, k = references.rotate(q, *tables), references.rotate(k, *tables)
    k, v = (t.repeat_interleave(heads // config.num_key_value_heads, 1) for t in (k, v))
    is_causal, scaling, count = block.config.attention == "causal", q.shape[-1] ** -0.5, x.shape[1]
    # Attending to the rows of the identity matrix returns the probabilities.
    identity = torch.eye(count, dtype=x.dtype).expand(len(x), heads, -1, -1)
    probabilities = references.attend(q, k, identity, scaling, mask, is_causal)
    states["attention"] = h + references.merge(probabilities @ v) @ w["self_attn.o_proj.weight"].T
    states["feed_forward"] = references.llama_layer(
        *(h, w, heads, config.num_key_value_heads, eps, mask, is_causal),
        config.rope_parameters["rope_theta"] if block.config.rotary else None,
    )
    ones = torch.ones(config.hidden_size, dtype=x.dtype)
    states["final_norm"] = references.rms_norm(states["feed_forward"], ones, eps)
    states["output_projection"] = states["final_norm"] @ block.output_projection.weight.T
    return states, probabilities


@pytest.mark.parametrize(
    "fields", [{}, {"attention": "causal"}, {"rotary": True}, {"input_scale": 3.0}], ids=lambda fields: str(fields)
)
def test_equal_to_the_naive_block_in_float64(fields, llama):
    block = build_block(llama[1], dtype=torch.float64, **fields).eval()
    x = torch.randn(3, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mask in (None, padding()) if "attention" not in fields else (None,):
        keep_float64(block)
        with transformers_in_full_precision():
            found = token_activations(block, {"attention_mask": mask, "hidden_states": x}, attention=True)
        expected, probabilities = naive_llama(block, llama[0], x, mask)
        assert list(found.states) == SINGLE_LAYER and found.mask is mask
        keep = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask.bool()
        for name, tokens in expected.items():
            assert relative_error(found.states[name][keep], tokens[keep]) < 1e-10, name
        rows = keep[:, None, :, None].expand_as(probabilities)
        assert relative_error(found.attention[rows], probabilities[rows]) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_attention_of_every_family(family, families):
    """As the fast path computes it: from the heads of its own attention."""
    block = build_block(families(family), dtype=torch.float64).eval()
    keep_float64(block)
    x = torch.randn(3, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with transformers_in_full_precision(), torch.no_grad():
        found = token_activations(block, {"hidden_states": x, "attention_mask": padding()}, attention=True)
        weights, h = weights_of(block), found.states["input_projection"]
        query, key, value = (_project(weights.norm(h), p) for p in (weights.query, weights.key, weights.value))
        cosines = block._caller.cosines(-1)
        cosines = None if cosines is None or not weights.has_rotary else cosines.repeat(weights.rotary_repeats)
        mask = attention_bias(padding(), h, causal=False)
        heads = _attend(LayerPlan(slice(None), weights), query, key, value, mask, cosines)
        stream, _ = weights.feed_forward(h, heads)
        assert relative_error(found.states["attention"], stream) < 1e-10
        assert found.attention.shape == (3, query.shape[2], 9, 9)
        assert found.attention[0, :, :, 4:].abs().max() < 1e-30  # padding
        output = block(x, attention_mask=padding())
    assert relative_error(found.states["output_projection"], output) < 1e-10


@cases()
def test_of_every_model(case, block_of):
    model = case.build(block_of())
    model.train()
    modes = [module.training for module in model.modules()]
    inputs = case.inputs(2)
    model.eval()
    before = case.output_of(model)
    model.train()
    found = token_activations(model, inputs, attention=True)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert torch.equal(case.output_of(model), before)
    assert model.llm_block.config.fast and not model.llm_block._forward_hooks
    assert list(found.states) == SINGLE_LAYER == tap_points(model)
    assert {tokens.shape[:2] for tokens in found.states.values()} == {(2, case.num_tokens)}
    assert found.states["host"].shape == found.states["output_projection"].shape
    with torch.no_grad():
        tokens = model.llm_block(found.states["host"], found.mask)
    torch.testing.assert_close(found.states["output_projection"], tokens, rtol=1e-4, atol=1e-5)
    keep = torch.ones(2, case.num_tokens, dtype=torch.bool) if found.mask is None else found.mask.bool()
    torch.testing.assert_close(found.attention.sum(-1)[keep[:, None].expand(-1, 4, -1)].mean(), torch.tensor(1.0))
    layout = token_layout(model, inputs, case.num_tokens)
    assert layout.num_prefix_tokens + torch.Size(layout.shape).numel() == case.num_tokens
    query = layout.query(found.attention)
    assert query.shape == (2, 4, torch.Size(layout.shape).numel())
    rows = found.attention[:, :, layout.num_prefix_tokens :, layout.num_prefix_tokens :].mean(2)
    first = found.attention[:, :, 0, layout.num_prefix_tokens :]
    torch.testing.assert_close(query, first if layout.reads_first_token else rows)


@pytest.mark.parametrize("name", CONTROLS)
def test_of_every_control(name, block_of):
    model = VIT.build(block_of(**CONTROLS[name]))
    found = token_activations(model, VIT.inputs(2))
    layer = {"MLP": ["mlp"], "projections": [], "identity": ["final_norm"]}
    expected = [*SINGLE_LAYER[:2], *layer.get(name, SINGLE_LAYER[2:5]), "output_projection"]
    assert list(found.states) == expected + (["block"] if "skip" in name else [])
    last = model.vit.layernorm(list(found.states.values())[-1])[:, 0]
    torch.testing.assert_close(model.classifier(last), found.outputs.logits)
    if not len(model.llm_block.llm_layers):
        with pytest.raises(ValueError, match="attention: the block has no LLM layer"):
            token_activations(model, VIT.inputs(2), attention=True)


def test_of_several_layers(block_of, llama):
    model = VIT.build(block_of(layer_index=[0, 1], residual="outer"))
    found = token_activations(model, VIT.inputs(2))
    layers = ["attention_0", "feed_forward_0", "attention_1", "feed_forward_1"]
    assert list(found.states) == [*SINGLE_LAYER[:2], *layers, *SINGLE_LAYER[4:], "block"]
    difference = found.states["block"] - found.states["output_projection"]
    torch.testing.assert_close(difference, found.states["host"])


@pytest.mark.parametrize("case", [VIT, VISION], ids=["vit", "vision"])
def test_of_a_plain_host(case, block_of):
    """Its tokens are those that a block would get, and its attention is that of its last layer."""
    plain, model = case.build(None), case.build(block_of())
    found = token_activations(plain, case.inputs(2), attention=True)
    assert list(found.states) == ["host"] == tap_points(plain)
    expected = token_activations(model, case.inputs(2), at=["host"]).states
    assert torch.equal(token_activations(plain, case.inputs(2)).states["host"], expected["host"])
    torch.testing.assert_close(found.states["host"], expected["host"])  # attention computed in another way
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(2, 2, case.num_tokens))
    assert plain.config._attn_implementation == "sdpa"


def test_what_has_no_tap_points(block_of, families):
    with pytest.raises(ValueError, match=r"has no LLM block, and so no tap points. .*only those of images"):
        token_activations(VIDEOMAE.build(None), VIDEOMAE.inputs(2))
    with pytest.raises(ValueError, match="Linear is not a model of this package"):
        token_activations(torch.nn.Linear(2, 2), {})
    model = VIT.build(block_of())
    with pytest.raises(ValueError, match="values and keys: the model has no such tap point; it has host, input_proj"):
        token_activations(model, VIT.inputs(2), at=["host", "values", "keys"])
    unknown = build_block(families("olmo2"))
    assert tap_points(unknown) == [name for name in SINGLE_LAYER if name != "attention"]
    with pytest.raises(ValueError, match="attention: the model has no such tap point"):
        token_activations(unknown, {"hidden_states": torch.zeros(1, 3, 24)}, at=["attention"])


def test_layout_of_other_sizes(block_of):
    model = VIT.build(block_of(), image_size=16)
    inputs = {"pixel_values": torch.zeros(1, 3, 8, 16), "interpolate_pos_encoding": True}
    count = token_activations(model, inputs, at=["host"]).states["host"].shape[1]
    assert token_layout(model, inputs, count).shape == (2, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit 2 x 4 patches"):
        token_layout(model, inputs, 6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of peft
def test_of_adapted_layers(block_of):
    model = VIT.build(block_of())
    inputs = VIT.inputs(2)
    expected = token_activations(model, inputs).states
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=r"llm_block\..*\.q_proj"))
    found = token_activations(adapted.get_base_model(), inputs).states
    for name, tokens in expected.items():
        torch.testing.assert_close(found[name], tokens)
