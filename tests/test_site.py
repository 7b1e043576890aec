# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The site that `make docs` builds: docstrings as Markdown, and no page or public name that is left out."""

import importlib.util
import re

import yaml
from paths import REPO

import hf_frozen_llm


DOCSTRING = """\
Do a thing with an [`LLMBlock`], not with a [`Secret`].

Args:
    name (`str`, *optional*, defaults to `"x"`):
        The name, as in `name: value`:

        - first
    kwargs: the rest.

Returns:
    `dict`: an [`LLMBlock`] for each
        name.

Note: this is no section.
"""
MARKDOWN = """\
Do a thing with an [`LLMBlock`][hf_frozen_llm.LLMBlock], not with a `Secret`.

**Arguments**

- **name** (`str`, *optional*, defaults to `"x"`):
    The name, as in `name: value`:

    - first
- **kwargs**: the rest.

**Returns**

- `dict`: an [`LLMBlock`][hf_frozen_llm.LLMBlock] for each
    name.

Note: this is no section."""


def test_docstrings_become_markdown():
    spec = importlib.util.spec_from_file_location("hf_docstrings", REPO / ".ci" / "hf_docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.to_markdown(DOCSTRING, {"LLMBlock"}) == MARKDOWN


def test_every_public_name_is_in_the_reference():
    text = "".join(file.read_text(encoding="utf-8") for file in (REPO / "docs" / "reference").glob("*.md"))
    named = set(re.findall(r"^::: hf_frozen_llm\.(\w+)$", text, re.MULTILINE))
    assert named == set(hf_frozen_llm.__all__) - {"__version__", "auto"}


def test_every_page_is_in_the_navigation():
    text = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {f"docs/{file.relative_to(REPO / 'docs').as_posix()}" for file in (REPO / "docs").rglob("*.md")}

    def files(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(files, entry.values() if isinstance(entry, dict) else entry))

    assert files(yaml.safe_load(text)["nav"]) == pages | {
        "README.md",
        "recipes/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    }
