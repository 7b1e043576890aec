# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Uses of a model: compile, export, adapt, copy, offload, train in low precision or several processes."""

import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import onnxruntime
import peft
import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from distributed_uses import LABELS, MODELS, frozen_tensors, load, pixels_of, train_steps
from filelock import FileLock
from packaging.version import Version
from paths import REPO
from references import relative_error
from safetensors.torch import load_file
from tiny_hosts import HOSTS
from tiny_llms import randomize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from hf_frozen_llm import (
    LLMBlockConfig,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
)


EVERY = ["vit_class", *HOSTS]
# Whether the block takes its fast path does not depend on the host.
CASES = [*((host, True) for host in EVERY), *((host, False) for host in MODELS)]
every_host = pytest.mark.parametrize(("host", "fast"), CASES)
three_models = pytest.mark.parametrize("host", MODELS)
fast_or_not = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
# peft asks for a property that transformers 5.23 renamed
peft_warns = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def build(llm_folder):
    """`build("swin", fast=False)`: the same weights at every call; the host's are random, of its norms too."""

    def make(host, seed=2, **block_fields):
        fields = {"llm_name_or_path": llm_folder("llama")[1], "layer_index": 1, **block_fields}
        torch.manual_seed(seed)
        if host == "vit_class":
            config = ViTWithLLMBlockConfig(**HOSTS["vit"].fields, num_labels=3, llm_block=LLMBlockConfig(**fields))
            model = ViTWithLLMBlockForImageClassification(config)
        else:
            # Nothing random in training: two processes would draw other numbers than one.
            host_config = HOSTS[host].config(drop_path_rate=0.0, pos_embed_rescale=None)
            config = VisionWithLLMBlockConfig(
                vision_config=host_config, num_labels=3, llm_block=LLMBlockConfig(**fields)
            )
            model = VisionWithLLMBlockForImageClassification(config)
        randomize(host_of(model), seed=seed)
        return model.eval()

    return make


def host_of(model):
    return getattr(model, model.base_model_prefix)


def norm_of(model):
    """Return the host's final norm, which runs after the block."""
    return model.vit.layernorm if hasattr(model, "vit") else model._host.norm(model.host)


def logits(model, host, batch=2):
    with torch.no_grad():
        return model(pixel_values=pixels_of(host, batch)).logits


def loss_of(model, host, **kwargs):
    return model(pixel_values=pixels_of(host, 2), labels=LABELS[:2], **kwargs).loss


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_function(actual, expected):
    """Outputs of a block that can take its fast path only before, or only after a change."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


# Compiling and exporting


@pytest.mark.host_table("compile")
@every_host
def test_compiled_in_one_graph(host, fast, build):
    model = build(host, fast=fast).train()
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
def test_compiled_for_inference(host, build):
    model = build(host)
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
def test_torch_export(host, fast, strict, build):
    model = build(host, fast=fast)
    inputs = (pixels_of(host, 2),)
    program = torch.export.export(model, inputs, dynamic_shapes=exported_batch(), strict=strict).module()
    for batch in (1, 2, 5):
        actual = program(pixels_of(host, batch)).logits
        torch.testing.assert_close(actual, logits(model, host, batch), rtol=1e-5, atol=1e-5)


# Their relative positions are not exported by transformers before 5.24, nor without a block.
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
def test_onnx(host, build, tmp_path):
    if host in NO_ONNX:
        with pytest.raises(torch.onnx.errors.OnnxExporterError):
            export_to_onnx(HOSTS[host].published(), host, tmp_path)
        pytest.skip("transformers does not export the plain host either")
    model = build(host)
    export_to_onnx(model, host, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        (actual,) = session.run(["logits"], {"pixel_values": pixels_of(host, batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), logits(model, host, batch), rtol=1e-4, atol=1e-4)


# LoRA

LORA_OF_THE_LAYER = r"llm_block\.llm_layers\..*\.(q_proj|v_proj|up_proj)"
TRAINED_BESIDE = ["classifier", "input_projection", "output_projection"]


def lora_config(model, host_is):
    """LoRA in the LLM layer; the host frozen with LoRA in its attention, or trained as a whole."""
    prefix = model.base_model_prefix
    if host_is == "adapted":
        attention = rf"{prefix}\..*att.*\.(q_proj|v_proj|query|value)"
        return peft.LoraConfig(r=2, target_modules=f"{LORA_OF_THE_LAYER}|{attention}", modules_to_save=TRAINED_BESIDE)
    # peft compares the ends of names, and DINOv3 has a `model` in its `model`.
    parts = [f"model.{name}" for name, _ in model.host.named_children()] if prefix == "model" else [prefix]
    return peft.LoraConfig(r=2, target_modules=LORA_OF_THE_LAYER, modules_to_save=[*TRAINED_BESIDE, *parts])


def is_adapter(name):
    return "lora_" in name or ".modules_to_save." in name


def base_weights(lora):
    """Return the tensors of the model before it was wrapped, with their former names."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in lora.get_base_model().state_dict().items()
        if not is_adapter(name)
    }


