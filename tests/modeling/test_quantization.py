# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Frozen layers in 8 and 4 bits: what is stored, what is computed, and what is refused."""

import copy
import json

import peft
import pytest
import torch
from fast_layer_checks import ATTENTION_PLANS, build_block, keep_float64, padding
from llm_block_checks import vit_config
from llm_files import write_llm
from references import relative_error, transformers_in_full_precision
from safetensors.torch import load_file
from tiny_llms import tiny_config, tiny_llm
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockForImageClassification
from hf_frozen_llm.modeling.quantized_linear import GROUP_SIZE, QuantizedLinear, linear, multiply, quantize


BITS = ["int8", "int4"]
every_width = pytest.mark.parametrize("bits", BITS)
PROJECTIONS = ("input_projection.weight", "output_projection.weight")


class Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.name())
        return operation(*args, **(kwargs or {}))


def tiny_vit(llm_block):
    torch.manual_seed(0)
    return ViTWithLLMBlockForImageClassification(vit_config(llm_block=llm_block)).eval()


def linears_of(block):
    return {name: m for name, m in block.llm_layers.named_modules() if isinstance(m, QuantizedLinear)}


def dequantized(block):
    """A copy of the block with `nn.Linear` in place of quantised modules."""
    block = copy.deepcopy(block)
    for name, module in linears_of(block).items():
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        plain.weight = nn.Parameter(module.weight.dequantize(module.scale.dtype), requires_grad=False)
        plain.bias = module.bias
        block.llm_layers.set_submodule(name, plain)
    return block


def integers_of(block):
    return {name: module.values.clone() for name, module in linears_of(block).items()}


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


# One weight.


def reference(weight, bits):
    """The definition, entry by entry."""
    result = torch.empty_like(weight)
    size = weight.shape[1] if bits == "int8" else GROUP_SIZE
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], size):
            group = weight[row, start : start + size].tolist()
            low = 0.0 if bits == "int8" else min(group)
            step = max(map(abs, group)) / 127 if bits == "int8" else (max(group) - low) / 15
            for i, entry in enumerate(group):
                result[row, start + i] = low + step * round((entry - low) / step) if step else low
    return result


@every_width
@pytest.mark.parametrize("width", [1, 31, 32, 33, 70, 128])
def test_values_are_those_of_the_definition(width, bits):
    torch.manual_seed(0)
    weight = torch.randn(5, width, dtype=torch.float64)
    weight[1], weight[2] = 0, -3  # a row of zeros and one of equal values have no range
    quantized = quantize(weight, bits)
    assert quantized.values.dtype == (torch.int8 if bits == "int8" else torch.uint8)
    assert quantized.shape == weight.shape
    torch.testing.assert_close(quantized.dequantize(torch.float64), reference(weight, bits), rtol=1e-12, atol=1e-12)
    step = quantized.scale.repeat_interleave(GROUP_SIZE, dim=1)[:, :width] if bits == "int4" else quantized.scale
    assert ((quantized.dequantize(torch.float64) - weight).abs() <= step / 2 + 1e-12).all()


