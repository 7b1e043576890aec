# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Models with LoRA of peft: in the LLM layer, and in the host."""

import copy
import json
import shutil

import peft
import pytest
import torch
from distributed_uses import frozen_tensors, pixels_of
from model_uses import assert_same_function, every_host, gradients, logits, loss_of, three_models
from references import relative_error
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments


# peft asks for a property that transformers 5.23 renamed
peft_warns = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
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
    """What the model held before it was wrapped, under the names of then."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in lora.get_base_model().state_dict().items()
        if not is_adapter(name)
    }


@peft_warns
@pytest.mark.host_table("LoRA")
@pytest.mark.parametrize("host_is", ["adapted", "trained"])
@every_host
def test_lora(host, host_is, fast, build_model, tmp_path):
    model = build_model(host, fast=fast, save_weights=False)
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
    assert relative_error(expected, logits(build_model(host, fast=fast), host)) > 1e-3
    lora.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build_model(host, fast=fast), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, host), expected)

    merged = lora.merge_and_unload().eval()
    torch.testing.assert_close(logits(merged, host), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["llm_block"]["save_weights"] is True
    assert "llm_block.llm_layers.0.mlp.up_proj.weight" in load_file(tmp_path / "merged" / "model.safetensors")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded, host), logits(merged, host))
    assert frozen_tensors(loaded).keys() == frozen_tensors(build_model(host)).keys()


@peft_warns
def test_attention_mask_of_a_host_that_peft_has_wrapped(build_model):
    model = build_model("vit")
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
def test_trainer_resumes_lora_bit_equal(host, host_is, build_model, tmp_path):
    def trainer(seed, folder):
        model = build_model(host)
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
    again = peft.PeftModel.from_pretrained(build_model(host), tmp_path / "checkpoint-4").eval()
    assert torch.equal(logits(again, host), logits(resumed.model, host))
