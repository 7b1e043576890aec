# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The tables, numbers and pictures of README.md; its commands and snippets are run with those of all pages."""

import re

import transformers
from pages import table_rows
from paths import REPO

import hf_frozen_llm
from hf_frozen_llm.training.recipe import read_recipe


README = (REPO / "README.md").read_text(encoding="utf-8")
# Seeds and variants of our rows of the results: plain host, pretrained layer, random layer, MLP.
VARIANTS = {
    "CIFAR-10": ("3", ["plain ViT", "frozen layer 29", "frozen random layer", "MLP"]),
    "CIFAR-10, tuned": ("5", ["plain ViT", "pretrained", "random", "MLP"]),
    "CIFAR-10, tuned, `outer`": ("5", ["plain ViT", "pretrained outer", "random outer", None]),
    "furniture": ("3", ["plain host", "frozen LLM layer", "frozen random layer", None]),
    "moving images": ("3", ["plain host", "frozen LLM layer", "frozen random layer", None]),
    "rooms": ("3", ["plain host", "frozen LLM layer", "frozen random layer", None]),
    "rooms, `outer`": ("3", ["plain host", "frozen LLM layer outer", None, None]),
}


def test_the_table_of_tasks_is_right():
    rows = table_rows(README, "task | class")
    assert {"PointBertWithLLMBlockForPointCloudClassification", "LLMBlock"} < {row[1].strip("`") for row in rows}
    for _, name, auto_name, recipe, _ in rows:
        model_class, auto_class = getattr(hf_frozen_llm, name.strip("`")), getattr(transformers, auto_name.strip("`"))
        assert auto_class._model_mapping[model_class.config_class] is model_class
        if recipe != "–":
            file = re.search(r"\(recipes/(.+)\)", recipe)[1]
            trained = hf_frozen_llm.auto.TASK_MODELS[read_recipe(file).values["model_type"]]
            assert trained is model_class


def test_the_results_are_those_of_their_files():
    rows = [row for row in table_rows(README, "| plain host") if not row[0].startswith("paper")]
    assert [name.split("[")[-1].split("]")[0] for name, *_ in rows] == list(VARIANTS)
    for (name, *cells), (seeds, variants) in zip(rows, VARIANTS.values()):
        file = REPO / re.search(r"\((.+)/README\.md\)", name)[1] / "ablation.md"
        numbers = {
            row[0]: row[1] for row in table_rows(file.read_text(encoding="utf-8"), "variant") if row[2] == seeds
        }
        assert cells == [numbers.get(variant, "–") for variant in variants]


def test_the_sizes_are_those_of_their_files(monkeypatch):
    counted = {
        name: [float(cell.replace(",", "")) for cell in cells]
        for name, *cells in table_rows((REPO / "benchmarks/results/sizes.md").read_text(encoding="utf-8"), "model")
    }
    measured = table_rows((REPO / "benchmarks/results/block/cpu.md").read_text(encoding="utf-8"), "case")
    blocks_of = {"plain host": "", "our block": " + LLaMA-7B"}
    peaks = {
        case + blocks_of[kind]: cells[6]
        for case, batch, kind, *cells in measured
        if batch == "32" and kind in blocks_of
    }
    rows = table_rows(README, "model | trained")
    assert [name for name, *_ in rows] == list(counted)
    for name, trained, frozen, *sizes, peak in rows:
        values = counted[name]
        assert trained == f"{values[0] / 1e6:.1f} M"
        assert frozen == (f"{values[1] / 1e6:.1f} M" if values[1] else "–")
        assert sizes == [f"{size:,.0f} MB" for size in values[2:5]]
        assert peak.removesuffix(" MB") == peaks.get(name, "–")
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import sizes as benchmark

    assert (
        list(benchmark.count(benchmark.WIDTHS["ViT-S"], benchmark.LLMS["LLaMA-7B"])) == counted["ViT-S + LLaMA-7B"][:2]
    )


def test_versions_and_citation_are_those_of_the_package():
    floor = re.search(r"transformers==([\d.]+)", (REPO / ".ci/run").read_text())[1]
    assert f"transformers {floor}, the lowest" in README
    assert f'"transformers>={floor.removesuffix(".0")},' in (REPO / "setup.py").read_text(encoding="utf-8")
    title = re.search(r'^  title: "(.+)"$', (REPO / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"= {{{title}}}" in README


def test_the_two_pictures_differ_only_in_their_colours():
    light, dark = ((REPO / f"docs/images/{name}.svg").read_text() for name in ("block", "block-dark"))
    assert light != dark
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)
