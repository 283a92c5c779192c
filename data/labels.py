"""What a label says of two answers: which is better, or that they tie.

Words are documented below. Numbers are signed strengths, below 0 where the first is better. A column of them with
one sign only is refused: 0/1 and 1/2 mean the first and the second in some tables, and the reverse in others. Other
values are read by the recipe's `labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from data.columns import Columns
from data.sources import Row, as_number, is_empty
from pipeline.errors import DataError


class Verdict(NamedTuple):
    """Scores of two answers, higher is better; `rated` where they say by how much."""

    first: float
    second: float
    rated: bool = False


VERDICTS = {"first": Verdict(1.0, 0.0), "second": Verdict(0.0, 1.0), "tie": Verdict(0.0, 0.0)}
WORDS = {
    "first": ("first", "a", "model_a", "response_a", "answer_a", "left"),
    "second": ("second", "b", "model_b", "response_b", "answer_b", "right"),
    "tie": ("tie", "both", "neither", "equal", "same", "tie (bothbad)", "both_bad", "bothbad"),
}
"""Words that need no `labels`, whatever their case, beside the names of the two columns."""
FEW = 5
"""Values from which a column of strengths must have both signs."""
EXAMPLE = "labels: {1: first, 2: second, 0: tie}"


class Labels:
    """Reads the labels of a table's column."""

    def __init__(self, columns: Columns, column: str, completions: Sequence[str] = ()) -> None:
        self.column = column
        self.stated = {key_of(key): verdict for key, verdict in columns.labels.items()}
        self.words = {word: verdict for verdict, words in WORDS.items() for word in words}
        self.words |= {name.casefold(): verdict for name, verdict in zip(completions, VERDICTS, strict=False)}
        self.signs: set[int] = set()
        self.read = 0
        self.first_where = ""

    def verdict(self, value: Any, row: Row) -> Verdict | None:
        """What the value says; None for an empty cell. Raises `DataError` for a value that is not documented."""
        if is_empty(value):
            return None
        if self.stated:
            return self._stated(value, row)
        if isinstance(value, str) and value.strip().casefold() in self.words:
            return VERDICTS[self.words[value.strip().casefold()]]
        try:
            strength = as_number(value, f"column {self.column!r}", row.where)
        except DataError as error:
            raise DataError(
                error.what,
                where=row.where,
                mend="write a signed number (below 0: the first is better), A, B or tie; or say in the recipe what "
                f"values mean, {EXAMPLE}",
            ) from None
        assert strength is not None
        self.read += 1
        self.signs.add((strength > 0) - (strength < 0))
        self.first_where = self.first_where or row.where
        return Verdict(max(-strength, 0.0), max(strength, 0.0), rated=True)

    def _stated(self, value: Any, row: Row) -> Verdict:
        key = key_of(value)
        if key not in self.stated:
            raise DataError(
                f"column {self.column!r} holds {value!r:.60}, which `labels` does not name",
                where=row.where,
                mend=f"add it to `labels`, which names {', '.join(self.stated)}; or empty the cell",
            )
        return VERDICTS[self.stated[key]]

    def check(self) -> None:
        """After the last row. Raises `DataError` for a column of numbers that are not signed strengths."""
        if self.read < FEW or self.signs <= {0} or {-1, 1} <= self.signs:
            return
        side, never = ("below", "first") if 1 in self.signs else ("above", "second")
        raise DataError(
            f"none of the {self.read} numbers in column {self.column!r} is {side} 0: as signed strengths they "
            f"never prefer the {never} answer",
            where=self.first_where,
            mend=f"say in the recipe what the values mean, beside `format`: {EXAMPLE}",
        )


def key_of(value: Any) -> str:
    """A cell as `labels` names it: 1, 1.0 and "1" are `1`, True is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text
