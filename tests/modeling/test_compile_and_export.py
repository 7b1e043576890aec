# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models that are compiled, or exported by torch and to ONNX."""

import onnxruntime
import pytest
import torch
import transformers
from distributed_uses import LABELS, MODELS, pixels_of
from meter_cases import METER_QUESTIONS, METER_RETRIEVAL
from model_uses import CASES, EVERY, assert_same_gradients, every_host, gradients, logits, three_models
from packaging.version import Version
from tiny_hosts import HOSTS
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter


@pytest.mark.host_table("compile")
@every_host
def test_compiled_in_one_graph(host, fast, build_model):
    model = build_model(host, fast=fast, input_scale=7.0).train()
    torch.compiler.reset()  # all tests compile the same functions, and their recompilations are limited
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    results = []
    for called in (model, compiled):
        model.zero_grad()
        outputs = called(pixel_values=pixels_of(host, 2), labels=LABELS[:2])
        outputs.loss.backward()
        results.append((outputs.logits, gradients(model)))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert_same_gradients(results[1][1], results[0][1])


@three_models
def test_compiled_for_inference(host, build_model):
    model = build_model(host)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in (2, 5):
        torch.testing.assert_close(logits(compiled, host, batch), logits(model, host, batch))


def exported_batch():
    return {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}


# A strict export, by TorchDynamo, takes three times as long.
@pytest.mark.host_table("export")
@pytest.mark.parametrize(
    ("host", "fast", "strict"), [*((*case, False) for case in CASES), *((host, True, True) for host in MODELS)]
)
def test_torch_export(host, fast, strict, build_model):
    model = build_model(host, fast=fast, input_scale=7.0)
    inputs = (pixels_of(host, 2),)
    program = torch.export.export(model, inputs, dynamic_shapes=exported_batch(), strict=strict).module()
    for batch in (1, 2, 5):
        actual = program(pixels_of(host, batch)).logits
        torch.testing.assert_close(actual, logits(model, host, batch), rtol=1e-5, atol=1e-5)


def test_export_leaves_the_plans_in_the_hosts_width(build_model):
    """ONNX has no Cholesky factorisation."""
    llm = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2}
    llm |= {"num_attention_heads": 4, "vocab_size": 8}
    model = build_model("vit_class", llm_name_or_path=None, llm_config=llm, weights="random")
    pixels = pixels_of("vit_class", 2)
    plans, choose = [], model.llm_block._choose_attention_plan
    model.llm_block._choose_attention_plan = lambda *args: plans.append(choose(*args)) or plans[-1]
    model(pixels)
    program = torch.export.export(model, (pixels,), dynamic_shapes=exported_batch())
    assert plans[0] == "host_width" and set(plans[1:]) == {"explicit_kv"}
    assert not any("cholesky" in str(node.target) for node in program.graph.nodes)


# Their relative positions are not exported by transformers before 5.24, without a block neither.
NO_ONNX = ["beit", "beit_cls", "swin"] if Version(transformers.__version__) < Version("5.24") else []


def export_to_onnx(model, host, folder):
    config = OnnxConfig(dynamic_shapes=exported_batch())
    program = OnnxExporter().export(model, {"pixel_values": pixels_of(host, 2)}, config)
    # what the exporter returns differs between the lowest and the highest supported transformers
    if hasattr(program, "save_pretrained"):
        program.save_pretrained(folder)
    else:
        program.save(str(folder / "model.onnx"))


@pytest.mark.host_table("ONNX")
@pytest.mark.parametrize(
    "host", [pytest.param(host, marks=[] if host in MODELS else pytest.mark.slow) for host in EVERY]
)
def test_onnx(host, build_model, tmp_path):
    if host in NO_ONNX:
        with pytest.raises(torch.onnx.errors.OnnxExporterError):
            export_to_onnx(HOSTS[host].published(), host, tmp_path)
        pytest.skip("transformers does not export the plain host either")
    model = build_model(host, input_scale=7.0)
    export_to_onnx(model, host, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        (actual,) = session.run(["logits"], {"pixel_values": pixels_of(host, batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), logits(model, host, batch), rtol=1e-4, atol=1e-4)


meter_case = pytest.mark.parametrize("case", [METER_QUESTIONS, METER_RETRIEVAL], ids=["questions", "retrieval"])


@meter_case
def test_meter_compiled_in_one_graph(case, block):
    model = case.build(block(input_scale=7.0)).train()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    results = []
    for called in (model, compiled):
        model.zero_grad()
        outputs = called(**case.inputs(4), **case.targets(4))
        outputs.loss.backward()
        results.append((outputs[case.output], gradients(model)))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert_same_gradients(results[1][1], results[0][1])


@meter_case
def test_meter_exported(case, block):
    model = case.build(block(input_scale=7.0))
    dynamic = {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in case.inputs(1)}
    program = torch.export.export(model, (), case.inputs(3), dynamic_shapes=dynamic, strict=False).module()
    for batch in (1, 2, 5):
        actual = program(**case.inputs(batch))[case.output]
        torch.testing.assert_close(actual, case.output_of(model, batch), rtol=1e-5, atol=1e-5)


@meter_case
def test_meter_in_onnx(case, block, tmp_path):
    model = case.build(block(input_scale=7.0))
    dynamic = {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in case.inputs(1)}
    program = OnnxExporter().export(model, case.inputs(3), OnnxConfig(dynamic_shapes=dynamic))
    if hasattr(program, "save_pretrained"):
        program.save_pretrained(tmp_path)
    else:
        program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        inputs = {name: tensor.numpy() for name, tensor in case.inputs(batch).items()}
        (actual,) = session.run([case.output], inputs)
        expected = case.output_of(model, batch)
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)
