# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_run import run_killed
from llm_files import write_llm
from safetensors.torch import load_file
from tiny_llms import tiny_config, tiny_llm
from tiny_runs import CLASSES, TINY, write_image_folder
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_frozen_llm import ViTWithLLMBlockForImageClassification
from hf_frozen_llm.cli import main
from hf_frozen_llm.training.resume import find_defect, last_complete_checkpoint


SHORT = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
OPTIMIZER = "checkpoint-24/optimizer.pt"


def run(recipe, output_dir, *overrides):
    main(["train", str(recipe), *TINY, "--output_dir", str(output_dir), *overrides])
    return json.loads((Path(output_dir) / "results.json").read_text())


def copy_checkpoint(finished_run, output_dir, step=10):
    return Path(shutil.copytree(finished_run / f"checkpoint-{step}", output_dir / f"checkpoint-{step}"))


def assert_same_run(one, other):
    weights, same = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    states = [torch.load(folder / OPTIMIZER)["state"] for folder in (one, other)]
    assert all(torch.equal(states[0][i][name], states[1][i][name]) for i in states[0] for name in states[0][i])
    scores = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (one, other)]
    for name in ("eval_loss", "eval_top1", "eval_top5"):
        assert scores[0][name] == scores[1][name]


def test_results(finished_run, recipe, data, llm):
    results = json.loads((finished_run / "results.json").read_text())
    assert {"train_loss", "eval_loss", "eval_top1", "eval_top5"} <= set(results["metrics"])
    assert 0 <= results["metrics"]["eval_top1"] <= results["metrics"]["eval_top5"] <= 1
    counts = results["parameters"]
    model = AutoModelForImageClassification.from_pretrained(finished_run)
    frozen = sum(p.numel() for layer in model.llm_block.llm_layers for p in layer.parameters())
    frozen += sum(p.numel() for p in model.llm_block.final_norm.parameters())
    assert counts == {"total": model.num_parameters(), "trainable": model.num_parameters() - frozen, "frozen": frozen}
    assert results["recipe"]["dataset_name"] == data
    assert results["recipe"]["learning_rate"] == 1e-3
    assert results["recipe"]["train_split"] == "train"
    assert results["recipe"]["llm_block"] == {"llm_name_or_path": llm}
    assert results["recipe"]["host"]["hidden_size"] == 16
    assert results["config"]["llm_block"]["fingerprint"] == model.config.llm_block.fingerprint
    assert results["config"]["llm_block"]["llm_config"]["model_type"] == "llama"
    assert {"torch", "transformers", "datasets", "hf_frozen_llm", "python"} <= set(results["versions"])
    assert results["seed"] == 42
    assert "git_revision" in results
    assert 0 < results["train_time_seconds"] < 600
    assert 1e8 < results["peak_memory_bytes"] < 1e11
    assert results["resumed_from_checkpoint"] is None
    assert [row["step"] for row in results["log_history"] if "loss" in row] == [5, 10, 15, 20]
    assert [row["step"] for row in results["log_history"] if row.get("update_ratio", 0) > 0] == [5, 10, 15, 20]
    assert [row["step"] for row in results["log_history"] if "eval_top1" in row] == [8, 16, 24, 24]
    assert not list(finished_run.glob(".*"))


