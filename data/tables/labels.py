"""Labels that say which of two answers is better, or that they tie.

Words are listed below. `A>B`, `B>>A` and `A=B` compare, more signs for a clearer winner, and `[[A]]` is a judge's
A. A model's name or an answer's text names the winner too. Numbers are signed strengths, below 0 where the first is
better. A column of numbers with one sign only is refused: 0/1 and 1/2 mean the first and the second in some tables,
and the reverse in others. The recipe's `labels` explain all other values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from data.tables.columns import Candidates, Cells, Columns, Completion, as_list, as_object, each, key_of
from data.tables.paths import Keyed
from data.tables.per_annotator import Annotator, as_values, by_annotator
from data.tables.places import Exchange, Places, is_number, names_of, of_answer, placed
from data.tables.sources import Row, TableError, as_number, is_empty
from pipeline.errors import DataError


class Verdict(NamedTuple):
    """Scores of two answers, higher is better; `rated` where they say by how much."""

    first: float
    second: float
    rated: bool = False

    @classmethod
    def of_strength(cls, strength: float) -> Verdict:
        """Of a signed strength, below 0 where the first is better."""
        return cls(max(-strength, 0.0), max(strength, 0.0), rated=True)


VERDICTS = {"first": Verdict(1.0, 0.0), "second": Verdict(0.0, 1.0), "tie": Verdict(0.0, 0.0)}
_NOUNS = ("model", "response", "answer", "output", "completion", "option", "assistant", "summary", "candidate")
WORDS = {
    "first": ("first", "a", "left", *(f"{noun}_a" for noun in _NOUNS)),
    "second": ("second", "b", "right", *(f"{noun}_b" for noun in _NOUNS)),
    "tie": (
        "tie", "tied", "draw", "both", "neither", "equal", "same", "tie_(bothbad)", "tie_(bothgood)",
        "tie_(both_bad)", "tie_(both_good)", "both_bad", "bothbad", "both_good", "bothgood", "[[c]]",
    ),
}  # fmt: skip
"""Words that need no `labels`, besides the names of the two columns. Case does not matter, and a space or a hyphen
is an underscore. A judge that is asked for [[A]], [[B]] or [[C]] means a tie by the last."""
_BRACKETED = re.compile(r"\[+\s*(.*?)\s*\]+", re.DOTALL)
_COMPARISON = re.compile(r"([^<>=~]+?)\s*(>+|<+|=+|~)\s*([^<>=~]+)")
FEW = 5
"""A column with this many strengths or more must have both signs."""
EXAMPLE = "labels: {1: first, 2: second, 0: tie}"


class Labels:
    """Reads the labels of a table's column."""

    def __init__(self, columns: Columns, column: str) -> None:
        self.column, self.of_pairs = column, bool(columns.pairs)
        self.stated = {key_of(key): verdict for key, verdict in columns.labels.items()}
        self.strengths = any(not isinstance(verdict, str) for verdict in self.stated.values())
        self.words = {word: verdict for verdict, words in WORDS.items() for word in words}
        self.signs: set[int] = set()
        self.read = 0
        self.first_where = ""

    def verdict(
        self,
        value: Any,
        row: Row,
        texts: Sequence[str] = (),
        models: Sequence[str | None] = (),
        names: Sequence[str] = (),
    ) -> Verdict | None:
        """The verdict that a value stands for; None for an empty cell.

        Args:
            texts, models: of the two answers.
            names: their columns or keys, if they have one each.

        Raises `DataError` for an unknown value, or one that could mean either answer.
        """
        if is_empty(value):
            return None
        if self.stated:
            return self._stated(value, row)
        named = of_answer(value, texts, models)
        meant = {VERDICTS[("first", "second")[place]] for place in named}
        if isinstance(value, str):
            sides = {name.casefold(): side for name, side in zip(names, VERDICTS, strict=False)}
            if side := sides.get(value.strip().casefold()):
                if self.of_pairs and self.word(value) in {"first", "second"} - {side}:  # column b, or the second
                    raise self._ambiguous(value, row)
                return VERDICTS[side]
            if (verdict := self._spoken(value, sides)) is not None:
                meant.add(verdict)
        if not meant:
            return self._strength(value, row)
        if len(meant) > 1 or (named and is_number(value)):
            raise self._ambiguous(value, row)
        return meant.pop()

    def _ambiguous(self, value: Any, row: Row) -> DataError:
        return DataError(
            f"column {self.column!r} holds {value!r:.60}, which could mean either answer",
            where=row.where,
            hint=f"say in the recipe what the column's values mean, beside `format`: {EXAMPLE}",
        )

    def _spoken(self, value: str, names: Mapping[str, str]) -> Verdict | None:
        """The verdict of a word or a comparison; None for other text. `names`: column -> first or second."""
        if word := self.word(value):
            return VERDICTS[word]
        bracketed = _BRACKETED.fullmatch(value.strip())
        compared = _COMPARISON.fullmatch((bracketed[1] if bracketed else value).strip())
        if compared is None:
            return None
        sign = compared[2]
        sides = [names.get(side.strip().casefold()) or self.word(side) for side in compared.group(1, 3)]
        if sorted(map(str, sides)) != ["first", "second"]:
            return None
        if sign[0] not in "<>":
            return Verdict.of_strength(0.0)
        first_wins = (sides[0] == "first") == (sign[0] == ">")
        return Verdict.of_strength(-len(sign) if first_wins else len(sign))

    def word(self, value: str) -> str | None:
        """first, second or tie, where a text says so without the names of columns; None for other text."""
        text = re.sub(r"[\s_-]+", "_", value.strip().casefold())
        bracketed = _BRACKETED.fullmatch(text)
        return self.words.get(text) or (self.words.get(bracketed[1]) if bracketed else None)

    def _strength(self, value: Any, row: Row) -> Verdict:
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
        return Verdict.of_strength(strength)

    def _stated(self, value: Any, row: Row) -> Verdict:
        key = key_of(value)
        if key not in self.stated:
            raise DataError(
                f"column {self.column!r} holds {value!r:.60}, which `labels` does not name",
                where=row.where,
                hint=f"add it to `labels`, which names {', '.join(self.stated)}; or empty the cell",
            )
        stated = self.stated[key]
        if not isinstance(stated, str):
            return Verdict.of_strength(stated)
        return VERDICTS[stated]._replace(rated=self.strengths)

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


