# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Write the table of all recipes, from their headers and keys: `make recipe-table`, or

    python benchmarks/recipe_table.py
"""

import argparse
import re
from pathlib import Path

import yaml


RECIPES = Path(__file__).parents[1] / "recipes"
FOLDERS_WITHOUT_RECIPES = ("accelerate", "variants")
PAPER = "arXiv 2310.12973"
FIELD = re.compile(r"# (\w+): +(.+)")
TEXT = f"""\
# Recipes

All recipes, as their own headers describe them; a line is one file, and `hf-frozen-llm train FOLDER/NAME.yaml` runs \
it (each header has the whole command). "Paper" is {PAPER} (ICLR 2024), whose scores are quoted, not ours; the \
scores of other publications name theirs. "Not measured" means that nobody has run the recipe to its end with this \
package. Measured scores are explained in the headers and in the folders of results, where the times of some are \
not comparable, because the machine did other work.

Made by `make recipe-table` from the recipes; change a header, not this page.

| task | recipe | reproduces | published score | our score | hardware | time |
|---|---|---|---|---|---|---|
"""


def read_header(path: Path) -> tuple[str, dict[str, str]]:
    """Return the description at the beginning of a recipe, and the fields after it (`Score`, `Time`, …)."""
    header = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    end = header.index("#") if "#" in header else len(header)
    description = " ".join(line.removeprefix("# ") for line in header[:end])
    fields: dict[str, str] = {}
    name = None
    for line in header[end + 1 :]:
        if match := FIELD.fullmatch(line):
            name, fields[match[1]] = match[1], match[2]
        elif name is not None and line.startswith("#   "):
            fields[name] += " " + re.sub(r"^(hf-frozen-llm .*)$", r"(`\1`)", line.removeprefix("#").strip())
        else:
            name = None  # the remarks after the fields
    return description, fields


def find_task(path: Path) -> str:
    """Return the task of a recipe, or of the one that it is based on."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values["task"] if "task" in values else find_task(RECIPES / values["base"])


def find_row(description: str) -> str:
    """Return the table and the row of the paper that a recipe reproduces."""
    row = re.search(r"\(ICLR 2024\).*?,? (tables? .+)\.$", description) if PAPER in description else None
    return row[1] if row else "–"


def describe(text: str) -> str:
    """Return the text of a field as the cell of a table, with links to folders of results."""
    text = text.rstrip(".").replace("not measured yet", "not measured")
    return re.sub(r"(?:see )?(benchmarks/results/(\w+))", r"[\2](../\1/README.md)", text)


def make_row(path: Path) -> str:
    description, fields = read_header(path)
    published, _, ours = fields.get("Score", "not measured").rpartition(" Ours: ")
    time = fields.get("Time", "in its results" if "benchmarks/results" in ours else "not measured")
    name = f"{path.parent.name}/{path.stem}"
    cells = [find_task(path), f"[{name}]({name}.yaml)", find_row(description), describe(published) or "–"]
    cells += [describe(ours), fields["Hardware"].partition(". ")[0].rstrip("."), describe(time)]
    return f"| {' | '.join(cells)} |\n"


def make_page() -> str:
    paths = [path for path in sorted(RECIPES.glob("*/*.yaml")) if path.parent.name not in FOLDERS_WITHOUT_RECIPES]
    return TEXT + "".join(sorted(map(make_row, paths)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RECIPES / "README.md", help="recipes/README.md by default")
    args = parser.parse_args()
    args.output.write_text(make_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
