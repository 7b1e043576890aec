# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Pushing to the Hub: every commit is a model that another machine, without the LLM, loads with equal numbers."""

import json
import logging
import shutil

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from tiny_runs import TINY, write_llama
from transformers import AutoModelForImageClassification

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main
from hf_frozen_llm.hub.card import check_card, has_own_card, read_signature
from hf_frozen_llm.training.results import digest_weights


NAME = "tester/run"
PUSH = ["--push_to_hub", "true", "--hub_always_push", "true", "--eval_strategy", "no"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as hub, hub.active(tmp_path / "hf_home"):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield hub


@pytest.fixture
def own_llm(tmp_path):
    """A language model that a test may take away."""
    return write_llama(tmp_path / "secret_llm")


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)).logits


def train(recipe, llm, output_dir, *flags):
    arguments = [*TINY, *PUSH, "--llm_block.llm_name_or_path", str(llm), "--output_dir", str(output_dir)]
    main(["train", str(recipe), *arguments, *flags])


def commits_with_models(hub, name=NAME):
    folders = hub.repositories["models", name].commits
    return {commit: folder for commit, folder in folders.items() if (folder / "config.json").is_file()}


def load_elsewhere(commit, tmp_path, name=NAME):
    cache = tmp_path / "elsewhere" / commit
    return AutoModelForImageClassification.from_pretrained(name, revision=commit, cache_dir=cache)


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_stands_on_the_hub_loads_elsewhere(strategy, recipe, data, own_llm, hub, tmp_path):
    """All commits, of which those during the training have the weights of the checkpoint beside them."""
    output_dir = tmp_path / "run"
    train(recipe, own_llm, output_dir, "--hub_strategy", strategy, "--save_steps", "8")
    expected = {}
    for step in (8, 16, 24):
        checkpoint = ViTWithLLMBlockForImageClassification.from_pretrained(output_dir / f"checkpoint-{step}")
        expected[step] = logits(checkpoint)
    shutil.rmtree(own_llm)
    commits = commits_with_models(hub)
    found = {commit: logits(load_elsewhere(commit, tmp_path)) for commit in commits}
    of_steps = [step for logit in found.values() for step in expected if torch.equal(logit, expected[step])]
    assert len(of_steps) == len(commits), "every model is that of a checkpoint"
    assert set(of_steps) == ({24} if strategy == "end" else {8, 16, 24}) and of_steps == sorted(of_steps)
    for folder in commits.values():
        assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())["llm_block"]
        assert config["save_weights"] and config["llm_name_or_path"] is None and config["fingerprint"]
        for file in [*folder.glob("*.json"), *folder.glob("*.md")]:
            assert not any(str(path) in file.read_text() for path in (tmp_path, data)), file.name
        names = {path.name for path in folder.iterdir()}
        assert not {name for name in names if name.startswith((".", "_"))}
        assert not list(folder.rglob("training_args.bin"))
        assert not has_own_card(folder), "every commit has our card, of its own weights"
        assert read_signature((folder / "README.md").read_text())[1] == digest_weights(folder)[:16]
        checkpoints = {name for name in names if "checkpoint" in name}
        if strategy == "checkpoint":
            assert checkpoints <= {"last-checkpoint"}
        elif strategy != "all_checkpoints":
            assert not checkpoints
    last = folder
    assert {"results.json", "recipe.yaml", "training_curves.png"} <= {path.name for path in last.iterdir()}
    check_card(last)
    if strategy == "all_checkpoints":
        assert checkpoints == {"checkpoint-8", "checkpoint-16", "checkpoint-24"}