@peft_warns
@pytest.mark.host_table("LoRA")
@pytest.mark.parametrize("host_is", ["adapted", "trained"])
@every_host
def test_lora(host, host_is, fast, build, tmp_path):
    model = build(host, fast=fast, save_weights=False)
    before = copy.deepcopy(model.state_dict())
    lora = peft.get_peft_model(model, lora_config(model, host_is)).train()
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in lora.named_parameters() if is_adapter(name)}
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(lora, host).backward()
        optimizer.step()
    with_gradient = {name for name, gradient in gradients(lora).items() if gradient.abs().max() > 0}
    assert with_gradient <= trained
    parts = ["llm_layers.0.self_attn.q_proj.lora_A", "llm_layers.0.mlp.up_proj.lora_B", *TRAINED_BESIDE]
    parts.append(f".{model.base_model_prefix}.")
    assert all(any(part in name for name in with_gradient) for part in parts)
    after = base_weights(lora)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    lora.eval()
    expected = logits(lora, host)
    assert relative_error(expected, logits(build(host, fast=fast), host)) > 1e-3
    lora.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build(host, fast=fast), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, host), expected)

    merged = lora.merge_and_unload().eval()
    torch.testing.assert_close(logits(merged, host), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["llm_block"]["save_weights"] is True
    assert "llm_block.llm_layers.0.mlp.up_proj.weight" in load_file(tmp_path / "merged" / "model.safetensors")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded, host), logits(merged, host))
    assert frozen_tensors(loaded).keys() == frozen_tensors(build(host)).keys()


@peft_warns
def test_attention_mask_of_a_host_that_peft_has_wrapped(build):
    model = build("vit")
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 3:9] = 0
    inputs = {"pixel_values": pixels_of("vit", 2), "attention_mask": mask}
    with torch.no_grad():
        expected = model(**inputs).logits
        assert not torch.equal(expected, logits(model, "vit"))
        wrapped = peft.get_peft_model(model, lora_config(model, "trained")).eval()
        assert_same_function(wrapped(**inputs).logits, expected)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, host):
        self.pixel_values = pixels_of(host, 12)

    def __len__(self):
        return len(self.pixel_values)

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": index % 3}


@peft_warns
@pytest.mark.parametrize("host_is", ["adapted", "trained"])
@three_models
def test_trainer_resumes_lora_bit_equal(host, host_is, build, tmp_path):
    def trainer(seed, folder):
        model = build(host)
        torch.manual_seed(seed)
        lora = peft.get_peft_model(model, lora_config(model, host_is))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            weight_decay=0.1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            seed=3,
        )
        return Trainer(model=lora, args=arguments, train_dataset=Pictures(host))

    straight = trainer(5, tmp_path)
    straight.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = trainer(77, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    expected, actual = straight.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert torch.equal(logits(resumed.model.eval(), host), logits(straight.model.eval(), host))
    again = peft.PeftModel.from_pretrained(build(host), tmp_path / "checkpoint-4").eval()
    assert torch.equal(logits(again, host), logits(resumed.model, host))


# Copies


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@fast_or_not
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch_saved],
    ids=["copy", "pickle", "save"],
)
@three_models
def test_copies_are_equal_and_independent(host, copied, fast, build):
    model = build(host, fast=fast)
    expected = logits(model, host)
    other = copied(copied(model))
    assert type(other) is type(model) and other.config.to_dict() == model.config.to_dict()
    assert torch.equal(logits(other, host), expected)
    other.train().eval()
    assert frozen_tensors(other).keys() == frozen_tensors(model).keys()
    for part in (lambda m: m.llm_block.input_projection, lambda m: m.llm_block.llm_layers[0].mlp.up_proj, norm_of):
        before = logits(other, host)
        with torch.no_grad():
            part(other).weight.mul_(2)
        assert not torch.equal(logits(other, host), before)
        assert torch.equal(logits(model, host), expected)


@fast_or_not
@three_models
def test_averaged_model(host, fast, build):
    model = build(host, fast=fast).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    start = copy.deepcopy(model.state_dict())
    train_steps(model, pixels_of(host, 4), LABELS)
    for _ in range(2):
        averaged.update_parameters(model)
    # the first update copies
    assert torch.equal(logits(averaged.eval(), host), logits(model.eval(), host))
    moved = copy.deepcopy(model.state_dict())
    train_steps(model.train(), pixels_of(host, 4), LABELS)
    averaged.update_parameters(model)
    model.eval()
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(tensor, (moved[name] + model.state_dict()[name]) / 2)
        if "llm_layers" in name or "llm_block.final_norm" in name:
            assert torch.equal(tensor, start[name])
    by_hand = build(host, fast=fast)
    by_hand.load_state_dict(averaged.module.state_dict())
    assert torch.equal(logits(averaged, host), logits(by_hand, host))
    assert not torch.equal(logits(averaged, host), logits(model, host))