def preferences(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Two completions, and which is better: a word, a value that `labels` names, or a signed strength as in
    HelpSteer, below 0 where the first is.

    A list of such values, or of objects with a `score`, is one ranking per annotator. With `pairs` there are K
    completions and a label per pair, in a list or in a column each.
    """
    labelled, completions = columns.named["preference"], columns.named.get("completions")
    several = labelled if isinstance(labelled, list) else [labelled]
    if not columns.pairs and (len(several) > 1 or (isinstance(completions, list) and len(completions) != 2)):
        raise columns.error(
            "`preference` names several columns, and nothing says which completions each compares"
            if len(several) > 1
            else f"a preference orders 2 completions, and `completions` names {len(completions or [])}",
            "write completions: [first, second] and preference: column; of more completions, say beside `format` "
            "which two each label compares, pairs: [[0, 1], [0, 2], [1, 2]]",
        )
    readers = [Labels(columns, column) for column in several]

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        exchange = (*columns.exchange(row, items.named), columns.models(row, items), names_of(items, columns))
        if columns.pairs:
            values = [row[column] for column in several] if isinstance(labelled, list) else None
            yield from _compared(row, columns, readers, values, exchange)
            return
        _check_two(row, items, "a preference orders 2 completions")
        [column], [cell] = several, [row[column] for column in several]
        _, texts, models, names = exchange
        judged = by_annotator(row, columns, [cell], [*texts, *models, *names])
        if len(judged) > 1 and isinstance(completions, list):
            _check_annotators(row, column, as_values(cell) or (), completions[0])
        for annotator, [item] in judged:
            value = item.get("score") if isinstance(item, dict) else item
            yield _judged(exchange, readers[0], value, row, annotator)

    yield from each(rows, read)
    for reader in readers:
        reader.check()


def _judged(
    exchange: Exchange, labels: Labels, value: Any, row: Row, annotator: Annotator, pair: Sequence[int] = (0, 1)
) -> Candidates:
    """Two of the answers as a label orders them."""
    prompt, all_texts, all_models, all_names = exchange
    texts, models = [all_texts[place] for place in pair], [all_models[place] for place in pair]
    names = [all_names[place] for place in pair if all_names]
    verdict = labels.verdict(value, row, texts, models, names)
    scores = (None, None) if verdict is None else (verdict.first, verdict.second)
    answers = list(map(Completion, texts, scores, models))
    rated = verdict is not None and verdict.rated
    return Candidates(prompt, answers, row, annotator.name, rated=rated, weight=annotator.weight)


def _compared(
    row: Row, columns: Columns, readers: Sequence[Labels], cells: Sequence[Any] | None, exchange: Exchange
) -> Iterator[Candidates]:
    """A comparison of two answers per pair of the recipe's `pairs`, from the labels of a row in their order. Each
    may be a list, one label per annotator.

    Args:
        readers: of each pair's label, or a single one of them all.
        cells: the labels; None where they are a list in the reader's column, which is empty where nobody labelled.
    """
    column, count = readers[0].column, len(columns.pairs)
    values = as_list(row, column) if cells is None else cells
    if isinstance(values, Keyed):
        raise DataError(
            f"column {column!r} holds labels by key, and `pairs` is about labels in an order",
            where=row.where,
            hint="name the label of each pair, preference: [labels.first, ...], in the order of `pairs`",
        )
    if values and len(values) != count:
        raise DataError(
            f"column {column!r} holds {len(values)} labels, and `pairs` has {count} pairs",
            where=row.where,
            hint="write one label per pair, null for a pair that was not compared; or correct `pairs`",
        )
    highest, k = max(place for pair in columns.pairs for place in pair), len(exchange[1])
    if highest >= k:
        raise DataError(
            f"`pairs` names completion {highest}, and the row's {k} completions are numbered from 0",
            where=row.where,
            hint="correct `pairs`, or add the completions",
        )
    for annotator, labels in by_annotator(row, columns, values or [None] * count):
        for number, (pair, value) in enumerate(zip(columns.pairs, labels, strict=True)):
            yield _judged(exchange, readers[min(number, len(readers) - 1)], value, row, annotator, pair)


def _check_annotators(row: Row, column: str, values: Sequence[Any], completion: str) -> None:
    """Raises `DataError` for a list with one value per pair of K > 2 answers, as in qa_feedback: it would be read
    as one value per annotator."""
    alike = [name for name in row if re.sub(r"\d+", "", name) == re.sub(r"\d+", "", completion)]
    k = len(alike)
    if k > 2 and len(values) == k * (k - 1) // 2 and not any(isinstance(value, dict) for value in values):
        order = ", ".join(f"[{i}, {j}]" for i, j in combinations(range(k), 2))
        raise DataError(
            f"column {column!r} holds {len(values)} values, one per pair of the {k} columns {', '.join(alike)}",
            where=row.where,
            hint="a list here is one value per annotator of the two completions: name all completions, and say "
            f"beside `format` which two each value compares, pairs: [{order}]",
        )


def choice(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of texts or of objects with a `text`, and `choice`, which names the best (`places`);
    or what the recipe's `labels` or `pairs` say. `worst` may name the worst."""
    column, text = columns.name("choice"), columns.name("text")
    labels = Labels(columns, column)
    best = Places(
        column,
        index_from=columns.index_from or 0,
        also=f"; of two completions, `labels` may name values: {EXAMPLE}",
    )
    worst = Places(columns.name("worst"), index_from=columns.index_from or 0) if "worst" in columns.named else None

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        nodes = [as_object(item if isinstance(item, dict) else {text: item}, row) for item in items.values]
        named = [(name, node[text]) for name, node in zip(items.names, nodes, strict=True)]
        prompt, texts = columns.exchange(row, named)
        models = [columns.model(node) or key for node, key in zip(nodes, items.models, strict=True)]
        exchange = prompt, texts, models, items.keys or ()
        if columns.pairs:
            yield from _compared(row, columns, [labels], None, exchange)
            return
        if labels.stated:
            _check_two(row, items, "`labels` says which of 2 completions is better")
            for annotator, [value] in by_annotator(row, columns, [row[column]], [*texts, *models]):
                yield _judged(exchange, labels, value, row, annotator)
            return
        yield from placed(row, columns, exchange, best, worst)

    yield from each(rows, read)
    labels.check()


def _check_two(row: Row, items: Cells, what: str) -> None:
    if len(items.values) != 2:
        raise DataError(
            f"{what}, and the row has {len(items.values)}",
            where=row.where,
            hint="remove the row, or rank its completions by the place of the best, ratings or ranks; or say "
            "beside `format` which two each label of a list compares, pairs: [[0, 1], [0, 2], [1, 2]]",
        )
