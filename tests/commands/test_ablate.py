# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm ablate`: the grid, the plan, its runs in separate processes, and the written files."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from paths import REPO
from PIL import Image
from tiny_runs import TINY, write_image_folder, write_llama, write_parquet

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.ablate import ablate, read_tuning_run
from hf_frozen_llm.commands.ablation_plan import (
    Plan,
    find_rest,
    make_grid,
    plan_runs,
    plan_tuning,
    read_tuned_values,
    read_variants,
)
from hf_frozen_llm.commands.ablation_runs import PlannedRun, run_all, slot_environments, stop
from hf_frozen_llm.flops import count_flops


RECIPE = "quickstart/vit_tiny_cifar10_smollm2.yaml"


@pytest.fixture
def flags(tmp_path):
    data = write_parquet(tmp_path / "data", image="img", label="label")
    llm = write_llama(tmp_path / "llm")
    steps = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]
    return [*TINY, "--dataset_name", data, "--llm_block.llm_name_or_path", llm, *steps]


def write_results(run: PlannedRun, score: float, loss: float = 1.0) -> None:
    """Write the results that a run of a plain, tiny ViT would have."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = ViTWithLLMBlockConfig(**sizes, image_size=16, patch_size=8, num_labels=2)
    content = {
        "metrics": {"eval_top1": score, "eval_loss": loss, "eval_runtime": 0.1, "train_loss": 2.0},
        "parameters": {"total": 20, "trainable": 20, "frozen": 0},
        "recipe": {**run.settings, "output_dir": str(run.folder), "resume": True},
        "config": json.loads(config.to_json_string(use_diff=False)),
        "device": "cpu",
        "train_time_seconds": 3.0,
        "num_eval_rows": 30,
        "log_history": [{"step": 2}],
    }
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text(json.dumps(content))


def plan_ablation(output_dir, variants=None, over=(), tune=(), seeds=1, overrides=(), tune_split=None) -> Plan:
    plan = Plan(RECIPE, list(overrides), output_dir)
    plan_runs(plan, make_grid(over, variants), read_tuned_values(tune), seeds)
    if tune:
        plan_tuning(plan, tune_split, 2)
    return plan


def reported(plan: Plan) -> list[PlannedRun]:
    return [run for values in plan.candidates.values() for runs in values.values() for run in runs]


def test_grid():
    assert make_grid(["host.depths=[1,1],[2,2]"], None) == {
        "host.depths=[1,1]": {"host.depths": "[1,1]"},
        "host.depths=[2,2]": {"host.depths": "[2,2]"},
    }
    grid = make_grid(["llm_block.layer_index=14,-1", "learning_rate=1e-3,1e-4"], None)
    assert list(grid) == [
        "llm_block.layer_index=14, learning_rate=1e-3",
        "llm_block.layer_index=14, learning_rate=1e-4",
        "llm_block.layer_index=-1, learning_rate=1e-3",
        "llm_block.layer_index=-1, learning_rate=1e-4",
    ]
    controls = read_variants("controls.yaml")
    assert controls["plain host"] == {"llm_block": "null"} and controls["MLP"] == {"llm_block.kind": '"mlp"'}
    assert len(make_grid(["learning_rate=1e-3,1e-4"], "controls.yaml")) == 2 * len(controls)

    assert list(make_grid(["llm_block.residual=none,outer", "learning_rate=1,2"], "with_and_without.yaml")) == [
        "plain host, learning_rate=1",
        "plain host, learning_rate=2",
        *(
            f"{name}, llm_block.residual={residual}, learning_rate={rate}"
            for name in ("frozen LLM layer", "frozen random layer")
            for residual in ("none", "outer")
            for rate in (1, 2)
        ),
    ]


@pytest.mark.parametrize(
    ("over", "alone"),
    [
        ("llm_block.residual=none,outer", ["plain host"]),
        ("llm_block.layer_index=14,28", ["plain host", "MLP", "identity", "projections alone"]),
    ],
)
def test_variants_without_the_layer_get_no_fields_of_it(over, alone):
    controls, grid = read_variants("controls.yaml"), make_grid([over], "controls.yaml")
    assert [name for name in grid if name in controls] == alone
    assert len(grid) == len(alone) + 2 * (len(controls) - len(alone))
    assert all(grid[name] == controls[name] for name in alone)


def test_runs_and_report(flags, tmp_path, capsys):
    """Finished runs are not repeated; a failing run does not stop the others; both run at the same time."""
    variants = tmp_path / "variants.yaml"
    variants.write_text("lost: {llm_block.llm_name_or_path: ./nowhere}\nMLP: {llm_block.kind: mlp}\n")
    command = ["ablate", RECIPE, "--variants", str(variants), "--output_dir", str(tmp_path / "out"), *flags]
    main([*command, "--max_parallel", "2"])
    output = capsys.readouterr().out
    assert "2 variants x 1 seed = 2 runs" in output and "1 of 2 runs failed" in output
    table = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert list(table["variant"]) == ["MLP"] and list(table["seed"]) == [0]
    assert set(table["llm_block.kind"]) == {'"mlp"'}
    assert table["eval_top1"].between(0, 1).all() and (table["frozen_parameters"] == 0).all()
    assert table["num_eval_rows"].item() == 30 and table["steps"].item() == 2
    report = (tmp_path / "out" / "ablation.md").read_text()
    assert "| MLP |" in report and "| lost, seed 0 | failed, see runs/lost/seed0/log.txt |" in report
    assert Image.open(tmp_path / "out" / "ablation.png").size[0] > 1000
    assert "nowhere" in (tmp_path / "out" / "runs" / "lost" / "seed0" / "log.txt").read_text()

    first, second = (tmp_path / "out" / "runs" / "MLP" / f"seed{seed}" for seed in (0, 1))
    results = json.loads((first / "results.json").read_text())
    second.mkdir()
    (second / "results.json").write_text(json.dumps({**results, "recipe": {**results["recipe"], "seed": 1}}))
    before = (first / "results.json").stat().st_mtime_ns
    variants.write_text("MLP: {llm_block.kind: mlp}\n")
    assert ablate(RECIPE, (), variants, 2, tmp_path / "out", flags)
    assert (first / "results.json").stat().st_mtime_ns == before
    assert list(pd.read_csv(tmp_path / "out" / "ablation.csv")["seed"]) == [0, 1]
    report = (tmp_path / "out" / "ablation.md").read_text()
    assert report.count("±") == 2 and "| MLP |" in report
    message = (
        r"seed0 holds results of other settings: learning_rate was 0\.001, and is 1\.0 now\. Choose another output"
    )
    with pytest.raises(ValueError, match=message):
        ablate(RECIPE, (), variants, 1, tmp_path / "out", [*flags, "--learning_rate", "1"])


def test_each_run_has_its_own_seed(tmp_path):
    plan = plan_ablation(tmp_path, over=["llm_block.residual=none,outer"], tune=["learning_rate=1e-3,3e-3"], seeds=3)
    for run in [*reported(plan), *plan.tuning]:
        assert run.command[run.command.index("--seed") + 1] == str(run.seed) == run.folder.name.removeprefix("seed")
    assert {run.seed for run in reported(plan)} == {0, 1, 2}


def test_edited_recipes_are_refused(tmp_path):
    """Also those of an interrupted run; a run that failed before its first checkpoint is repeated."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    text = (REPO / "recipes" / RECIPE).read_text()
    recipe.write_text(text)
    plan = Plan(str(recipe), [], out)
    plan_runs(plan, make_grid(["llm_block.residual=none,outer"], None), [{}], 2)
    first, second, *_ = reported(plan)
    write_results(first, 0.5)
    recipe.write_text(text.replace("weight_decay: 0.05\n", "").replace("layer_index: -1", "layer_index: -2"))
    message = (
        "holds results of other settings: llm_block.layer_index was -1, and is -2 now; weight_decay was 0.05, and "
    )
    with pytest.raises(ValueError, match=message):
        ablate(recipe, ["llm_block.residual=none"], output_dir=out, dry_run=True)
    shutil.rmtree(first.folder)
    second.folder.mkdir(parents=True)
    (second.folder / "command.json").write_text(json.dumps({"command": [], "settings": second.settings}))
    assert ablate(recipe, ["llm_block.residual=none"], seeds=2, output_dir=out, dry_run=True)
    (second.folder / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="seed1 holds results of other settings"):
        ablate(recipe, ["llm_block.residual=none"], seeds=2, output_dir=out, dry_run=True)


