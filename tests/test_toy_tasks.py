# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Two tasks other than classification, added from outside: all commands, on one and two processes."""

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
from killed_run import run_killed
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import TINY_RUN, write_llama
from toy_tasks import point_sets, retrieval

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands import info
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import write_json
from hf_frozen_llm.training.resume import may_change
from hf_frozen_llm.training.run import build_run, build_training_arguments, load_run, read_eval_rows, resolve


TESTS = Path(__file__).parent
RECIPE = """\
dataset_name: {data}
eval_split: test
llm_block: {{llm_name_or_path: {llm}}}
host: {{hidden_size: 12}}
num_train_epochs: 2
learning_rate: 1e-2
eval_strategy: steps
eval_steps: 2
save_strategy: steps
save_steps: 2
logging_steps: 1
load_best_model_at_end: true
"""
TOYS = {
    "retrieval": (
        retrieval,
        "task: toy-retrieval\nmodel_type: toy_retrieval\nmetric_for_best_model: recall_at_1\nnum_negatives: 5\n",
    ),
    "point_sets": (
        point_sets,
        "task: toy-point-sets\nmodel_type: toy_point_sets\nmetric_for_best_model: min_fde\nrandom_mirror: true\n",
    ),
}
SHORT = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
# Batches of other sizes cannot be handed from one process to the others.
STREAM = ["--streaming", "true", "--accelerator_config", "{dispatch_batches: false}"]
# Nothing is random but the order
STEADY = {"retrieval": [*SHORT, "--host.dropout", "0"]}
STEADY["point_sets"] = [*STEADY["retrieval"], "--random_mirror", "false"]


@pytest.fixture(autouse=True, scope="module")
def toy_tasks():
    """Register the toy tasks while these tests run."""
    for module, _ in TOYS.values():
        module.add()
    yield
    for name in [name for name in TASKS if name.startswith("toy-")]:
        for model_type in TASKS.pop(name).models:
            del TASK_MODELS[model_type]


@pytest.fixture(params=TOYS, scope="module")
def toy(request):
    return request.param


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    llm = write_llama(folder / "llm")
    for name, (module, keys) in TOYS.items():
        data = module.write_data(folder / name, {"train": 32, "test": 19})
        (folder / f"{name}.yaml").write_text(RECIPE.format(data=data, llm=llm) + keys)
    return folder


@pytest.fixture(scope="module")
def recipe(toy, recipes):
    return str(recipes / f"{toy}.yaml")


@pytest.fixture(scope="module")
def finished(toy, recipe, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("finished") / toy
    run(recipe, output_dir)
    return output_dir


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of other Python processes, which import the toy tasks when they start the package."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'hf_frozen_llm' in sys.orig_argv:\n"
        "    from toy_tasks import point_sets, retrieval\n"
        "    retrieval.add(), point_sets.add()\n"
    )
    # Sums depend on the number of threads.
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]), "OMP_NUM_THREADS": threads}


def run(recipe, output_dir, *flags):
    main(["train", str(recipe), *TINY_RUN, *flags, "--output_dir", str(output_dir)])
    return read_results(output_dir)


def read_results(folder, name="results.json"):
    return json.loads((Path(folder) / name).read_text())


def scores(metrics):
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))
    }


def main_metric_of(recipe):
    return TASKS[read_recipe(recipe).values["task"]].main_metric


def test_training_keeps_the_best_model(recipe, finished):
    results, metric = read_results(finished), main_metric_of(recipe)
    history = [entry[f"eval_{metric.name}"] for entry in results["log_history"] if f"eval_{metric.name}" in entry]
    best = max(history) if metric.greater_is_better else min(history)
    assert len(set(history)) > 1
    assert results["metrics"][f"eval_{metric.name}"] == best
    state = json.loads((max(finished.glob("checkpoint-*")) / "trainer_state.json").read_text())
    assert state["best_metric"] == best
    assert results["parameters"]["frozen"] > 0
    assert results["config"]["num_channels"] == (4 if "retrieval" in recipe else 3)  # as the data say
    assert "labels" not in json.dumps(results["log_history"])


