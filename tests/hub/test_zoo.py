# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The model zoo: its cards are those that their files give, their code runs, and `make zoo` makes one from nothing."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from pages import blocks
from paths import REPO
from PIL import Image
from tiny_runs import TINY, make_frames, write_parquet, write_video
from transformers import AutoConfig

import hf_frozen_llm
from hf_frozen_llm.hub.card import check_card, has_own_card, write_card
from hf_frozen_llm.hub.licences import PERMITTING
from hf_frozen_llm.hub.push import LOCAL_PATH
from hf_frozen_llm.hub.saved_model import read_saved_model
from hf_frozen_llm.hub.zoo import read_zoo
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.training.recipe import read_recipe, recipe_from_dict


CARDS = REPO / "hub_cards"
ZOO = read_zoo()
NAMES = sorted(path.parent.name for path in CARDS.glob("*/README.md"))
MAX_PICTURES = 600_000  # bytes of a card


def read_files(folder):
    """Return the text of the card and of its evaluation results."""
    files = [folder / "README.md", *sorted((folder / ".eval_results").glob("*"))]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_cards_are_those_of_small_checkpoints():
    assert set(NAMES) == set(ZOO["small"])
    assert NAMES == sorted(path.name for path in CARDS.iterdir() if path.is_dir() and path.name != "__pycache__")


@pytest.mark.parametrize("name", ZOO["small"])
def test_entries_of_small_checkpoints(name):
    entry = ZOO["small"][name]
    listed = {checkpoint["recipe"]: checkpoint for checkpoint in ZOO["checkpoints"]}[entry["recipe"]]
    assert set(entry) <= {"recipe", "flags", "data", "plain_host", "controls", "note", "license"}
    assert entry["license"] in PERMITTING
    assert set(ZOO["data"][entry["data"]]) <= {"id", "note"}
    assert entry.get("controls") in (None, listed["study"])
    recipe = read_recipe(entry["recipe"], entry.get("flags", []))
    if recipe.llm_block is None:
        assert "plain_host" not in entry
    else:
        assert ZOO["llms"][recipe.llm_block["llm_name_or_path"]]["license"] in PERMITTING
        plain = ZOO["small"][entry["plain_host"]]
        without = read_recipe(plain["recipe"], plain.get("flags", []))
        assert without.llm_block is None and without.host == recipe.host
        changed = {key for key in recipe.values if recipe.values[key] != without.values.get(key)}
        assert changed <= {"output_dir"}


def test_every_recipe_is_listed():
    recipes = {
        path.relative_to(REPO / "recipes").as_posix(): path
        for path in (REPO / "recipes").glob("*/*.yaml")
        if path.parent.name not in ("accelerate", "variants")
    }
    listed = {checkpoint["recipe"]: checkpoint for checkpoint in ZOO["checkpoints"]}
    assert listed.keys() == recipes.keys() and len(listed) == len(ZOO["checkpoints"])
    for name, path in recipes.items():
        header = " ".join(line.lstrip("# ") for line in path.read_text().split("#\n")[0].splitlines())
        if row := re.search(r'(tables? [\w ]+), row "([^"]+)"(?:, column ([^.]+))?', header):
            assert listed[name]["source"] == ", ".join(filter(None, row.groups()))
        block = read_recipe(path).llm_block
        llm = block.get("llm_name_or_path") if block else None
        assert llm is None or llm in ZOO["llms"], f"{name}: the licence of {llm} is not in zoo.yaml"
    studies = {checkpoint["study"] for checkpoint in ZOO["checkpoints"] if "study" in checkpoint}
    assert studies == {path.parent.name for path in (REPO / "benchmarks" / "results").glob("*/ablation.csv")}


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_up_to_date(name, tmp_path):
    """After a change of the template, `make zoo ARGS=--render` renders them again."""
    folder = Path(shutil.copytree(CARDS / name, tmp_path / name))
    assert not has_own_card(folder)
    write_card(folder, needs_weights=False)
    check_card(folder)
    assert read_files(folder) == read_files(CARDS / name)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_a_card(name):
    folder, entry = CARDS / name, ZOO["small"][name]
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert not [file for file in files if Path(file).suffix in (".safetensors", ".bin", ".pt", ".npy")]
    assert sum(path.stat().st_size for path in files.values() if path.suffix == ".png") < MAX_PICTURES
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    assert named == {file for file in files if file.endswith(".png")}
    assert ("plain_host_results.json" in files) == ("plain_host" in entry)
    assert ("ablation/ablation.csv" in files) == ("controls" in entry)
    for file, path in files.items():
        content = path.read_bytes().decode("utf-8", "ignore")
        assert not re.search(r"/(root|home|tmp|work|Users|usr)/", content), file
        assert path.suffix == ".png" or not LOCAL_PATH.search(content), file


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_card(name):
    folder, entry = CARDS / name, ZOO["small"][name]
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    recipe = read_recipe(entry["recipe"], entry.get("flags", []))
    assert card.data.license == entry["license"]
    assert card.data.datasets == ([ZOO["data"][entry["data"]]["id"]] if "id" in ZOO["data"][entry["data"]] else None)
    assert card.data.base_model == ([recipe.llm_block["llm_name_or_path"]] if recipe.llm_block else None)
    assert results["git_revision"] and not results["git_revision"].endswith("-dirty")
    expected = {key: value for key, value in recipe.values.items() if key not in ("dataset_name", "output_dir")}
    assert {key: results["recipe"][key] for key in expected} == expected
    assert results["recipe"]["host"] == recipe.host
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)
    again = recipe_from_dict(yaml.safe_load(shown), [], "the card", ())
    assert {key: again.values.get(key) for key in expected} == expected and again.host == recipe.host
    if recipe.llm_block:
        sizes = dict(re.findall(r"^\| (weights .+?) \| ([\d.]+) MB \|$", card.text, re.MULTILINE))
        assert len(sizes) == 2
        whole, light = (float(size) for size in sizes.values())
        assert whole - light == pytest.approx(4 * results["parameters"]["frozen"] / 1e6, abs=0.011)


