# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What stands in README.md and docs/, for the tests that run it as it is written."""

import re
import shlex

import pytest


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str):
    for block in blocks("bash", text):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def run_python(code: list[str], namespace: dict, name: str) -> None:
    for block in code:
        exec(compile(block, name, "exec"), namespace)


def check_errors(session: str, namespace: dict) -> None:
    """Runs the lines of a `pycon` block, each of which must end in the error shown below it."""
    cases = re.findall(r"^>>> (.*)\n(\w+): (.*)$", session, re.MULTILINE)
    assert len(cases) == session.count(">>>")
    for code, error_type, message in cases:
        with pytest.raises(Exception, match=f"^{re.escape(message)}$") as error:
            eval(code, namespace)
        assert error.type.__name__ == error_type