def test_saved_model_gives_equal_numbers(finished, toy, tmp_path):
    main(["evaluate", str(finished), "--use_cpu", "true", "--bf16_full_eval", "true"])
    assert scores(read_results(finished, "eval_results.json")["metrics"])
    main(["evaluate", str(finished), "--use_cpu", "true", "--per_device_eval_batch_size", "5"])
    results = read_results(finished, "eval_results.json")
    assert scores(results["metrics"]) == pytest.approx(scores(read_results(finished)["metrics"]), rel=1e-5)
    assert results["dataset"]["split"] == "test"
    with pytest.raises(ValueError, match=r"does not use --random_mirror|`random_mirror` is a key of the task toy-"):
        main(["evaluate", str(finished), "--random_mirror", "true"])


def test_killed_run_resumes_bit_equal(recipe, finished, environment, tmp_path):
    command = ["train", recipe, *TINY_RUN, "--output_dir", str(tmp_path)]
    run_killed(tmp_path, 7, "hf_frozen_llm", *command, env=environment)
    assert not (tmp_path / "results.json").exists()
    main([*command, "--resume"])
    resumed, whole = read_results(tmp_path), read_results(finished)
    assert resumed["resumed_from_checkpoint"] == "checkpoint-6"
    assert scores(resumed["metrics"]) == scores(whole["metrics"])
    for name in ("checkpoint-8/model.safetensors", "model.safetensors"):
        same, expected = load_file(tmp_path / name), load_file(finished / name)
        assert same.keys() == expected.keys() and all(torch.equal(same[key], expected[key]) for key in expected)


def test_resuming_another_run_is_refused(recipe, finished, toy, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    key, before, now = ("num_negatives", 5, 4) if toy == "retrieval" else ("scale", 2.0, 3.0)
    with pytest.raises(ValueError, match=f"was trained with {key} {before}, the recipe now says {now}"):
        run(recipe, tmp_path, f"--{key}", str(now), "--resume")


def test_two_processes(recipes, environment, tmp_path):
    """The metrics are equal, even if the second process has no batch."""
    processes = ["--ddp_backend", "gloo", "--per_device_train_batch_size", "4"]
    few = ["--accelerator_config", "{even_batches: false}", "--max_eval_samples", "3"]
    commands, expected = [], {}
    for name in TOYS:
        recipe, one, two = str(recipes / f"{name}.yaml"), tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        expected[two / "results.json"] = run(recipe, one, *STEADY[name], *few)
        commands.append(["train", recipe, [*TINY_RUN, *STEADY[name], *few, *processes, "--output_dir", str(two)]])
        for samples, stream in (("1", []), ("19", []), ("19", STREAM))[: 2 + (name == "point_sets")]:
            flags = ["--max_eval_samples", samples, "--per_device_eval_batch_size", "4", "--use_cpu", "true"]
            main(["evaluate", str(one), *flags])
            file = tmp_path / f"{name}-{samples}-{bool(stream)}.json"
            expected[file] = read_results(one, "eval_results.json")
            there = [*flags, *stream, "--ddp_backend", "gloo", "--output_file", str(file)]
            commands.append(["evaluate", str(one), there])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(TESTS / "toy_tasks" / "processes.py"), json.dumps(commands)]
    subprocess.run([*launcher, *script], check=True, capture_output=True, env={**environment, "OMP_NUM_THREADS": "1"})
    for file, one in expected.items():
        two = json.loads(file.read_text())
        assert scores(two["metrics"]) == pytest.approx(scores(one["metrics"]), rel=1e-4), file
        if file.name == "results.json":
            assert two["num_processes"] == 2
            for step in (0, 1):
                assert two["log_history"][step]["loss"] == pytest.approx(one["log_history"][step]["loss"], rel=1e-4)


def test_gradients_accumulate_without_labels(recipe, toy, tmp_path):
    """A step is that of the whole batch, however it is split."""
    whole = run(recipe, tmp_path / "whole", *STEADY[toy])
    parts = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
    cut = run(recipe, tmp_path / "cut", *STEADY[toy], *parts)
    for one, other in zip(whole["log_history"][:2], cut["log_history"][:2]):
        assert [other[name] for name in ("loss", "grad_norm")] == pytest.approx([one["loss"], one["grad_norm"]], 1e-4)


