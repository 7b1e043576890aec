# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs README.md as it is written: its Python in order, its commands (at tiny size), its errors, its table."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from documents import blocks, check_errors, commands, run_python
from hub_server import HubServer
from paths import REPO, shared_dir
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import TINY_POINT_BERT, TINY_VIDEOMAE, write_npz, write_parquet
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.quickstart.moving_pictures import make_videos
from hf_frozen_llm.training.recipe import read_recipe


TEXT = (REPO / "README.md").read_text(encoding="utf-8")
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = ["--max_steps", "2", "--eval_steps", "2"]
TINY = ["--host.hidden_size", "16", "--host.num_attention_heads", "2", *SHORT]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch, shared_dir):
    """A folder in which the names of the README lead somewhere, and a Hub that has what it names."""
    llm = shared_dir / "models" / "SmolLM2-135M-Instruct-layers"
    folder = tmp_path / "reader"
    shutil.copytree(llm, folder / "path" / "to" / "SmolLM2-135M-Instruct")
    for split in ("train", "test"):
        for label, color in (("cat", (200, 20, 20)), ("dog", (20, 20, 200))):
            (folder / "pictures" / split / label).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (80, 60), color).save(folder / "pictures" / split / label / f"{i}.png")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**sizes, num_labels=1000)).save_pretrained(tmp_path / "vit")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 518}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    monkeypatch.chdir(folder)
    with HubServer() as hub, hub.active(tmp_path / "hub"):
        hub.add(LLM, llm)
        hub.add("google/vit-base-patch16-224", tmp_path / "vit")
        hub.add("facebook/dinov2-small", tmp_path / "dinov2")
        yield folder


def test_python_runs_as_written(readers_folder):
    first = blocks("python", TEXT)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(first, "README.md", "exec"), namespace)
    assert printed.getvalue() == blocks("text", TEXT)[0]
    assert namespace["logits"].shape == (1, 10)
    model = namespace["model"]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert f"{frozen:,} parameters are frozen" in TEXT
    assert f"{model.llm_block.bytes_read:,} bytes" in TEXT

    run_python(blocks("python", TEXT), namespace, "README.md")
    assert namespace["tokens"].shape == (2, 50, 384)
    assert namespace["dinov2"].classifier.out_features == 10
    # The last block loaded the light folder from the LLM's new place.
    assert namespace["model"].config.llm_block.llm_name_or_path == "path/to/SmolLM2-135M-Instruct"
    names = {name for name, p in namespace["model"].named_parameters() if not p.requires_grad}
    assert names
    assert all(name.startswith(("llm_block.llm_layers.", "llm_block.final_norm.")) for name in names)


def test_commands_run(readers_folder):
    released = load_file(shared_dir() / "fixtures" / "official_vit_llama_tiny.safetensors")
    state = {n.removeprefix("state_dict."): t for n, t in released.items() if n.startswith("state_dict.")}
    torch.save({"model": state}, "checkpoint.pth")
    write_npz(Path("furniture_points.npz"), {"train": 24, "test": 12})
    ran = []
    for words in commands(TEXT):
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
        elif words[:3] == ["pip", "install", "-e"]:
            wanted = set(re.search(r"\[(.*)\]", words[3])[1].split(","))
            assert wanted <= set(importlib.metadata.metadata("hf_frozen_llm").get_all("Provides-Extra"))
        elif words[0] == "python":
            assert words[1:3] == ["-m", "hf_frozen_llm.quickstart.moving_pictures"]
            pictures = write_parquet(Path("cifar10"), {"train": 16, "test": 8}, image="img")
            make_videos(Path(words[-1]), pictures, {"train": 16, "test": 8})
        else:
            assert words[0] == "hf-frozen-llm"
            tiny = {"video": [*TINY_VIDEOMAE, *SHORT], "point": [*TINY_POINT_BERT, *SHORT]}.get(words[2][:5], TINY)
            extra = {"train": tiny, "check": tiny, "ablate": ["--dry_run"], "predict": ["--use_cpu"]}
            main([*words[1:], *extra.get(words[1], [])])
        ran.append(words[:2])
    assert ["make", "quickstart"] in ran and ["make", "test"] in ran
    assert ["hf-frozen-llm", "check"] in ran and ["hf-frozen-llm", "predict"] in ran
    assert Path("runs/long/check.png").is_file()
    predictions = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 16 and predictions[0]["predictions"][0]["label"] in ("cat", "dog")
    assert ["hf-frozen-llm", "train"] in ran and ["hf-frozen-llm", "evaluate"] in ran
    results = json.loads(Path("runs/pictures/results.json").read_text())
    assert results["config"]["llm_block"]["llm_name_or_path"] == LLM
    assert set(results["config"]["label2id"]) == {"cat", "dog"}
    assert 0 <= json.loads(Path("runs/pictures/eval_results.json").read_text())["metrics"]["eval_top1"] <= 1


def test_flags_in_the_text_are_valid():
    flags = re.findall(r"`(--[^`]+)`", TEXT)
    assert len(flags) >= 3
    for flag in flags:
        read_recipe("quickstart/vit_tiny_cifar10.yaml", flag.split())


def test_errors_are_those_shown(readers_folder):
    namespace = {"LLMBlock": LLMBlock, "LLMBlockConfig": LLMBlockConfig, "main": main}
    (session,) = blocks("pycon", TEXT)
    check_errors(session, namespace)


def test_the_table_of_fields_is_right():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+) \|$", TEXT, re.MULTILINE)
    fields = {field.name: field for field in dataclasses.fields(LLMBlockConfig)}
    assert len(rows) >= 9
    for name, default, choices in rows:
        assert fields[name].default == eval(default)
        for choice in re.findall(r"`(\"\w+\"|True|\[[\d, ]+\]|-?\d+)`", choices):
            assert getattr(LLMBlockConfig(**{name: eval(choice)}), name) == eval(choice)


def test_files_named_exist():
    for name in re.findall(r"\]\(([^)]+)\)|`([\w/]+/[\w./]*\.(?:py|yaml)|[\w/]+/)`", TEXT):
        target = next(filter(None, name))
        if not target.startswith(("http", "runs/")):
            assert (REPO / target).exists() or (REPO / "recipes" / target).exists(), target
