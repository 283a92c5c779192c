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

from data.schema import Message
from data.tables.columns import Candidates, Columns, Completion, as_list, as_object, each, key_of
from data.tables.places import Places, is_number, of_answer, scores_of
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
Exchange = tuple[list[Message], Sequence[str], Sequence[str | None]]
"""Prompt, texts and models of a row's completions."""
FEW = 5
"""A column with this many strengths or more must have both signs."""
EXAMPLE = "labels: {1: first, 2: second, 0: tie}"


class Labels:
    """Reads the labels of a table's column."""

    def __init__(self, columns: Columns, column: str) -> None:
        self.column = column
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
            names: their columns, if they have one each.

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
                return VERDICTS[side]
            if (verdict := self._spoken(value, sides)) is not None:
                meant.add(verdict)
        if not meant:
            return self._strength(value, row)
        if len(meant) > 1 or (named and is_number(value)):
            raise DataError(
                f"column {self.column!r} holds {value!r:.60}, which could mean either answer",
                where=row.where,
                hint=f"say in the recipe what the column's values mean, beside `format`: {EXAMPLE}",
            )
        return meant.pop()

    def _spoken(self, value: str, names: Mapping[str, str]) -> Verdict | None:
        """The verdict of a word or a comparison; None for other text. `names`: column -> first or second."""
        if word := self._word(value):
            return VERDICTS[word]
        bracketed = _BRACKETED.fullmatch(value.strip())
        compared = _COMPARISON.fullmatch((bracketed[1] if bracketed else value).strip())
        if compared is None:
            return None
        sign = compared[2]
        sides = [names.get(side.strip().casefold()) or self._word(side) for side in compared.group(1, 3)]
        if sorted(map(str, sides)) != ["first", "second"]:
            return None
        if sign[0] not in "<>":
            return Verdict.of_strength(0.0)
        first_wins = (sides[0] == "first") == (sign[0] == ">")
        return Verdict.of_strength(-len(sign) if first_wins else len(sign))

    def _word(self, value: str) -> str | None:
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


def preferences(
    rows: Iterator[Row], columns: Columns, completions: list[str], models: list[str]
) -> Iterator[Candidates]:
    """Two completions, and which is better: a word, a value that `labels` names, or a signed strength as in
    HelpSteer, below 0 where the first is.

    A list of such values, or of objects with a `score`, is one ranking per entry; annotators are numbered by place.
    With `pairs` there are K completions and a label per pair, in a list or in a column each.
    """
    labelled = columns.named["preference"]
    if columns.pairs:
        several = labelled if isinstance(labelled, list) else [labelled]
        readers = [Labels(columns, column) for column in several]

        def read_pairs(row: Row) -> Iterator[Candidates]:
            prompt, texts = columns.exchange(row, columns.cells(row, completions))
            written = [row.text(model) for model in models]
            values = [row[column] for column in several] if isinstance(labelled, list) else as_list(row, labelled)
            yield from _compared(row, columns, readers, values, (prompt, texts, written), completions)

        yield from each(rows, read_pairs)
        for reader in readers:
            reader.check()
        return
    if isinstance(labelled, list) or len(completions) != 2:
        raise columns.error(
            f"a preference orders 2 completions, and `completions` names {len(completions)}"
            if isinstance(labelled, str)
            else "`preference` names several columns, and nothing says which completions each compares",
            "write completions: [first, second] and preference: column; of more completions, say beside `format` "
            "which two each label compares, pairs: [[0, 1], [0, 2], [1, 2]]",
        )
    column = columns.name("preference")
    labels = Labels(columns, column)

    def read(row: Row) -> Iterator[Candidates]:
        annotator = columns.annotator(row)
        prompt, texts = columns.exchange(row, columns.cells(row, completions))
        written = [row.text(model) for model in models]
        several = isinstance(row[column], list)
        if several:
            _check_annotators(row, column, completions[0])
        for place, item in enumerate(row[column] if several else [row[column]], 1):
            value = item.get("score") if isinstance(item, dict) else item
            verdict = labels.verdict(value, row, texts, written, completions)
            name = f"{annotator}-{place}" if several else annotator
            yield _judged(prompt, texts, written, verdict, row, name)

    yield from each(rows, read)
    labels.check()