def test_predictions(finished, toy, tmp_path):
    recipe = read_recipe(None, ["--dataset_name", str(finished)], [])
    settings = read_results(finished)["recipe"]
    flags = ["--task", settings["task"], "--dataset_name", settings["dataset_name"], "--use_cpu", "true"]
    recipe = read_recipe(None, [*flags, "--per_device_eval_batch_size", "4"])
    recipe.llm_block = None
    saved = load_run(str(finished), recipe, str(tmp_path))
    rows = read_eval_rows(saved.settings.task, saved.settings.data_args, "test", with_targets=False)
    saved.eval_dataset = saved.task.dataset(rows, "test")
    trainer = saved.trainer()
    model = saved.model.eval()
    records = trainer.collect_records(lambda batch: saved.task.predict(model, batch), trainer.get_eval_dataloader())
    assert [record["row"] for record in records] == list(range(19))
    assert json.loads(json.dumps(records)) == records
    words = saved.task.describe(records[0])
    if toy == "point_sets":
        assert "future" not in rows.column_names and "min_fde" not in records[0]
        assert len(words) == 3 and sum(words.values()) == pytest.approx(1)
    else:
        assert words.keys() == {"match", "score"}
        left_of = dict(zip(rows["right_id"], rows["left_id"]))
        found = {left: left_of[record["match"]] == left for left, record in zip(rows["left_id"], records)}
        recall = read_results(finished)["metrics"]["eval_left_recall_at_1"]
        assert sum(found.values()) / len(found) == pytest.approx(recall)


def test_predict_command(finished, toy, tmp_path, capsys):
    """Predictions are those of the task, in words; there is nothing to predict on single files."""
    data = read_results(finished)["recipe"]["dataset_name"]
    split = ["--dataset_name", data, "--split", "test", "--use_cpu", "true"]
    main(["predict", str(finished), *split, "--output", str(tmp_path / "out.jsonl")])
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record.pop("row") for record in records] == list(range(19))
    expected = {"match", "score"} if toy == "retrieval" else None
    assert all(record.keys() == expected if expected else len(record) == 3 for record in records)
    main(["predict", str(finished), *split])
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("row 18")
    with pytest.raises(ValueError, match=r"toy-[\w-]+ predicts on a split .*, not on single files"):
        main(["predict", str(finished), str(tmp_path / "out.jsonl"), "--use_cpu", "true"])


def test_check_command(recipe, toy, tmp_path, capsys):
    main(["check", recipe, *TINY_RUN, "--output_dir", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "No errors and " in printed, printed
    assert f"toy-{toy.replace('_', '-')}" in printed
    assert Image.open(tmp_path / "run" / "check.png").size[0] > 100


def test_padded_items_change_nothing(recipes, tmp_path):
    run_ = build_run(read_recipe(recipes / "point_sets.yaml", ["--output_dir", str(tmp_path), "--use_cpu", "true"]))
    batch = run_.task.collate([run_.eval_dataset[index] for index in range(6)])
    assert batch["mask"].sum(1).unique().numel() > 1
    model = run_.model.eval()
    with torch.no_grad():
        outputs = model(batch["items"], batch["mask"])
        for index, count in enumerate(batch["mask"].sum(1).tolist()):
            alone = model(batch["items"][index : index + 1, :count], batch["mask"][index : index + 1, :count])
            for name in ("trajectories", "scores"):
                torch.testing.assert_close(alone[name][0], outputs[name][index])
        batch["items"][batch["mask"] == 0] = 7.0
        torch.testing.assert_close(model(batch["items"], batch["mask"]).trajectories, outputs.trajectories)


def test_batches_are_of_similar_lengths(recipes, tmp_path):
    flags = [*TINY_RUN, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path)]
    batches = list(build_run(read_recipe(recipes / "point_sets.yaml", flags)).trainer().get_train_dataloader())
    padding = sum((batch["mask"] == 0).sum().item() for batch in batches)
    assert len(batches) == 16 and padding < 0.1 * sum(batch["mask"].numel() for batch in batches)


def test_lora(recipe, tmp_path):
    results = run(recipe, tmp_path, *SHORT, "--lora.r", "2")
    main(["evaluate", str(tmp_path), "--use_cpu", "true"])
    metrics = read_results(tmp_path, "eval_results.json")["metrics"]
    assert scores(metrics) == pytest.approx(scores(results["metrics"]), rel=1e-5)


def test_ablation(recipe, toy, environment, tmp_path, monkeypatch, capsys):
    """Table and figure show the task's metric, for one run in a separate process and for finished runs."""
    metric = main_metric_of(recipe)
    (tmp_path / "variants.yaml").write_text("MLP: {llm_block.kind: mlp}\nplain host: {llm_block: null}\n")
    options = ["--variants", str(tmp_path / "variants.yaml"), "--output_dir", str(tmp_path / "out")]
    command = ["ablate", recipe, *options, *TINY_RUN, *SHORT]
    main([*command, "--dry_run"])
    planned = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    for of_run in planned[toy == "point_sets" :]:
        main(of_run)
        write_json(Path(of_run[-1], "command.json"), {"command": of_run})
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment[name])
    main(command)
    runs = pd.read_csv(tmp_path / "out" / "ablation.csv").set_index("variant")
    assert list(runs.index) == ["MLP", "plain host"]
    report = (tmp_path / "out" / "ablation.md").read_text()
    if toy == "point_sets":
        assert "| variant | minFDE (lower is better), mean" in report
        assert all(f"| {name} | {score:.4g} |" in report for name, score in runs["eval_min_fde"].items())
    else:
        assert "| variant | recall@1 %, mean" in report
        assert all(f"| {name} | {100 * score:.2f} |" in report for name, score in runs["eval_recall_at_1"].items())
    assert metric.title in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "ablation.png").size[0] > 1000


