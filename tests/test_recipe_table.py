# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""recipes/README.md is what `make recipe-table` makes of the headers of the recipes."""

import re
import runpy

from paths import REPO


PAGE = (REPO / "recipes" / "README.md").read_text(encoding="utf-8")
ROWS = {
    "image_ablations/vit_small_mlp": (
        "image-classification",  # out of the recipe that it is based on
        'table 6, row "ViT-S-MLP"',
        "paper: 80.4 top-1",
        "not measured",
        "4 GPUs x 256 images a step",
        "not measured",
    ),
    "motion_forecasting/vectornet_argoverse1": (
        "motion-forecasting",
        'table 4, row "VectorNet"',
        "paper: minADE 0.77, minFDE 1.23, MR 13.2 % (k = 6)",
        "not measured",
        "4 GPUs x 8 scenes a step",
        "not measured; the paper's took 2 days on an A100",
    ),
    "image_classification/vit_patch4_32_cifar10": (
        "image-classification",
        "–",
        "arXiv 2112.13492: 93.58 % top-1",
        "not measured",
        "a GPU of 8 GB",
        "not measured",
    ),
    "image_text_retrieval/emoji": (
        "image-text-retrieval",
        "–",
        "–",
        "[emoji](../benchmarks/results/emoji/README.md), three seeds",
        "2 CPU cores, no GPU",
        "in its results",
    ),
}


def test_page_is_that_of_the_recipes():
    make_page = runpy.run_path(str(REPO / "benchmarks" / "recipe_table.py"))["make_page"]
    assert make_page() == PAGE, "a header has changed; run `make recipe-table`, and commit recipes/README.md"


def test_every_recipe_is_there_once():
    recipes = [path.relative_to(REPO / "recipes") for path in (REPO / "recipes").glob("*/*.yaml")]
    expected = [path.as_posix() for path in recipes if path.parts[0] not in ("accelerate", "variants")]
    assert sorted(re.findall(r"\]\((\w+/\w+\.yaml)\)", PAGE)) == sorted(expected)
    for folder in re.findall(r"\]\(\.\./(benchmarks/\S+)\)", PAGE):
        assert (REPO / folder).is_file(), folder


def test_rows_quote_the_headers():
    rows = {line.split(" | ")[1]: line for line in PAGE.splitlines() if ".yaml)" in line}
    for name, (task, *cells) in ROWS.items():
        recipe = f"[{name}]({name}.yaml)"
        assert rows[recipe] == f"| {' | '.join([task, recipe, *cells])} |"