@every_width
def test_bytes(bits):
    weight = quantize(torch.randn(64, 128, dtype=torch.bfloat16), bits)
    assert weight.values.nbytes == 64 * 128 // (1 if bits == "int8" else 2)
    assert weight.scale.numel() == (64 if bits == "int8" else 64 * 128 // GROUP_SIZE)


@every_width
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("width", [33, 64])
def test_a_linear_module(width, conv, bits):
    """Also Conv1D, with its weight the other way round; outputs, and derivatives of both orders in all modes."""
    torch.manual_seed(0)
    plain = (Conv1D(6, width) if conv else nn.Linear(width, 6)).double()
    module = QuantizedLinear(plain, bits).to_empty(device="cpu")
    nn.init.normal_(plain.bias)  # shared by both
    module.read_weight(plain.weight)
    weight = module.weight.dequantize(torch.float64)
    x = torch.randn(1, 3, width, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(module(x), nn.functional.linear(x, weight, plain.bias))
    assert torch.autograd.gradcheck(lambda x: module(x).sin(), (x,), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x).sin(), (x,), fast_mode=True)
    torch.testing.assert_close(vmap(module)(x), module(x))
    back = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(multiply(back, module.weight, transposed=True), back @ weight)


@every_width
def test_backward_keeps_no_dequantized_weight(bits):
    module = QuantizedLinear(nn.Linear(64, 64, bias=False), bits).to_empty(device="cpu")
    module.read_weight(torch.randn(64, 64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(torch.randn(5, 64, requires_grad=True))
    kept = [t for t in kept if t.numel() > 5 * 64 and t.is_floating_point()]
    assert not kept


@pytest.mark.parametrize(
    ("outputs", "width"), [(64, 64), (192, 576), (128, 4096), (37, 64), (64, 1), (37, 33), (64, 1031)]
)
@pytest.mark.parametrize("rows", [1, 3, 16, 17])
def test_the_fused_kernel_agrees(rows, outputs, width):
    """It rounds as bfloat16 does, to a relative 2 ** -8. Widths that are no multiple of 64 would crash it."""
    torch.manual_seed(0)
    weight = quantize(torch.randn(outputs, width), "int8")
    weight.scale = weight.scale.bfloat16()
    x = torch.randn(rows, width, dtype=torch.bfloat16)
    with Operations() as operations:
        fused = multiply(x, weight)
    assert ("aten::_weight_int8pack_mm" in operations.names) == (rows <= 16 and outputs % 64 == 0 and width % 64 == 0)
    exact = x.double() @ (weight.values.double() * weight.scale.double()).mT
    assert fused.dtype == torch.bfloat16
    assert relative_error(fused.double(), exact) < 2**-8


@every_width
def test_rows_give_the_same_numbers_in_pieces_and_as_a_whole(bits):
    torch.manual_seed(0)
    weight = quantize(torch.randn(300, 1000, dtype=torch.float64), bits)
    x = torch.randn(40, 1000, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([linear(rows, weight) for rows in x.split(3)]), linear(x, weight))
    by_head = weight.unflatten(0, (3, 100))
    x = x.expand(3, -1, -1)
    few = multiply(x[:, :2], by_head)
    torch.testing.assert_close(few, multiply(x, by_head)[:, :2])
    torch.testing.assert_close(multiply(few, by_head, transposed=True), few @ by_head.dequantize(torch.float64))


# In a block.


@pytest.mark.parametrize(
    ("family", "bits"),
    [("llama", "int8"), ("llama", "int4"), ("gpt2", "int8"), ("opt", "int4"), ("phi3", "int8"), ("gemma2", "int4")],
)
def test_the_layer_is_that_of_dequantized_weights(family, bits, llm_folder):
    """Only the linear modules change; biases and norms are the language model's."""
    block = build_block(llm_folder(family)[1], dtype=torch.float64, quantization=bits, fast=False)
    exact = build_block(llm_folder(family)[1], dtype=torch.float64, fast=False)
    assert linears_of(block)
    for name, tensor in exact._named_llm_tensors().items():
        owner, _, last = name.rpartition(".")
        module = block.get_submodule(owner)
        if isinstance(module, QuantizedLinear) and last == "weight":
            weight = tensor.mT if module.is_transposed else tensor
            error = relative_error(module.weight.dequantize(torch.float64), weight)
            assert 0 < error < (0.01 if bits == "int8" else 0.12)
        else:
            assert torch.equal(block.state_dict()[name], tensor)
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    assert relative_error(block(x, padding()), dequantized(block)(x, padding())) < 1e-12


@pytest.mark.parametrize(
    ("family", "plan", "bits"),
    [
        *(("llama", plan, "int8") for plan in ATTENTION_PLANS),
        *(("gpt2", plan, "int4") for plan in ATTENTION_PLANS),
        *((family, "host_width", "int4") for family in ("mistral", "opt", "phi3", "gpt_neox")),
    ],
)
def test_the_fast_path_gives_the_same_numbers(family, plan, bits, llm_folder):
    """Outputs, gradients, second derivatives and forward mode, without a final norm to fold the output too."""
    block = build_block(llm_folder(family)[1], dtype=torch.float64, final_norm="none", quantization=bits)
    block.set_attn_implementation("eager")
    keep_float64(block)
    block._choose_attention_plan = lambda *args: plan
    runs = []
    run_fast_layer = block._run_fast_layer
    block._run_fast_layer = lambda *args: runs.append(1) or run_fast_layer(*args)
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    weights = tuple(block.get_parameter(name).detach() for name in PROJECTIONS)
    tangents = [torch.randn_like(tensor) for tensor in (x, *weights)]

    def loss_of(x, *weights):
        kwargs = {"output_tokens": slice(1, 3), "attention_mask": padding()}
        return functional_call(block, dict(zip(PROJECTIONS, weights)), (x,), kwargs).sin().sum()

    def derivatives():
        inputs = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
        loss = loss_of(*inputs)
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * v).sum() for g, v in zip(first, tangents)), inputs)
        _, forward = jvp(grad(lambda x: loss_of(x, *weights)), (x,), (tangents[0],))
        return [loss, *first, *second, forward]

    with transformers_in_full_precision():
        fast = derivatives()
        assert runs
        block.config.fast = False
        for ours, theirs in zip(fast, derivatives(), strict=True):
            assert theirs.abs().max() > 0 and relative_error(ours, theirs) < 1e-9


