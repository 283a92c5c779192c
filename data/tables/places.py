"""Cells that name some of a row's completions: the best, the worst, or all of them in order.

A cell may hold the name of a column, a letter (A is the first), a number if the table's numbers have a known start,
the name of the model that wrote the completion, or its text. A cell that could mean two completions is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.schema import Message, same_text
from data.tables.columns import Candidates, Cells, Columns, Completion, each, key_of
from data.tables.layout import column_of
from data.tables.per_annotator import by_annotator
from data.tables.sources import Row, as_number, is_empty
from data.tables.spelling import spelled
from pipeline.errors import DataError

BEST, REST, WORST = 1.0, 0.0, -1.0
Exchange = tuple[list[Message], Sequence[str], Sequence[str | None], Sequence[str]]
"""The prompt; of a row's completions the texts, the models, and the columns or keys, if they have one each."""


class Places:
    """Reads a column whose cells name completions.

    Args:
        column: the table's name of it.
        index_from: the number of the first completion; None where numbers are refused.
        also: what else the recipe may say about the column, for hints.
    """

    def __init__(self, column: str, index_from: int | None = None, also: str = "") -> None:
        self.column, self.index_from, self.also = column, index_from, also

    def place(
        self,
        value: Any,
        row: Row,
        texts: Sequence[str],
        models: Sequence[str | None] = (),
        names: Sequence[str] = (),
    ) -> int | None:
        """The place of the completion that a cell names, from 0; None for an empty cell.

        Args:
            texts, models: of the row's completions.
            names: their columns or keys, if they have one each.

        Raises `DataError` for a cell that names none of them, or could mean several.
        """
        k = len(texts)
        if is_empty(value):
            return None
        if (place := _named(value, names)) is not None:
            number = float(value) if is_number(value) and self.index_from is not None else None
            if number is not None and number - (self.index_from or 0) in {*range(k)} - {place}:
                raise self._ambiguous(value, row, {place, int(number) - (self.index_from or 0)})
            return place
        if is_number(value):
            return self._numbered(value, row, k, names)
        if isinstance(value, str):
            key = value.strip()
            letter = ord(key.upper()) - ord("A") if len(key) == 1 else -1
            meant = {letter} & set(range(k)) | of_answer(key, texts, models)
            if len(meant) == 1:
                return meant.pop()
            if meant:
                raise self._ambiguous(value, row, meant)
        raise DataError(
            f"column {self.column!r} holds {value!r:.60}, which names none of the {k} completions",
            where=row.where,
            hint=f"write {self._accepted(names)}; or empty the cell{self.also}",
        )

    def _numbered(self, value: Any, row: Row, k: int, names: Sequence[str]) -> int:
        number = as_number(value, f"column {self.column!r}", row.where)
        assert number is not None
        if self.index_from is None:
            raise DataError(
                f"column {self.column!r} holds the number {number:g}, and tables count completions from 0 or 1",
                where=row.where,
                hint="set index_from: 0 or 1 beside `format`, the number of the first completion; or write "
                f"{self._accepted(names)}",
            )
        if number - self.index_from not in range(k):
            raise DataError(
                f"column {self.column!r} holds {number:g}, and the {k} completions are counted from "
                f"{self.index_from}",
                where=row.where,
                hint="set index_from beside `format` to the number of the first completion, 0 or 1; or correct the "
                f"cell, or empty it{self.also}",
            )
        return int(number) - self.index_from

    def _ambiguous(self, value: Any, row: Row, meant: set[int]) -> DataError:
        places = " or ".join(str(place + 1) for place in sorted(meant))
        return DataError(
            f"column {self.column!r} holds {value!r:.60}, which could mean completion {places} of the row",
            where=row.where,
            hint="write the name of the completion's column, or its number and index_from: 0 or 1 beside `format`",
        )

    def _accepted(self, names: Sequence[str]) -> str:
        named = f"the name of its column ({', '.join(names)}), " if names else ""
        number = "" if self.index_from is None else f"its number, counted from {self.index_from}, "
        return f"{number}{named}a letter (A is the first), the name of its model, or its text"


def of_answer(value: Any, texts: Sequence[str], models: Sequence[str | None]) -> set[int]:
    """The places of the completions whose model or text is `value`. Equal texts are one completion, the first."""
    if not isinstance(value, str) or not value.strip():
        return set()
    keys = [same_text(text) for text in texts]
    written = {place for place, model in enumerate(models) if model and model.strip() == value.strip()}
    spoken = {keys.index(same_text(value))} if same_text(value) in keys else set()
    return written | spoken