def _judged(
    prompt: list[Message],
    texts: Sequence[str],
    models: Sequence[str | None],
    verdict: Verdict | None,
    row: Row,
    annotator: str,
) -> Candidates:
    """Two answers as a verdict orders them."""
    scores = (None, None) if verdict is None else (verdict.first, verdict.second)
    answers = [Completion(text, score) for text, score in zip(texts, scores, strict=True)]
    for answer, model in zip(answers, models, strict=False):
        answer.model = model
    return Candidates(prompt, answers, row, annotator, rated=verdict is not None and verdict.rated)


def _compared(
    row: Row,
    columns: Columns,
    readers: Sequence[Labels],
    values: Sequence[Any],
    exchange: Exchange,
    names: Sequence[str] = (),
) -> Iterator[Candidates]:
    """A comparison of two answers per pair of the recipe's `pairs`, from the labels of a row in their order.

    Args:
        readers: of each pair's label, or a single one of them all.
        values: the labels; none at all for a row that nobody labelled.
        exchange: prompt, texts and models.
        names: the columns of the completions, if they have one each.
    """
    prompt, texts, models = exchange
    if values and len(values) != len(columns.pairs):
        raise DataError(
            f"column {readers[0].column!r} holds {len(values)} labels, and `pairs` has {len(columns.pairs)} pairs",
            where=row.where,
            hint="write one label per pair, null for a pair that was not compared; or correct `pairs`",
        )
    highest = max(place for pair in columns.pairs for place in pair)
    if highest >= len(texts):
        raise DataError(
            f"`pairs` names completion {highest}, and the row's {len(texts)} completions are numbered from 0",
            where=row.where,
            hint="correct `pairs`, or add the completions",
        )
    annotator = columns.annotator(row)
    for number, pair in enumerate(columns.pairs):
        two, written = [texts[place] for place in pair], [models[place] for place in pair if models]
        value = values[number] if values else None
        both = [names[place] for place in pair if names]
        verdict = readers[min(number, len(readers) - 1)].verdict(value, row, two, written, both)
        yield _judged(prompt, two, written, verdict, row, annotator)


def _check_annotators(row: Row, column: str, completion: str) -> None:
    """Raises `DataError` for a list with one value per pair of K > 2 answers, as in qa_feedback: it would be read
    as one value per annotator."""
    alike = [name for name in row if re.sub(r"\d+", "", name) == re.sub(r"\d+", "", completion)]
    values, k = row[column], len(alike)
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
        items = as_list(row, columns.name("completions"))
        nodes = [as_object(item if isinstance(item, dict) else {text: item}, row) for item in items]
        named = [(f"completion {place} of the row", node[text]) for place, node in enumerate(nodes, 1)]
        prompt, texts = columns.exchange(row, named)
        models = [columns.model(node) for node in nodes]
        if columns.pairs:
            yield from _compared(row, columns, [labels], as_list(row, column), (prompt, texts, models))
            return
        if labels.stated:
            _check_two(row, len(texts))
            yield _judged(prompt, texts, models, labels.verdict(row[column], row), row, columns.annotator(row))
            return
        scores = scores_of(row, texts, models, best, worst)
        answers = [Completion(*answer) for answer in zip(texts, scores, models, strict=True)]
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=False)

    yield from each(rows, read)
    labels.check()


def _check_two(row: Row, completions: int) -> None:
    if completions != 2:
        raise DataError(
            f"`labels` says which of 2 completions is better, and there are {completions}",
            where=row.where,
            hint="leave `labels` out: `choice` is then the place of the best, counted from 0; or say beside "
            "`format` which two each label of a list compares, pairs: [[0, 1], [0, 2], [1, 2]]",
        )
