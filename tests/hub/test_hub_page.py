# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Run docs/hub.md as written, on the local Hub."""

import re
import shlex
from pathlib import Path

import yaml
from hub_server import HubServer
from paths import REPO
from saved_models import build
from tiny_runs import write_image_folder, write_llama
from transformers import ViTImageProcessor, ViTModel

from hf_frozen_llm import ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel
from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.cli import main
from hf_frozen_llm.hub.push import describe_code


TEXT = (REPO / "docs" / "hub.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub, hub.active(tmp_path / "hf_home"):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        write_llama(tmp_path / "llm")
        Path("llm/README.md").write_text("---\nlicense: apache-2.0\n---\n")
        hub.add("someone/llm", tmp_path / "llm")
        build("someone/llm").save_pretrained("runs/pictures")
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained("runs/pictures")
        write_image_folder(Path("pictures"))
        for line in blocks("bash")[0].splitlines():
            main(shlex.split(line)[1:])
        namespace = {}
        for block in blocks("python"):
            exec(compile(block, "docs/hub.md", "exec"), namespace)
        assert hub.repositories["models", "you/pictures"].refs["main"] == namespace["commit"]
        assert hub.repositories["models", "you/pictures-light"].token == "hf_write"
    assert type(namespace["model"]) is ViTWithLLMBlockForImageClassification
    assert type(namespace["encoder"]) is ViTWithLLMBlockModel and type(namespace["encoder"].vit) is ViTModel
    assert 0 <= namespace["result"]["accuracy"] <= 1


def test_the_table_of_auto_classes_is_right():
    rows = dict(re.findall(r"^\| `(\w+_with_llm_block)` \| (.+) \|$", TEXT, re.MULTILINE))
    assert rows.keys() == TASK_MODELS.keys()
    for name, row in rows.items():
        named = set(re.findall(r"`(AutoModel\w*|AutoBackbone)`", row))
        assert {"AutoConfig", *named} == set(describe_code(TASK_MODELS[name].config_class))


def test_the_recipe_lines_are_valid(tmp_path):
    from transformers import TrainingArguments

    fields = TrainingArguments.__dataclass_fields__
    assert set(yaml.safe_load(blocks("yaml")[0])) <= set(fields)