def test_model_is_saved_with_its_classes_and_processor(finished_run):
    config = json.loads((finished_run / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: index for index, name in enumerate(CLASSES)}
    processor = json.loads((finished_run / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16}


def test_start_up_line(recipe, tmp_path, capsys):
    results = run(recipe, tmp_path / "run", *SHORT)
    line = next(line for line in capsys.readouterr().out.splitlines() if "parameters:" in line)
    for name, count in results["parameters"].items():
        assert f"{count:,} {name}" in line
    block = results["config"]["llm_block"]
    assert f"{block['llm_name_or_path']}, layer -1" in line
    assert block["fingerprint"] in line


def test_checkpoints_are_light_and_the_model_is_not(finished_run):
    def llm_tensors(folder):
        return {name for name in load_file(folder / "model.safetensors") if "llm_layers" in name}

    assert llm_tensors(finished_run)
    assert not llm_tensors(finished_run / "checkpoint-10")


def test_frozen_layer_is_not_in_the_optimizer(finished_run, llm):
    model = AutoModelForImageClassification.from_pretrained(finished_run)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = torch.load(finished_run / OPTIMIZER)["state"]
    assert sorted(s["exp_avg"].numel() for s in state.values()) == sorted(p.numel() for p in trained)
    untouched = ViTWithLLMBlockForImageClassification(model.config).llm_block.llm_layers.state_dict()
    for name, tensor in model.llm_block.llm_layers.state_dict().items():
        assert torch.equal(tensor, untouched[name])


def test_killed_run_resumes_bit_equal(finished_run, recipe, tmp_path, caplog):
    output_dir = tmp_path / "run"
    command = ["train", str(recipe), *TINY, "--output_dir", str(output_dir)]
    # Sums depend on the number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run_killed(output_dir, 7, "hf_frozen_llm", *command, env=environment)
    assert not (output_dir / "results.json").exists()

    # The files of a run killed while writing.
    kept = last_complete_checkpoint(output_dir)
    assert kept is not None and kept.name == "checkpoint-5"
    half = Path(shutil.copytree(kept, output_dir / "checkpoint-23"))
    (half / "trainer_state.json").unlink()
    # transformers' loggers do not propagate to the root logger
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    logging.getLogger("hf_frozen_llm").addHandler(caplog.handler)
    main([*command, "--resume"])
    results = json.loads((output_dir / "results.json").read_text())
    assert results["resumed_from_checkpoint"] == kept.name
    assert "checkpoint-23 is skipped: trainer_state.json is missing" in caplog.text
    assert_same_run(finished_run, output_dir)


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        (15, ["--dataloader_num_workers", "2", "--dataloader_persistent_workers", "true"]),
        (10, ["--resume_from_checkpoint", "true"]),
    ],
)
def test_resumes_bit_equal_within_an_epoch(finished_run, recipe, tmp_path, step, overrides):
    copy_checkpoint(finished_run, tmp_path, step)
    results = run(recipe, tmp_path, *(["--resume"] if step == 15 else []), *overrides)
    assert results["resumed_from_checkpoint"] == f"checkpoint-{step}"
    assert_same_run(finished_run, tmp_path)
    state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
    earlier = state["stateful_callbacks"]["RunProgress"]["attributes"]["earlier_seconds"]
    assert results["train_time_seconds"] > earlier > 0