def test_tuning(tmp_path, capsys):
    """Each variant has its own best value, and is trained with it; a failed value counts as the worst."""
    out, figure = tmp_path / "out", tmp_path / "figure.svg"
    options = {"variants": "with_and_without.yaml", "tune": ["learning_rate=3e-4,1e-3,3e-3"], "seeds": 2}
    plan = plan_ablation(out, **options)
    assert len(plan.tuning) == 3 * 3 * 2 and {run.seed for run in plan.tuning} == {1000, 1001}
    assert {(run.settings["holdout"], run.settings["eval_split"]) for run in plan.tuning} == {(0.1, "test")}
    assert all(run.settings["holdout"] is None and run.seed in (0, 1) for run in reported(plan))
    scores = {"plain host": [0.5, 0.4, 0.3], "frozen LLM layer": [0.3, 0.5, 0.9], "frozen random layer": [0.5] * 3}
    rates = ["3e-4", "1e-3", "3e-3"]
    for run in plan.tuning:
        diverges = run.variant == "frozen LLM layer" and run.value["learning_rate"] == "3e-3"
        score = scores[run.variant][rates.index(run.value["learning_rate"])]
        write_results(run, score, float("nan") if diverges else 1.0)
    for run in reported(plan):
        write_results(run, 0.5 + 0.1 * run.seed + float(run.value["learning_rate"]))
    assert ablate(RECIPE, output_dir=out, tune_seeds=2, reference="plain host", figure=figure, **options)
    output = capsys.readouterr().out
    assert "3 variants x 2 seeds = 6 runs, after 9 tuned values of the variants x 2 seeds = 18 tuning runs" in output
    assert "[tuning 18/18] frozen random layer, learning_rate=3e-3, seed 1001: top-1 50.00 %" in output
    runs = pd.read_csv(out / "ablation.csv")
    assert list(runs["learning_rate"]) == [3e-4, 3e-4, 1e-3, 1e-3, 3e-4, 3e-4]
    tuning = pd.read_csv(out / "tuning.csv")
    assert len(tuning) == 18 and (tuning["status"] == "diverged").sum() == 2
    report = (out / "ablation.md").read_text()
    assert "| plain host | 55.03 ± 7.07 | 2 | learning_rate=3e-4 (at the end of the grid) |" in report
    assert "| frozen LLM layer | 55.10 ± 7.07 | 2 | learning_rate=1e-3 |" in report
    assert "a random 10 % of train" in report
    assert "usable result: frozen LLM layer, learning_rate=3e-3, seed 1000 (diverged);" in report
    assert "| frozen LLM layer | +0.07 | +0.07 to +0.07 |" in report
    assert "plain host" in figure.read_text() and not (out / "ablation.png").exists()


