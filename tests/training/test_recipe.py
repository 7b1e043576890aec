# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import dataclasses

import pytest
import typer
from tiny_hosts import HOSTS
from transformers import TrainingArguments

from hf_frozen_llm.cli import app
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.image_classification import ImageDataArguments
from hf_frozen_llm.training.arguments import EvaluationArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.recipe import find_recipe, read_recipe
from hf_frozen_llm.training.run import resolve


BASE = "dataset_name: some/data\noutput_dir: out\n"


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(BASE + text)
        return read_recipe(path, overrides)

    return read


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_keys_of_the_dataclasses_do_not_collide(task):
    classes = (ModelArguments, task.arguments, RunArguments, EvaluationArguments, TrainingArguments)
    names = [field.name for cls in classes for field in dataclasses.fields(cls)]
    names += ["host", "llm_block", "lora"]
    assert len(names) == len(set(names))


def test_options_of_commands_are_no_keys_of_recipes():
    """`output_dir` and `output_file` replace the keys of that name; any other key would not reach the run."""
    arguments = [task.arguments for task in TASKS.values()]
    classes = (ModelArguments, *arguments, RunArguments, EvaluationArguments, TrainingArguments)
    keys = {field.name for cls in classes for field in dataclasses.fields(cls)}
    for name, command in typer.main.get_command(app).commands.items():
        if command.context_settings.get("ignore_unknown_options"):
            options = {option.name for option in command.params} - {"recipe", "model"}
            assert options & keys <= {"output_dir", "output_file"}, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-3", 1e-3),
        ("learning_rate: '1e-3'", 1e-3),
        ("learning_rate: 1E3", 1000.0),
        ("learning_rate: 1", 1.0),
        ("max_steps: 1e3", 1000),
        ("max_steps: 7", 7),
        ("eval_strategy: no", "no"),
        ("eval_strategy: epoch", "epoch"),
        ("run_name: 010", "010"),
        ("run_name: null", None),
        ("lr_scheduler_kwargs: {min_lr: 1e-5}", {"min_lr": 1e-5}),
        ("learning_rate_scales: {head: 1e1, 'vit\\.layers': 2}", {"head": 10.0, "vit\\.layers": 2.0}),
        ("random_crop_scale: [8e-2, 1]", [0.08, 1.0]),
        ("class_names: [1, no, x]", ["1", "no", "x"]),
        ("bf16: true", True),
        ("tf32: null", None),
        ("save_total_limit: 2", 2),
        ("interpolation: bilinear", "bilinear"),
    ],
)
def test_values_are_cast_to_the_type_of_their_field(read, text, expected):
    value = read(text).values[text.partition(":")[0]]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", r"recipe.yaml, line 3: `learning_rate` must be float, got 'fast'"),
        ("learning_rate: null", r"`learning_rate` must be float"),
        ("max_steps: 1.5", r"`max_steps` must be int, got '1.5'"),
        ("max_steps: true", r"`max_steps` must be int"),
        ("max_steps: .inf", r"`max_steps` must be int"),
        ("bf16: maybe", r"`bf16` must be bool, got 'maybe'"),
        ("eval_strategy: daily", r"`eval_strategy` must be .*'epoch'.*, got 'daily'"),
        ("interpolation: nearest", r"`interpolation` must be 'bicubic' or 'bilinear', got 'nearest'"),
        ("random_crop_scale: 0.5", r"`random_crop_scale` must be list or null, got '0.5'"),
        ("learning_rate_scales: {head: fast}", r"`learning_rate_scales` must be dict or null, got {'head': 'fast'}"),
        ("host:\n  hidden_size: wide", r"line 4: `host.hidden_size` must be int, got 'wide'"),
        ("llm_block: huge", r"line 3: `llm_block` must be null or hold `field: value` lines, got 'huge'"),
        ("bf16: true\nbf16: false", r"line 4: `bf16` was already set at .*line 3"),
        ("a: [", "recipe.yaml is not valid YAML"),
    ],
)
def test_wrong_values_are_refused(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "lerning_rate: 1",
            [],
            r"recipe.yaml, line 3: unknown key `lerning_rate`; the nearest valid key is `learning_rate`",
        ),
        ("llm_block:\n  layer_indx: 1", [], r"line 4: unknown key `llm_block.layer_indx`.* `llm_block.layer_index`"),
        ("host:\n  hiden_size: 8", [], r"line 4: unknown key `host.hiden_size`.* `host.hidden_size`"),
        ("", ["--lerning_rate", "1"], r"command line, --lerning_rate: unknown key .* `learning_rate`"),
        ("", ["--llm_block.layer", "1"], r"command line, --llm_block.layer: unknown key .* `llm_block.layer_index`"),
        ("lm_block: null", [], r"the nearest valid key is `llm_block`"),
        (
            "num_votes: 3",
            [],
            r"line 3: `num_votes` is a key of the task point-cloud-classification, and the task here",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(read, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        read(text, *overrides)


def test_task_and_model_type_go_together(read):
    recipe = read("", "--task", "video-classification", "--num_crops", "3")
    assert recipe.values["num_crops"] == 3
    with pytest.raises(
        ValueError, match=r"which does not fit vit_with_llm_block\. Set model_type to videomae_with_llm_b"
    ):
        recipe.arguments(ModelArguments)
    recipe = read("", "--model_type", "point_bert_with_llm_block", "--host.num_groups", "8")
    with pytest.raises(ValueError, match=r"or task to point-cloud-classification\."):
        recipe.arguments(ModelArguments)


@pytest.mark.parametrize(
    "line",
    [
        *("layer_decay: 0", "layer_decay: 1.1", "base_batch_size: 0", "learning_rate_drops: [0, 3]"),
        *("learning_rate_drop_factor: 0", "clip_grad_value: -1"),
    ],
)
def test_wrong_learning_rates(read, line):
    with pytest.raises(ValueError, match=f"{line.partition(':')[0]} is "):
        read(line).arguments(RunArguments)


def test_groups_and_overrides(read):
    text = "llm_block:\n  llm_name_or_path: a/b\n  layer_index: 31\nhost:\n  hidden_size: 192\nlearning_rate: 1e-3\n"
    recipe = read(text)
    assert recipe.llm_block == {"llm_name_or_path": "a/b", "layer_index": 31}
    assert recipe.host == {"hidden_size": 192}

    recipe = read(text, "--llm_block.layer_index", "-2", "--host.image_size=32", "--learning_rate", "5e-4", "--resume")
    assert recipe.llm_block == {"llm_name_or_path": "a/b", "layer_index": -2}
    assert recipe.host == {"hidden_size": 192, "image_size": 32}
    assert recipe.values["learning_rate"] == 5e-4
    assert recipe.values["resume"] is True

    assert read(text, "--llm_block.layer_index", "[30, 31]").llm_block["layer_index"] == [30, 31]
    assert read(text, "--llm_block", "null").llm_block is None
    assert read(text, "--llm_block", "null", "--llm_block.layer_index", "3").llm_block == {"layer_index": 3}
    assert read("").llm_block is None
    assert read("llm_block: {}").llm_block == {}
    with pytest.raises(ValueError, match="expected `--key value`, got 'x'"):
        read(text, "x")


ANY_HOST = "model_type: vision_with_llm_block\n"


def test_host_is_named_by_its_model_type(read):
    text = ANY_HOST + "host:\n  model_type: swin\n  depths: [1, 2]\n  mlp_ratio: 2\n"
    recipe = read(text, "--host.embed_dim", "24", "--pooling", "mean")
    assert recipe.host == {"model_type": "swin", "depths": [1, 2], "mlp_ratio": 2.0, "embed_dim": 24}
    assert recipe.arguments(ModelArguments).pooling == "mean"
    other = read(text, "--host", "null", "--host.model_type", "data2vec-vision", "--host.hidden_size", "8")
    assert other.host == {"model_type": "data2vec-vision", "hidden_size": 8}


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_host_is_named_by_its_checkpoint(read, tmp_path, name):
    # Only the configuration is read, and from a CLIP only that of its vision encoder.
    HOSTS[name].checkpoint_config().save_pretrained(tmp_path / "host")
    text = ANY_HOST + f"host:\n  name_or_path: {tmp_path / 'host'}\n"
    assert read(text, "--host.hidden_act", "relu").host["hidden_act"] == "relu"
    with pytest.raises(ValueError, match=r"unknown key `host.hiden_act`; the nearest valid key is `host.hidden_act`"):
        read(text, "--host.hiden_act", "relu")
    with pytest.raises(ValueError, match=r"`host.num_hidden_layers` must be int, got 'many'"):
        read(text, "--host.num_hidden_layers", "many")
    with pytest.raises(ValueError, match=r"unknown key `host._out_features`"):
        read(text, "--host._out_features", "[]")


def test_published_host_on_the_command_line_has_its_own_sizes(read, caplog):
    text = "host:\n  hidden_size: 128\n  patch_size: 8\n  hidden_dropout_prob: 0.1\n"
    with caplog.at_level("WARNING", logger="hf_frozen_llm"):
        recipe = read(text, "--host.image_size", "64", "--host.name_or_path", "google/vit-base-patch16-224")
    named = {"image_size": 64, "name_or_path": "google/vit-base-patch16-224"}
    assert recipe.host == {"hidden_dropout_prob": 0.1, **named}
    assert "host.hidden_size, host.patch_size of the recipe are left out" in caplog.text
    none = read(text, "--host.name_or_path", "null").host
    assert none == {"hidden_size": 128, "patch_size": 8, "hidden_dropout_prob": 0.1, "name_or_path": None}
    published = "host:\n  name_or_path: a/b\n  hidden_dropout_prob: 0.1\n"
    assert read(published, "--host.name_or_path", "c/d").host == {"hidden_dropout_prob": 0.1, "name_or_path": "c/d"}


def test_recipe_of_a_published_host_is_read_without_the_host(read):
    recipe = read(ANY_HOST + "host:\n  name_or_path: facebook/dinov2-small\n")
    assert recipe.host == {"name_or_path": "facebook/dinov2-small"}
    known = read(ANY_HOST, "--host.model_type=dinov2", "--host.name_or_path=a/b", "--host.drop_path_rate=0.1")
    assert known.host == {"model_type": "dinov2", "name_or_path": "a/b", "drop_path_rate": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ANY_HOST, r"`host` does not say which vision encoder. Set host.model_type .* or host.name_or_path"),
        (ANY_HOST + "host:\n  hidden_size: 8", r"`host` does not say which vision encoder"),
        (ANY_HOST + "host:\n  model_type: swim", r"line 5: `host.model_type` is 'swim', .* the nearest .* 'swin'"),
        (
            ANY_HOST + "host:\n  model_type: clip",
            r"line 5: `host.model_type` is 'clip', which has more than a vision enc",
        ),
        (ANY_HOST + "host: {model_type: swin, hidden_size: 8}", r"unknown key `host.hidden_size`"),
        (
            ANY_HOST + "pooling: max\nhost: {model_type: swin}",
            r"`pooling` must be 'cls' or 'mean' or 'cls_mean' or null, got 'max'",
        ),
        ("host: {model_type: swin}", r"unknown key `host.model_type`"),
        ("model_type: swin", r"`model_type` must be 'vit_with_llm_block' or .*, got 'swin'"),
    ],
)
def test_wrong_hosts_are_refused(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_arguments_are_checked(read):
    with pytest.raises(ValueError, match="dataset_name is not set"):
        read("", "--dataset_name", "").arguments(ImageDataArguments)
    with pytest.raises(ValueError, match=r"crop_pct is 2\.0"):
        read("crop_pct: 2").arguments(ImageDataArguments)
    with pytest.raises(ValueError, match="max_eval_samples is 0"):
        read("max_eval_samples: 0").arguments(ImageDataArguments)
    with pytest.raises(ValueError, match="random_crop_scale is"):
        read("random_crop_scale: [1, 0.5]").arguments(ImageDataArguments)
    with pytest.raises(ValueError, match="image_size is 0"):
        read("image_size: 0").arguments(ImageDataArguments)
    with pytest.raises(ValueError, match="pooling is 'mean', but the classifier of a vit_with_llm_block always reads"):
        read("pooling: mean").arguments(ModelArguments)


def test_recipes_of_the_package_are_found_by_name():
    assert find_recipe("image_classification/vit_small_patch16_224.yaml").is_file()
    near = "image_classification/vit_bas_patch16_224.yaml"
    with pytest.raises(FileNotFoundError, match=rf"no recipe {near}\. .* nearest are image_classification/vit_base_"):
        find_recipe(near)


def test_earlier_name_of_the_projections_rate(read):
    args = read("projection_learning_rate_scale: 0.5").arguments(RunArguments)
    assert args.learning_rate_scales == {"projections": 0.5}
    with pytest.raises(ValueError, match=r"learning_rate_scale and learning_rate_scales\.projections are both set"):
        read("projection_learning_rate_scale: 0.5\nlearning_rate_scales: {projections: 2}").arguments(RunArguments)
    with pytest.raises(ValueError, match=r"the factor of 'head' is 0\.0; it must be above 0"):
        read("learning_rate_scales: {head: 0}").arguments(RunArguments)


def test_flags_have_hyphens_or_underscores(read):
    recipe = read("", "--learning-rate", "1e-3", "--llm-block.layer-index=3", "--host.hidden-size", "8")
    assert recipe.values["learning_rate"] == 1e-3
    assert recipe.llm_block == {"layer_index": 3} and recipe.host == {"hidden_size": 8}


def test_revision_needs_a_published_host(read):
    with pytest.raises(ValueError, match=r"host\.revision is set, but host\.name_or_path is not"):
        resolve(read("host:\n  revision: main"))
