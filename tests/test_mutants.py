# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The list of planted faults fits the code; `make mutants` plants them."""

import ast

import pytest
from mutants import MUTANTS
from paths import REPO


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutants_can_be_planted(mutant):
    content = (REPO / mutant.file).read_text(encoding="utf-8")
    assert content.count(mutant.text) == 1 and mutant.text != mutant.fault
    ast.parse(content.replace(mutant.text, mutant.fault))
    file, *names = mutant.test.partition("[")[0].split("::")
    tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert set(names) <= defined


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
