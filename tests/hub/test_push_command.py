# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm push` to the local Hub, by the real client."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import metadata_load
from saved_models import build, logits, stored
from tiny_runs import TINY, write_llama
from transformers import AutoModelForImageClassification, ViTImageProcessor

from hf_frozen_llm import push
from hf_frozen_llm.cli import main
from hf_frozen_llm.hub.card import has_own_card


NAME = "tester/model"
CARD = "---\nlicense: {}\n---\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as hub, hub.active(tmp_path / "hf_home"):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        hub.uploads.tokens = {"hf_write": "write", "hf_read": "read"}
        llm = tmp_path / "llm"
        write_llama(llm)
        (llm / "README.md").write_text(CARD.format("apache-2.0"))
        hub.add("tester/llm", llm)
        yield hub


@pytest.fixture
def folder(hub, tmp_path):
    """A trained model and what lies beside it."""
    folder = tmp_path / "run"
    build("tester/llm").save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    recipe = {"dataset_name": str(tmp_path / "my pictures"), "learning_rate": 1e-3}
    log = [{"step": 1, "command": f"train --output_dir={tmp_path}/run ./pictures and/or https://hf.co/a/b"}]
    (folder / "results.json").write_text(json.dumps({"metrics": {}, "recipe": recipe, "log_history": log}))
    (folder / "confusion_matrix.png").write_bytes(b"png")
    (folder / "README.md").write_text(CARD.format("mit"))
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "cifar10.yaml").write_text("[]")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / ".lock").touch()
    shutil.copytree(folder, folder / "checkpoint-8")
    return folder


def commits(hub, name=NAME):
    return list(hub.repositories["models", name].commits.values())


def latest(hub, revision="main", name=NAME):
    repository = hub.repositories["models", name]
    return repository.commits[repository.refs[revision]]


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_commit_of_everything(hub, folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    published = push(folder, NAME)
    empty, whole = commits(hub)
    assert names(empty) == set() and names(whole) == set(published.files)
    assert names(whole) == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("results.json", "recipe.yaml", "confusion_matrix.png", ".eval_results/cifar10.yaml"),
    }
    assert published.files["model.safetensors"] == (whole / "model.safetensors").stat().st_size
    assert published.url.startswith(f"{hub.url}/{NAME}/commit/")
    again = AutoModelForImageClassification.from_pretrained(NAME, cache_dir=tmp_path / "elsewhere")
    assert torch.equal(logits(again), logits(build("tester/llm")))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_no_path_of_this_machine(hub, folder, tmp_path):
    push(folder, NAME)
    for name in ("results.json", "recipe.yaml", "config.json"):
        assert str(tmp_path) not in (latest(hub) / name).read_text()
    results = json.loads((latest(hub) / "results.json").read_text())
    assert results["recipe"] == {"dataset_name": "my pictures", "learning_rate": 1e-3}
    assert results["log_history"][0]["command"] == "train --output_dir=run ./pictures and/or https://hf.co/a/b"


def test_the_recipe_trains_again(hub, recipe, data, tmp_path):
    """The published recipe, with the data of the reader, gives the published weights."""
    short = [*TINY, "--max_steps", "2", "--eval_strategy", "no"]
    llm = ["--llm_block.llm_name_or_path", "tester/llm"]
    main(["train", str(recipe), *short, *llm, "--output_dir", str(tmp_path / "run")])
    push(tmp_path / "run", NAME)
    published = latest(hub) / "recipe.yaml"
    main(["train", str(published), *short, "--dataset_name", data, "--output_dir", str(tmp_path / "again")])
    again = stored(tmp_path / "again")
    assert all(torch.equal(tensor, again[key]) for key, tensor in stored(latest(hub)).items())


def test_the_card_is_that_of_the_folder(hub, recipe, data, tmp_path):
    """With its figures, evaluation, and the facts that were given to `card`; a foreign number is refused."""
    run = tmp_path / "run"
    llm = ["--llm_block.llm_name_or_path", "tester/llm"]
    main(["train", str(recipe), *TINY, *llm, "--eval_strategy", "no", "--output_dir", str(run)])
    main(["evaluate", str(run)])
    main(["card", str(run), "--license", "mit", "--dataset", "tester/pictures", "--examples"])
    published = push(run, NAME)
    assert {"training_curves.png", "examples.png", "eval_results.json"} < set(published.files)
    assert {".eval_results/eval_results.yaml", ".eval_results/results.yaml"} < set(published.files)
    assert len([name for name in published.files if name.startswith("examples/")]) == 3
    card = (latest(hub) / "README.md").read_text()
    metadata = metadata_load(latest(hub) / "README.md")
    assert metadata["license"] == "mit" and metadata["datasets"] == ["tester/pictures"]
    assert metadata["widget"][0]["src"].startswith(f"https://huggingface.co/{NAME}/resolve/main/examples/")
    assert f'"{NAME}"' in card and str(tmp_path) not in card and not has_own_card(latest(hub))
    value = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    (run / "README.md").write_text(card.replace(f"value: {value}", "value: 99.75"))
    with pytest.raises(ValueError, match=r"99\.75, but no results file"):
        push(run, NAME)
    assert latest(hub).joinpath("README.md").read_text() == card