def test_stream_resumes_bit_equal(recipe, tmp_path):
    stream = ["--streaming", "true", "--max_steps", "24", "--shuffle_buffer_size", "16"]
    run(recipe, tmp_path / "whole", *stream)
    copy_checkpoint(tmp_path / "whole", tmp_path / "resumed", 15)
    run(recipe, tmp_path / "resumed", *stream, "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize(
    "damage", ["state", "cut state", "weights", "cut weights", "optimizer", "cut rng", "other step"]
)
def test_incomplete_checkpoints_are_recognised(finished_run, tmp_path, damage):
    folder = copy_checkpoint(finished_run, tmp_path)
    assert find_defect(folder) is None
    kind = damage.split()[-1]
    names = {
        "state": "trainer_state.json",
        "weights": "model.safetensors",
        "optimizer": "optimizer.pt",
        "rng": "rng_state.pth",
    }
    if damage == "other step":
        folder = folder.rename(tmp_path / "checkpoint-11")
    elif damage.startswith("cut"):
        content = (folder / names[kind]).read_bytes()
        (folder / names[kind]).write_bytes(content[: len(content) // 2])
    else:
        (folder / names[kind]).unlink()
    assert find_defect(folder)
    assert last_complete_checkpoint(tmp_path) is None
    copy_checkpoint(finished_run, tmp_path, 5)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_checkpoints_of_another_run_are_not_mixed_in(finished_run, recipe, tmp_path):
    copy_checkpoint(finished_run, tmp_path)
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run"):
        run(recipe, tmp_path)
    with pytest.raises(ValueError, match="checkpoint-10 has an llm_block, but the recipe has none"):
        run(recipe, tmp_path, "--resume", "--llm_block", "null")
    write_llm(tiny_llm(tiny_config("llama"), seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match="was trained with the LLM layer of fingerprint"):
        run(recipe, tmp_path, "--resume", "--llm_block.llm_name_or_path", str(tmp_path / "other"))
    for key, value in {
        "llm_block.residual": "outer",
        "host.hidden_act": "relu",
        "host.num_hidden_layers": "1",
    }.items():
        with pytest.raises(ValueError, match=f"was trained with {key}"):
            run(recipe, tmp_path, "--resume", f"--{key}", value)
    with pytest.raises(ValueError, match=r"resume_from_checkpoint is .*checkpoint-99', but there is no"):
        run(recipe, tmp_path, "--resume_from_checkpoint", str(tmp_path / "checkpoint-99"))


def test_settings_are_in_every_checkpoint(finished_run, data):
    settings = json.loads((finished_run / "checkpoint-10" / "recipe.json").read_text())
    assert settings["dataset_name"] == data and settings["learning_rate"] == 1e-3 and settings["seed"] == 42
    assert settings["host.hidden_size"] == 16 and settings["llm_block.kind"] == "llm" and settings["lora"] is None
    assert settings["random_flip"] is True and settings["num_processes"] == 1
    assert not any(name.endswith("_token") for name in settings)
    assert not (finished_run / "recipe.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate", "2e-3"], r"learning_rate 0\.001, the recipe now says 0\.002"),
        (["--seed", "1"], r"seed 42, the recipe now says 1; data_seed 42, the recipe now says 1"),
        (["--random_flip", "false"], r"random_flip True, the recipe now says False"),
        (["--per_device_train_batch_size", "4"], r"per_device_train_batch_size 8, the recipe now says 4"),
        (["--optim", "sgd"], r"optim '.*', the recipe now says 'sgd'"),
        (["--freeze_host", "true"], r"freeze_host False, the recipe now says True"),
        (["--train_split", "train[:50%]"], r"train_split 'train', the recipe now says 'train\[:50%\]'"),
        (["--learning_rate_scales", "{head: 2}"], r"learning_rate_scales None, the recipe now says {'head': 2\.0}"),
        (["--resume_changes", "lerning_rate"], "resume_changes names lerning_rate, which no run has"),
    ],
)
def test_another_run_is_not_resumed(finished_run, recipe, tmp_path, flags, message):
    copy_checkpoint(finished_run, tmp_path)
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path, *flags, "--resume")
    assert not (tmp_path / "results.json").exists()


def test_what_a_resumed_run_may_change(finished_run, recipe, tmp_path):
    copy_checkpoint(finished_run, tmp_path, 20)
    logs = ["--logging_steps", "1", "--save_steps", "2", "--max_eval_samples", "10", "--dataloader_num_workers", "1"]
    memory = ["--activation_checkpointing", "true"]
    allowed = ["--learning_rate", "1e-4", "--seed", "7", "--resume_changes", "learning-rate,seed,data_seed"]
    assert run(recipe, tmp_path, *logs, *memory, *allowed, "--resume")["resumed_from_checkpoint"] == "checkpoint-20"


def test_checkpoints_of_other_programs_are_not_resumed(finished_run, recipe, tmp_path):
    (copy_checkpoint(finished_run, tmp_path) / "recipe.json").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-10 has no recipe\.json, so the settings of its training are unknown"
    ):
        run(recipe, tmp_path, "--resume")


