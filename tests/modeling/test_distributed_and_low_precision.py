# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models with gradient checkpointing, in bfloat16, and trained in several processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from distributed_uses import LABELS, load, make_fsdp_plugin, pixels_of, train_steps
from filelock import FileLock
from model_cases import cases
from model_uses import CASES, assert_same_gradients, every_host, fast_or_not, gradients, logits, loss_of, three_models
from paths import REPO
from references import relative_error
from torch.distributed.fsdp import StateDictType


def enable_checkpointing(model, **kwargs):
    # renamed between the lowest and the highest supported transformers
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(*([kwargs] if kwargs else []))


@fast_or_not
@pytest.mark.parametrize("reentrant", [True, False])
@three_models
def test_gradient_checkpointing(host, reentrant, fast, build_model):
    model = build_model(host, fast=fast).train()
    loss_of(model, host).backward()
    expected = gradients(model)
    model.zero_grad()
    enable_checkpointing(model, use_reentrant=reentrant)
    if reentrant and host != "swin":  # whose embeddings return a tuple, which transformers' own hook does not take
        model.enable_input_require_grads()
    loss_of(model, host).backward()
    assert_same_gradients(gradients(model), expected)
    assert not any(".llm_layers." in name for name in expected)


def test_gradient_checkpointing_does_recompute(build_model):
    model = build_model("swin").train()
    calls = []
    model.llm_block.llm_layers[0].input_layernorm.register_forward_hook(lambda *args: calls.append(1))
    loss_of(model, "swin").backward()
    assert len(calls) == 1
    enable_checkpointing(model)
    loss_of(model, "swin").backward()
    assert len(calls) == 3


@fast_or_not
@pytest.mark.parametrize("layer_dtype", [None, "bfloat16"])
@three_models
def test_bfloat16_model(host, layer_dtype, fast, build_model):
    expected = logits(build_model(host, fast=fast), host)
    model = build_model(host, fast=fast, layer_dtype=layer_dtype).bfloat16()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        actual = model(pixels_of(host, 2).bfloat16()).logits
    assert actual.dtype == torch.bfloat16 and relative_error(actual, expected) < 0.05


@fast_or_not
@pytest.mark.parametrize("layer_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@three_models
def test_autocast(host, attn, layer_dtype, fast, build_model):
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 3] = 0
    kwargs = {"attention_mask": mask} if host == "vit_class" else {}
    reference = build_model(host, fast=fast).train()
    loss_of(reference, host, **kwargs).backward()
    model = build_model(host, fast=fast, layer_dtype=layer_dtype).train()
    model.set_attn_implementation(attn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, host, **kwargs)
    loss.backward()
    assert torch.isfinite(loss) and relative_error(logits(model, host), logits(reference, host)) < 0.05
    expected, actual = gradients(reference), gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all(), name
    assert relative_error(flat(actual), flat(expected)) < 0.1


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@pytest.fixture
def distributed(build_model, tmp_path_factory):
    """(folder with saved models, what two processes made of them): one launch for all tests of all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributed_uses"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.json").exists():
            for host, fast in CASES:
                build_model(host, fast=fast).save_pretrained(folder / "models" / f"{host}-{fast}")
            script = REPO / "tests" / "distributed_uses.py"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO / "tests")}
            done = subprocess.run([*launcher, script, folder], capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
    return folder / "models", json.loads((folder / "results.json").read_text())


@pytest.mark.host_table("DDP")
@every_host
def test_ddp(host, fast, distributed):
    folder, results = distributed
    expected = train_steps(load(folder / f"{host}-{fast}"), pixels_of(host, len(LABELS)), LABELS)
    result = results["ddp"][f"{host}-{fast}"]
    assert result["losses"] == pytest.approx(expected, abs=1e-5) and len(set(expected)) == 3
    assert result["frozen_is_intact"]


@fast_or_not
@three_models
def test_fully_shard(host, fast, distributed):
    folder, results = distributed
    model = load(folder / f"{host}-{fast}")
    expected = train_steps(model, pixels_of(host, len(LABELS)), LABELS)
    result = results["fully_shard"][f"{host}-{fast}"]
    assert result["losses"] == pytest.approx(expected, abs=1e-5)
    assert result["frozen_is_intact"] and result["frozen_is_sharded"] and result["num_sharded"] >= 4
    # one process saves the whole model, which loads anywhere
    saved = dict(load(folder.parent / "sharded" / f"{host}-{fast}").named_parameters())
    assert any(".llm_layers." in name for name in saved)
    for name, parameter in model.named_parameters():
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if parameter.requires_grad else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(saved[name], parameter, **tolerance)
    # the hooks by which FSDP gathers the weights do not make the block compute all tokens
    assert (result["num_tokens"] == 1) == (fast and host != "swin")


@cases()
def test_fsdp_finds_the_layers(case, block):
    """By names that the model has: a plain host has no LLMBlock. None lies around the input embeddings."""
    for llm_block in (block(), None):
        model = case.build(llm_block)
        assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}
        plugin = make_fsdp_plugin(model)
        plugin.set_auto_wrap_policy(model)
        classes = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
        names = {layer.__name__ for layer in classes}
        assert ("LLMBlock" in names) == (llm_block is not None) and names > {"LLMBlock"} & names
        wrapped = [module for module in model.modules() if type(module) in classes]
        embeddings = model.get_input_embeddings()
        assert not any(module is embeddings for layer in wrapped for module in layer.modules())
    assert plugin.fsdp_version == 2 and plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading
