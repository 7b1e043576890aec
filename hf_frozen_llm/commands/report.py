# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The report of `hf-frozen-llm check`: facts immediately, errors and warnings at the end."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Report:
    """
    The findings of a check.

    Args:
        facts (`list[tuple[str, str]]`): the subject and the finding of each.
        errors (`list[str]`): reasons why the run would fail, or would train on wrong data.
        warnings (`list[str]`): settings or data that may be mistakes.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, name: str, fact: str) -> None:
        """Note a fact, and print it."""
        self.facts.append((name, fact))
        show(f"{name:<12}  {fact}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note an exception as an error, so that the other steps are checked, too."""
        try:
            yield
        except Exception as error:  # of any library that the run uses
            message = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
            self.errors.append(message if message.startswith(name) else f"{name}: {message}")

    def print_problems(self) -> None:
        """Print all errors and all warnings."""
        for title, problems in (("Errors", self.errors), ("Warnings", self.warnings)):
            if problems:
                show(f"\n{title}")
                show("\n".join(f"{number:>3}. {problem}" for number, problem in enumerate(problems, 1)))
        counts = count(len(self.errors), "error"), count(len(self.warnings), "warning")
        show(f"\n{' and '.join(counts).capitalize()}.")


def show(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def count(number: int, noun: str) -> str:
    return f"{f'{number:,}' if number else 'no'} {noun}{'' if number == 1 else 's'}"


def name_some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def format_bytes(number: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:,.0f} bytes" if units[0] == "bytes" else f"{number:,.1f} {units[0]}"
