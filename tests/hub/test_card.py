# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Model cards of real, tiny runs: metadata, text, figures, code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from card_runs import DATASET, KINDS, LLM_ID, RECIPE, change, read_card
from huggingface_hub import parse_eval_result_entries
from pages import blocks
from PIL import Image
from tiny_runs import (
    CLASSES,
    TINY,
    make_clouds,
    make_frames,
    write_video,
)

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockModel
from hf_frozen_llm.cli import main
from hf_frozen_llm.hub.card import check_card, write_card
from hf_frozen_llm.hub.card_data import FrozenLLMModelCardData
from hf_frozen_llm.hub.licences import find_licence
from hf_frozen_llm.hub.page import write_page
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import find_hub_id


@pytest.mark.parametrize("kind", KINDS)
def test_code_runs(kind, run, tmp_path, monkeypatch, capsys, caplog):
    """The code of a card, as written, in the folder that holds the model and an input."""
    # Only since 5.20 there are video processors for models that were saved with an image processor.
    caplog.set_level("ERROR", "transformers.pipelines.video_classification")
    folder = run(kind)
    write_card(folder)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 24)).save("picture.jpg")
    write_video(Path("video.mkv"), make_frames(9)).rename("video.mp4")
    np.save("points.npy", make_clouds(1)[0][0])
    snippets = blocks("python", read_card(folder)[1])
    assert len(snippets) == (1 if kind == "points" else 2)
    for block in snippets:
        capsys.readouterr()
        exec(block, {})
        output = capsys.readouterr().out
        assert any(name in output for name in CLASSES), block


SAVE_WITH_CODE = """
import sys
from hf_frozen_llm import ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification as Model
ViTWithLLMBlockConfig.register_for_auto_class()
Model.register_for_auto_class("AutoModelForImageClassification")
Model.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])
"""
WITHOUT_THE_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_frozen_llm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def test_code_runs_without_the_package(run, tmp_path):
    """A card shows it only for a folder that holds its code."""
    folder = run()
    subprocess.run([sys.executable, "-c", SAVE_WITH_CODE, str(folder)], check=True)
    write_card(folder)  # the results are still those of the weights
    text = read_card(folder)[1]
    assert "Without the package, the code in this repository does the same." in text
    Image.new("RGB", (20, 24)).save(tmp_path / "picture.jpg")
    code = WITHOUT_THE_PACKAGE + blocks("python", text)[2]
    output = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert output.split()[-1] in CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_and_text(kind, run):
    folder = run(kind)
    assert write_card(folder, "me/animals") == folder / "README.md"
    data, text = read_card(folder)
    has_llm = kind in ("image", "light", "any host", "swin", "video", "points")
    assert data.library_name == "hf_frozen_llm" and "hf_frozen_llm" in data.tags
    assert data.base_model == ([LLM_ID] if has_llm else None)
    assert data.get("base_model_relation") == ("merge" if has_llm else None)
    assert data.get("llm_license") == ("apache-2.0" if has_llm else None)
    tags = {"video": "video-classification", "points": None}
    assert data.pipeline_tag == tags.get(kind, "image-classification")
    # Not known: the licence of the model and the id of the local data.
    assert data.license is None and data.datasets is None and data.eval_results is None
    assert not (folder / ".eval_results").exists()
    assert "None" not in text and "undefined" not in text and str(folder.parent) not in text
    sentences = {
        "image": f"with layer 2 of {LLM_ID} as one of its layers, frozen",
        "light": f"This repository is light: loading reads the layer from {LLM_ID}",
        "plain host": "without an LLM block: the plain host",
        "control": "an LLM block of the kind `mlp`",
        "random": f"with layer 2 of {LLM_ID}, with random weights as one of its layers, frozen",
    }
    assert sentences.get(kind, "## Use") in text
    assert ("## Limits" in text) == (kind not in ("plain host", "control"))
    assert len(re.findall("saved model", text)) == 1
    assert (folder / "training_curves.png").is_file() and "](training_curves.png)" in text


