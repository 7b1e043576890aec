# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Comparisons in model cards; wrong folders, results of other weights and foreign numbers are refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from card_runs import DATASET, change, read_card
from transformers import ViTConfig, ViTModel

from hf_frozen_llm.hub.card import check_card, has_own_card, write_card


def test_comparison(run, train, tmp_path):
    folder, plain = run(), train("plain host")
    ablation = tmp_path / "ablation"
    ablation.mkdir()
    rows = [("plain host", 0, 0.5), ("plain host", 1, 0.6), ("frozen | <b>", 0, 0.4), ("frozen | <b>", 1, 0.6)]
    runs = pd.DataFrame(rows, columns=["variant", "seed", "eval_top1"])
    name = json.loads((folder / "results.json").read_text())["recipe"]["dataset_name"]
    runs.assign(dataset_name=name, num_eval_rows=30).to_csv(ablation / "ablation.csv", index=False)
    difference = {"variant": "frozen | <b>", "reference": "plain host", "seeds": 2, "difference": -5.0}
    pd.DataFrame([{**difference, "t_low": -9.5, "t_high": 1}]).to_csv(ablation / "differences.csv", index=False)
    write_card(folder, None, ablation, plain_host=plain)
    text = read_card(folder)[1]
    assert r"| frozen \| &lt;b> | 50.00 ± 14.14 | 2 | -5.00 (-9.50 to +1.00) |" in text
    assert "| plain host | 55.00 ± 7.07 | 2 |  |" in text
    score = json.loads((plain / "results.json").read_text())["metrics"]["eval_top1"]
    assert f"| plain host | {100 * score:.2f} | 42 |" in text
    shutil.rmtree(ablation)
    write_card(folder)  # the tables are in the folder now
    assert read_card(folder)[1] == text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dataset_name": "/data/fruits"}, "is an ablation on fruits, but"),
        ({"eval_top1": None}, "has no column eval_top1: it is of another task"),
    ],
)
def test_other_ablations_are_refused(changes, problem, run, tmp_path):
    folder = run()
    row = {"variant": "a", "seed": 0, "eval_top1": 0.5, **changes}
    table = pd.DataFrame([{name: value for name, value in row.items() if value is not None}])
    (tmp_path / "ablation").mkdir()
    table.to_csv(tmp_path / "ablation" / "ablation.csv", index=False)
    with pytest.raises(ValueError, match=problem):
        write_card(folder, None, tmp_path / "ablation")
    assert not (folder / "ablation").exists() and not (folder / "README.md").exists()


def test_other_runs_are_refused(run, train):
    folder = run()
    with pytest.raises(ValueError, match="is not a run of the plain host: its recipe has an llm_block"):
        write_card(folder, plain_host=train("control"))
    with pytest.raises(FileNotFoundError, match="is not a folder of `hf-frozen-llm ablate`"):
        write_card(folder, None, folder)
    change(folder / "results.json", num_eval_rows=10)
    with pytest.raises(ValueError, match="their results cannot be compared"):
        write_card(folder, plain_host=train("plain host"))


def test_cards_of_others_are_left_alone(run, call):
    folder = run()
    card = folder / "README.md"
    card.write_text("# My model\n")
    code, _, error = call("card", str(folder))
    assert code == 2 and "README.md was written or changed by hand" in error and "--force" in error
    assert card.read_text() == "# My model\n" and has_own_card(folder)
    assert call("card", str(folder), "--force")[0] == 0 and not has_own_card(folder)
    card.write_text(card.read_text().replace("## Cost", "## Price"))
    assert has_own_card(folder)
    card.write_text(
        "<!-- This model card has been generated automatically according to the information the Trainer "
        "had access to. You\nshould probably proofread -->\n"
    )
    assert not has_own_card(folder)


def test_wrong_folders_are_refused(run, tmp_path, call):
    def refuse(folder, problem):
        code, _, error = call("card", str(folder))
        assert code == 2 and problem in error, error
        assert not (Path(folder) / "README.md").exists()

    refuse(tmp_path / "nothing", "neither a folder with a model nor a model on the Hub")
    vit = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**vit)).save_pretrained(tmp_path / "vit")
    refuse(tmp_path / "vit", "is a vit, not a model of this package")
    folder = run()
    (folder / "eval_results.json").write_text("{}")
    refuse(folder, "eval_results.json does not hold the results of an evaluation")
    (folder / "eval_results.json").unlink()
    (folder / "model.safetensors").rename(folder / "weights")
    refuse(folder, "has a config.json, but no weights")


@pytest.mark.parametrize("with_digest", [True, False])
def test_results_of_other_weights_are_refused(with_digest, run, train):
    folder = run()
    results = json.loads((folder / "results.json").read_text())
    if with_digest:
        shutil.copyfile(train("random") / "results.json", folder / "results.json")
    else:
        results["config"]["id2label"] = {"0": "apple"}
        change(folder / "results.json", weights_digest=None, config=results["config"])
    with pytest.raises(
        ValueError, match=r"results\.json holds the results of other weights .* Evaluate this model again"
    ):
        write_card(folder)
    assert not (folder / "README.md").exists()


def test_light_and_full_folders_have_the_same_digest(train):
    """Results stay valid when the LLM layer is left out or added."""
    from hf_frozen_llm import ViTWithLLMBlockForImageClassification
    from hf_frozen_llm.training.results import digest_weights

    full = train("image")
    model = ViTWithLLMBlockForImageClassification.from_pretrained(full)
    model.config.llm_block.save_weights = False
    model.save_pretrained(full.parent / "made_light")
    assert digest_weights(full.parent / "made_light") == digest_weights(full) is not None


@pytest.mark.parametrize("place", ["README.md", ".eval_results/results.yaml"])
def test_numbers_that_no_results_file_holds(place, run):
    folder = run()
    write_card(folder, dataset=DATASET)
    check_card(folder)
    file = folder / place
    value = str(json.loads((folder / "results.json").read_text())["metrics"]["eval_f1"])
    assert value in file.read_text()
    file.write_text(file.read_text().replace(value, "0.99"))
    with pytest.raises(ValueError, match=rf"{Path(place).name} says that f1 is 0\.99, but no results file"):
        check_card(folder)
