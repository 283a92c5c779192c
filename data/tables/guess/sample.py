"""The first rows of a table, and what its columns hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data.tables.messages import as_messages
from data.tables.sources import Row, is_empty, read_table
from data.tables.spelling import is_transcript, spelled, spelled_messages, spelled_texts
from data.tables.suggest import SYNONYMS, close, is_called, plain
from data.tables.text_files import HeaderError
from pipeline.config.data import TableConfig
from pipeline.config.table_files import shown
from pipeline.errors import DataError

ROWS = 1000
"""Rows from which columns are guessed."""


@dataclass(frozen=True)
class Sample:
    """The first rows of a table.

    Attributes:
        columns: every column of these rows, in the order in which they appear.
        header: rows of column names, as a recipe has it.
    """

    path: str
    rows: Sequence[Row]
    columns: Sequence[str]
    header: int = 1

    @classmethod
    def of(cls, table: TableConfig, say: Callable[[str], None] | None = None) -> Sample:
        """Reads the first `ROWS` rows, with a header of two rows if they cannot be read with one. Raises
        `DataError` as `read_table` does, and calls `say` as it does."""
        header = table.header
        try:
            rows = list(read_table(replace(table, limit=ROWS), say))
        except HeaderError as error:
            header = 2
            try:
                rows = list(read_table(replace(table, limit=ROWS, header=header), say))
            except DataError:
                raise error from None
        return cls(shown(table.path), (), (), header).with_rows(rows)

    def with_rows(self, rows: Sequence[Row]) -> Sample:
        """The same table with these rows and their columns."""
        return replace(self, rows=rows, columns=list(dict.fromkeys(column for row in rows for column in row)))

    def cells(self, column: str) -> list[Any]:
        """The cells of a column that are not empty."""
        return [row[column] for row in self.rows if column in row and not is_empty(row[column])]

    @cached_property
    def paths(self) -> frozenset[str]:
        """What is not empty in these rows: columns, keys of the objects in them after a dot, and `[]` for the items
        of a list, as in `completions[].text`. Objects inside the items' own lists are not looked at."""
        return frozenset(path for row in self.rows for path in _paths(row, 3))

    def numbers(self, column: str) -> list[float] | None:
        """A column of numbers, without empty cells; None for any other column."""
        numbers = [as_finite(cell) for cell in self.cells(column)]
        return [number for number in numbers if number is not None] if numbers and None not in numbers else None

    def is_text(self, column: str) -> bool:
        """Whether a column holds texts or conversations, not numbers or lists of other things."""
        cells = self.cells(column)
        if not cells or self.numbers(column) is not None:
            return False
        return all(isinstance(cell, str) or is_conversation(cell) for cell in cells)

    def are_texts(self, columns: Sequence[str]) -> bool:
        """Whether all of these columns hold texts; some, not all, may be empty."""
        filled = [column for column in columns if self.cells(column)]
        return bool(filled) and all(map(self.is_text, filled))

    def are_numbers(self, columns: Sequence[str]) -> bool:
        """Whether all of these columns hold numbers; some, not all, may be empty."""
        filled = [column for column in columns if self.cells(column)]
        return bool(filled) and all(self.numbers(column) is not None for column in filled)

    def width(self, column: str) -> float:
        """Mean number of characters of a column's cells."""
        cells = self.cells(column)
        return sum(len(str(cell)) for cell in cells) / max(1, len(cells))

    def texts(self, without: Sequence[str] = ()) -> list[str]:
        """The columns of text, except those named."""
        return [column for column in self.columns if column not in without and self.is_text(column)]

    def lists(self, column: str) -> list[list[Any]]:
        """The lists in a column, which text cells may spell in JSON or Python; empty unless all cells hold one."""
        lists = [as_items(cell) for cell in self.cells(column)]
        return [items for items in lists if items is not None] if lists and None not in lists else []

    def holds_conversations(self, column: str, last: str) -> bool:
        """Whether every cell of a column is a conversation of several turns that ends with a turn of `last`."""
        cells = self.cells(column)
        return bool(cells) and all(is_conversation(cell, last) for cell in cells)

    def lists_messages(self, column: str) -> bool:
        """Whether every cell of a column is a list of messages, not text."""
        cells = self.cells(column)
        return bool(cells) and all(isinstance(cell, list) and is_conversation(cell) for cell in cells)

    def spells_lists(self, columns: Sequence[str]) -> bool:
        """Whether text cells spell lists of texts, as in Kaggle's lmsys table."""
        return any(spelled_texts(cell) is not None for column in columns for cell in self.cells(column))


def _paths(value: Any, depth: int, at: str = "") -> Iterator[str]:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = spelled(value.strip())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item, depth, f"{at}[]")
    elif isinstance(value, dict) and depth:
        for key, cell in value.items():
            path = f"{at}.{key}" if at else str(key)
            if not is_empty(cell):
                yield path
                if isinstance(cell, list | dict | str):
                    yield from _paths(cell, depth - 1, path)


def as_finite(cell: Any) -> float | None:
    """The number in a cell; None for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_items(cell: Any) -> list[Any] | None:
    """The list in a cell, unless it is a conversation."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = spelled(cell.strip())
    return cell if isinstance(cell, list) and not is_conversation(cell) else None


def is_conversation(cell: Any, last: str = "") -> bool:
    """Whether a cell holds messages, or text that spells messages or a transcript. With `last`: whether it has
    several turns, of which that role has the last."""
    if isinstance(cell, str):
        if is_transcript(cell):
            return last != "user"
        try:
            cell = spelled_messages(cell, "", "")
        except DataError:
            return False
    if not isinstance(cell, list | dict) or not cell:
        return False
    try:
        messages = as_messages(cell, "", "")
    except DataError:
        return False
    return not last or (len(messages) > 1 and messages[-1]["role"] == last)


WEAK = ("input", "context", "text", "post", "summary", "target")
"""Synonyms that also name other things: they count only where no other synonym does."""


def named(role: str, columns: Sequence[str]) -> list[str]:
    """The columns whose names mean our name `role`: the same name, or else all known synonyms, or else one with a
    similar spelling."""
    for exact in (
        [column for column in columns if plain(column) == plain(role)],
        [column for column in columns if plain(column.rpartition(".")[2]) == plain(role)],
    ):
        if exact:
            return exact[:1]
    synonyms = {plain(name): name for name in SYNONYMS.get(role, ())}
    tails = {column: column.rpartition(".")[2] for column in columns}
    hits = [column for column in columns if is_called(role, column)] or [
        column for column in columns if is_called(role, tails[column])
    ]
    strong = [column for column in hits if synonyms.get(plain(tails[column])) not in WEAK]
    near = close(role, columns)
    return strong or hits or ([near] if near else [])


def annotator_in(sample: Sample, columns: Sequence[str]) -> str | None:
    """The column that says who ranked: named like it, with short values that repeat."""
    called = [column for column in columns if is_called("annotator", column)] or [
        column for column in columns if is_called("annotator", column.rpartition(".")[2])
    ]
    called.sort(key=lambda column: plain(column) != "annotator")
    return next((column for column in called if _repeats(sample, column)), None)


def _repeats(sample: Sample, column: str) -> bool:
    cells = [str(cell) for cell in sample.cells(column)]
    if any(isinstance(cell, dict) for cell in sample.cells(column)):
        return False
    return sample.width(column) <= 40 and (len(cells) < 4 or len(set(cells)) < len(cells))