def test_of_data_on_the_hub(run):
    """`model-index` and `.eval_results/` hold exactly the numbers of the results files."""
    folder = run()
    results = json.loads((folder / "results.json").read_text())
    change(folder / "results.json", training_set={**results["training_set"], "dataset_id": DATASET})
    main(["evaluate", str(folder), "--corruption", "contrast"])
    change(folder / "eval_results_contrast_3.json", dataset_id=DATASET)
    write_card(folder, "me/animals", license="mit")
    data, text = read_card(folder)
    assert data.datasets == [DATASET] and data.license == "mit" and data.metrics == ["accuracy", "f1"]
    corrupted = json.loads((folder / "eval_results_contrast_3.json").read_text())
    found = {
        (str(result.metric_args), result.metric_type): result.metric_value
        for result in data.eval_results
        if result.dataset_type == DATASET and result.dataset_split == "test" and result.task_type == data.pipeline_tag
    }
    changes = str({"corruption": "contrast", "corruption_severity": 3})
    assert found["None", "accuracy"] == results["metrics"]["eval_top1"]
    assert found[changes, "f1"] == corrupted["metrics"]["eval_f1"]
    assert f"| {100 * results['metrics']['eval_top1']:.2f} % |" in text
    command = "hf-frozen-llm evaluate me/animals --split test --corruption contrast --corruption_severity 3"
    assert f"\n{command}\n" in text
    entries = yaml.safe_load((folder / ".eval_results" / "results.yaml").read_text())
    parsed = {entry.task_id: entry for entry in parse_eval_result_entries(entries)}
    assert parsed.keys() == {"accuracy", "f1", "top5"} and parsed["accuracy"].dataset_id == DATASET
    assert parsed["accuracy"].value == results["metrics"]["eval_top1"]
    assert parsed["accuracy"].source_url == "https://huggingface.co/me/animals/blob/main/results.json"
    assert parsed["accuracy"].date == results["date"] and "test, 30 rows, one training, seed 42" in parsed["f1"].notes
    check_card(folder)


def test_given_facts_stay_until_the_weights_change(run):
    folder = run()
    write_card(folder, license="mit", dataset=DATASET)
    write_card(folder)
    assert read_card(folder)[0].license == "mit" and read_card(folder)[0].datasets == [DATASET]
    first = (folder / "README.md").read_text()
    write_card(folder)
    assert (folder / "README.md").read_text() == first
    model = ViTWithLLMBlockModel(ViTWithLLMBlockConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    model.save_pretrained(folder)
    (folder / "results.json").unlink()
    write_card(folder)
    assert read_card(folder)[0].license is None and read_card(folder)[0].datasets is None


def test_facts_of_the_training(run):
    folder = run()
    results = json.loads((folder / "results.json").read_text())
    assert results["training_set"]["labels"] == dict.fromkeys(CLASSES, 10)
    assert results["base_models"] == {"host": None, "llm": LLM_ID}
    write_card(folder)
    text = read_card(folder)[1]
    (saved,) = re.findall(r"^\| (\d+) \|.*\*\*saved model\*\* \|$", text, re.MULTILINE)
    evaluated = [entry for entry in results["log_history"] if "eval_loss" in entry]
    assert int(saved) == results["saved_step"] == min(evaluated, key=lambda entry: entry["eval_loss"])["step"]
    assert "Trained on 60 rows of the split `train`" in text and "| ant | 10 |" in text
    assert "### Most difficult classes" in text
    assert f"| parameters | {results['parameters']['total']:,} |" in text
    peak = f"{results['peak_memory_bytes'] / 1e6:,.2f} MB, of the whole process (resident set)"
    assert f"| peak memory of the training | {peak} |" in text
    assert f"- torch {results['versions']['torch']}\n" in text


@pytest.mark.parametrize("kind", ["image", "video", "points"])
def test_examples(kind, run):
    """Only on request: they are published with the card."""
    folder = run(kind)
    write_card(folder, "me/animals")
    assert "examples.png" not in read_card(folder)[1] and not (folder / "examples.png").exists()
    write_card(folder, "me/animals", examples=True)
    assert "![An example of each label](examples.png)" in read_card(folder)[1]
    with Image.open(folder / "examples.png") as figure:
        assert figure.width > figure.height > 100 and len(figure.convert("RGB").getcolors(1 << 20)) > 20
    widgets = read_card(folder)[0].get("widget") or []
    assert len(widgets) == (3 if kind == "image" else 0)
    for number, widget in enumerate(widgets):
        name = f"examples/{number}_{CLASSES[number]}.png"
        url = f"https://huggingface.co/me/animals/resolve/main/{name}"
        assert widget == {"src": url, "example_title": CLASSES[number]}
        with Image.open(folder / name) as picture:
            assert picture.size == (16, 16)


def test_recipe_in_the_card_is_one(run, tmp_path):
    folder = run()
    write_card(folder)
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", read_card(folder)[1], re.DOTALL | re.MULTILINE)
    (tmp_path / "again.yaml").write_text(recipe)
    again = read_recipe(tmp_path / "again.yaml")
    assert again.llm_block["llm_name_or_path"] == LLM_ID and again.values["learning_rate"] == 1e-3
    assert again.host == json.loads((folder / "results.json").read_text())["recipe"]["host"]


def test_headless_model(tmp_path, llm, monkeypatch):
    config = ViTWithLLMBlockConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        llm_block=LLMBlockConfig(llm_name_or_path=llm),
    )
    ViTWithLLMBlockModel(config).save_pretrained(tmp_path / "encoder")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor))
    write_card(tmp_path / "encoder")
    data, text = read_card(tmp_path / "encoder")
    assert data.pipeline_tag == "image-feature-extraction" and data.base_model is None
    for title in ("## Results", "## Training", "## Environment", "from scratch"):
        assert title not in text
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 24)).save("picture.jpg")
    extract, auto = blocks("python", text)
    names: dict = {}
    exec(extract, names)
    exec(auto, names)
    assert names["features"].shape == names["outputs"].last_hidden_state.shape == (1, 5, 16)