# Devices


@fast_or_not
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@three_models
def test_device_map(host, device_map, fast, build, tmp_path):
    for save_weights in (True, False):
        model = build(host, fast=fast, save_weights=save_weights)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(logits(again, host), logits(model, host))
        assert frozen_tensors(again).keys() == frozen_tensors(model).keys()


@pytest.mark.parametrize("on_disk", ["llm_block", "host", "all"])
@three_models
def test_device_map_with_a_disk(host, on_disk, build, tmp_path):
    model = build(host)
    model.save_pretrained(tmp_path / "model")
    places = {model.base_model_prefix: "cpu", "llm_block": "cpu", "classifier": "cpu"}
    if on_disk == "all":
        places = dict.fromkeys(places, "disk")
    else:
        places[model.base_model_prefix if on_disk == "host" else on_disk] = "disk"
    kwargs = {"device_map": places, "offload_folder": tmp_path / "offload"}
    again = type(model).from_pretrained(tmp_path / "model", **kwargs)
    offloaded = [name for name, p in again.named_parameters() if p.is_meta]
    assert any(name.startswith(("llm_block.", f"{model.base_model_prefix}.")) for name in offloaded)
    assert_same_function(logits(again, host), logits(model, host))


@three_models
def test_light_model_does_not_put_its_block_on_the_disk(host, build, tmp_path):
    model = build(host, save_weights=False)
    model.save_pretrained(tmp_path / "model")
    places = {model.base_model_prefix: "cpu", "classifier": "cpu", "llm_block": "disk"}
    with pytest.raises(ValueError, match=r"disk.*save_weights"):
        type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")


@fast_or_not
@pytest.mark.parametrize("offload", ["cpu", "disk"])
@three_models
def test_accelerate_offload(host, offload, fast, build, tmp_path):
    model = build(host, fast=fast)
    expected = logits(model, host)
    if offload == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    for _ in range(2):
        assert_same_function(logits(model, host), expected)
    assert {p.device.type for p in model.parameters()} == {"meta"}


# Memory and precision


def enable_checkpointing(model, **kwargs):
    # renamed between the lowest and the highest supported transformers
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(*([kwargs] if kwargs else []))


@fast_or_not
@pytest.mark.parametrize("reentrant", [True, False])
@three_models
def test_gradient_checkpointing(host, reentrant, fast, build):
    model = build(host, fast=fast).train()
    loss_of(model, host).backward()
    expected = gradients(model)
    model.zero_grad()
    enable_checkpointing(model, use_reentrant=reentrant)
    if reentrant and host != "swin":  # whose embeddings return a tuple, which transformers' own hook does not take
        model.enable_input_require_grads()
    loss_of(model, host).backward()
    assert_same_gradients(gradients(model), expected)
    assert not any(".llm_layers." in name for name in expected)


def test_gradient_checkpointing_does_recompute(build):
    model = build("swin").train()
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
def test_bfloat16_model(host, layer_dtype, fast, build):
    expected = logits(build(host, fast=fast), host)
    model = build(host, fast=fast, layer_dtype=layer_dtype).bfloat16()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        actual = model(pixels_of(host, 2).bfloat16()).logits
    assert actual.dtype == torch.bfloat16 and relative_error(actual, expected) < 0.05


@fast_or_not
@pytest.mark.parametrize("layer_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@three_models
def test_autocast(host, attn, layer_dtype, fast, build):
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 3] = 0
    kwargs = {"attention_mask": mask} if host == "vit_class" else {}
    reference = build(host, fast=fast).train()
    loss_of(reference, host, **kwargs).backward()
    model = build(host, fast=fast, layer_dtype=layer_dtype).train()
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


# Several processes


@pytest.fixture
def distributed(build, tmp_path_factory):
    """(folder with saved models, results of two processes): one launch for all tests of all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributed_uses"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.json").exists():
            for host, fast in CASES:
                build(host, fast=fast).save_pretrained(folder / "models" / f"{host}-{fast}")
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
    expected = train_steps(load(folder / f"{host}-{fast}"), pixels_of(host, len(LABELS)), LABELS)
    result = results["fully_shard"][f"{host}-{fast}"]
    assert result["losses"] == pytest.approx(expected, abs=1e-5)
    assert result["frozen_is_intact"] and result["num_sharded"] >= 4
