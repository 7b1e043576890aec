# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The block equals hand-written float64 references, in outputs and gradients; norms and softmax in float64 too."""

import copy

import pytest
import references
import torch
from llm_files import write_llm
from references import relative_error
from tiny_llms import NO_FINAL_NORM, decoder_stack, final_norm, tiny_config, tiny_llm
from transformers import AutoModel, AutoModelForCausalLM

from hf_frozen_llm import LLMBlock, LLMBlockConfig


WIDTH, TOKENS = 20, 7
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def full_precision():
    with references.transformers_in_full_precision():
        yield


def build(folder, attn_implementation="sdpa", dtype=torch.float64, **fields):
    config = LLMBlockConfig(**{"llm_name_or_path": folder, "layer_index": 1, "hidden_size": WIDTH, **fields})
    torch.manual_seed(0)
    return AutoModel.from_config(config, attn_implementation=attn_implementation).eval().to(dtype)


def reference(block, llm, family, x, mask=None):
    """The block's function, written by hand, on the block's own projections and the LLM's weights.

    Returns the output and {name: tensor that takes part in autograd} under the block's parameter names.
    """
    config, fields = llm.config, block.config
    tensors = {
        "input_projection.weight": block.input_projection.weight.detach().clone().requires_grad_(),
        "output_projection.weight": block.output_projection.weight.detach().clone().requires_grad_(),
    }
    indices = fields.layer_index if isinstance(fields.layer_index, list) else [fields.layer_index]
    stack = decoder_stack(llm)[0]
    layers, causal = [], fields.attention == "causal"
    for position, index in enumerate(indices):
        weights = {k: v.double().clone().requires_grad_() for k, v in stack[index].state_dict().items()}
        tensors.update({f"llm_layers.{position}.{k}": v for k, v in weights.items()})
        if family.startswith("opt"):
            layers.append(
                lambda h, w=weights: references.opt_layer(
                    h, w, config.num_attention_heads, mask, causal, config.do_layer_norm_before
                )
            )
        else:
            theta = config.rope_parameters["rope_theta"] if fields.rotary else None
            layers.append(
                lambda h, w=weights, theta=theta: references.llama_layer(
                    h,
                    w,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.rms_norm_eps,
                    mask,
                    causal,
                    theta,
                )
            )
    norm = None
    if fields.final_norm != "none":
        width = config.hidden_size
        weight, bias = torch.ones(width).double(), torch.zeros(width).double()
        if fields.final_norm == "pretrained":
            state = final_norm(llm).state_dict()
            weight, bias = state["weight"].double(), state.get("bias", bias).double()
        if family.startswith("opt"):
            norm = lambda h: references.layer_norm(h, weight, bias)  # noqa: E731
        else:
            norm = lambda h: references.rms_norm(h, weight, config.rms_norm_eps)  # noqa: E731
    out = references.block(
        x, tensors["input_projection.weight"], tensors["output_projection.weight"], layers, norm, fields.residual
    )
    return out, tensors


