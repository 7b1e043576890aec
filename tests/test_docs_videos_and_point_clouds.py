# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs docs/videos_and_point_clouds.md as it is written: commands (at tiny size), Python in order, errors, tables."""

import dataclasses
import importlib.metadata
import re
import shutil

import moving_pictures
import pytest
import torch
from documents import blocks, check_errors, commands, run_python
from hub_server import HubServer
from paths import REPO, shared_dir
from safetensors import safe_open
from tiny_runs import TINY_POINT_BERT, TINY_VIDEOMAE, write_npz, write_parquet

from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import RunArguments


PAGE = REPO / "docs" / "videos_and_point_clouds.md"
TEXT = PAGE.read_text(encoding="utf-8")
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = ["--max_steps", "2", "--eval_steps", "2", "--save_strategy", "no"]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """A folder with the files that the page names, and a Hub that has its LLM."""
    write_npz(tmp_path / "furniture_points.npz", {"train": 24, "test": 12})
    with safe_open(shared_dir() / "fixtures" / "official_point_bert_llama_tiny.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state_dict.") and ".llama" not in name]
        state = {name.removeprefix("state_dict."): file.get_tensor(name) for name in names}
    state = {f"module.transformer_q.{n}": t for n, t in state.items() if not n.startswith("cls_head")}
    torch.save({"base_model": state}, tmp_path / "Point-BERT.pth")
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub, hub.active(tmp_path / "hub"):
        hub.add(LLM, shared_dir() / "models" / "SmolLM2-135M-Instruct-layers")
        yield tmp_path


def test_the_page_runs_as_written(readers_folder, monkeypatch, caplog):
    pictures = write_parquet(readers_folder / "cifar10", {"train": 16, "test": 8}, image="img")
    ran = []
    for words in commands(TEXT):
        if words[0] == "pip":
            wanted = set(re.search(r"\[(.*)\]", words[3])[1].split(","))
            assert wanted <= set(importlib.metadata.metadata("hf_frozen_llm").get_all("Provides-Extra"))
        elif words[0] == "python":
            assert words[1] == "examples/moving_pictures.py" and (REPO / words[1]).is_file()
            few = ["--dataset", pictures, "--train", "16", "--test", "8"]
            monkeypatch.setattr("sys.argv", [*words[1:], *few])
            moving_pictures.main()
        else:
            tiny = TINY_VIDEOMAE if "video" in words[2] else TINY_POINT_BERT
            main([*words[1:], *([*tiny, *SHORT] if words[1] == "train" else [])])
        ran.append(words[1])
    assert ran.count("train") == 2 and ran.count("evaluate") == 2 and ran.count("convert") == 1

    shutil.copy(next((readers_folder / "moving_pictures" / "test").glob("*/*.mp4")), "clip.mp4")
    caplog.set_level("ERROR", "transformers.pipelines.video_classification")
    namespace: dict = {"main": main}
    run_python(blocks("python", TEXT), namespace, PAGE.name)
    assert {answer["label"] for answer in namespace["answers"]} <= set(moving_pictures.MOTIONS)
    assert namespace["logits"].shape == (1, 15)
    check_errors(blocks("pycon", TEXT)[0], namespace)


def test_the_tables_of_keys_are_right():
    fields = {f.name: f for task in TASKS.values() for f in dataclasses.fields(task.arguments)}
    tables = [part.partition("\n\n")[0] for part in TEXT.split("| key | default | what it does |\n")[1:]]
    rows = [row for table in tables for row in re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE)]
    assert len(tables) == 2 and len(rows) == 14
    for names, default in rows:
        keys, said = re.findall(r"\w+", names), default.replace("`", "").split(", ")
        for key, value in zip(keys, said if len(said) == len(keys) else said * len(keys)):
            real = fields[key].default
            expected = {"none": (None, False, 0.0), "true": (True,), "false": (False,)}.get(value)
            assert real in expected if expected else str(real) in (value, f"{value}.0"), key
    of_every_task = {f.name for f in dataclasses.fields(RunArguments)}
    assert {"layer_decay", "projection_learning_rate_scale", "base_batch_size"} <= of_every_task


def test_files_named_exist():
    for name in re.findall(r"`([\w]+/[\w/.]+(?:yaml|/))`", TEXT):
        if not name.startswith(("runs/", "labels/", "20bn")):
            assert (REPO / name).exists() or (REPO / "recipes" / name).exists(), name
