# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The direction of imports, and the single place that names tasks."""

import ast
from pathlib import Path

import pytest
from paths import REPO

from hf_frozen_llm.tasks import TASKS


PACKAGE = REPO / "hf_frozen_llm"
# A module may import its own layer and those below it.
FLOORS = [
    {"modeling", "version"},
    {"__init__", "auto"},
    {"data", "metrics", "recipes", "hub_cards"},
    {"tasks", "plotting", "plotting_motion"},
    {"training", "conversion"},
    {"flops", "hub", "analysis"},
    {"commands"},
    {"cli", "__main__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def parts_of(path: Path) -> list[str]:
    """`tasks/task.py` -> `["tasks", "task"]`, `tasks/__init__.py` -> `["tasks"]`."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imports_of(path: Path):
    """Return the modules of this package that a file imports, without the package's name, as lists of name parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(PACKAGE).parent.parts)
            base = package[: len(package) - node.level + 1] if node.level else []
            module = (node.module or "").split(".") if node.module else []
            if not node.level and module[0] != "hf_frozen_llm":
                continue
            target = [*base, *(module if node.level else module[1:])]
            yield (
                node.lineno,
                target or [alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()],
            )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hf_frozen_llm":
                    yield node.lineno, alias.name.split(".")[1:]


# The package itself exports the commands, and imports them on first use: see test_import_is_light.
@pytest.mark.parametrize(
    "path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_arrow_runs_back(path):
    here = parts_of(path)
    floor = floor_of(here[0])
    for line, target in imports_of(path):
        top = target[0] if target else "__init__"
        assert floor_of(top) <= floor, f"{path}:{line}: {here[0]} must not import {'.'.join(target)}"
        if here[0] == "tasks" and len(target) > 1 and target[0] == "tasks":
            own = here[1] if len(here) > 1 else ""
            is_shared = target[1] in ("task", "classification", "vision_and_language")
            is_own = target[1] == own or not own
            assert is_shared or is_own, f"{path}:{line}: a task must not import another task"
            assert own != "task" or target[1] == "task", f"{path}:{line}: task.py is below all tasks"


def strings_of(path: Path):
    """Return the strings of a file except docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_tasks_are_named_in_their_folders_alone():
    for path in FILES:
        here = parts_of(path)
        if here[0] == "tasks" and len(here) > 1:
            continue
        for line, text in strings_of(path):
            assert not any(task in text for task in TASKS), f"{path}:{line}: {text!r} names a task"
        for line, target in imports_of(path):
            is_a_task = target[:1] == ["tasks"] and len(target) > 1 and target[1].replace("_", "-") in TASKS
            assert not is_a_task or here == ["tasks"], f"{path}:{line}: only the list of tasks imports one"


def test_a_task_is_a_folder_of_its_name():
    for name, task in TASKS.items():
        assert task.__module__ == f"hf_frozen_llm.tasks.{name.replace('-', '_')}"
        assert (PACKAGE / "tasks" / name.replace("-", "_") / "__init__.py").is_file()
