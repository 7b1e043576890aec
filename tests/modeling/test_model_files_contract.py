# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""How every model of the package is loaded and saved, whatever its task; the models are those of model_cases.py."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from model_case import host_of
from model_cases import CASES, CONTROLS, PROJECTIONS, assert_same_state, cases, frozen_names, names_of_layer
from paths import REPO
from references import relative_error
from safetensors.torch import load_file
from tiny_llms import decoder_stack
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline


every_case = cases()
case_with_head = cases(lambda case: case.head)
whole_or_light = pytest.mark.parametrize("save_weights", [True, False], ids=["whole", "light"])


@pytest.fixture
def published_host(tmp_path):
    """`published_host(case)` -> (plain host, its folder without any of our classes)."""

    def make(case):
        host = host_of(case.build(None, case.base_class))
        host.save_pretrained(tmp_path / "host")
        return host, tmp_path / "host"

    return make


def without_pooler(tensors):
    return {name: tensors[name] for name in tensors if "pooler." not in name}


# From a plain host


@every_case
def test_from_host_pretrained(case, block, published_host, llm_folder):
    host, folder = published_host(case)
    model, info = case.model_class.from_host_pretrained(folder, llm_block=block(), output_loading_info=True)
    assert info["missing_keys"] == PROJECTIONS | case.names_of_head(model)
    assert all("pooler." in key for key in info["unexpected_keys"]) and not info["mismatched_keys"]
    expected = without_pooler(host.state_dict())
    assert_same_state(without_pooler(host_of(model).state_dict()), expected)
    assert_same_state(
        model.llm_block.llm_layers[0].state_dict(), decoder_stack(llm_folder("llama")[0])[0][1].state_dict()
    )
    assert frozen_names(model) == names_of_layer(model) and not model.training
    assert model.llm_block.bytes_read > 0
    plain = case.model_class.from_host_pretrained(folder)
    assert plain.llm_block is None
    assert_same_state(without_pooler(host_of(plain).state_dict()), expected)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
@every_case
def test_host_with_a_device_map(case, device_map, block, published_host):
    outputs = []
    for kwargs in ({}, {"device_map": device_map}):
        torch.manual_seed(2)
        model = case.model_class.from_host_pretrained(published_host(case)[1], llm_block=block(), **kwargs)
        outputs.append(case.output_of(model))
    assert torch.equal(*outputs)


# Types, files, Auto classes


