# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import dataclasses

import pytest
from transformers import TrainingArguments

from hf_frozen_llm.training.arguments import DataArguments, EvaluationArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.recipe import find_recipe, read_recipe


BASE = "dataset_name: some/data\noutput_dir: out\n"


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(BASE + text)
        return read_recipe(path, overrides)

    return read


def test_keys_of_the_dataclasses_do_not_collide():
    names = [
        field.name
        for cls in (ModelArguments, DataArguments, RunArguments, EvaluationArguments, TrainingArguments)
        for field in dataclasses.fields(cls)
    ]
    assert len(names) == len(set(names))


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
    ],
)
def test_unknown_keys_name_the_nearest(read, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        read(text, *overrides)


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


def test_arguments_are_checked(read):
    with pytest.raises(ValueError, match="dataset_name is not set"):
        read("", "--dataset_name", "").arguments(DataArguments)
    with pytest.raises(ValueError, match=r"crop_pct is 2\.0"):
        read("crop_pct: 2").arguments(DataArguments)
    with pytest.raises(ValueError, match="max_eval_samples is 0"):
        read("max_eval_samples: 0").arguments(DataArguments)
    with pytest.raises(ValueError, match="random_crop_scale is"):
        read("random_crop_scale: [1, 0.5]").arguments(DataArguments)


def test_recipes_of_the_package_are_found_by_name():
    assert find_recipe("image_classification/vit_small_patch16_224.yaml").is_file()
    with pytest.raises(FileNotFoundError, match=r"no recipe none\.yaml.*image_classification/vit_base_"):
        find_recipe("none.yaml")