@pytest.mark.parametrize(("metric", "best"), [("top1", max), ("loss", min), ("eval_top1", max)])
def test_the_best_model_is_kept(recipe, tmp_path, metric, best):
    """By an accuracy (higher is better), or by the loss."""
    flags = ["--load_best_model_at_end", "true", "--metric_for_best_model", metric, "--save_strategy", "epoch"]
    results = run(recipe, tmp_path, *flags)
    key = f"eval_{metric.removeprefix('eval_')}"
    scores = [row[key] for row in results["log_history"] if key in row]
    assert results["metrics"][key] == best(scores[:3])


def test_full_bfloat16_evaluation(recipe, tmp_path):
    results = run(recipe, tmp_path, *SHORT, "--bf16_full_eval", "true")
    main(["evaluate", str(tmp_path), "--bf16_full_eval", "true"])
    evaluated = json.loads((tmp_path / "eval_results.json").read_text())["metrics"]
    assert evaluated["eval_loss"] == results["metrics"]["eval_loss"]
    main(["evaluate", str(tmp_path), "--bf16_full_eval", "false"])
    exact = json.loads((tmp_path / "eval_results.json").read_text())["metrics"]
    assert 0 < abs(exact["eval_loss"] - evaluated["eval_loss"]) < 0.05


def test_resume_starts_where_there_is_nothing(recipe, tmp_path):
    assert run(recipe, tmp_path, "--resume", *SHORT)["resumed_from_checkpoint"] is None


def test_freeze_host_trains_projections_and_head_alone(recipe, tmp_path):
    results = run(
        recipe, tmp_path, "--freeze_host", "true", "--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no"
    )
    before = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    after = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    trained = {
        "llm_block.input_projection.weight",
        "llm_block.output_projection.weight",
        "classifier.weight",
        "classifier.bias",
    }
    assert changed == trained
    assert results["parameters"]["trainable"] == sum(after[name].numel() for name in trained)
    assert len(torch.load(tmp_path / "checkpoint-4" / "optimizer.pt")["state"]) == 4
    # and so on
    shutil.rmtree(tmp_path / "checkpoint-4")
    (tmp_path / "results.json").unlink()
    run(recipe, tmp_path, "--freeze_host", "true", "--max_steps", "4", "--eval_strategy", "no", "--resume")
    resumed = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(after[name], resumed[name]) for name in after)


def test_baseline_is_the_plain_host(recipe, tmp_path, capsys):
    results = run(recipe, tmp_path, "--llm_block", "null", *SHORT)
    assert results["parameters"]["frozen"] == 0
    assert "no LLM block" in capsys.readouterr().out
    assert ViTForImageClassification.from_pretrained(tmp_path).num_parameters() == results["parameters"]["total"]


def test_starts_from_a_published_host(recipe, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    host = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))
    host.save_pretrained(tmp_path / "host")
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4] * 3).save_pretrained(tmp_path / "host")
    name = ["--host.name_or_path", str(tmp_path / "host")]
    run(recipe, tmp_path / "run", *name, *SHORT, "--freeze_host", "true")
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert trained.classifier.out_features == len(CLASSES)
    for key, tensor in host.vit.state_dict().items():
        assert torch.equal(tensor, trained.vit.state_dict()[key])
    assert json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())["image_mean"] == [0.4] * 3


def test_host_of_other_sizes_is_refused(recipe, tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "host")
    sizes = ["--host", "null", "--host.name_or_path", str(tmp_path / "host"), "--host.image_size", "16"]
    with pytest.raises(
        ValueError,
        match=r"host has no fitting weights for 1 tensors of the host: vit\.embeddings\.position_embeddings\.",
    ):
        run(recipe, tmp_path / "out", *sizes)


def test_evaluate_refuses_what_it_makes_no_use_of(finished_run):
    for flag, value in {"--crop_pct": "0.3", "--host.image_size": "32", "--learning_rate": "1e-3"}.items():
        with pytest.raises(ValueError, match=f"does not use {flag}"):
            main(["evaluate", str(finished_run), flag, value])
    with pytest.raises(FileNotFoundError, match=r"output_file is 'nowhere/scores\.json', but there is no folder"):
        main(["evaluate", str(finished_run), "--output_file", "nowhere/scores.json"])


