# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Code in a model's folder is never executed, and nobody is asked for it, without an explicit flag."""

import io
import json
import sys

import pytest
from tiny_runs import TINY_RUN
from transformers import ViTConfig, ViTForImageClassification

from hf_frozen_llm import LLMBlock, LLMBlockConfig, VisionWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main


CODE = """\
from pathlib import Path
from transformers import PreTrainedConfig, ViTConfig
Path({marker!r}).touch()
class StrangeConfig(PreTrainedConfig):
    model_type = "strange"
    sub_configs = {{"vision_config": ViTConfig}}
    def __init__(self, vision_config=None, **kwargs):
        self.vision_config = ViTConfig(**(vision_config or {{}}))
        super().__init__(**kwargs)
"""
HOST_CLASS = VisionWithLLMBlockForImageClassification
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def marker(tmp_path):
    """The file that shows that the code has run."""
    return tmp_path / "executed"


@pytest.fixture
def strange(tmp_path, marker):
    """A model whose configuration needs code from its folder; its weights are those of a ViT."""
    vit = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3))
    folder = tmp_path / "strange"
    vit.save_pretrained(folder)
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.StrangeConfig"}}
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": vit.config.to_dict()}))
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    return folder


@pytest.fixture(params=["closed", "yes"])
def stdin(request, monkeypatch):
    """No terminal, and one on which somebody would say yes."""
    answers = io.StringIO("y\n" * 5)
    if request.param == "closed":
        answers.close()
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


def problem_of(act, capsys):
    """Return the text of the error; `check` prints it."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return capsys.readouterr().out


def recipe_of(tmp_path, data, *lines):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "\n".join([f"dataset_name: {data}", "model_type: vision_with_llm_block", "llm_block: null", *lines])
    )
    return str(recipe)


WAYS = {
    "info": lambda folder, recipe: main(["info", folder]),
    "evaluate": lambda folder, recipe: main(["evaluate", folder]),
    "predict": lambda folder, recipe: main(["predict", folder, folder]),
    "from_host_pretrained": lambda folder, recipe: VisionWithLLMBlockForImageClassification.from_host_pretrained(
        folder
    ),
    "train": lambda folder, recipe: main(["train", recipe, *TINY_RUN, "--host.name_or_path", folder]),
    "train, with a field": lambda folder, recipe: main(
        ["train", recipe, *TINY_RUN, "--host.name_or_path", folder, "--host.hidden_dropout_prob", "0.1"]
    ),
    "train, with a type": lambda folder, recipe: main(
        ["train", recipe, *TINY_RUN, "--host.model_type", "vit", "--host.name_or_path", folder]
    ),
    "check": lambda folder, recipe: main(["check", recipe, *TINY_RUN, "--host.name_or_path", folder]),
}


@pytest.mark.parametrize("way", WAYS)
def test_never_without_a_flag(way, strange, stdin, marker, data, tmp_path, capsys):
    options = ["image_mean: [0.5, 0.5, 0.5]", "image_std: [0.5, 0.5, 0.5]", f"output_dir: {tmp_path / 'run'}"]
    recipe = recipe_of(tmp_path, data, *options)
    hosts = way not in ("info", "evaluate", "predict")
    flags = ["trust_remote_code=True", "--host.trust_remote_code true"] if hosts else ["trust_remote_code=False"]
    problem = problem_of(lambda: WAYS[way](str(strange), recipe), capsys)
    assert all(text in problem for text in (str(strange), "code of its own", *flags)), problem
    assert not marker.exists()
    assert stdin.closed or stdin.tell() == 0, "nobody was asked"


def test_language_models(strange, stdin, marker):
    with pytest.raises(ValueError, match="need remote code cannot be used"):
        LLMBlock(LLMBlockConfig(llm_name_or_path=str(strange), hidden_size=16))
    assert not marker.exists()


def test_with_the_flag(strange, marker, data, tmp_path):
    model = VisionWithLLMBlockForImageClassification.from_host_pretrained(
        strange, trust_remote_code=True, num_labels=6
    )
    assert marker.exists() and model.config.vision_config.model_type == "vit"
    marker.unlink()
    options = ["image_mean: [0.5, 0.5, 0.5]", "image_std: [0.5, 0.5, 0.5]", f"output_dir: {tmp_path / 'run'}"]
    flags = ["--host.name_or_path", str(strange), "--host.trust_remote_code", "true", "--max_steps", "1"]
    main(["train", recipe_of(tmp_path, data, *options), *TINY_RUN, *flags])
    assert (tmp_path / "run" / "model.safetensors").is_file()