def compare(block, llm, family, mask=None, tolerance=TOLERANCE, trainable=False):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, TOKENS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    x_reference = x.detach().clone().requires_grad_()
    expected, tensors = reference(block, llm, family, x_reference, mask)
    out = block(x) if mask is None else block(x, attention_mask=mask)
    keep = torch.ones(3, TOKENS, dtype=torch.bool) if mask is None else mask.bool()
    assert relative_error(out[keep], expected[keep]) < tolerance
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64) * keep[..., None]
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert relative_error(x.grad, x_reference.grad) < tolerance
    parameters = dict(block.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith("llm_layers") and not trainable:
            assert parameters[name].grad is None
        else:
            scale = tensor.grad.abs().max()
            # a key bias cancels in the softmax: its gradient is zero up to rounding
            if scale < 1e-8:
                assert parameters[name].grad.abs().max() < 1e-8, name
            else:
                assert relative_error(parameters[name].grad, tensor.grad) < tolerance, name


def padding_mask():
    mask = torch.ones(3, TOKENS, dtype=torch.long)
    mask[0, 4:] = 0
    mask[1, 1] = 0
    return mask


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_layer(family, attn_implementation, masked, attention, llm_folder):
    llm, folder = llm_folder(family)
    block = build(folder, attn_implementation, attention=attention)
    mask = padding_mask() if masked else None
    compare(block, llm, family, mask)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("norm", ["unit", "pretrained", "none"])
@pytest.mark.parametrize("residual", ["none", "inner", "outer", "hybrid"])
def test_norms_and_residuals(family, norm, residual, llm_folder):
    llm, folder = llm_folder(family)
    compare(build(folder, final_norm=norm, residual=residual), llm, family, padding_mask())


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("masked", [False, True])
def test_rotary(attn_implementation, attention, masked, llm_folder):
    llm, folder = llm_folder("llama")
    block = build(folder, attn_implementation, rotary=True, attention=attention)
    compare(block, llm, "llama", padding_mask() if masked else None)
    # positions do something
    x = torch.randn(1, TOKENS, WIDTH).double()
    with torch.no_grad():
        assert relative_error(block(x), build(folder, attn_implementation, attention=attention)(x)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("indices", [[0, 1], [2, 0], [0, 1, 2]])
def test_several_layers(family, indices, llm_folder):
    llm, folder = llm_folder(family)
    compare(build(folder, layer_index=indices, residual="inner"), llm, family, padding_mask())


@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m"])
def test_trainable_layer(family, llm_folder):
    llm, folder = llm_folder(family)
    block = build(folder, trainable=True)
    assert all(p.requires_grad for n, p in block.named_parameters() if "llm_layers" in n)
    assert all(p.requires_grad for p in block.train().llm_layers.parameters())
    block.eval()
    compare(block, llm, family, padding_mask(), trainable=True)
    # the neutral norm is a constant of the method, not a part of the layer
    assert not any(p.requires_grad for n, p in block.named_parameters() if "final_norm" in n)


def test_trainable_layer_with_its_own_norm(llm_folder):
    _, folder = llm_folder("llama")
    block = build(folder, trainable=True, final_norm="pretrained")
    assert all(p.requires_grad for p in block.parameters())


def test_everything_at_once(llm_folder):
    llm, folder = llm_folder("llama")
    block = build(
        folder,
        layer_index=[-1, 0],
        rotary=True,
        attention="causal",
        final_norm="pretrained",
        residual="hybrid",
        trainable=True,
    )
    compare(block, llm, "llama", padding_mask(), trainable=True)


@pytest.mark.parametrize("fast", [True, False])
def test_fast_and_plain(fast, llm_folder):
    llm, folder = llm_folder("llama")
    compare(build(folder, fast=fast), llm, "llama", padding_mask())


@pytest.mark.parametrize("layer_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("norm", ["unit", "pretrained", "none"])
def test_layer_dtype(layer_dtype, norm, llm_folder):
    llm, folder = llm_folder("llama")
    block = build(folder, dtype=None, layer_dtype=layer_dtype, final_norm=norm)
    low = getattr(torch, layer_dtype)
    assert {p.dtype for p in block.llm_layers.parameters()} == {low}
    assert block.input_projection.weight.dtype == block.output_projection.weight.dtype == torch.float32
    x = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    out = block(x)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().max() > 0
    plain = build(folder, dtype=torch.float32, final_norm=norm)
    plain.load_state_dict({k: v.float() for k, v in block.state_dict().items()})
    with torch.no_grad():
        assert relative_error(out, plain(x)) < 0.05
    expected = decoder_stack(llm)[0][1].state_dict()
    for name, tensor in block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, expected[name].to(low))


def test_layer_dtype_wins_over_from_pretrained(llm_folder, tmp_path):
    _, folder = llm_folder("llama")
    build(folder, dtype=None, layer_dtype="bfloat16").save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.float16, "auto"):
        again = LLMBlock.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in again.llm_layers.parameters()} == {torch.bfloat16}
        if dtype != "auto":
            assert again.input_projection.weight.dtype == dtype
    low = LLMBlock.from_pretrained(tmp_path, dtype=torch.float16)
    x = torch.randn(1, TOKENS, WIDTH).half()
    assert low(x).dtype == torch.float16


def test_bfloat16_checkpoint_follows_the_model(tmp_path):
    # the model's dtype, not the LLM's file, says what the layer is
    llm = tiny_llm(tiny_config("llama"), dtype=torch.bfloat16)
    folder = str(write_llm(llm, tmp_path / "llm"))
    config = LLMBlockConfig(llm_name_or_path=folder, layer_index=1, hidden_size=WIDTH)
    block = LLMBlock(config)
    assert {p.dtype for p in block.parameters()} == {torch.float32}
    expected = decoder_stack(llm)[0][1].state_dict()
    for name, tensor in block.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, expected[name].float())


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma", "gpt_neox", "mixtral"])
def test_random_weights_are_the_familys_initialisation(family):
    llm_config = tiny_config(family)
    config = LLMBlockConfig(llm_config=llm_config, layer_index=1, hidden_size=WIDTH, weights="random")
    torch.manual_seed(5)
    block = LLMBlock(config)
    assert block.bytes_read == 0
    torch.manual_seed(6)
    fresh = AutoModelForCausalLM.from_config(tiny_config(family))
    fresh_layer = decoder_stack(fresh)[0][1].state_dict()
    for name, tensor in block.llm_layers[0].state_dict().items():
        other = fresh_layer[name]
        assert torch.isfinite(tensor).all()
        if other.std() == 0:
            # norms and biases start at a constant
            assert torch.equal(tensor, other), name
        else:
            assert abs(tensor.std() / other.std() - 1) < 0.3, name
            assert not torch.equal(tensor, other), name
    assert not any(p.requires_grad for p in block.llm_layers.parameters())
    torch.manual_seed(5)
    again = LLMBlock(LLMBlockConfig(llm_config=llm_config, layer_index=1, hidden_size=WIDTH, weights="random"))
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, block.state_dict()[name])
    assert torch.isfinite(block(torch.randn(2, TOKENS, WIDTH))).all()
    torch.manual_seed(6)
    other = LLMBlock(LLMBlockConfig(llm_config=llm_config, layer_index=1, hidden_size=WIDTH, weights="random"))
    for name, tensor in other.llm_layers[0].state_dict().items():
        assert torch.equal(tensor, block.llm_layers[0].state_dict()[name]) == (tensor.std() == 0), name