@pytest.mark.parametrize("light", [False, True])
def test_with_and_without_the_layer(light, hub, folder, tmp_path):
    push(folder, NAME, light=light)
    assert any("llm_layers" in key for key in stored(latest(hub))) is not light
    again = AutoModelForImageClassification.from_pretrained(NAME, cache_dir=tmp_path / "elsewhere")
    assert torch.equal(logits(again), logits(build("tester/llm")))
    assert again.config.llm_block.fingerprint == build("tester/llm").config.llm_block.fingerprint


def test_tensors_are_those_of_the_folder(hub, folder, tmp_path):
    build("tester/llm", layer_dtype="bfloat16").save_pretrained(tmp_path / "mixed")
    push(tmp_path / "mixed", NAME)
    found, expected = stored(latest(hub)), stored(tmp_path / "mixed")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16, torch.float32}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in found)


def test_a_light_folder_gets_its_layer(hub, folder, tmp_path):
    build("tester/llm").save_pretrained(folder / "checkpoint-16")
    assert not any("llm_layers" in key for key in stored(folder / "checkpoint-16"))
    push(folder / "checkpoint-16", NAME)
    assert any("llm_layers" in key for key in stored(latest(hub)))


@pytest.mark.parametrize("licence", ["other", None])
def test_licences(licence, hub, folder, tmp_path):
    card = tmp_path / "llm" / "README.md"
    if licence is None:
        card.unlink()
    else:
        card.write_text(CARD.format(licence))
    with pytest.raises(ValueError, match=r"--light leaves the layer out.*--include-layer"):
        push(folder, NAME)
    assert ("models", NAME) not in hub.repositories
    push(folder, NAME, light=True)
    push(folder, "tester/other", include_layer=True)
    assert any("llm_layers" in key for key in stored(latest(hub, name="tester/other")))


def test_layers_without_weights_of_an_llm_have_no_licence(hub, folder, tmp_path):
    (tmp_path / "llm" / "README.md").unlink()
    for name, fields in (("random", {"weights": "random"}), ("mlp", {"kind": "mlp"})):
        build("tester/llm", **fields).save_pretrained(tmp_path / name)
        push(tmp_path / name, f"tester/{name}")
    with pytest.raises(ValueError, match=r"cannot leave out the LLM layer .* random"):
        push(tmp_path / "random", "tester/light", light=True)
    assert ("models", "tester/light") not in hub.repositories


def test_light_models_need_an_llm_on_the_hub(hub, folder, tmp_path):
    build(tmp_path / "llm").save_pretrained(tmp_path / "local")
    with pytest.raises(ValueError, match=r"--light leaves out the LLM layer, but .*llm_name_or_path"):
        push(tmp_path / "local", NAME, light=True)
    push(tmp_path / "local", NAME)
    assert json.loads((latest(hub) / "config.json").read_text())["llm_block"]["llm_name_or_path"] is None


