# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs docs/use_your_own_host.md as it is written: its Python in order, its command (at tiny size), its errors."""

import re

import pytest
import torch
import transformers
from documents import blocks, check_errors, commands, run_python
from hub_server import HubServer
from paths import REPO
from tiny_hosts import HOSTS
from tiny_runs import write_parquet
from transformers import Dinov2Config, Dinov2Model, SwinConfig

from hf_frozen_llm import VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main
from hf_frozen_llm.training.recipe import read_recipe


PAGE = REPO / "docs" / "use_your_own_host.md"
TEXT = PAGE.read_text(encoding="utf-8")
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def readers_folder(tmp_path, monkeypatch, shared_dir):
    """A folder to work in, and a Hub that has what the page names."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 518}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(tmp_path / "dinov2")
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    with HubServer() as hub, hub.active(tmp_path / "hub"):
        hub.add(LLM, shared_dir / "models" / "SmolLM2-135M-Instruct-layers")
        hub.add("facebook/dinov2-small", tmp_path / "dinov2")
        yield tmp_path / "reader"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of peft
def test_python_runs_as_written(readers_folder):
    namespace: dict = {}
    run_python(blocks("python", TEXT), namespace, PAGE.name)
    assert namespace["logits"].shape == (2, 10)
    assert namespace["swin"].config.pooling == "mean"
    assert [tuple(m.shape) for m in namespace["maps"]] == [(1, 96, 16, 16)] * 3
    assert len(namespace["features"][0]) == 24
    trained = {name for name, p in namespace["lora_model"].named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert namespace["exported"] is not None and namespace["onnx_program"] is not None
    check_errors(
        blocks("pycon", TEXT)[0],
        {
            "SwinConfig": SwinConfig,
            "VisionWithLLMBlockConfig": VisionWithLLMBlockConfig,
            "VisionWithLLMBlockForImageClassification": VisionWithLLMBlockForImageClassification,
        },
    )


def test_command_runs(readers_folder, tmp_path):
    (words,) = commands(TEXT)
    data = write_parquet(tmp_path / "data", {"train": 24, "test": 12}, image="img", label="label")
    tiny = ["--dataset_name", data, "--max_steps", "2", "--save_strategy", "no", "--use_cpu", "true"]
    main([*words[1:], *tiny, "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"])
    assert (readers_folder / "runs" / "dinov2" / "results.json").is_file()


def test_recipe_lines_are_valid(tmp_path):
    (lines,) = blocks("yaml", TEXT)
    (tmp_path / "recipe.yaml").write_text(lines)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.values["model_type"] == "vision_with_llm_block" and recipe.values["freeze_host"] is True
    assert recipe.host == {"name_or_path": "facebook/dinov2-small"}


def test_the_table_has_every_host():
    """`make host-table` has been run since a host was added; a failing cell would be a failing test."""
    from host_table import HOST_TABLE

    table = TEXT[TEXT.index(HOST_TABLE.begin) : TEXT.index(HOST_TABLE.end)]
    rows = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    assert set(HOST_TABLE.rows.values()) <= set(rows)
    assert set(HOSTS) < set(HOST_TABLE.rows)
    assert all(column in table for column in HOST_TABLE.columns)
    assert "✗" not in table


def test_files_named_exist():
    for name in re.findall(r"`((?:tests|docs|recipes|modeling)/[\w/.]+)`|(quickstart/\w+\.yaml)", TEXT):
        target = next(filter(None, name))
        assert (REPO / target).exists() or (REPO / "recipes" / target).exists(), target