def test_page(run, call):
    folder = run()
    code, output, _ = call("card", str(folder), "--html", "--repo", "me/animals")
    page = (folder / "README.html").read_text()
    assert code == 0 and output.strip() == str(folder / "README.html")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<table>") == page.count('<div class="table"><table>') == page.count("</table></div>") >= 5
    assert '<img src="training_curves.png"' in page and "<title>me/animals</title>" in page
    assert f"<span>base model: {LLM_ID}</span>" in page and "model-index" not in page
    assert write_page(folder / "README.md") == folder / "README.html"


def test_licence_in_the_zoo(run):
    """The facts that the zoo states need no connection to the Hub."""
    folder = run()
    change(folder / "results.json", base_models={"host": "owner/vit", "llm": "huggyllama/llama-7b"})
    write_card(folder)
    data, text = read_card(folder)
    assert data.base_model == ["owner/vit", "huggyllama/llama-7b"]
    assert data.get("llm_license") == "LLaMA non-commercial licence"
    assert "The licence of huggyllama/llama-7b applies to its layer." in text and "from owner/vit" in text


def test_a_broken_card_of_the_language_model(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: [\n---\n")
    assert find_hub_id(str(tmp_path)) is None and find_licence(str(tmp_path)).startswith("unknown")


@pytest.mark.parametrize(
    ("name", "found"),
    [("owner/name", "owner/name"), ("owner/name/file.gguf", "owner/name"), ("gpt2", None), (None, None)]
    + [("/data/llm", None), ("./llm", None), ("a/b/c", None)],
)
def test_hub_ids(name, found):
    assert find_hub_id(name) == found


def test_multi_label(data, llm, tmp_path, monkeypatch, capsys):
    rows = datasets.load_dataset(data, split="test")
    several = datasets.Features({"image": datasets.Image(), "label": datasets.List(rows.features["label"])})
    columns = {"image": rows["image"][:], "label": [[label, (label + 1) % 6] for label in rows["label"][:]]}
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features=several).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=tmp_path / "data", llm=llm))
    flags = ["--problem_type", "multi_label_classification", "--max_steps", "2", "--logging_steps", "1"]
    main(["train", str(tmp_path / "recipe.yaml"), *TINY, *flags, "--output_dir", str(tmp_path / "model")])
    write_card(tmp_path / "model")
    text = read_card(tmp_path / "model")[1]
    assert "| macro F1 |" in text and "| ant | 10 |" in text and "### Most difficult classes" in text
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 24)).save("picture.jpg")
    for block in blocks("python", text):
        exec(block, {})
    write_card(tmp_path / "model", examples=True)
    assert (tmp_path / "model" / "examples.png").is_file()


def test_own_metadata_class():
    data = FrozenLLMModelCardData(license="mit", llm_license=None, base_model_relation="merge")
    assert data.to_dict() == {"license": "mit", "base_model_relation": "merge"}