def test_per_example_gradients(llm_folder):
    block = build_block(llm_folder("llama")[1], dtype=torch.float64, quantization="int8")
    x, weight = torch.randn(3, 9, 24, dtype=torch.float64), block.input_projection.weight.detach()

    def loss_of(weight, x):
        return functional_call(block, {PROJECTIONS[0]: weight}, (x[None],), {"output_tokens": slice(0, 1)}).sum()

    expected = torch.stack([grad(loss_of)(weight, example) for example in x])
    torch.testing.assert_close(vmap(grad(loss_of), (None, 0))(weight, x), expected)


@every_width
def test_low_precision_and_autocast(bits, llm_folder):
    block = build_block(llm_folder("llama")[1], quantization=bits).eval()
    x = torch.randn(2, 9, 24)
    with torch.no_grad():
        exact = block(x, output_tokens=slice(0, 1))
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(block(x, output_tokens=slice(0, 1)).float(), exact) < 0.03
        for dtype in (torch.bfloat16, torch.float16):
            cast = copy.deepcopy(block).to(dtype)
            assert_same_tensors(integers_of(cast), integers_of(block))
            assert all(m.scale.dtype == dtype for m in linears_of(cast).values())
            assert relative_error(cast(x.to(dtype), output_tokens=slice(0, 1)).float(), exact) < 0.03


@every_width
def test_training_leaves_the_integers_alone(bits, llm_folder):
    block = build_block(llm_folder("llama")[1], quantization=bits)
    before, trained = copy.deepcopy(block.state_dict()), {n for n, p in block.named_parameters() if p.requires_grad}
    assert trained == set(PROJECTIONS)
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1, weight_decay=0.5)
    block.train()(torch.randn(2, 5, 24)).square().sum().backward()
    optimizer.step()
    assert {n for n, t in block.state_dict().items() if not torch.equal(t, before[n])} == set(PROJECTIONS)


def test_compiled_and_exported(llm_folder):
    block = build_block(llm_folder("llama")[1], quantization="int8").eval()
    x = torch.randn(2, 9, 24)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)
        exported = torch.export.export(block, (x,)).module()
        torch.testing.assert_close(exported(x), block(x), rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(compiled(x).sin().sum(), x)
    (theirs,) = torch.autograd.grad(block(x).sin().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# Saved and loaded.


@pytest.mark.parametrize("light", [False, True])
@every_width
def test_saved_and_loaded(bits, light, llm_folder, tmp_path):
    """Bit for bit; a light folder rounds the same checkpoint to the same integers again."""
    block = {"llm_name_or_path": llm_folder("llama")[1], "quantization": bits, "save_weights": not light}
    model = tiny_vit(LLMBlockConfig(layer_index=1, **block))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    in_file = {name for name in stored if ".llm_layers." in name}
    path = "llm_block.llm_layers.0.self_attn.q_proj"
    assert bool(in_file) != light
    if not light:
        parts = {"values", "scale"} if bits == "int8" else {"values", "scale", "minimum"}
        assert {name for name in in_file if name.startswith(path)} == {f"{path}.{part}" for part in parts}
        assert stored[f"{path}.values"].dtype == (torch.int8 if bits == "int8" else torch.uint8)
    assert json.loads((tmp_path / "config.json").read_text())["llm_block"]["quantization"] == bits
    loaded = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path)
    assert_same_tensors(dict(loaded.state_dict()), dict(model.state_dict()))
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    assert loaded.num_parameters() == tiny_vit(LLMBlockConfig(**{**block, "quantization": None})).num_parameters()
    half = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_tensors(integers_of(half.llm_block), integers_of(model.llm_block))
    assert half.llm_block.llm_layers[0].self_attn.q_proj.scale.dtype == torch.bfloat16


def test_the_same_integers_whatever_the_layer_dtype(llm_folder):
    blocks = [build_block(llm_folder("llama")[1], quantization="int4", layer_dtype=t) for t in ("float32", "bfloat16")]
    assert_same_tensors(*map(integers_of, blocks))
    assert blocks[0].config.fingerprint == build_block(llm_folder("llama")[1]).config.fingerprint


def test_a_saved_model_is_quantized_while_it_is_loaded(llm_folder, tmp_path):
    """By reading the layer again, so that only a layer which is the language model's can be."""
    model = tiny_vit(LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], layer_index=1))
    model.save_pretrained(tmp_path / "full")
    load = ViTWithLLMBlockForImageClassification.from_pretrained
    loaded = load(tmp_path / "full", llm_block={"quantization": "int8"})
    expected = build_block(llm_folder("llama")[1], quantization="int8")
    assert_same_tensors(integers_of(loaded.llm_block), integers_of(expected))
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    with torch.no_grad():
        model.llm_block.llm_layers[0].self_attn.q_proj.weight.mul_(2)
    model.save_pretrained(tmp_path / "modified")
    with pytest.raises(ValueError, match=r"llm_block.quantization .* is None and cannot be changed to 'int8'"):
        load(tmp_path / "modified", llm_block={"quantization": "int8"})


