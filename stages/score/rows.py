"""Rows of a table as prompts with completions to score, and the columns of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.tables.messages import exchange
from data.tables.sources import Row
from data.tables.spelling import spelled
from data.tables.suggest import listed
from pipeline.errors import DataError
from stages.score.model import Answers, Scores

PROMPT = "prompt"
COMPLETIONS = (
    ("completions",),
    ("completion",),
    ("responses",),
    ("response",),
    ("chosen", "rejected"),
    ("messages",),
)
"""Columns that hold the completions if the user names none; the first that a table has."""
LISTS = ("completions", "responses")
SCORE, RANK, STD = "score", "rank", "score_std"


@dataclass(frozen=True)
class Layout:
    """Where a table has prompts and completions.

    Attributes:
        prompt: the column of the prompt; None where the completions' cells hold whole conversations.
        completions: one column, with one completion or a list of them, or several with one completion each.
        many: whether the one column holds lists.
        prefix: before the names of the columns that are added.
    """

    prompt: str | None
    completions: Sequence[str]
    many: bool = False
    prefix: str = ""

    @classmethod
    def of(cls, first: Row, prompt: str, completions: Sequence[str], prefix: str = "") -> Layout:
        """The layout of a table by its first row.

        Args:
            prompt: the user's; "" for `PROMPT`, if the table has it.
            completions: the user's; none for the first of `COMPLETIONS` that the table has.

        Raises `DataError` if a column is missing, or if one that would be added is there.
        """
        for name in (*([prompt] if prompt else []), *completions):
            first[name]  # raises
        columns = tuple(completions) or next(
            (names for names in COMPLETIONS if all(name in first for name in names)), ()
        )
        if not columns:
            raise DataError(
                "no column holds completions",
                where=first.where,
                hint=f"name it with --completions; the columns are {listed(list(first), 30)}",
            )
        column = prompt or (PROMPT if PROMPT in first else None)
        many = len(columns) == 1 and _as_list(first, columns[0]) is not None
        layout = cls(column if column not in columns else None, columns, many, prefix)
        if there := [name for name in layout.added(ensemble=True) if name in first]:
            raise DataError(
                f"the table already has a column {there[0]!r}",
                where=first.where,
                hint="give --prefix, which is put before the names of the columns that are added",
            )
        return layout

    def added(self, *, ensemble: bool) -> list[str]:
        """The names of the columns that the result has in addition."""
        if self.many:
            names = ["scores", "ranks", "score_stds"]
        elif len(self.completions) == 1:
            names = [SCORE, STD]
        else:
            names = [f"{kind}_{column}" for kind in (SCORE, RANK, STD) for column in self.completions]
        return [self.prefix + name for name in names if ensemble or not name.startswith(("score_std", STD))]

    def answers(self, row: Row) -> Answers:
        """The prompt and the completions of a row. Raises `DataError` with its place."""
        cells = self._cells(row)
        described = [(f"column {column!r}" + number, cell) for column, number, cell in cells]
        cell = None if self.prompt is None else row[self.prompt]
        prompt, texts = exchange(cell, described, row.where, text_lists="text", what=f"column {self.prompt!r}")
        if not prompt:
            raise DataError(
                "the prompt is empty",
                where=row.where,
                hint="fill the prompt's cell, or name its column with --prompt",
            )
        for (what, _), text in zip(described, texts, strict=True):
            if not text.strip():
                raise DataError(
                    f"the completion in {what} is empty", where=row.where, hint="fill the cell, or remove the row"
                )
        return Answers(prompt, texts, row.where)

    def _cells(self, row: Row) -> list[tuple[str, str, Any]]:
        """Column, "item 2" and cell of each completion."""
        if not self.many:
            return [(column, "", self._single(row, column)) for column in self.completions]
        [column] = self.completions
        items = _as_list(row, column)
        if items is None:
            raise DataError(
                f"column {column!r} holds a list of completions in the first row, and here {row[column]!r:.60}",
                where=row.where,
                hint="write a list in every row",
            )
        if not items:
            raise DataError(
                f"the list in column {column!r} is empty", where=row.where, hint="fill it, or remove the row"
            )
        return [(column, f", item {number}", item) for number, item in enumerate(items, 1)]

    def _single(self, row: Row, column: str) -> Any:
        if _as_list(row, column) is not None:
            raise DataError(
                f"column {column!r} holds a list of completions where one is expected",
                where=row.where,
                hint="name that column alone with --completions, or write one completion in each cell",
            )
        return row[column]

    def scored(self, row: Row, scores: Scores) -> dict[str, Any]:
        """The row with its scores."""
        if self.many:
            values: list[Any] = [scores.scores, scores.ranks, scores.stds]
        elif len(self.completions) == 1:
            values = [scores.scores[0], scores.stds and scores.stds[0]]
        else:
            values = [*scores.scores, *scores.ranks, *(scores.stds or [])]
        names = self.added(ensemble=scores.stds is not None)
        return {**row, **dict(zip(names, values, strict=False))}


def _as_list(row: Row, column: str) -> list[Any] | None:
    """The completions of a cell with a list of texts or of conversations; None for one completion. In the columns
    `LISTS` the list may be spelled as text, as CSV needs it."""
    cell = row[column]
    if isinstance(cell, str) and column in LISTS and cell.lstrip().startswith("["):
        cell = spelled(cell.strip())
    if not isinstance(cell, Sequence) or isinstance(cell, str):
        return None
    items = list(cell)
    if items and all(isinstance(item, Mapping) for item in items):
        return None  # the messages of one conversation
    return items if all(isinstance(item, str | Sequence) or item is None for item in items) else None
