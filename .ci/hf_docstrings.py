# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A griffe extension that makes docstrings in the style of transformers Markdown, for `make docs`."""

import re
from typing import Any

import griffe


TITLES = {"Args": "Arguments", "Returns": "Returns", "Yields": "Yields", "Raises": "Raises", "Example": "Example"}


def to_markdown(docstring: str, public_names: set[str]) -> str:
    """
    Turn the sections of a docstring into lists, and its [`Name`] into links.

    Args:
        docstring (`str`): without indentation.
        public_names (`set[str]`): the names that have an entry in the reference.

    Returns:
        `str`: the Markdown.
    """
    lines, is_list = [], False
    for line in docstring.splitlines():
        if section := re.fullmatch(r"(\w+):", line):
            is_list = section[1] in TITLES
            line = f"**{TITLES[section[1]]}**\n" if is_list else line
        elif line and not line.startswith(" "):
            is_list = False
        elif is_list and re.match(r" {4}\S", line):
            line = re.sub(r"^(\w+)(?= \(|:)", r"**\1**", line[4:])
            line = f"- {line}"
        elif is_list:
            line = line[4:]
        lines.append(line)

    def link(match: re.Match) -> str:
        name = match[1]
        return f"[`{name}`][hf_frozen_llm.{name}]" if name.partition(".")[0] in public_names else f"`{name}`"

    return re.sub(r"\[`([\w.]+)`\](?![\[(])", link, "\n".join(lines))


class HFDocstrings(griffe.Extension):
    """Converts the docstrings of a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        public_names = set(pkg.exports or ())
        remaining: list[griffe.Object] = [pkg]
        while remaining:
            item = remaining.pop()
            if item.docstring is not None:
                item.docstring.value = to_markdown(item.docstring.value, public_names)
            remaining += [member for member in item.members.values() if not member.is_alias]
