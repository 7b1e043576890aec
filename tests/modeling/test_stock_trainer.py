# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own Trainer: it resumes bit for bit, loads the best model, keeps frozen parameters frozen."""

import copy
import logging
import shutil

import pytest
import torch
from saved_models import Classifier, assert_same, build, llm_names, load, logits, stored, stored_block
from tiny_llms import HOST, decoder_stack, published_vit
from transformers import Trainer, TrainingArguments, ViTImageProcessor

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig


class Pictures(torch.utils.data.Dataset):
    def __init__(self, count=12):
        generator = torch.Generator().manual_seed(11)
        self.x = torch.randn(count, 3, 8, 8, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": i % 3}


def stock_trainer(model, folder, **arguments):
    arguments = {
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "remove_unused_columns": False,
        "seed": 3,
        **arguments,
    }
    args = TrainingArguments(output_dir=str(folder), **arguments)
    return Trainer(model=model, args=args, train_dataset=Pictures(), eval_dataset=Pictures())


FORMS = {
    "self-contained": {},
    "light": {"save_weights": False},
    "random": {"weights": "random"},
    "trainable": {"trainable": True},
    "several layers": {"layer_index": [0, 2], "final_norm": "pretrained"},
    "low precision": {"layer_dtype": "bfloat16"},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_stock_trainer_resumes_bit_equal(form, llm, tmp_path, caplog):
    _, llm_folder = llm()
    fields = FORMS[form]
    straight = stock_trainer(build(llm_folder, **fields), tmp_path / "straight")
    before = copy.deepcopy(straight.model.state_dict())
    straight.train()
    expected = straight.model.state_dict()
    names = llm_names(expected)
    assert not torch.equal(expected["vit.embeddings.cls_token"], before["vit.embeddings.cls_token"])
    if form != "trainable":
        assert all(torch.equal(expected[n], before[n]) for n in names)
    written = llm_names(stored(tmp_path / "straight" / "checkpoint-4"))
    assert written == (names if form in ("random", "trainable") else set())

    # killed after step 4, started again with another seed's weights
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    resumed = stock_trainer(build(llm_folder, seed=77, **fields), tmp_path / "resumed")
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert not [r for r in caplog.records if "missing keys" in r.getMessage() or "unexpected keys" in r.getMessage()]
    assert_same(straight.model, resumed.model)
    history = [[e["loss"] for e in t.state.log_history if "loss" in e][4:] for t in (straight, resumed)]
    assert history[0] == history[1] and len(history[0]) == 2
    assert {n for n, p in resumed.model.named_parameters() if not p.requires_grad} == {
        n for n, p in straight.model.named_parameters() if not p.requires_grad
    }

    # the last checkpoint is a model, and so is what save_model writes
    last = load(tmp_path / "straight" / "checkpoint-6")
    assert_same(straight.model, last)
    straight.save_model(str(tmp_path / "final"))
    assert stored_block(tmp_path / "final")["save_weights"] is (form != "light")
    if form != "light":
        shutil.rmtree(llm_folder)
    final = load(tmp_path / "final")
    assert_same(straight.model, final)
    assert torch.equal(logits(final), logits(straight.model))


@pytest.mark.parametrize("form", ["self-contained", "light", "random", "trainable"])
def test_stock_trainer_loads_the_best_model(form, llm, tmp_path):
    _, llm_folder = llm()
    scores = iter([0.2, 0.9, 0.5])
    trainer = stock_trainer(
        build(llm_folder, **FORMS[form]),
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
    )
    trainer.compute_metrics = lambda prediction: {"score": next(scores, 0.0)}
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert_same(trainer.model, load(tmp_path / "checkpoint-4"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[4], abs=1e-7)
    assert losses[4] != losses[6]


def test_stock_trainer_from_a_published_host(llm, tmp_path):
    published_vit(tmp_path / "vit")
    _, folder = llm()

    def model(seed):
        torch.manual_seed(seed)
        return Classifier.from_pretrained(
            tmp_path / "vit", llm_block=LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1)
        )

    straight = stock_trainer(model(2), tmp_path / "straight")
    straight.train()
    shutil.rmtree(tmp_path / "straight" / "checkpoint-6")
    resumed = stock_trainer(model(3), tmp_path / "straight")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    assert_same(straight.model, resumed.model)


def test_stock_trainer_without_a_block(tmp_path):
    def model(seed):
        torch.manual_seed(seed)
        return Classifier(ViTWithLLMBlockConfig(**HOST))

    straight = stock_trainer(model(2), tmp_path)
    straight.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = stock_trainer(model(3), tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same(straight.model, resumed.model)


def test_stock_trainer_freezes_the_host(llm, tmp_path):
    model = build(llm()[1])
    model.freeze_host()
    before = copy.deepcopy(model.state_dict())
    trainer = stock_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    changed = {n for n, t in trainer.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
        "classifier.weight",
        "classifier.bias",
    }


def test_stock_trainer_variants(llm, tmp_path):
    llm_model, folder = llm()
    for i, fields in enumerate(
        (
            {"bf16": True},
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
            {"label_smoothing_factor": 0.1},
            {"torch_compile": True, "torch_compile_backend": "eager"},
        )
    ):
        trainer = stock_trainer(build(folder), tmp_path / str(i), max_steps=2, **fields)
        assert torch.isfinite(torch.tensor(trainer.train().training_loss))
        for name, tensor in trainer.model.llm_block.llm_layers[0].state_dict().items():
            assert torch.equal(tensor, decoder_stack(llm_model)[0][1].state_dict()[name]), name


def test_stock_trainer_saves_the_image_processor(llm, tmp_path):
    model = build(llm()[1])
    trainer = stock_trainer(model, tmp_path / "out", max_steps=1, save_steps=1)
    trainer.processing_class = ViTImageProcessor(size={"height": 8, "width": 8})
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert (folder / "preprocessor_config.json").exists()