def test_nothing_can_be_tuned_with(tmp_path, capsys):
    """A variant whose values all diverge is reported as failed, and its runs do not start."""
    options = {"over": ["llm_block.residual=none,outer"], "tune": ["learning_rate=1e-3,1e3"]}
    plan = plan_ablation(tmp_path, **options)
    for run in plan.tuning:
        write_results(run, 0.5, float("nan") if run.variant == "llm_block.residual=outer" else 1.0)
    for run in reported(plan):
        if run.variant == "llm_block.residual=none":
            write_results(run, 0.5)
    assert not ablate(RECIPE, output_dir=tmp_path, tune_seeds=2, **options)
    report = (tmp_path / "ablation.md").read_text()
    assert "| llm_block.residual=none | 50.00 |" in report
    assert "| llm_block.residual=outer, tuning: no value can be trained with | failed, see tuning/" in report
    assert "llm_block.residual=outer: failed, no tuned value can be trained with" in capsys.readouterr().out


def test_dry_run(tmp_path, capsys):
    tune = {"tune": ["learning_rate=1e-3,1e-2", "llm_block.residual=none,outer"], "tune_seeds": 2}
    assert ablate(RECIPE, (), "with_and_without.yaml", 3, tmp_path, ["--max_steps", "9"], dry_run=True, **tune)
    first, *commands = capsys.readouterr().out.splitlines()
    assert first == (
        "# 3 variants x 3 seeds = 9 runs, after 10 tuned values of the variants x 2 seeds = 20 tuning runs"
    )
    assert len(commands) == 29 and all(command.startswith(f"hf-frozen-llm train {RECIPE} --") for command in commands)
    assert "--learning_rate BEST --llm_block.residual BEST --seed 2" in commands[-1]
    assert "--learning_rate BEST --seed 0" in commands[20], "the plain host has no residual"
    assert not any(tmp_path.iterdir())