def names_of(items: Cells, columns: Columns) -> Sequence[str]:
    """What tells the completions of a row apart: their columns, or their keys; empty for a list."""
    names = columns.named.get("completions")
    return [column_of("completions", name) for name in names] if isinstance(names, list) else items.keys or ()


def _named(value: Any, names: Sequence[str]) -> int | None:
    """The place of the name that a cell holds, in any case where that is clear; None where it holds none."""
    key = value.strip() if isinstance(value, str) else key_of(value)
    if key in names:
        return names.index(key)
    alike = [place for place, name in enumerate(names) if name.casefold() == key.casefold()]
    return alike[0] if len(alike) == 1 else None


def best_and_worst(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Best-worst scaling (MaxDiff): of K completions the `best` one, the `worst` one, or both are named. The others
    tie between them."""
    best, worst = (
        Places(columns.name(kind), columns.index_from) if kind in columns.named else None
        for kind in ("best", "worst")
    )

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        exchange = (*columns.exchange(row, items.named), columns.models(row, items), names_of(items, columns))
        yield from placed(row, columns, exchange, best, worst)

    yield from each(rows, read)


def placed(
    row: Row, columns: Columns, exchange: Exchange, best: Places | None, worst: Places | None
) -> Iterator[Candidates]:
    """The ranking of each annotator, from the cells that name the best and the worst completion."""
    prompt, texts, models, names = exchange
    readers = [reader for reader in (best, worst) if reader is not None]
    for (annotator, weight), cells in by_annotator(
        row, columns, [row[reader.column] for reader in readers], [*texts, *models, *names]
    ):
        places = {
            reader: reader.place(cell, row, texts, models, names)
            for reader, cell in zip(readers, cells, strict=True)
        }
        scores = scores_of(row, len(texts), places, best, worst)
        answers = list(map(Completion, texts, scores, models))
        yield Candidates(prompt, answers, row, annotator, rated=False, weight=weight)


def scores_of(
    row: Row, k: int, places: Mapping[Places, int | None], best: Places | None, worst: Places | None
) -> list[float | None]:
    """A score of each of K completions, from the places of the best and the worst; None for all where neither is
    known.

    Raises `DataError` where both are the same.
    """
    first, last = (None if reader is None else places[reader] for reader in (best, worst))
    if first is None and last is None:
        return [None] * k
    if best is not None and worst is not None and first == last:
        raise DataError(
            f"columns {best.column!r} and {worst.column!r} name the same completion as best and as worst",
            where=row.where,
            hint="correct one of the cells, or empty it",
        )
    return [BEST if place == first else WORST if place == last else REST for place in range(k)]


def orders(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """A cell that names the completions from best to worst: `B > D = A > C`, `B,D=A,C`, or a list. Completions that
    it does not name are unranked."""
    reader = Places(columns.name("order"), columns.index_from)

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        prompt, texts = columns.exchange(row, items.named)
        models, names = columns.models(row, items), names_of(items, columns)
        cell = row[reader.column]
        scores: list[float | None] = [None] * len(texts)
        for level, same in enumerate(levels(cell)):
            for value in same:
                place = reader.place(value, row, texts, models, names)
                if place is None or scores[place] is not None:
                    raise DataError(
                        f"column {reader.column!r} holds {cell!r:.60}, which "
                        + ("has an empty place" if place is None else f"names {value!r:.40} twice"),
                        where=row.where,
                        hint="name each completion once, from best to worst; of several annotators in one row, "
                        "name the list of them as `annotations`",
                    )
                scores[place] = -float(level)
        answers = list(map(Completion, texts, scores, models))
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=False)

    yield from each(rows, read)


def levels(cell: Any) -> list[list[Any]]:
    """What an order names, from best to worst; several that tie are at one level. Of a text, `>` or else a comma, a
    semicolon or a bar separates the levels, and `=` or `~` what ties."""
    if is_empty(cell):
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = spelled(cell.strip()) or cell
    if isinstance(cell, list):
        return [item if isinstance(item, list) else [item] for item in cell]
    text = str(cell)
    separator = next((mark for mark in (">+", ",", ";", r"\|") if re.search(mark, text)), ">+")
    return [[name.strip() for name in re.split("[=~]", level)] for level in re.split(separator, text)]


def is_number(value: Any) -> bool:
    """Whether a cell holds a number, or text that spells one."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
