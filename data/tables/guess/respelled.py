"""Columns of numbers that are written as texts: "3/5", "80 %", "2nd", "3,5", or "N/A" beside numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.tables.columns import key_of
from data.tables.guess.guess import Guess
from data.tables.guess.sample import Sample, as_finite
from data.tables.mapping import tables_names
from data.tables.selection import DECIMAL_COMMA

MISSING = {"n/a", "na", "n.a.", "-", "--", "–", "—", "none", "null", "?", "k.a.", "keine angabe"}
"""What people write into a cell that has no number."""
NUMBER = r"([+-]?\d+(?:\.\d+)?)"
FORMS = (
    rf"^\s*{NUMBER}\s*(?:/|out of|von)\s*5\s*$",
    rf"^\s*{NUMBER}\s*(?:/|out of|von)\s*10\s*$",
    rf"^\s*{NUMBER}\s*(?:/|out of|von)\s*100\s*$",
    rf"^\s*{NUMBER}\s*%\s*$",
    r"^\s*(\d+)\s*(?:st|nd|rd|th)\s*$",
    rf"^\s*{NUMBER}\s*(?:stars?|points?|pts?\.?|Sterne?|Punkte?)\s*$",
)
"""What stands beside a number, the same in every cell of a table. `extract` reads the first group."""


@dataclass
class Respelled:
    """A table whose columns of such texts are columns of numbers.

    Attributes:
        missing: column -> the cells that stand for no number.
        commas: columns with decimal commas.
        forms: column -> the regular expression that finds the number.
    """

    sample: Sample
    missing: dict[str, set[str]] = field(default_factory=dict)
    commas: set[str] = field(default_factory=set)
    forms: dict[str, str] = field(default_factory=dict)

    def explain(self, guess: Guess) -> bool:
        """Adds the recipe's values with which the columns of a guess are read as numbers. Returns whether there are
        such columns, and one set of values reads all of them."""
        used = guess.used()
        missing = sorted({cell for column in self.missing.keys() & used for cell in self.missing[column]})
        if missing:
            guess.values["na_values"] = missing
            guess.why["na_values"] = "read as empty"
        if self.commas & used:
            guess.values["decimal"] = ","
        for ours, value in guess.columns.items():
            found = {self.forms.get(name) for name in tables_names(value)}
            if found == {None}:
                continue
            if len(found) > 1:
                return False
            guess.values.setdefault("extract", {})[ours] = found.pop()
            guess.why["extract"] = "the numbers in these cells"
        return bool(missing or self.commas & used or "extract" in guess.values)


def respelled(sample: Sample) -> Respelled | None:
    """The table with numbers where texts spell them; None if there are none."""
    found = Respelled(sample)
    numbers: dict[str, dict[Any, float]] = {}
    for column in sample.columns:
        cells = sample.cells(column)
        if sample.numbers(column) is None and all(isinstance(cell, str | int | float) for cell in cells):
            missing = {cell.strip() for cell in cells if isinstance(cell, str) and key_of(cell) in MISSING}
            rest = [cell for cell in cells if not isinstance(cell, str) or cell.strip() not in missing]
            numbers[column] = _numbers(found, column, rest)
            if numbers[column] and missing:
                found.missing[column] = missing
    numbers = {column: spelled for column, spelled in numbers.items() if spelled}
    if not numbers:
        return None
    rows = [
        row.with_cells({column: spelled.get(row.get(column)) for column, spelled in numbers.items()})
        for row in sample.rows
    ]
    return replace(found, sample=replace(sample, rows=rows))


def _numbers(found: Respelled, column: str, cells: Sequence[Any]) -> dict[Any, float]:
    """What each cell of a column stands for, with how that is found; empty if they are no numbers."""
    if not cells:
        return {}
    plain = {cell: as_finite(cell) for cell in cells}
    if None not in plain.values():
        return {cell: number for cell, number in plain.items() if number is not None}
    texts = [str(cell) for cell in cells]
    if all(DECIMAL_COMMA.fullmatch(text.strip()) or as_finite(text) is not None for text in texts):
        found.commas.add(column)
        return {cell: float(str(cell).replace(",", ".")) for cell in cells}
    for form in FORMS:
        matches = [re.search(form, text) for text in texts]
        if all(matches):
            found.forms[column] = form
            return {cell: float(match[1]) for cell, match in zip(cells, matches, strict=True) if match}
    return {}
