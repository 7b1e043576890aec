# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs of METER: resuming, two processes, and the commands beside training, on the small recipes of both tasks."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from paths import REPO
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import TINY_METER, TINY_TEXT, write_llama, write_shapes, write_table

from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.info import describe_checkpoint
from hf_frozen_llm.training.results import write_json


TESTS = REPO / "tests"
QUESTIONS, RETRIEVAL = "visual_question_answering/tiny.yaml", "image_text_retrieval/tiny.yaml"
TIMES = {"time", "runtime", "second"}
EMBEDDINGS = ["--host.contrastive_loss_weight", "0.5", "--num_false_texts", "2"]
SHORT = ["--max_steps", "4", "--save_steps", "2", "--save_total_limit", "null", "--logging_steps", "1"]
SHORT += ["--per_device_train_batch_size", "4", "--save_strategy", "steps", "--eval_strategy", "no"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The flags of a short run of each recipe."""
    folder = tmp_path_factory.mktemp("pairs")
    write_shapes(folder / "shapes", {"train.small": 16, "val": 6, "test": 6})
    rows = [{"image": f"{number}.png", "caption": f"picture {number} of {12 + number}"} for number in range(12)]
    (folder / "captions").mkdir()
    for number, row in enumerate(rows):
        Image.new("RGB", (32, 32), (20 * number, 60, 250 - 20 * number)).save(folder / "captions" / row["image"])
    for split in ("train", "test"):
        write_table(folder / "captions" / f"{split}.csv", rows)
    block = ["--llm_block.llm_name_or_path", write_llama(folder / "llm"), "--llm_block.layer_index", "-1"]
    return {
        QUESTIONS: [*TINY_METER, *SHORT, *block, "--dataset_name", str(folder / "shapes")],
        RETRIEVAL: [*TINY_METER, *SHORT, *block, "--dataset_name", str(folder / "captions"), *EMBEDDINGS],
    }


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """The folder of an uninterrupted run of each recipe."""
    folders = {recipe: tmp_path_factory.mktemp("finished") / "run" for recipe in commands}
    for recipe, flags in commands.items():
        main(["train", recipe, *flags, "--output_dir", str(folders[recipe])])
    return folders


@pytest.mark.parametrize("recipe", [QUESTIONS, RETRIEVAL])
def test_resumes_bit_equal(recipe, commands, finished, tmp_path):
    """With dropout in both encoders and the fusion, random false texts, and half of the groups as false pairs."""
    shutil.copytree(finished[recipe] / "checkpoint-2", tmp_path / "checkpoint-2")
    main(["train", recipe, *commands[recipe], "--output_dir", str(tmp_path), "--resume"])
    assert json.loads((tmp_path / "results.json").read_text())["resumed_from_checkpoint"] == "checkpoint-2"
    weights, same = (load_file(folder / "model.safetensors") for folder in (finished[recipe], tmp_path))
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    light = load_file(tmp_path / "checkpoint-4" / "model.safetensors").keys()
    assert any(".llm_layers." in name for name in weights) and not any(".llm_layers." in name for name in light)


def test_two_processes(commands, finished, tmp_path):
    """Steps of questions, and evaluations, of pairs by all and by candidates, equal those of one process."""
    steady = [
        *("--host.hidden_dropout_prob", "0", "--host.attention_probs_dropout_prob", "0"),
        *("--host.text_config", f"{TINY_TEXT[:-1]}, hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}}"),
    ]
    halves = ["--per_device_train_batch_size", "2", "--ddp_backend", "gloo"]
    train = [*commands[QUESTIONS], *steady, "--output_dir"]
    main(["train", QUESTIONS, *train, str(tmp_path / "one")])
    expected, runs = {}, [["train", QUESTIONS, [*train, str(tmp_path / "two"), *halves]]]
    evaluations = ((QUESTIONS, []), (RETRIEVAL, []), (RETRIEVAL, ["--candidates", "5"]))
    for recipe, changes in evaluations:
        flags = [*changes, "--use_cpu", "true", "--per_device_eval_batch_size", "5", "--output_file"]
        names = [str(tmp_path / f"{len(expected)}-{count}.json") for count in (1, 2)]
        main(["evaluate", str(finished[recipe]), *flags, names[0]])
        expected[names[0]] = names[1]
        runs.append(["evaluate", str(finished[recipe]), [*flags, names[1], "--ddp_backend", "gloo"]])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(TESTS / "toy_tasks" / "processes.py"), json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    subprocess.run([*launcher, *script], check=True, capture_output=True, env=environment)
    for one, two in expected.items():
        of_one, of_two = (
            {
                name: value
                for name, value in json.loads(Path(file).read_text())["metrics"].items()
                if not TIMES & {*name.split("_")}
            }
            for file in (one, two)
        )
        assert of_two == pytest.approx(of_one, rel=1e-4), one
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["num_processes"] == 2
    for step in range(2):
        assert two["log_history"][step]["loss"] == pytest.approx(one["log_history"][step]["loss"], rel=1e-4)


@pytest.mark.parametrize("recipe", [QUESTIONS, RETRIEVAL])
def test_commands(recipe, commands, finished, tmp_path, capsys):
    main(["check", recipe, *commands[recipe], "--output_dir", str(tmp_path / "run")])
    assert "No errors" in capsys.readouterr().out and (tmp_path / "run" / "check.png").is_file()
    facts = describe_checkpoint(str(finished[recipe]))
    assert facts["model"].endswith("(meter_with_llm_block)") and "forward" in facts["GFLOP for one input"]
    assert facts["LLM block"] == "kind llm, after the last layer of the host"


@pytest.mark.parametrize("recipe", [QUESTIONS, RETRIEVAL])
def test_ablation(recipe, commands, tmp_path, capsys):
    (tmp_path / "variants.yaml").write_text("random: {llm_block.weights: random}\nplain host: {llm_block: null}\n")
    options = ["--variants", str(tmp_path / "variants.yaml"), "--output_dir", str(tmp_path / "out")]
    command = ["ablate", recipe, *options, *commands[recipe], "--max_steps", "1", "--eval_split", "test"]
    main([*command, "--dry_run"])
    for line in capsys.readouterr().out.splitlines():
        if line[0] != "#":  # the runs, in this process instead of their own
            of_run = shlex.split(line)[1:]
            main(of_run)
            write_json(Path(of_run[-1], "command.json"), {"command": of_run})
    main(command)
    runs = pd.read_csv(tmp_path / "out" / "ablation.csv").set_index("variant")
    assert list(runs.index) == ["random", "plain host"]
    score = "accuracy" if recipe == QUESTIONS else "recall@1"
    assert runs[f"eval_{score}"].between(0, 1).all() and runs["forward_mflop"].iloc[0] > runs["forward_mflop"].iloc[1]
    assert f"| variant | {score}" in (tmp_path / "out" / "ablation.md").read_text()
