# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Tables of the results of marked tests in the documentation: one row for each host or family, one column for each kind
of test. See host_table.py and family_table.py.

`pytest --host-table=FILE` writes the table between its lines `begin` and `end` in FILE. Skipped tests do not count.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class ResultTable:
    """
    Args:
        name (`str`): the subject of a row, `"host"` or `"family"`: the tests' parameter that names it.
        columns (`list[str]`): the kinds of tests.
        rows (`dict[str, str]`): from the values of that parameter to the rows' titles.
        after (`str`): the text below the table.
    """

    name: str
    columns: list[str]
    rows: dict[str, str]
    after: str = ""

    @property
    def marker(self) -> str:
        return f"{self.name}_table"

    @property
    def begin(self) -> str:
        return f"<!-- {self.name} table: begin (make {self.name}-table) -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name} table: end -->"

    def cell_of(
        self, column: str, row: str | None, params: dict[str, Any], test_class: type | None
    ) -> tuple[str, str]:
        """
        Return the `(row, column)` of a marked test.

        Raises:
            `ValueError`: for a column or a row that the table lacks.
        """
        row = row or params.get(self.name, getattr(test_class, self.name, None))
        if column not in self.columns:
            raise ValueError(f"{self.marker}({column!r}): the columns are {self.columns}.")
        if row not in self.rows:
            raise ValueError(f"{self.marker}({column!r}): {self.name} is {row!r}, no row of tests/{self.marker}.py.")
        return row, column

    def make(self, outcomes: dict[Any, tuple[str, str, bool]], versions: str) -> str:
        """
        Args:
            outcomes (`dict[Any, tuple[str, str, bool]]`): by the test, its row, its column and whether it passed.
            versions (`str`): the versions of the libraries.
        """
        lines = [f"| {self.name} | {' | '.join(self.columns)} |", f"|---|{'---|' * len(self.columns)}"]
        for row, title in self.rows.items():
            cells = []
            for column in self.columns:
                passed = [is_passed for *cell, is_passed in outcomes.values() if cell == [row, column]]
                failed = len(passed) - sum(passed)
                cells.append(f"{sum(passed)} of {len(passed)} ✗" if failed else f"{len(passed)} ✓" if passed else "–")
            lines.append(f"| {title} | {' | '.join(cells)} |")
        passed = [is_passed for *_, is_passed in outcomes.values()]
        after = [self.after, ""] if self.after else []
        return "\n".join([*lines, "", *after, f"{sum(passed)} of {len(passed)} checks passed, with {versions}."])

    def put_into(self, text: str, table: str) -> str:
        """
        Replace the text between the lines `begin` and `end`.

        Raises:
            `ValueError`: for a text without the two lines.
        """
        lines, begin, end = text.split("\n"), self.begin, self.end
        if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(end) < lines.index(begin):
            raise ValueError(f"needs the lines {begin!r} and {end!r}, once each and in this order")
        return "\n".join([*lines[: lines.index(begin) + 1], table, *lines[lines.index(end) :]])