def test_resume_from_the_last_checkpoint_on_the_hub(recipe, llm, hub, tmp_path):
    """The resumed run ends with the weights of the uninterrupted one, although its model went to the Hub, too."""
    train(recipe, llm, tmp_path / "run", "--hub_strategy", "checkpoint", "--save_steps", "8")
    (commit,) = [
        commit
        for commit, folder in hub.repositories["models", NAME].commits.items()
        if (state := folder / "last-checkpoint" / "trainer_state.json").is_file()
        and json.loads(state.read_text())["global_step"] == 16
    ][:1]
    downloaded = snapshot_download(NAME, revision=commit, allow_patterns="last-checkpoint/*")
    last = ["--resume_from_checkpoint", f"{downloaded}/last-checkpoint", "--save_steps", "8"]
    train(recipe, llm, tmp_path / "resumed", *last, "--push_to_hub", "false")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "resumed"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_no_token_and_no_foreign_card_is_published(recipe, llm, hub, tmp_path):
    """Trainer's `training_args.bin` would hold the token; a card that was written by hand stays."""
    hub.uploads.tokens = {"hf_secret": "write"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("# By hand\n")
    train(
        recipe, llm, tmp_path / "run", "--hub_token", "hf_secret", "--hub_strategy", "checkpoint", "--save_steps", "12"
    )
    published = [path for folder in hub.repositories["models", NAME].commits.values() for path in folder.rglob("*.*")]
    assert any(path.name == "results.json" for path in published)
    assert any(path.name == "optimizer.pt" for path in published)
    assert not [path for path in published if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert {path.read_text() for path in published if path.name == "README.md"} == {"# By hand\n"}


def test_the_card_of_an_unfinished_run(recipe, llm, hub, tmp_path):
    """It has the training so far, and no results of the earlier model in the folder, whose evaluation is refused."""
    output_dir = tmp_path / "run"
    train(recipe, llm, output_dir, "--push_to_hub", "false", "--save_strategy", "no")
    main(["evaluate", str(output_dir)])
    steps = ["--save_steps", "8", "--eval_strategy", "steps", "--eval_steps", "8", "--seed", "1"]
    with pytest.raises(ValueError, match=r"eval_results\.json holds the results of an earlier model"):
        train(recipe, llm, output_dir, *steps)
    assert not commits_with_models(hub)
    (output_dir / "eval_results.json").unlink()
    train(recipe, llm, output_dir, *steps)
    first, *_, last = ((folder / "README.md").read_text() for folder in commits_with_models(hub).values())
    assert "| 8 |" in first and "| 24 |" not in first and "eval_top1" not in first
    assert "| 24 |" in last


@pytest.mark.parametrize(
    "flags", [["--llm_block.weights", "random"], ["--llm_block.kind", "mlp"], ["--llm_block", "null"]]
)
def test_models_without_a_layer_to_read_again(flags, recipe, llm, hub, tmp_path):
    """`save_weights: false` leaves out only what can be read again."""
    light = ["--llm_block.save_weights", "false"] if flags[1] != "null" else []
    train(recipe, llm, tmp_path / "run", *flags, *light, "--save_strategy", "no")
    *_, (commit, folder) = commits_with_models(hub).items()
    assert (folder / "results.json").is_file()
    expected = logits(ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path / "run"))
    assert torch.equal(logits(load_elsewhere(commit, tmp_path)), expected)


def test_lora_is_pushed_when_it_is_merged(recipe, own_llm, hub, tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        train(recipe, own_llm, tmp_path / "run", "--lora.r", "2", "--save_steps", "8")
    assert "pushed at the end of the training" in caplog.text
    shutil.rmtree(own_llm)
    expected = logits(ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path / "run"))
    commits = commits_with_models(hub)
    assert commits and all(torch.equal(logits(load_elsewhere(commit, tmp_path)), expected) for commit in commits)


def test_pushed_models_that_could_not_be_loaded(recipe, llm, hub, tmp_path):
    """Without the layer and with a language model that only this machine has: an error before the training."""
    with pytest.raises(ValueError, match=r"llm_block\.save_weights is False .*no other machine"):
        train(recipe, llm, tmp_path / "run", "--llm_block.save_weights", "false")
    assert not hub.repositories


def build(llm, **fields):
    block = LLMBlockConfig(llm_name_or_path=str(llm), layer_index=1, **fields)
    torch.manual_seed(0)
    return ViTWithLLMBlockForImageClassification(
        ViTWithLLMBlockConfig(**SIZES, image_size=16, patch_size=8, llm_block=block)
    )


@pytest.mark.parametrize("push", ["push_to_hub", "save_pretrained"])
def test_pushing_a_model(push, own_llm, hub, tmp_path):
    model = build(own_llm)
    if push == "push_to_hub":
        model.push_to_hub("model")
    else:
        model.save_pretrained(tmp_path / "model", push_to_hub=True)
        kept = json.loads((tmp_path / "model" / "config.json").read_text())["llm_block"]
        assert kept["llm_name_or_path"] == str(own_llm)
    assert model.config.llm_block.llm_name_or_path == str(own_llm)
    shutil.rmtree(own_llm)
    ((commit, folder),) = commits_with_models(hub, "tester/model").items()
    assert str(tmp_path) not in (folder / "config.json").read_text()
    again = load_elsewhere(commit, tmp_path, "tester/model")
    assert torch.equal(logits(again), logits(model))
    # Saved again, also as a light checkpoint, it keeps its layer: there is nothing to read it from.
    for name in ("again", "checkpoint-1"):
        again.save_pretrained(tmp_path / name)
        loaded = ViTWithLLMBlockForImageClassification.from_pretrained(tmp_path / name)
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.config.llm_block.fingerprint == model.config.llm_block.fingerprint


def test_light_models_name_their_llm_on_the_hub(hub, own_llm, tmp_path):
    """`save_weights=False` is kept, if other machines can read the layer from the Hub."""
    hub.add("tester/llm", own_llm)
    model = build("tester/llm", save_weights=False)
    model.push_to_hub("model")
    ((commit, folder),) = commits_with_models(hub, "tester/model").items()
    assert not any("llm_layers" in key for key in load_file(folder / "model.safetensors"))
    assert torch.equal(logits(load_elsewhere(commit, tmp_path, "tester/model")), logits(model))
    with pytest.raises(ValueError, match="no other machine"):
        build(own_llm, save_weights=False).push_to_hub("other")
