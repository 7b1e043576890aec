# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs on scenes with questions as all others have them: resumed, in two processes, checked, ablated, published."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from sqa3d_cases import SQA3D
from tiny_runs import write_llama
from tiny_scenes import TINY_SQA3D, write_scenes

from hf_frozen_llm import SQA3DProcessor
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.check import check
from hf_frozen_llm.hub.push import stage


RECIPE = "situated_question_answering/tiny.yaml"
SHORT = [*("--max_steps", "2"), *("--save_steps", "1"), *("--eval_strategy", "no"), *("--logging_steps", "1")]
CODE = """
import sys, numpy as np, torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "hf_frozen_llm" not in sys.modules and type(model).__module__.startswith("transformers_modules.")
inputs = processor(np.random.default_rng(0).uniform(0, 1, (80, 3)), "I face the bed.", "What is it?")
inputs |= {"object_centers": torch.rand(1, 4, 3), "object_mask": torch.ones(1, 4)}
with torch.no_grad():
    print(len(processor.post_process_answers(model(**inputs).logits)[0]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": 12, "val": 6})


@pytest.fixture(scope="module")
def flags(data, tmp_path_factory):
    llm = write_llama(tmp_path_factory.mktemp("llm") / "llm")
    return [*TINY_SQA3D, *SHORT, "--dataset_name", data, "--llm_block.llm_name_or_path", llm]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    main(["train", RECIPE, *flags, "--save_total_limit", "5", "--output_dir", str(folder)])
    return folder


def test_resumed_run_is_the_same(whole, flags, tmp_path):
    shutil.copytree(whole / "checkpoint-1", tmp_path / "checkpoint-1")
    main(["train", RECIPE, *flags, "--save_total_limit", "5", "--output_dir", str(tmp_path), "--resume", "true"])
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes(whole, flags, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    halves = ["--ddp_backend", "gloo", "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path)]
    run = subprocess.run(
        [*launcher, "-m", "hf_frozen_llm", "train", RECIPE, *flags, *halves],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (whole, tmp_path))
    assert two["num_processes"] == 2 and two["metrics"].keys() == one["metrics"].keys()
    assert sum(row["questions"] for row in two["first_word"]) == 6


def test_scanqa(data, flags, tmp_path):
    """ScanQA's questions have no situation, and its model reads none."""
    questions = tmp_path / "scanqa"
    questions.mkdir()
    for split, scenes in {"train": ("scene0000_00", "scene0004_00"), "val": ("scene0012_00",)}.items():
        rows = [
            {"scene_id": scene, "question_id": f"{split}-{scene}-{answer}", "question": text, "answers": [answer]}
            for scene in scenes
            for text, answer in (("What is on the left?", "bed"), ("What is small?", "chair"))
        ]
        (questions / f"ScanQA_v1.0_{split}.json").write_text(json.dumps(rows))
    scenes = ["--dataset_name", str(questions), "--scene_folder", f"{data}/scannet"]
    host = ["--host.use_situation", "false", "--host.predict_situation", "false"]
    main(["train", RECIPE, *flags, *scenes, *host, "--output_dir", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["use_situation"] is False and "eval_acc@0.5m" not in results["metrics"]
    assert "sqa3d.pooled_norm.weight" in load_file(tmp_path / "run" / "model.safetensors")


def test_check_and_info(whole, flags, capsys):
    report = check(RECIPE, flags, 6)
    assert not report.errors, report.errors
    main(["info", str(whole)])
    printed = capsys.readouterr().out
    assert "SQA3DWithLLMBlockForQuestionAnswering" in printed


def test_ablate(flags, tmp_path):
    variants = tmp_path / "variants.yaml"
    variants.write_text(
        "plain host: {llm_block: null}\nquestion alone: {llm_block: null, host.use_points: false, "
        "host.predict_situation: false, hide_situation: true}\n"
    )
    out = tmp_path / "out"
    steady = [*flags, "--save_strategy", "no"]
    main(["ablate", RECIPE, "--variants", str(variants), "--output_dir", str(out), *steady])
    lines = (out / "ablation.csv").read_text().splitlines()
    assert len(lines) == 3 and "eval_em@1" in lines[0]


def test_published_with_its_code(tmp_path):
    folder, staging = tmp_path / "saved", tmp_path / "staged"
    staging.mkdir()
    words = {"word_vectors": torch.rand(4, 7).numpy(), "words": ["unk", "What", "is", "it"]}
    SQA3D.build(None, num_point_features=1).save_pretrained(folder)
    SQA3DProcessor(40, use_color=False, answers=["a", "b", "c"], **words).save_pretrained(folder)
    files = stage(folder, staging, None, with_code=True)
    assert {"processing_sqa3d_with_llm_block.py", "answers.py", "votenet.py", "pointnet2.py"} <= files.keys()
    run = subprocess.run([sys.executable, "-c", CODE, staging], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "3"
