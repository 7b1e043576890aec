# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json

import datasets
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from paths import REPO
from tiny_runs import TINY, write_llama, write_parquet

from hf_frozen_llm.cli import main
from hf_frozen_llm.training.arguments import DataArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.recipe import find_recipe, read_recipe


FILES = sorted((REPO / "recipes").glob("*/*.yaml"))
ACCELERATE = [path for path in FILES if path.parent.name == "accelerate"]
RECIPES = [path for path in FILES if path not in ACCELERATE]


def name(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.fixture(autouse=True, scope="module")
def quiet_datasets():
    datasets.disable_progress_bars()


def test_there_are_recipes():
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_two_steps(path, llm, tmp_path):
    recipe = read_recipe(path)
    for arguments in (ModelArguments, DataArguments, RunArguments):
        recipe.arguments(arguments)
    values = recipe.values
    sizes = {values["train_split"]: 24, values["eval_split"]: 12}
    data = write_parquet(tmp_path / "data", sizes, image=values["image_column"], label=values["label_column"])
    flags = [
        "--dataset_name",
        data,
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
    ]
    if recipe.llm_block is not None:
        flags += ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    main(["train", str(path), *TINY, *flags])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["parameters"]["frozen"] > 0) == (recipe.llm_block is not None)
    assert 0 <= results["metrics"]["eval_top1"] <= 1


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "image_classification"], ids=name)
def test_header_says_what_it_reproduces(path):
    text = path.read_text()
    header = text.partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("arXiv", "table", "row", "Command:", "Override:", "Hardware:", "Score:", "Time:", path.name):
        assert word in header
    lines = dict(line.removeprefix("# ").split(":", 1) for line in header.splitlines()[2:9] if ": " in line)
    launcher, _, command = lines["Command"].partition(" -m hf_frozen_llm train ")
    assert launcher.split() == ["torchrun", "--nproc_per_node", "4"]
    assert find_recipe(command) == path
    overridden = read_recipe(path, lines["Override"].split()[1:])
    assert overridden != read_recipe(path)


def test_pairs_of_recipes_differ_in_the_block_alone():
    for path in RECIPES:
        if path.stem.endswith("_llama7b"):
            ours, plain = (
                yaml.safe_load(p.read_text()) for p in (path, path.with_stem(path.stem.removesuffix("_llama7b")))
            )
            different = {key for key in ours if ours[key] != plain[key]}
            assert different == {"llm_block", "output_dir"}


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_configs_are_read(path):
    settings = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))
    assert set(settings) <= set(vars(config))
    assert config.num_processes == settings["num_processes"]
