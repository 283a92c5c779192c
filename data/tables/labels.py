"""Labels that say which of two answers is better, or that they tie.

Words are listed below. Numbers are signed strengths, below 0 where the first is better. A column of numbers with
one sign only is refused: 0/1 and 1/2 mean the first and the second in some tables, and the reverse in others. The
recipe's `labels` explain all other values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.tables.columns import Candidates, Cells, Columns, Completion, as_object, each
from data.tables.per_annotator import as_values, by_annotator
from data.tables.sources import Row, TableError, as_number, is_empty
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
"""Words that need no `labels`, in any case, besides the names of the two columns."""
FEW = 5
"""A column with this many strengths or more must have both signs."""
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
        """The verdict that a value stands for; None for an empty cell. Raises `DataError` for an unknown value."""
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
                hint="write a signed number (below 0: the first is better), A, B or tie; or say in the recipe what "
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
                hint=f"add it to `labels`, which names {', '.join(self.stated)}; or empty the cell",
            )
        return VERDICTS[self.stated[key]]

    def check(self) -> None:
        """After the last row. Raises `DataError` for a column of numbers that are not signed strengths."""
        if self.read < FEW or self.signs <= {0} or {-1, 1} <= self.signs:
            return
        side, never = ("below", "first") if 1 in self.signs else ("above", "second")
        raise TableError(
            f"none of the {self.read} numbers in column {self.column!r} is {side} 0: as signed strengths they "
            f"never prefer the {never} answer",
            where=self.first_where,
            hint=f"say in the recipe what the values mean, beside `format`: {EXAMPLE}. A list is one value per "
            "annotator",
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


def preferences(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Two completions, and which is better: a word, a value that `labels` names, or a signed strength as in
    HelpSteer, below 0 where the first is.

    A list of such values, or of objects with a `score`, is one ranking per annotator.
    """
    names = columns.named.get("completions")
    pair = names if isinstance(names, list) else []
    if isinstance(names, list) and len(names) != 2:
        raise columns.error(
            f"a preference orders 2 completions and `completions` names {len(names)}",
            "write completions: [first, second] and preference: column",
        )
    column = columns.name("preference")
    labels = Labels(columns, column, pair)

    def read(row: Row) -> Iterator[Candidates]:
        completions = columns.items(row, "completions")
        if len(completions.values) != 2:
            raise DataError(
                f"a preference orders 2 completions, and the row has {len(completions.values)}",
                where=row.where,
                hint="remove the row; rank more than two completions with ratings or ranks",
            )
        prompt, texts = columns.exchange(row, completions.named)
        models = columns.models(row, completions)
        values = as_values(row[column])
        if values is not None and pair:
            _check_annotators(row, column, values, pair[0])
        for annotator, [item] in by_annotator(row, columns, [row[column]]):
            verdict = labels.verdict(item.get("score") if isinstance(item, dict) else item, row)
            scores = (None, None) if verdict is None else (verdict.first, verdict.second)
            answers = list(map(Completion, texts, scores, models))
            rated = verdict is not None and verdict.rated
            yield Candidates(prompt, answers, row, annotator, rated=rated)

    yield from each(rows, read)
    labels.check()


def _check_annotators(row: Row, column: str, values: Sequence[Any], completion: str) -> None:
    """Raises `DataError` for a list with one value per pair of K > 2 answers, as in qa_feedback: it would be read
    as one value per annotator."""
    alike = [name for name in row if re.sub(r"\d+", "", name) == re.sub(r"\d+", "", completion)]
    k = len(alike)
    if k > 2 and len(values) == k * (k - 1) // 2 and not any(isinstance(value, dict) for value in values):
        raise DataError(
            f"column {column!r} holds {len(values)} values, one per pair of the {k} columns {', '.join(alike)}",
            where=row.where,
            hint="a list here is one value per annotator of the two completions: write one row per pair, or ranks "
            "or ratings of all completions",
        )


def choice(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of texts or of objects with a `text`, and `choice`, the place of the best, from 0, or
    its key where they have keys; or what the recipe's `labels` names, for two."""
    column, text = columns.name("choice"), columns.name("text")
    labels = Labels(columns, column)

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        nodes = [as_object(item if isinstance(item, dict) else {text: item}, row) for item in items.values]
        named = [(name, node[text]) for name, node in zip(items.names, nodes, strict=True)]
        prompt, texts = columns.exchange(row, named)
        models = [columns.model(node) or key for node, key in zip(nodes, items.models, strict=True)]
        for annotator, [value] in by_annotator(row, columns, [row[column]]):
            scores = _scores_of_choice(value, row, labels, items)
            answers = list(map(Completion, texts, scores, models))
            yield Candidates(prompt, answers, row, annotator, rated=False)

    yield from each(rows, read)


def _scores_of_choice(value: Any, row: Row, labels: Labels, items: Cells) -> list[float | None]:
    """1 for the best, 0 for the others; None for all of a row without a choice."""
    completions = len(items.values)
    if items.keys and value in items.keys:
        return [float(key == value) for key in items.keys]
    if labels.stated:
        if completions != 2:
            raise DataError(
                f"`labels` says which of 2 completions is better, and there are {completions}",
                where=row.where,
                hint="leave `labels` out: `choice` is then the place of the best, counted from 0",
            )
        verdict = labels.verdict(value, row)
        return [None, None] if verdict is None else [verdict.first, verdict.second]
    hint = (
        "a choice is the place of the best completion, counted from 0, or empty; of two completions, `labels` may "
        f"say what values mean: {EXAMPLE}"
    )
    try:
        best = as_number(value, f"column {labels.column!r}", row.where)
    except DataError as error:
        raise DataError(error.what, where=row.where, hint=hint) from None
    if best is not None and best not in range(completions):
        what = f"the choice is {best:g}, and there are {completions} completions"
        raise DataError(what, where=row.where, hint=hint)
    return [None if best is None else float(place == best) for place in range(completions)]