def test_documentation_counts_the_runs(tmp_path, capsys):
    options = {"variants": "controls.yaml", "over": ["llm_block.residual=none,outer"], "seeds": 5}
    assert ablate(RECIPE, tune=["learning_rate=3e-4,1e-3,3e-3"], dry_run=True, output_dir=tmp_path, **options)
    sizes = capsys.readouterr().out.splitlines()[0]
    assert sizes.startswith("# 21 variants x 5 seeds = 105 runs, after 63 ") and sizes.endswith(" = 63 tuning runs")
    assert "21 variants x 5 seeds = 105 runs, after 63 tuning runs" in (REPO / "docs" / "ablations.md").read_text(
        encoding="utf-8"
    )


def test_split_to_tune_on():
    assert find_rest("train", "test", "train[90%:]") == "train[:90%]"
    assert find_rest("train", "test", "train[:10%]") == "train[10%:]"
    assert find_rest("train", "test", "train[40%:50%]") == "train[:40%]+train[50%:]"
    assert find_rest("train[:90%]", "test", "train[90%:]") == "train[:90%]"
    assert find_rest("train", "validation[50%:]", "validation[:50%]") == "train"
    assert find_rest("train*.h5", "test.h5", "other.h5") == "train*.h5"
    for splits, message in {
        ("train", "test", "train"): "trains on train, which shares rows with it",
        ("train[:50%]", "test", "train[40%:]"): r"trains on train\[:50%\]",
        ("train", "test", "test[:10%]"): "reports the results on test, which",
        ("train", "test*.h5", "test*.h5"): "reports the results on test",
        ("train", "test", "train[:]"): r"give a part of train, such as train\[90%:\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_rest(*splits)


def test_sorted_data_is_refused(tmp_path):
    """An image folder is sorted by class, so its last rows are of one class."""
    data = write_image_folder(tmp_path / "data")
    flags = ["--dataset_name", data, "--image_column", "image"]
    options = {"output_dir": tmp_path / "out", "overrides": flags, "tune": ["learning_rate=1,2"]}
    message = (
        r"train\[90%:\]\] has no row of 5 of the 6 classes of train: ant, bee, cat, dog, elk. Data is often sorted by "
        "class. Leave tune_split out, to hold out a random tenth of train"
    )
    with pytest.raises(ValueError, match=message):
        ablate(RECIPE, (), "with_and_without.yaml", tune_split="train[90%:]", **options)
    with pytest.raises(ValueError, match=r"train\[20%:\]\] has no row of 1 of the 6 classes of train: ant"):
        ablate(RECIPE, (), "with_and_without.yaml", tune_split="train[:20%]", **options)
    assert not (tmp_path / "out").exists()


def test_slots():
    """Runs at the same time share the cores; of several GPUs, each has one."""
    assert slot_environments(1, {"A": "1"}, ["0", "1"], 8) == [{"A": "1"}]
    assert slot_environments(3, {}, ["0"], 8) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert slot_environments(4, {"OMP_NUM_THREADS": "5"}, [], 2) == [{"OMP_NUM_THREADS": "5"}] * 4
    slots = slot_environments(3, {"CUDA_VISIBLE_DEVICES": "2,5"}, ["2", "5"], 2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "5", "2"]
    assert slots[0]["OMP_NUM_THREADS"] == "1"


def test_an_interrupt_ends_all_processes(tmp_path, monkeypatch):
    processes = []

    class RecordedPopen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            processes.append(self)

    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", RecordedPopen)
    finished, *others = reported(plan_ablation(tmp_path, over=["llm_block.residual=outer"], seeds=3))
    write_results(finished, 0.5)
    with pytest.raises(KeyboardInterrupt):
        run_all([*others, finished], 3, "", interrupt)
    assert len(processes) == 2 and all(process.poll() not in (None, 0) for process in processes)

    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    process.stdout.readline()
    started = time.monotonic()
    stop([process], 0.1)
    assert process.poll() == -9 and time.monotonic() - started < 30


def test_flops():
    """FLOPs of the smallest model first; benchmarks/block.py also counts a ViT-T with a LLaMA-7B layer."""
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}

    def count(lora=None, **fields):
        block = LLMBlockConfig(llm_config={**llama, "num_hidden_layers": 1}, **fields) if fields else None
        return count_flops(ViTWithLLMBlockConfig(**sizes, llm_block=block, num_labels=1000), 64, lora=lora)

    counts = [count(), count(kind="mlp"), count(weights="random"), count(weights="random", trainable=True)]
    assert counts == sorted(counts)
    with_lora = count({"r": 8}, weights="random")
    assert with_lora[0] == counts[2][0] and with_lora[1] > counts[2][1], "merged in evaluation"
    assert counts[2][0] / 1e9 < 3.1 and counts[2][1] / 1e9 < 8.8
    assert count(weights="random", attention="causal")[0] > counts[2][0], "as the layer itself computes it"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["learning_rat=1"], "nearest valid key is `learning_rate`"),
        (["llm_block.kind=vgg"], "`llm_block.kind` must be"),
        (["llm_block.kind=mlp", "llm_block.rotary=true"], "kind='mlp' has no LLM layer, so rotary cannot be set"),
        (["learning_rate"], "--over takes FIELD=a,b,c, got 'learning_rate'"),
        ([], "Nothing to vary"),
        (["eval_split=null"], "no eval_split"),
        (["learning_rate=1", "learning_rate=2"], "--over learning_rate is given twice"),
        (["output_dir=a/b,a_b"], "'output_dir=a/b' and 'output_dir=a_b' would share the folder output_dir=a_b"),
        (["host.num_hidden_layers=2", "llm_block.position=3"], "position=3': llm_block.position is 3; with num_hid"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(over, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ablate(RECIPE, over, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_variants_that_are_not_there():
    with pytest.raises(
        FileNotFoundError, match=r"no file of variants nowhere\.yaml\. The package has: controls\.yaml"
    ):
        read_variants("nowhere.yaml")
    assert (REPO / "recipes" / "variants" / "controls.yaml").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"max_parallel": 0}, "max_parallel is 0"),
        ({"tune_seeds": -1}, "tune_seeds is -1"),
        ({"delta": 0}, "delta is 0"),
        ({"reference": "plain"}, "no variant 'plain' to compare with; the variants are plain host, frozen LLM layer"),
        ({"figure": "ablation.word"}, r"figure is 'ablation.word'; matplotlib writes .*\.svg"),
        ({"figure": "nowhere/ablation.svg"}, "no folder nowhere"),
        ({"tune": ["learning_rate=1e-3"]}, "nothing to tune"),
        ({"tune_split": "train[90%:]"}, "nothing to tune"),
        ({"tune": ["learning_rate=fast,1"]}, "variant 'plain host, learning_rate=fast': .*must be float"),
        (
            {"tune": ["llm_block.weights=random,pretrained"]},
            "'frozen random layer' sets llm_block.weights, which --tune",
        ),
        ({"over": ["llm_block.weights=random"]}, "'frozen random layer' sets llm_block.weights, and so does --over"),
        ({"over": ["llm_block.final_norm=pretrained"]}, "'frozen random layer, llm_block.final_norm=pre.*contradicts"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(options, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        ablate(RECIPE, variants="with_and_without.yaml", output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_scipy(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "scipy" else find_spec(name))
    options = {"variants": "with_and_without.yaml", "output_dir": tmp_path / "out", "dry_run": True}
    with pytest.raises(ImportError, match=r"reference needs scipy: pip install 'hf_frozen_llm\[ablate\]'"):
        ablate(RECIPE, reference="plain host", **options)
    assert ablate(RECIPE, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {seed: 1}\na: {seed: 2}", "two variants 'a'; rename one"),
        ("a/b: {learning_rate: 1}\na_b: {learning_rate: 2}", "'a/b' and 'a_b' would share the folder a_b"),
        (
            "a: {llm_block: null, llm_block.residual: outer}",
            "'a' has no LLM layer, so llm_block.residual means nothing",
        ),
        ("a: 1", "must map the name of each variant"),
    ],
)
def test_bad_variants_are_refused(text, message, tmp_path):
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        ablate(RECIPE, (), tmp_path / "variants.yaml", output_dir=tmp_path / "out")


def test_equal_variants_run_once(tmp_path, capsys):
    plan = plan_ablation(tmp_path, over=["learning_rate=1e-3,0.001,0.01"])
    assert list(plan.candidates) == ["learning_rate=1e-3", "learning_rate=0.01"]
    assert "# learning_rate=0.001 has the settings of learning_rate=1e-3, and is left out." in capsys.readouterr().out


def test_null_is_not_finite(tmp_path):
    """In strict JSON, the NaN of a diverged run is null; such a value counts as the worst."""
    plan = plan_ablation(tmp_path, over=["llm_block.residual=none"], tune=["learning_rate=1e-3,1e3"])
    run = plan.tuning[0]
    write_results(run, 0.5, None)
    row = read_tuning_run(run, plan.metric)
    assert row["status"] == "diverged" and math.isnan(row["eval_loss"]) and row["eval_top1"] == 0.5