def test_table_of_the_page():
    """`docs/model_cards.md` has the score and the sizes of every card."""
    text = (REPO / "docs" / "model_cards.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(\.\./hub_cards/([\w-]+)/README\.md\) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE
    )
    assert sorted(row[0] for row in rows) == NAMES and all(row[0] == row[1] for row in rows)
    for name, _, score, whole, light in rows:
        results = json.loads((CARDS / name / "results.json").read_text(encoding="utf-8"))
        card = (CARDS / name / "README.md").read_text(encoding="utf-8")
        assert score == f"{100 * results['metrics']['eval_top1']:.2f}"
        assert f"\n| weights in this repository | {whole} |\n" in card
        without = re.search(r"^\| weights without the LLM layer \(a light folder\) \| (.+) \|$", card, re.MULTILINE)
        assert light == (without[1] if without else "–")


def write_random_model(card: Path, folder: Path) -> None:
    """Save a model like that of a card, with random weights, and its processor."""
    config = AutoConfig.from_pretrained(card)
    if config.llm_block is not None:
        config.llm_block.weights, config.llm_block.fingerprint = "random", None
    getattr(hf_frozen_llm, config.architectures[0])(config).save_pretrained(folder)
    task = find_task(config.model_type)
    settings = json.loads((card / "results.json").read_text(encoding="utf-8"))["recipe"]
    recipe = recipe_from_dict(settings, [], "results.json", ())
    task.build_processor(recipe.arguments(task.arguments), {}, config).save_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_code_of_a_card_runs(name, tmp_path, monkeypatch, capsys, caplog):
    # Only since 5.20 there are video processors for models that were saved with an image processor.
    caplog.set_level("ERROR", "transformers.pipelines.video_classification")
    write_random_model(CARDS / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 40)).save("picture.jpg")
    write_video(Path("video.mkv"), make_frames(9)).rename("video.mp4")
    np.save("points.npy", np.random.default_rng(0).normal(size=(1024, 3)))
    labels = json.loads((CARDS / name / "config.json").read_text(encoding="utf-8"))["label2id"]
    snippets = blocks("python", (CARDS / name / "README.md").read_text("utf-8"))
    assert snippets
    for block in snippets:
        capsys.readouterr()
        exec(block, {})
        output = capsys.readouterr().out
        assert any(label in output for label in labels), block


@pytest.fixture
def zoo(monkeypatch):
    """Return the script of `make zoo`, as a module."""
    monkeypatch.syspath_prepend(str(REPO / "examples"))
    spec = importlib.util.spec_from_file_location("zoo", REPO / "benchmarks" / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_zoo(zoo, llm, tmp_path, monkeypatch, capsys):
    """A checkpoint and the plain host beside it, tiny: trained, evaluated, described and packed."""
    monkeypatch.chdir(tmp_path)
    data = write_parquet(tmp_path / "pictures", {"train": 24, "test": 12}, image="img", label="label")
    name = "vit-tiny-cifar10-smollm2"
    plain = "vit-tiny-cifar10"
    monkeypatch.setattr(zoo, "read_zoo", lambda: {**ZOO, "small": {key: ZOO["small"][key] for key in (plain, name)}})
    flags = ["--cifar10", str(data), "--llm", str(llm), "--work-dir", "zoo", "--cards", "cards", *TINY]
    short = [*("--max_steps", "2"), *("--eval_steps", "2"), *("--save_steps", "2"), *("--logging_steps", "1")]
    run = ["--only", name, *flags, *short]
    zoo.main(run)
    row = capsys.readouterr().out.splitlines()[-1]
    whole, light = (int(size.replace(",", "")) for size in re.findall(r"\| ([\d,]+)(?= \|)", row)[-2:])
    assert row.startswith(f"| {name} | ")
    folders = {folder: Path("zoo", "packed", folder) for folder in (name, f"{name}-light")}
    packed = {
        folder: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for folder, path in folders.items()
    }
    assert packed == {name: whole, f"{name}-light": light} and light < whole
    model = read_saved_model(Path("zoo/packed", name), name)
    assert model.base_models["llm"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read_saved_model(Path("zoo/packed", f"{name}-light"), name).digest == model.digest
    card = (Path("cards") / name / "README.md").read_text(encoding="utf-8")
    assert f"| {plain} |" not in card and "| plain host |" in card and str(tmp_path) not in card
    assert not list(Path("cards").rglob("*.safetensors"))
    with pytest.raises(ValueError, match="no weights"):
        write_card(Path("cards") / name)
    # A second call finds everything, and packs again.
    trained = Path("zoo/models", name, "results.json").read_bytes()
    zoo.main(run)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"| {name} | ")
    assert Path("zoo/models", name, "results.json").read_bytes() == trained
