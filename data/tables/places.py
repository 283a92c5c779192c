"""Cells that name one of a row's completions: the better of two, the best, the worst.

A cell may hold the name of a column, a letter (A is the first), a number if the table's numbers have a known start,
the name of the model that wrote the completion, or its text. A cell that could mean two completions is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.schema import same_text
from data.tables.columns import Candidates, Columns, Completion, each
from data.tables.sources import Row, as_number, is_empty
from pipeline.errors import DataError

BEST, REST, WORST = 1.0, 0.0, -1.0


class Places:
    """Reads a column whose cells name completions.

    Args:
        column: the table's name of it.
        names: the columns of the completions, where each has one.
        index_from: the number of the first completion; None where numbers are refused.
        also: what else the recipe may say about the column, for hints.
    """

    def __init__(
        self, column: str, names: Sequence[str] = (), index_from: int | None = None, also: str = ""
    ) -> None:
        self.column, self.index_from, self.also = column, index_from, also
        self.names = {name.casefold(): place for place, name in enumerate(names)}

    def place(self, row: Row, texts: Sequence[str], models: Sequence[str | None] = ()) -> int | None:
        """The place of the completion that the row's cell names, from 0; None for an empty cell.

        Args:
            texts, models: of the row's completions.

        Raises `DataError` for a cell that names none of them, or could mean several.
        """
        value, k = row[self.column], len(texts)
        if is_empty(value):
            return None
        key = value.strip() if isinstance(value, str) else value
        if isinstance(key, str) and key.casefold() in self.names:
            return self.names[key.casefold()]
        if is_number(value):
            return self._numbered(value, row, k)
        if isinstance(key, str):
            letter = ord(key.upper()) - ord("A") if len(key) == 1 else -1
            meant = {letter} & set(range(k)) | of_answer(key, texts, models)
            if len(meant) == 1:
                return meant.pop()
            if meant:
                raise self._ambiguous(value, row, meant)
        raise DataError(
            f"column {self.column!r} holds {value!r:.60}, which names none of the {k} completions",
            where=row.where,
            hint=f"write {self._accepted()}; or empty the cell{self.also}",
        )

    def _numbered(self, value: Any, row: Row, k: int) -> int:
        number = as_number(value, f"column {self.column!r}", row.where)
        assert number is not None
        if self.index_from is None:
            raise DataError(
                f"column {self.column!r} holds the number {number:g}, and tables count completions from 0 or 1",
                where=row.where,
                hint="set index_from: 0 or 1 beside `format`, the number of the first completion; or write "
                f"{self._accepted()}",
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

    def _accepted(self) -> str:
        names = f"the name of its column ({', '.join(self.names)}), " if self.names else ""
        number = "" if self.index_from is None else f"its number, counted from {self.index_from}, "
        return f"{number}{names}a letter (A is the first), the name of its model, or its text"


def of_answer(value: Any, texts: Sequence[str], models: Sequence[str | None]) -> set[int]:
    """The places of the completions whose model or text is `value`. Equal texts are one completion, the first."""
    if not isinstance(value, str) or not value.strip():
        return set()
    keys = [same_text(text) for text in texts]
    written = {place for place, model in enumerate(models) if model and model.strip() == value.strip()}
    spoken = {keys.index(same_text(value))} if same_text(value) in keys else set()
    return written | spoken


def best_and_worst(
    rows: Iterator[Row], columns: Columns, completions: list[str], models: list[str]
) -> Iterator[Candidates]:
    """Best-worst scaling (MaxDiff): of K completion columns the `best` one, the `worst` one, or both are named. The
    others tie between them."""
    readers = {
        kind: Places(columns.name(kind), completions, columns.index_from)
        for kind in ("best", "worst")
        if kind in columns.named
    }

    def read(row: Row) -> Iterator[Candidates]:
        prompt, texts = columns.exchange(row, columns.cells(row, completions))
        written = [row.text(model) or None for model in models] or [None] * len(texts)
        scores = scores_of(row, texts, written, **readers)
        answers = [Completion(*answer) for answer in zip(texts, scores, written, strict=True)]
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=False)

    yield from each(rows, read)


def scores_of(
    row: Row,
    texts: Sequence[str],
    models: Sequence[str | None],
    best: Places | None = None,
    worst: Places | None = None,
) -> list[float | None]:
    """A score of each completion, from the cells that name the best and the worst; None for all where neither does.

    Raises `DataError` where both name the same.
    """
    first, last = (None if reader is None else reader.place(row, texts, models) for reader in (best, worst))
    if first is None and last is None:
        return [None] * len(texts)
    if best is not None and worst is not None and first == last:
        raise DataError(
            f"columns {best.column!r} and {worst.column!r} name the same completion as best and as worst",
            where=row.where,
            hint="correct one of the cells, or empty it",
        )
    return [BEST if place == first else WORST if place == last else REST for place in range(len(texts))]


def is_number(value: Any) -> bool:
    """Whether a cell holds a number, or text that spells one."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