def test_a_damaged_integer_is_noticed(llm_folder, tmp_path):
    block = build_block(llm_folder("llama")[1], quantization="int8")
    block.save_pretrained(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    name = "llm_layers.0.mlp.up_proj.values"
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    data[8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        LLMBlock.from_pretrained(tmp_path)


@every_width
def test_a_device_map_and_the_meta_device(bits, llm_folder, tmp_path):
    model = tiny_vit(LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], quantization=bits))
    model.save_pretrained(tmp_path)
    loaded = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path, device_map="cpu")
    assert_same_tensors(dict(loaded.state_dict()), dict(model.state_dict()))
    with torch.device("meta"):
        empty = ViTWithLLMBlockForImageClassification(model.config)
    shapes = {n: (t.shape, t.dtype) for n, t in model.state_dict().items()}
    assert {n: (t.shape, t.dtype) for n, t in empty.state_dict().items()} == shapes
    assert empty(**{k: v.to("meta") for k, v in model.dummy_inputs.items()}).logits.is_meta


@every_width
def test_random_layers(bits, llm_folder, tmp_path):
    """Rounded from the family's own initialisation, always saved, and with a balanced input scale."""
    fields = {"llm_config": llm_folder("gpt2")[0].config, "weights": "random", "hidden_size": 24}
    torch.manual_seed(0)
    plain = LLMBlock(LLMBlockConfig(**fields))
    torch.manual_seed(0)
    block = LLMBlock(LLMBlockConfig(**fields, quantization=bits, input_scale="balanced"))
    for name, module in linears_of(block).items():
        weight = plain.llm_layers.get_submodule(name).weight
        weight = weight.mT if module.is_transposed else weight
        assert torch.equal(module.values, quantize(weight, bits).values)
        assert torch.equal(module.bias, plain.llm_layers.get_submodule(name).bias)
    block.save_pretrained(tmp_path)
    assert_same_tensors(dict(LLMBlock.from_pretrained(tmp_path).state_dict()), dict(block.state_dict()))


# Refused.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization": "int2"}, "quantization"),
        ({"quantization": "int8", "trainable": True}, "contradicts trainable=True"),
        ({"quantization": "int8", "weights": "shuffled"}, "contradicts weights='shuffled'"),
        ({"quantization": "int4", "kind": "mlp"}, "kind='mlp' has no LLM layer, so quantization cannot be set"),
    ],
)
def test_refused_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        LLMBlockConfig(**fields)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_refused(family, llm_folder):
    with pytest.raises(ValueError, match=rf"quantization='int8' is not possible for {family}: .* as experts do"):
        build_block(llm_folder(family)[1], quantization="int8")


def test_infinite_weights_are_refused(tmp_path):
    llm = tiny_llm(tiny_config("llama"))
    with torch.no_grad():
        llm.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"mlp\.up_proj.weight holds NaN or infinite values"):
        build_block(str(write_llm(llm, tmp_path)), quantization="int8")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_inside_is_refused_by_peft(llm_folder):
    """peft knows which classes it can adapt; LoRA on the host works as ever."""
    model = tiny_vit(LLMBlockConfig(llm_name_or_path=llm_folder("llama")[1], quantization="int8"))
    inside = peft.LoraConfig(target_modules=r".*llm_layers.*\.up_proj")
    with pytest.raises(ValueError, match=r"QuantizedLinear.* is not supported"):
        peft.get_peft_model(copy.deepcopy(model), inside)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["input_projection"]))
    adapted(**model.dummy_inputs).logits.sum().backward()
