"""Tables that fit a terminal: columns that do not fit are left out, and cells are never broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        right: whether the cells are aligned to the right.
        spare: 0 if the column is always shown; others are left out for lack of width, the highest first.
    """

    name: str
    cells: Sequence[str | Text]
    right: bool = False
    spare: int = 0

    @property
    def width(self) -> int:
        return max(cell_len(self.name), *(cell_len(_plain(cell)) for cell in self.cells), 0)

    @property
    def is_empty(self) -> bool:
        return not any(_plain(cell) for cell in self.cells)


def fit(columns: Sequence[Column], width: int) -> tuple[Table, list[str]]:
    """A table of the columns that are not empty and fit into `width`, and the names of those that do not fit."""
    shown = [column for column in columns if not column.is_empty]
    left_out: list[str] = []
    while _width(shown) > width and any(column.spare for column in shown):
        last = max(shown, key=lambda column: column.spare)
        shown.remove(last)
        left_out.insert(0, last.name)
    table = Table(box=None, header_style="bold", padding=(0, GAP, 0, 0), pad_edge=False)
    for column in shown:
        table.add_column(
            column.name, justify="right" if column.right else "left", no_wrap=True, min_width=column.width
        )
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table, left_out


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _plain(cell: str | Text) -> str:
    return cell.plain if isinstance(cell, Text) else cell