def test_dry_run(hub, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    hub.clear()
    main(["push", str(folder), NAME, "--dry-run", "--with-code"])
    output = capsys.readouterr().out
    assert "model.safetensors" in output and "modeling_vit_with_llm_block.py" in output
    assert "Nothing was uploaded." in output and "README.md of the folder" in output
    assert all(request.method in ("GET", "HEAD") for request in hub.requests)
    assert ("models", NAME) not in hub.repositories


def test_existing_repositories(hub, folder):
    """A push replaces the weights, removes those that the new model has not, and keeps other files."""
    hub.commit(NAME, files={"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine", "model.bin": b"old"})
    hub.commit(NAME, files={"last-checkpoint/model.safetensors": b"other"})
    push(folder, "model")
    assert {"notes.txt", "model.safetensors", "last-checkpoint/model.safetensors"} <= names(latest(hub))
    assert not {"model.bin", "model-00001-of-00002.safetensors"} & names(latest(hub))
    count = len(commits(hub))
    push(folder, NAME)
    assert len(commits(hub)) == count, "nothing has changed"


def test_branches_pull_requests_and_private_repositories(hub, folder):
    push(folder, NAME, private=True)
    assert hub.repositories["models", NAME].token == "hf_write"
    (folder / "README.md").write_text(CARD.format("mit") + "new")
    push(folder, NAME, revision="next/version")
    assert (latest(hub, "next/version") / "README.md").read_text().endswith("new")
    assert not (latest(hub) / "README.md").read_text().endswith("new")
    published = push(folder, NAME, create_pr=True)
    assert published.url == f"{hub.url}/{NAME}/discussions/1"
    assert (latest(hub, "refs/pr/1") / "README.md").read_text().endswith("new")
    hub.add("someone/model", latest(hub))
    assert push(folder, "someone/model", create_pr=True).url.endswith("/discussions/1")
    with pytest.raises(ValueError, match="leave out --revision"):
        push(folder, NAME, create_pr=True, revision="next")


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def wrong_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")


def reading_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")


BAD_TOKENS = [(no_token, "hf auth login"), (wrong_token, "does not know the token"), (reading_token, "may only read")]


@pytest.mark.parametrize(("change", "problem"), BAD_TOKENS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_tokens(change, problem, hub, folder, monkeypatch, call):
    change(hub, monkeypatch)
    code, _, error = call("push", str(folder), NAME)
    assert code == 2 and problem in error and error.count("\n") == 1
    assert ("models", NAME) not in hub.repositories


def test_repositories_that_do_not_fit(hub, folder, tmp_path):
    with pytest.raises(ValueError, match="may not write to someone/model"):
        push(folder, "someone/model")
    hub.add("tester/pictures", tmp_path / "llm", kind="datasets")
    with pytest.raises(ValueError, match="tester/pictures is a dataset"):
        push(folder, "tester/pictures")
    with pytest.raises(ValueError, match="holds a model of type llama"):
        push(folder, "tester/llm")
    with pytest.raises(ValueError, match="datasets/tester/pictures"):
        push(folder, "datasets/tester/pictures")
    hub.commit("tester/public")
    with pytest.raises(ValueError, match="exists and is public"):
        push(folder, "tester/public", private=True)
    assert len(hub.repositories["models", "tester/llm"].commits) == 1


def test_folders_that_are_no_models(hub, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (folder / "config.json").unlink()
    for path, problem in (
        (tmp_path / "nothing", "is not a folder"),
        (tmp_path / "empty", "is no model: it has no config.json"),
        (folder, "It has checkpoint-8"),
    ):
        with pytest.raises(FileNotFoundError, match=problem):
            push(path, NAME)
    with pytest.raises(ValueError, match="is a llama, not a model of this package"):
        push(tmp_path / "llm", NAME)
    config = folder / "checkpoint-8" / "config.json"
    config.write_text(config.read_text().replace("ViTWithLLMBlockForImageClassification", "MyOwnClass"))
    with pytest.raises(ValueError, match="architecture 'MyOwnClass', which is no model of this package"):
        push(folder / "checkpoint-8", NAME)
    assert ("models", NAME) not in hub.repositories


FAULTS = [
    ("commit", 500, "did not finish: .*500"),
    ("commit", 409, "somebody else has changed"),
    ("commit", 412, "somebody else has changed"),
    ("commit", 429, "limit of requests"),
    ("commit", "drop", "did not finish"),
    ("put", 403, "may not write"),
    ("create", 403, "may not write"),
]


@pytest.mark.parametrize(("endpoint", "fault", "problem"), FAULTS)
def test_faults_publish_nothing_and_a_repetition_everything(endpoint, fault, problem, hub, folder):
    hub.uploads.fail(endpoint, fault, times=10)
    with pytest.raises((OSError, ValueError), match=problem):
        push(folder, NAME)
    if endpoint != "create":
        assert [names(commit) for commit in commits(hub)] == [set()]
    hub.uploads.forget_faults()
    sent = len(hub.uploads.received)
    push(folder, NAME)
    assert "model.safetensors" in names(latest(hub)) and len(commits(hub)) == 2
    assert len(hub.uploads.received) == (1 if endpoint in ("put", "create") else sent), "weights are sent once"


@pytest.mark.parametrize(("endpoint", "fault"), [("put", "drop"), ("preupload", 429), ("batch", 500)])
def test_short_faults_are_bridged(endpoint, fault, hub, folder):
    hub.uploads.fail(endpoint, fault)
    push(folder, NAME)
    assert "model.safetensors" in names(latest(hub))


def test_uploads_in_parts(hub, folder):
    hub.uploads.part_size = 10_000
    published = push(folder, NAME)
    assert sum(hub.uploads.received) == published.files["model.safetensors"] and len(hub.uploads.received) > 2
    assert stored(latest(hub)).keys() == stored(folder).keys()


def test_a_killed_upload_and_its_repetition(hub, folder, tmp_path):
    hub.uploads.fail("commit", "stall")
    environment = hub.env(tmp_path / "killed", HF_TOKEN="hf_write")
    command = [sys.executable, "-m", "hf_frozen_llm", "push", str(folder), NAME]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not hub.uploads.received and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(hub.uploads.received) == 1
    assert [names(commit) for commit in commits(hub)] == [set()]
    hub.uploads.forget_faults()
    push(folder, NAME)
    assert len(hub.uploads.received) == 1 and "model.safetensors" in names(latest(hub))
