# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json

import datasets
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from paths import REPO
from tiny_runs import TINY, TINY_DINOV2, TINY_SWIN, write_llama, write_parquet

from hf_frozen_llm.cli import main
from hf_frozen_llm.training.arguments import DataArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.recipe import NO_RECIPES, find_recipe, read_recipe


FILES = sorted((REPO / "recipes").glob("*/*.yaml"))
ACCELERATE = [path for path in FILES if path.parent.name == "accelerate"]
RECIPES = [path for path in FILES if path.parent.name not in NO_RECIPES]
SMALL_HOSTS = {None: TINY, "dinov2": TINY_DINOV2, "swin": TINY_SWIN}


def name(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.fixture(autouse=True, scope="module")
def quiet_datasets():
    datasets.disable_progress_bars()


def test_there_are_recipes():
    assert len(RECIPES) >= 10


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
        # The middle of twelve layers is the middle of two.
        flags += ["--llm_block.position", "1"] if recipe.llm_block.get("position", -1) > 0 else []
    main(["train", str(path), *SMALL_HOSTS[recipe.host.get("model_type")], *flags])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    block = recipe.llm_block or {"kind": "none"}
    is_frozen = block.get("kind", "llm") == "llm" and not block.get("trainable", False)
    # All but the unit norm of a layer that is trained.
    assert (results["parameters"]["frozen"] > 32) == is_frozen
    assert 0 <= results["metrics"]["eval_top1"] <= 1


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name.startswith("image_")], ids=name)
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


ANY_HOST = [path for path in RECIPES if read_recipe(path).values["model_type"] == "vision_with_llm_block"]


@pytest.mark.parametrize("path", ANY_HOST, ids=name)
def test_header_of_any_host_names_the_baseline(path):
    lines = dict(line.removeprefix("# ").split(":", 1) for line in path.read_text().splitlines() if ": " in line[:12])
    assert find_recipe(lines["Command"].partition("hf-frozen-llm train ")[2]) == path
    ours, plain = (read_recipe(path, flags) for flags in ([], lines["Baseline"].split()[1:]))
    assert plain.llm_block is None and ours.llm_block
    assert plain.host == ours.host
    assert {name for name in ours.values if ours.values[name] != plain.values[name]} == {"output_dir"}
    assert read_recipe(path, lines["Override"].split()[1:]) != ours


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_configs_are_read(path):
    settings = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))
    assert set(settings) <= set(vars(config))
    assert config.num_processes == settings["num_processes"]
