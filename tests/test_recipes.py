# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json

import datasets
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from paths import REPO
from tiny_runs import (
    CLASSES,
    TINY,
    TINY_DINOV2,
    TINY_METER,
    TINY_POINT_BERT,
    TINY_SWIN,
    TINY_VIDEOMAE,
    write_color_images,
    write_h5,
    write_karpathy,
    write_llama,
    write_modelnet40,
    write_npz,
    write_parquet,
    write_shapes,
    write_something_something,
    write_table,
    write_video_folder,
    write_vqa,
)
from tiny_scenes import TINY_SQA3D, write_scenes
from tiny_traffic import (
    TINY_FORECAST_MAE,
    TINY_MMTRANSFORMER,
    TINY_VECTORNET,
    write_argoverse1,
    write_argoverse2,
    write_log,
    write_pedestrians,
)

from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import ModelArguments, RunArguments
from hf_frozen_llm.training.recipe import NO_RECIPES, find_recipe, read_recipe


FILES = sorted((REPO / "recipes").glob("*/*.yaml"))
ACCELERATE = [path for path in FILES if path.parent.name == "accelerate"]
RECIPES = [path for path in FILES if path.parent.name not in NO_RECIPES]
SMALL_HOSTS = {
    "vit_with_llm_block": TINY,
    "dinov2": TINY_DINOV2,
    "swin": TINY_SWIN,
    "videomae_with_llm_block": TINY_VIDEOMAE,
    "point_bert_with_llm_block": TINY_POINT_BERT,
    "sqa3d_with_llm_block": TINY_SQA3D,
    "vectornet_with_llm_block": TINY_VECTORNET,
    "mmtransformer_with_llm_block": TINY_MMTRANSFORMER,
    "forecast_mae_with_llm_block": TINY_FORECAST_MAE,
    # the published encoders of a recipe
    "meter_with_llm_block": [*TINY_METER, "--host.text_name_or_path", "null", "--host.image_size", "null"],
}


def name(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.fixture(autouse=True, scope="module")
def quiet_datasets():
    datasets.disable_progress_bars()


def test_there_are_recipes():
    assert len(RECIPES) >= 40
    tasks = ("image_classification", "video_classification", "point_cloud_classification")
    tasks = (*tasks, "visual_question_answering", "image_text_retrieval", "situated_question_answering")
    for task in (*tasks, "motion_forecasting"):
        assert any(path.parent.name == task and path.stem == "tiny" for path in WITH_BASELINE)


def write_data(folder, values):
    """Write data in the recipe's format, with its splits and columns."""
    splits = {values["train_split"]: 24, values["eval_split"]: 12}
    if values["task"] == "image-classification":
        return write_parquet(folder, splits, image=values["image_column"], label=values["label_column"])
    if values["task"] == "visual-question-answering" and "2014" in values["train_split"]:
        return write_vqa(folder, {"train2014": 24, "val2014": 12})
    if values["task"] == "visual-question-answering":
        return write_shapes(folder, splits)
    if values["task"] == "situated-question-answering":
        return write_scenes(folder, splits)
    if values["task"] == "motion-forecasting":
        write = {"eth_ucy": write_pedestrians, "argoverse2_log": write_log}.get(values["dataset_name"])
        if write is not None:
            return write(folder)
        write_scenes_of = write_argoverse2 if "argoverse2" in values["dataset_name"] else write_argoverse1
        return write_scenes_of(folder, {"train": 24, "val": 12})
    if values["dataset_name"].endswith(".json"):
        return write_karpathy(folder, splits)
    if values["task"] == "image-text-retrieval":
        images = write_color_images(folder, copies=2)
        for split in splits:
            write_table(folder / f"{split}.csv", [{"image": file, "caption": f"it is {c}"} for file, c in images])
        return str(folder)
    if values["train_split"].endswith(".json"):
        return write_something_something(folder, splits)
    if values["task"] == "video-classification":
        return write_video_folder(folder, splits)
    if values["train_split"].endswith(".h5"):
        return write_h5(folder, splits, names=False)
    if values["train_split"].endswith(".txt"):
        return write_modelnet40(folder, splits)
    return write_npz(folder.with_suffix(".npz"), splits)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_two_steps(path, llm, tmp_path):
    recipe = read_recipe(path)
    values = recipe.values
    for arguments in (ModelArguments, TASKS[values["task"]].arguments, RunArguments):
        recipe.arguments(arguments)
    flags = [
        *("--dataset_name", write_data(tmp_path / "data", values)),
        *("--output_dir", str(tmp_path / "run")),
        *("--max_steps", "2"),
        *("--save_strategy", "no"),
    ]
    if "name_or_path" in recipe.host:
        flags += ["--host.name_or_path", "null"]
    if "class_names" in values:
        flags += ["--class_names", str(CLASSES)]
    if values.get("max_points") is not None:
        flags += ["--max_points", "48"]
    if values.get("image_folder") is not None:
        flags += ["--image_folder", "null"]
    if values.get("min_answer_count") is not None:
        flags += ["--min_answer_count", "2"]
    if values.get("num_candidates") is not None:
        flags += ["--num_candidates", "40"]
    if recipe.llm_block is not None:
        flags += ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
        # The middle of twelve layers is the middle of two.
        flags += ["--llm_block.position", "1"] if recipe.llm_block.get("position", -1) > 0 else []
    main(["train", str(path), *SMALL_HOSTS[recipe.host.get("model_type", values["model_type"])], *flags])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    block = recipe.llm_block or {"kind": "none"}
    is_frozen = block.get("kind", "llm") == "llm" and not block.get("trainable", False)
    # All but the unit norm of a layer that is trained.
    assert (results["parameters"]["frozen"] > 32) == is_frozen
    metric = TASKS[values["task"]].main_metric
    score = results["metrics"][f"eval_{metric.name}"]
    assert 0 <= score <= 1 if metric.greater_is_better else 0 <= score < 100


OF_THE_PAPER = [
    path
    for path in RECIPES
    if path.parent.name != "quickstart"
    and not path.stem.endswith(("tiny", "shapes", "emoji", "rooms", "_eth_ucy", "_argoverse2", "_argoverse2_log"))
    and not any(name in path.stem for name in ("_cifar10", "_imagenet100"))
]


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=name)
def test_header_says_what_it_reproduces(path):
    text = path.read_text()
    header = text.partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("arXiv", "table", "row", "Command:", "Override:", "Hardware:", "Score:", "Time:", path.name):
        assert word in header
    lines = dict(line.removeprefix("# ").split(":", 1) for line in header.splitlines()[2:11] if ": " in line)
    launcher, _, command = lines["Command"].strip().rpartition("train ")
    parallel = "torchrun --nproc_per_node 4 -m hf_frozen_llm"
    assert launcher.strip() == ("hf-frozen-llm" if path.parent.name.startswith("point_cloud") else parallel)
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


WITH_BASELINE = [path for path in RECIPES if "# Baseline:" in path.read_text()]


@pytest.mark.parametrize("path", WITH_BASELINE, ids=name)
def test_header_names_the_baseline(path):
    lines = dict(line.removeprefix("# ").split(":", 1) for line in path.read_text().splitlines() if ": " in line[:12])
    command = next(line for line in path.read_text().splitlines() if "hf-frozen-llm train " in line)
    assert find_recipe(command.partition("hf-frozen-llm train ")[2].split()[0]) == path
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
