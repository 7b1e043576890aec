# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny runs, trained once for each module, and copies of their folders."""

import shutil
from pathlib import Path

import pytest
from card_runs import KINDS, LLM_ID, RECIPE
from tiny_runs import write_npz, write_video_folder

from hf_frozen_llm.cli import main


@pytest.fixture(scope="module")
def llm_with_card(llm, tmp_path_factory):
    """The folder of a language model that `hf-frozen-llm layer` could have written."""
    folder = shutil.copytree(llm, tmp_path_factory.mktemp("llm_with_card") / "llm")
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nbase_model: {LLM_ID}\n---\n")
    return folder


@pytest.fixture(scope="module")
def train(llm_with_card, data, tmp_path_factory):
    """Return the folder of the run of a kind; each is trained once."""
    root = tmp_path_factory.mktemp("cards")
    recipe = root / "recipe.yaml"
    folders = {}

    def train(kind):
        if kind not in folders:
            source = {
                "video": lambda: write_video_folder(root / "videos"),
                "points": lambda: write_npz(root / "clouds.npz", {"train": 24, "test": 12}),
            }.get(kind, lambda: data)()
            recipe.write_text(RECIPE.format(data=source, llm=llm_with_card))
            folders[kind] = root / kind.replace(" ", "_")
            main(["train", str(recipe), *KINDS[kind], "--output_dir", str(folders[kind])])
        return folders[kind]

    return train


@pytest.fixture
def run(train, tmp_path):
    """Return a copy of the folder of a run, without its checkpoints."""

    def copy(kind="image"):
        ignored = shutil.ignore_patterns("checkpoint-*", "README.*", ".eval_results")
        return Path(shutil.copytree(train(kind), tmp_path / "model", ignore=ignored))

    return copy
