# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import ast
import importlib.metadata
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import REPO

import hf_frozen_llm


MODELING_MAY_IMPORT = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy"}
MODELING_FILES = sorted((REPO / "modeling").glob("*.py"))

# Run in a fresh interpreter: the imports that `import hf_frozen_llm` adds to those of transformers.
IMPORT_PROBE = """
import logging, sys
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

root_handlers, root_level = list(logging.root.handlers), logging.root.level
before = set(sys.modules)
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
import hf_frozen_llm

new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = new & {"datasets", "evaluate", "peft", "matplotlib", "pandas", "typer"}
assert not heavy, f"import hf_frozen_llm imports {heavy}"
assert not sockets, f"import hf_frozen_llm uses the network: {sockets}"
assert (list(logging.root.handlers), logging.root.level) == (root_handlers, root_level), "logging was set up"
assert not logging.getLogger("hf_frozen_llm").handlers, "logging was set up"
"""


def test_import_is_light():
    run = subprocess.run([sys.executable, "-c", IMPORT_PROBE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", run.stderr


def test_describing_commands_are_light():
    """`info` and `layer` need no data and no training, whose imports take seconds."""
    imported = []
    for modules in (
        "transformers.models.auto.auto_factory",
        "hf_frozen_llm.commands.info, hf_frozen_llm.commands.layer",
    ):
        probe = f"import sys, {modules}; print(*sys.modules)"
        imported.append(set(subprocess.check_output([sys.executable, "-c", probe], text=True).split()))
    by_transformers, by_commands = imported
    added = by_commands - by_transformers
    assert not added & {"datasets", "evaluate", "peft", "matplotlib", "pandas", "transformers.trainer"}


def test_commands_are_exported():
    """Each is the function behind the verb of the same name, for use in Python."""
    names = ["ablate", "check", "convert_released_checkpoint", "evaluate", "predict", "push", "train"]
    assert set(names) < set(hf_frozen_llm.__all__)
    for name in names:
        command = getattr(hf_frozen_llm, name)
        assert command.__name__ == name and inspect.isfunction(command) and inspect.getdoc(command)
    with pytest.raises(AttributeError, match="module 'hf_frozen_llm' has no attribute 'trian'"):
        _ = hf_frozen_llm.trian


def guarded_by_is_gguf_available(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Return whether `node` is in a function or branch whose source calls `is_gguf_available()`."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.If | ast.FunctionDef) and any(
            isinstance(name, ast.Name) and name.id == "is_gguf_available" for name in ast.walk(node)
        ):
            return True
    return False


@pytest.mark.parametrize("path", MODELING_FILES, ids=lambda path: path.name)
def test_modeling_travels(path: Path):
    """Files of modeling/ are copied to the Hub, so they import the allowed packages and flat siblings only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{where}: imports from outside modeling/"
            assert node.module, f"{where}: write `from .x import y`, not `from . import x`"
            assert "." not in node.module, f"{where}: modeling/ is flat"
            assert (path.parent / f"{node.module}.py").is_file(), f"{where}: no sibling {node.module}.py"
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            package = module.partition(".")[0]
            if package == "gguf":
                assert guarded_by_is_gguf_available(node, parents), f"{where}: gguf without is_gguf_available()"
            else:
                allowed = package in MODELING_MAY_IMPORT or package in sys.stdlib_module_names
                assert allowed, f"{where}: imports {module}"


@pytest.mark.parametrize("path", MODELING_FILES, ids=lambda path: path.name)
def test_modeling_registers_nothing(path: Path):
    """A `register` in a file on the Hub would let the next repository load without `trust_remote_code`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in {"register", "register_for_auto_class"}, f"{path.name}:{node.lineno}"


def declared_packages() -> tuple[set[str], set[str], set[str]]:
    """The distributions in setup.py's `install_requires`, those in its extras, and those only in the extra `dev`."""
    tree = ast.parse((REPO / "setup.py").read_text(encoding="utf-8"))
    requires = next(n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "install_requires")
    assigned = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    extras, dev = assigned["EXTRAS"], assigned["EXTRAS['dev']"]
    lists = [
        ast.literal_eval(requires),
        [line for lines in ast.literal_eval(extras).values() for line in lines],
        [node.value for node in dev.elts if isinstance(node, ast.Constant)],
    ]
    required, optional, for_development = (
        {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines} for lines in lists
    )
    return required, optional, for_development


@pytest.mark.parametrize(
    "folder", ["hf_frozen_llm", "modeling", "recipes", "hub_cards", "examples", "benchmarks", "tests", ".ci"]
)
def test_imports_are_declared(folder):
    """
    Modules import only required packages at the top; functions and branches may import extras, and what is not
    installed with the package may import everything that the extra `dev` brings.
    """
    required, optional, for_development = declared_packages()
    is_installed = folder in ("hf_frozen_llm", "modeling", "recipes", "hub_cards")
    distributions = importlib.metadata.packages_distributions()
    scripts = {path.stem for name in ("examples", "benchmarks", "tests") for path in (REPO / name).rglob("*")}
    ours = {"hf_frozen_llm"} if is_installed else {"hf_frozen_llm"} | scripts
    for path in sorted((REPO / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                packages = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages = {node.module.partition(".")[0]}
            else:
                continue
            allowed = required if is_installed and node in tree.body else required | optional
            allowed = allowed if is_installed else allowed | for_development
            for package in packages - sys.stdlib_module_names - ours:
                names = {name.lower().replace("_", "-") for name in distributions[package]}
                where = f"{path.relative_to(REPO)}:{node.lineno}"
                assert names & allowed, f"{where}: {package} is not declared in setup.py"


def test_every_module_has_the_licence_line():
    header = "# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.\n"
    folders = ["hf_frozen_llm", "modeling", "recipes", "hub_cards", "examples", "benchmarks", "tests", ".ci"]
    paths = [REPO / "setup.py", *(path for folder in folders for path in (REPO / folder).rglob("*.py"))]
    assert [str(path.relative_to(REPO)) for path in paths if not path.read_text("utf-8").startswith(header)] == []


def test_wheel_is_complete(tmp_path: Path):
    # A copy of the sources, so that the build leaves nothing in the working tree.
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ["setup.py", "pyproject.toml", "LICENSE", "README.md"]:
        if (REPO / name).exists():
            (sources / name).write_bytes((REPO / name).read_bytes())
    # The build must leave the examples out.
    shutil.copytree(REPO / "examples", sources / "examples")
    expected = {"hf_frozen_llm/py.typed"}
    for folder, target in [
        ("hf_frozen_llm", "hf_frozen_llm"),
        ("modeling", "hf_frozen_llm/modeling"),
        ("recipes", "hf_frozen_llm/recipes"),
        ("hub_cards", "hf_frozen_llm/hub_cards"),
    ]:
        for path in (REPO / folder).rglob("*"):
            if path.suffix in {".py", ".yaml", ".md"} or path.name == "py.typed":
                name = path.relative_to(REPO / folder)
                (sources / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (sources / folder / name).write_bytes(path.read_bytes())
                # Rendered cards, and the table of recipes, are pages of the repository.
                is_page = (folder == "hub_cards" and len(name.parts) > 1) or name.as_posix() == "README.md"
                if not is_page:
                    expected.add(f"{target}/{name.as_posix()}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(sources)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {f"hf_frozen_llm/hub_cards/{name}" for name in ("model_card_template.md", "zoo.yaml")} < names