@every_case
def test_dtype(case, block, tmp_path):
    model = case.build(block())
    model.save_pretrained(tmp_path / "float32")
    expected_output = case.output_of(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, "auto", None):
        expected = dtype if isinstance(dtype, torch.dtype) else torch.float32
        model = case.model_class.from_pretrained(tmp_path / "float32", **({} if dtype is None else {"dtype": dtype}))
        assert {p.dtype for p in model.parameters()} == {expected}
        output = case.output_of(model)
        assert output.dtype == expected and relative_error(output, expected_output) < 0.05
        model.save_pretrained(tmp_path / "cast")
        again = case.model_class.from_pretrained(tmp_path / "cast")
        assert {p.dtype for p in again.parameters()} == {expected}
        assert torch.equal(case.output_of(again), output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case
def test_dtype_of_a_host_that_gets_a_block(case, dtype, block, published_host):
    model = case.model_class.from_host_pretrained(published_host(case)[1], llm_block=block(), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert case.output_of(model).dtype == dtype


@every_case
def test_state_dict_keys(case, block):
    model = case.build(block(layer_index=[0, 1]))
    keys, of_layers = set(model.state_dict()), names_of_layer(model) - {"llm_block.final_norm.weight"}
    assert "llm_block.llm_layers.1.self_attn.q_proj.weight" in of_layers
    assert {key.split(".")[2] for key in of_layers} == {"0", "1"}
    of_host = {key for key in keys if key.startswith(f"{model.base_model_prefix}.")}
    assert keys - of_host - of_layers - case.names_of_head(model) == PROJECTIONS | {"llm_block.final_norm.weight"}


@every_case
def test_config_describes_the_block(case, block):
    model = case.build(block())
    assert model.config.llm_block is model.llm_block.config
    assert model.config.llm_block.llm_config.model_type == "llama"
    assert model.config.llm_block.fingerprint is not None
    config, shape = case.config_class(**case.fields, llm_block=block().to_dict()), case.output_of(model).shape
    for build in [case.model_class, *([case.auto_class.from_config] if case.auto_class else [])]:
        built = build(config)
        assert type(built) is case.model_class and built.llm_block.bytes_read > 0
        assert case.output_of(built).shape == shape
    if case.auto_class is not AutoModel:
        assert type(AutoModel.from_config(config)) is case.base_class


@whole_or_light
@every_case
def test_saved_model_loads_by_its_auto_classes(case, save_weights, block, llm_folder, tmp_path):
    llm = shutil.copytree(llm_folder("llama")[1], tmp_path / "llm")
    model, folder = case.build(block(llm_name_or_path=str(llm), save_weights=save_weights)), tmp_path / "model"
    model.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["architectures"] == [case.model_class.__name__]
    assert stored["llm_block"]["save_weights"] is save_weights
    assert stored["llm_block"]["fingerprint"] == model.config.llm_block.fingerprint
    written = names_of_layer(model) & load_file(folder / "model.safetensors").keys()
    assert written == (names_of_layer(model) if save_weights else set())
    if save_weights:
        shutil.rmtree(llm)
    assert type(AutoConfig.from_pretrained(folder)) is case.config_class
    again, info = case.loader.from_pretrained(folder, output_loading_info=True)
    assert type(again) is case.model_class
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_state(again.state_dict(), model.state_dict())
    assert frozen_names(again) == names_of_layer(model)
    assert (again.llm_block.bytes_read == 0) is save_weights
    assert torch.equal(case.output_of(again), case.output_of(model))
    if case.auto_class is not AutoModel:
        assert type(AutoModel.from_pretrained(folder)) is case.base_class


@whole_or_light
@case_with_head
def test_base_from_head_and_head_from_base(case, save_weights, block, tmp_path):
    head = case.build(block(save_weights=save_weights))
    head.save_pretrained(tmp_path / "head")
    base, info = case.base_class.from_pretrained(tmp_path / "head", output_loading_info=True, **case.base_kwargs)
    of_head = case.names_of_head(head)
    assert not info["missing_keys"] and info["unexpected_keys"] <= of_head
    assert_same_state(base.state_dict(), {k: v for k, v in head.state_dict().items() if k not in of_head})
    assert frozen_names(base) == names_of_layer(base)
    base = case.build(block(save_weights=save_weights), case.base_class)
    base.save_pretrained(tmp_path / "base")
    head, info = case.model_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == of_head and all("pooler." in key for key in info["unexpected_keys"])
    of_base = without_pooler(base.state_dict())
    assert_same_state({name: head.state_dict()[name] for name in of_base}, of_base)
    assert frozen_names(head) == names_of_layer(head)


@pytest.mark.parametrize("control", CONTROLS)
@every_case
def test_saved_control_loads(case, control, block, tmp_path):
    model = case.build(block(**CONTROLS[control]))
    with torch.no_grad():
        for parameter in model.llm_block.parameters():
            parameter.add_(0.01) if parameter.requires_grad else None
    model.save_pretrained(tmp_path)
    again = case.loader.from_pretrained(tmp_path)
    torch.testing.assert_close(case.output_of(again), case.output_of(model), rtol=1e-5, atol=1e-6)
    assert frozen_names(again) == frozen_names(model)
    stored = json.loads((tmp_path / "config.json").read_text())["llm_block"]
    is_layer_of_llm = control in ("pretrained, frozen", "pretrained, balanced")
    assert stored["save_weights"] and (stored["fingerprint"] is not None) == is_layer_of_llm
    assert stored["input_scale"] == model.config.llm_block.input_scale and isinstance(stored["input_scale"], float)


@cases(lambda case: case.processor)
def test_processor_feeds_the_model(case, block, tmp_path):
    model, processor = case.build(block()), case.processor()
    model.config.id2label = {0: "cat", 1: "dog", 2: "bird"}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    inputs = case.process(again)
    assert inputs.keys() == case.inputs(1).keys()
    for name, tensor in case.process(processor).items():
        assert torch.equal(inputs[name], tensor) and tensor.shape[1:] == case.inputs(1)[name].shape[1:]
    with torch.no_grad():
        output = model(**inputs)[case.output]
    assert len(output) == 1 and torch.isfinite(output).all()
    if case.pipeline is not None:
        answers = pipeline(case.pipeline, model=str(tmp_path), device="cpu")(case.sample())
        assert {answer["label"] for answer in answers} == {"cat", "dog", "bird"}
        assert abs(answers[0]["score"] - output.softmax(-1).max().item()) < 1e-5


REGISTER = """
import json, sys
import hf_frozen_llm
for folder, config_class, model_class, auto_class in json.loads(sys.argv[1]):
    getattr(hf_frozen_llm, config_class).register_for_auto_class()
    Model = getattr(hf_frozen_llm, model_class)
    Model.register_for_auto_class(auto_class)
    Model.from_pretrained(f"plain/{folder}").save_pretrained(f"remote/{folder}")
"""
LOAD_WITHOUT_THE_PACKAGE = """
import json, sys, torch, transformers
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_frozen_llm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
torch.set_grad_enabled(False)  # as for the expected outputs: PyTorch's LSTM is rounded otherwise with gradients
def is_refused(folder):
    try:
        Auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        return True
for folder, _, _, auto_class in json.loads(sys.argv[1]):
    Auto, (inputs, output, expected) = getattr(transformers, auto_class), torch.load(f"{folder}.pt")
    assert is_refused(f"remote/{folder}"), folder
    model = Auto.from_pretrained(f"remote/{folder}", trust_remote_code=True)
    assert torch.equal(model(**inputs)[output], expected), folder
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith(("llm_block.llm_layers", "llm_block.final_norm")) for n in frozen), folder
    model.save_pretrained(f"resaved/{folder}")
    again = Auto.from_pretrained(f"resaved/{folder}", trust_remote_code=True)
    assert torch.equal(again(**inputs)[output], expected), folder
    assert is_refused(f"remote/{folder}"), folder
assert not any(name.split(".")[0] == "hf_frozen_llm" for name in sys.modules)
print("equal")
"""


def test_remote_code(block, tmp_path):
    """Saved with their code, all models load in a fresh process in which this package does not exist."""
    # One launch for all of them: imports take most of the time. That a folder can be light is the same for all.
    folders = {**CASES, "light": CASES["vit"]}
    for folder, case in folders.items():
        model = case.build(block(save_weights=folder != "light"))
        model.save_pretrained(tmp_path / "plain" / folder)
        torch.save((case.inputs(2), case.output, case.output_of(model)), tmp_path / f"{folder}.pt")
    classes = [
        (folder, *(c.__name__ for c in (case.config_class, case.model_class, case.auto_class or AutoModel)))
        for folder, case in folders.items()
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    # Registering changes the classes, so it happens in a separate process.
    for script in (REGISTER, LOAD_WITHOUT_THE_PACKAGE):
        command = [sys.executable, "-c", script, json.dumps(classes)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("equal")
    for folder, case in folders.items():
        auto_map = json.loads((tmp_path / "remote" / folder / "config.json").read_text())["auto_map"]
        assert {"AutoConfig", (case.auto_class or AutoModel).__name__} <= auto_map.keys()
        copied = {path.name for path in (tmp_path / "remote" / folder).glob("*.py")}
        of_model = f"modeling_{case.config_class.model_type}.py"
        assert {of_model, "modeling_llm_block.py", "llm_checkpoint.py"} <= copied
        assert copied <= {path.name for path in (REPO / "modeling").glob("*.py")}