def test_image_folder(recipe, tmp_path):
    folder = write_image_folder(tmp_path / "pictures")
    run(recipe, tmp_path / "run", "--dataset_name", folder, *SHORT)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.label2id["fox"] == 5


def test_learning_rate_follows_the_batch(recipe, tmp_path):
    settings = ["--base_learning_rate", "0.5", "--gradient_accumulation_steps", "2", "--warmup_steps", "0"]
    text = recipe.read_text().replace("learning_rate: 1e-3\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    results = run(tmp_path / "recipe.yaml", tmp_path / "run", *settings, *SHORT, "--logging_steps", "1")
    assert results["log_history"][0]["learning_rate"] == pytest.approx(0.5 * 16 / 512)
    with pytest.raises(ValueError, match="base_learning_rate and learning_rate are both set"):
        run(recipe, tmp_path / "other", *settings)


def test_gradient_accumulation_is_exact(recipe, tmp_path):
    steady = ["--host.hidden_dropout_prob", "0", "--logging_steps", "1", *SHORT]
    whole = run(recipe, tmp_path / "whole", *steady)
    parts = run(
        recipe, tmp_path / "parts", *steady, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"
    )
    for one, other in zip(whole["log_history"][:2], parts["log_history"][:2]):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--output_dir", ""], "output_dir is not set"),
        (["--streaming", "true"], "streaming needs max_steps"),
        (["--eval_split", "null"], "there is no eval_split"),
        (["--dataloader_drop_last", "true"], "would leave out examples of eval_split"),
        (["--host.num_channels", "1"], "host.num_channels is 1"),
        (["--llm_block.final_norm", "layer"], "`llm_block.final_norm` must be 'unit' or 'pretrained' or 'none'"),
        (["--label_column", "class"], "has no column 'class'"),
        (["--learning_rate_scales", "{'vit(': 2}"], r"learning_rate_scales: 'vit\(' is no regular expression"),
        (["--eval_split", "validation"], "validation.* could not be loaded"),
        (["--image_std", "[.nan, 1, 1]"], "image_std is .*finite"),
        (["--label_smoothing_factor", "-0.1"], r"label_smoothing_factor is -0\.1; it must lie in"),
        (["--label_smoothing_factor", ".nan"], "label_smoothing_factor is nan; it must lie in"),
        (["--classifier_init_scale", ".nan"], "classifier_init_scale is nan; it must be finite"),
        (["--classifier_init_scale", "-1"], r"classifier_init_scale is -1\.0; it must be finite, and not negative"),
    ],
)
def test_contradictions_are_refused(recipe, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path, *overrides)


def test_evaluate_reproduces_the_last_evaluation(finished_run, recipe, data, tmp_path, capsys):
    trained = json.loads((finished_run / "results.json").read_text())["metrics"]
    folder = str(finished_run)
    small = ["--per_device_eval_batch_size", "16", "--use_cpu", "true", "--disable_tqdm", "true"]
    for flags in (
        [],
        ["--recipe", str(recipe), *small],
        ["--dataset_name", data, "--split", "test", "--output_file", str(tmp_path / "scores.json"), *small],
    ):
        capsys.readouterr()
        main(["evaluate", folder, *flags])
        written = tmp_path / "scores.json" if "--output_file" in flags else finished_run / "eval_results.json"
        results = json.loads(written.read_text())
        assert f'"eval_top1": {results["metrics"]["eval_top1"]}' in capsys.readouterr().out
        assert results["dataset"] == {"name": data, "revision": None, "split": "test"}
        for name in ("eval_loss", "eval_top1", "eval_top5"):
            assert results["metrics"][name] == trained[name]
    main(["evaluate", folder, "--split", "train", "--max_eval_samples", "10"])
    with pytest.raises(ValueError, match="split is not set"):
        main(["evaluate", folder, "--dataset_name", data])