def test_random_weights_differ_from_the_llm(llm_folder):
    llm, folder = llm_folder("llama")
    block = build(folder, dtype=torch.float32, weights="random")
    weight = "self_attn.q_proj.weight"
    assert not torch.equal(block.llm_layers[0].state_dict()[weight], decoder_stack(llm)[0][1].state_dict()[weight])
    assert block.bytes_read == 0


@pytest.mark.parametrize(
    "family", ["llama", "gemma", "gemma3_text", "nemotron", "opt", "gpt2", "phi", "cohere", "mpt", "olmo"]
)
def test_unit_norm_is_neutral(family, llm_folder):
    """The norm gives every token mean square 1, for any stored value of a neutral weight (Gemma: 0)."""
    _, folder = llm_folder(family)
    block = build(folder, attn_implementation=None, dtype=torch.float32, final_norm="unit")
    hidden = 3 * torch.randn(2, TOKENS, block.output_projection.in_features)
    out = block.final_norm(hidden)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, TOKENS), rtol=1e-3, atol=1e-3)
    before = copy.deepcopy(block.final_norm.state_dict())
    block.train().final_norm(hidden.requires_grad_()).sum().backward()
    for name, tensor in block.final_norm.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("family", ["llama", "gemma", "opt", "gpt2", "bloom", "phi", "mpt"])
def test_pretrained_norm_is_the_llms(family, llm_folder):
    llm, folder = llm_folder(family)
    block = build(folder, attn_implementation=None, dtype=torch.float32, final_norm="pretrained")
    expected = final_norm(llm).state_dict()
    assert block.final_norm.state_dict().keys() == expected.keys()
    for name, tensor in block.final_norm.state_dict().items():
        assert torch.equal(tensor, expected[name])
    hidden = torch.randn(2, TOKENS, block.output_projection.in_features)
    torch.testing.assert_close(block.final_norm(hidden), final_norm(llm)(hidden))


@pytest.mark.parametrize("family", sorted(NO_FINAL_NORM))
def test_llm_without_final_norm(family, llm_folder):
    _, folder = llm_folder(family)
    with pytest.raises(ValueError, match="final_norm"):
        build(folder, final_norm="pretrained")
    x = torch.randn(2, TOKENS, WIDTH).double()
    for norm in ("unit", "none"):
        assert torch.isfinite(build(folder, final_norm=norm)(x)).all()


@pytest.mark.parametrize("family", ["opt", "gpt2", "bloom", "mpt"])
def test_rotary_on_an_llm_without_rotary(family, llm_folder):
    with pytest.raises(ValueError, match="rotary"):
        build(llm_folder(family)[1], attn_implementation=None, rotary=True)


@pytest.mark.parametrize(
    "family", ["llama", "llama_yarn", "qwen3", "gemma3_text", "phi", "gpt_neox", "gptj", "deepseek_v3", "gpt_oss"]
)
def test_rotary_is_the_familys(family, llm_folder):
    """With rotary positions and a causal mask, the layer computes the same as inside its LLM."""
    llm, folder = llm_folder(family)
    width = llm.config.hidden_size
    block = build(
        folder, "eager", dtype=torch.float32, hidden_size=width, rotary=True, attention="causal", final_norm="none"
    )
    for projection in (block.input_projection, block.output_projection):
        projection.weight.data = torch.eye(width)
    llm = copy.deepcopy(llm)
    llm.set_attn_implementation("eager")
    seen = []
    layer = decoder_stack(llm)[0][1]
    hooks = [
        layer.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        layer.register_forward_hook(lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)),
    ]
    with torch.no_grad():
        llm(torch.randint(3, 60, (2, TOKENS)), use_cache=False)
        for hook in hooks:
            hook.remove()
        assert relative_error(block(seen[0]), seen[1]) < 1e-5