def test_info(finished, toy):
    facts = info.describe_checkpoint(str(finished))
    name = {"retrieval": "ToyRetrievalModel", "point_sets": "ToyPointSetsModel"}[toy]
    assert facts["model"] == f"{name} (toy_{toy})"
    assert facts["LLM block"] == "kind llm, after the last layer of the host"
    parameters = read_results(finished)["parameters"]
    assert facts["parameters"] == ", ".join(f"{count:,} {name}" for name, count in parameters.items())
    assert "forward" in facts["GFLOP for one input"]


def test_streams(recipes, tmp_path):
    with pytest.raises(ValueError, match="streaming is set, but negatives and galleries need random access"):
        run(recipes / "retrieval.yaml", tmp_path, "--streaming", "true", *SHORT)
    streamed = run(recipes / "point_sets.yaml", tmp_path / "streamed", "--streaming", "true", *SHORT)
    main(["evaluate", str(tmp_path / "streamed"), "--use_cpu", "true", "--streaming", "false"])
    metrics = read_results(tmp_path / "streamed", "eval_results.json")["metrics"]
    assert scores(metrics) == pytest.approx(scores(streamed["metrics"]), rel=1e-5)


def test_keys_of_classifiers_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"classifier_init_scale is set, but a toy_\w+ has no classifier"):
        run(recipe, tmp_path, "--classifier_init_scale", "0.1")
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1, but a model of the task toy-"):
        run(recipe, tmp_path, "--label_smoothing_factor", "0.1")
    with pytest.raises(ValueError, match=r"host.num_channels is 2, but the task reads it out of the data \(\d\)"):
        run(recipe, tmp_path, "--host.num_channels", "2")


def test_direction_of_metrics(recipes, tmp_path):
    for name, metric, greater_is_better in (
        ("point_sets", "eval_min_fde", False),
        ("point_sets", "min_ade", False),
        ("point_sets", "loss", False),
        ("retrieval", "left_recall_at_5", True),
        ("retrieval", "eval_loss", False),
    ):
        flags = [*TINY_RUN, "--output_dir", str(tmp_path), "--metric_for_best_model", metric]
        settings = resolve(read_recipe(recipes / f"{name}.yaml", flags))
        assert build_training_arguments(settings).greater_is_better == greater_is_better


def test_loss_of_a_task_needs_labels(recipes, tmp_path):
    class ToyWithLoss(point_sets.ToyPointSets):
        def loss(self, args):
            return lambda outputs, labels, num_items_in_batch=None: outputs["loss"]

    run_ = build_run(read_recipe(recipes / "point_sets.yaml", [*TINY_RUN, "--output_dir", str(tmp_path)]))
    run_.task = ToyWithLoss(run_.task.args, run_.task.processor, run_.task.config)
    with pytest.raises(ValueError, match="toy-point-sets needs `labels` in a batch, which has items, mask, future"):
        run_.trainer().train()


def test_keys_of_a_task_that_look_like_those_of_trainer():
    assert may_change("eval_steps") and may_change("eval_split")
    assert not may_change("eval_horizon") and not may_change("log_scale")