def test_evaluate_light_model_whose_llm_has_moved(recipe, llm, tmp_path):
    folder = tmp_path / "run"
    there = shutil.copytree(llm, tmp_path / "there")
    trained = run(
        recipe,
        folder,
        *("--llm_block.save_weights", "false"),
        *("--llm_block.llm_name_or_path", str(there)),
        *("--max_steps", "2", "--save_strategy", "no"),
    )
    here = there.rename(tmp_path / "here")
    with pytest.raises((OSError, ValueError), match="there"):
        main(["evaluate", str(folder)])
    main(["evaluate", str(folder), "--llm_block.llm_name_or_path", str(here)])
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["metrics"]["eval_loss"] == trained["metrics"]["eval_loss"]


def test_two_processes(recipe, tmp_path):
    """The same run on two devices, each with half of every batch."""
    steady = ["--host.hidden_dropout_prob", "0", "--max_steps", "8", "--eval_strategy", "epoch"]
    one = run(recipe, tmp_path / "one", *steady)
    command = ["train", str(recipe), *TINY, "--output_dir", str(tmp_path / "two"), *steady]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    halves = ["--ddp_backend", "gloo", "--per_device_train_batch_size", "4"]
    subprocess.run(
        [*launcher, "-m", "hf_frozen_llm", *command, *halves],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["num_processes"] == 2
    assert two["log_history"][0]["loss"] == pytest.approx(one["log_history"][0]["loss"], rel=1e-4)
    for name in ("eval_top1", "eval_top5"):
        assert two["metrics"][name] == one["metrics"][name]
    # Images that fill the last batch of the second process count once.
    assert two["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], rel=1e-5)


LORA = ["--lora.r", "2", "--learning_rate", "1e-2", "--max_steps", "10", "--eval_strategy", "no"]


def test_lora_of_the_llm_layer(recipe, tmp_path):
    """LoRA is trained with the other parameters, resumed bit for bit, and merged in the saved model."""
    results = run(recipe, tmp_path / "whole", *LORA)
    copy_checkpoint(tmp_path / "whole", tmp_path / "resumed", 5)
    run(recipe, tmp_path / "resumed", *LORA, "--resume")
    weights, same = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "whole")
    untouched = ViTWithLLMBlockForImageClassification(model.config).llm_block.llm_layers.state_dict()
    layers = model.llm_block.llm_layers.state_dict()
    moved = {name for name, tensor in layers.items() if not torch.equal(tensor, untouched[name])}
    assert moved == {name for name, tensor in layers.items() if tensor.ndim == 2}
    ranks = [torch.linalg.matrix_rank(layers[name] - untouched[name], rtol=1e-3) for name in moved]
    assert max(ranks) <= 2

    checkpoint = load_file(tmp_path / "whole" / "checkpoint-10" / "model.safetensors")
    adapters = {name: tensor for name, tensor in checkpoint.items() if ".lora_" in name}
    assert len(adapters) == 2 * len(moved)
    assert not any("base_layer" in name for name in checkpoint), "checkpoints are light"
    plain = run(recipe, tmp_path / "plain", *SHORT)["parameters"]
    added = sum(tensor.numel() for tensor in adapters.values())
    assert results["parameters"] == {
        "total": plain["total"] + added,
        "trainable": plain["trainable"] + added,
        "frozen": plain["frozen"],
    }


def test_lora_is_refused_where_it_does_not_fit(recipe, finished_run, tmp_path):
    for flags in (["--llm_block", "null"], ["--llm_block.trainable", "true"], ["--llm_block.kind", "mlp"]):
        with pytest.raises(ValueError, match=r"lora trains LLM layers that are frozen .*`--lora null`"):
            run(recipe, tmp_path, *LORA, *flags)
    with pytest.raises(ValueError, match=r"unknown key `lora\.rank`"):
        run(recipe, tmp_path, "--lora.rank", "2")
    copy_checkpoint(finished_run, tmp_path)
    with pytest.raises(
        ValueError, match=r"checkpoint-10 was trained with .*; lora None, the recipe now says \{'r': 2\}"
    ):
        run(recipe, tmp_path, *LORA, "--resume")
