"""Columns that belong together: `reply_1` to `reply_4` with `pos_1` to `pos_4`, `answer_a` to `answer_c`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.tables.guess.sample import Sample
from data.tables.suggest import SYNONYMS, words_of

COMPLETION_WORDS = {
    "completion",
    *SYNONYMS["completion"],
    *("ref", "candidate", "option", "generation", "variant", "hypothesis", "candidate", "completions", "answers"),
}
RANK_WORDS = {"rank", *SYNONYMS["rank"], "ranks"}
RATING_WORDS = {"rating", *SYNONYMS["rating"], "ratings", "helpfulness", "likert", "overall"}
MARK_WORDS = {"note", "noten", "schulnote"}
"""Words of marks whose best is 1 in one country and the highest in another."""
WIN_WORDS = {"win", "wins", "winner", "vote", "votes", "chosen", "preferred"}
"""Words of ratings that are 1 for the winner and 0 for the others."""
MODEL_WORDS = {"model", *SYNONYMS["model"], "models", "sys", "engine"}
OTHER_WORDS = {"length", "len", "tokens", "chars", "words", "id", "ids", "seconds", "time", "index", "cost", "seed"}
"""Words of numbers that order nothing."""

PREFERENCE_WORDS = {"preference", "preferred", "label", "winner", "choice", "better", "best", "vote", "verdict"}
"""Words of a column that says which of several answers is the best."""

VERDICT_WORDS = RATING_WORDS | PREFERENCE_WORDS | {"feedback", "thumb", "thumbs", "like", "liked", "reaction"}
"""Words of a column with a label for the answer in its row."""

Order = Literal["ranks", "ratings"]
ENOUGH = 5
"""Rankings that must look like places from 1 before values outweigh an unknown name."""


@dataclass(frozen=True)
class Family:
    """Columns whose names differ only in a number from 0 or 1, or in a letter from a.

    Attributes:
        words: what their names share.
        members: index -> column, in order.
    """

    words: tuple[str, ...]
    members: dict[int, str]

    @property
    def columns(self) -> list[str]:
        return list(self.members.values())

    def is_called(self, known: Iterable[str]) -> bool:
        """Whether the shared name, or one of its words, is one of `known`."""
        return not {*self.words, "_".join(self.words)}.isdisjoint(known)


def families(columns: Sequence[str]) -> list[Family]:
    """The families among a table's columns."""
    by_name: dict[tuple[str, ...], dict[int, str]] = {}
    for column in columns:
        parts = words_of(column)
        place = next((i for i in reversed(range(len(parts))) if parts[i].isdigit()), None)
        if place is None:
            place = next((i for i in reversed(range(len(parts))) if parts[i] in list("abcdefghij")), None)
        if place is not None:
            index = int(parts[place]) if parts[place].isdigit() else ord(parts[place]) - ord("a") + 1
            by_name.setdefault((*parts[:place], *parts[place + 1 :]), {}).setdefault(index, column)
    return [
        Family(name, dict(sorted(members.items())))
        for name, members in by_name.items()
        if len(members) > 1 and sorted(members) in (list(range(len(members))), list(range(1, len(members) + 1)))
    ]


def are_places(values: Sequence[float]) -> bool:
    """Whether numbers are the places of a ranking, counted from 0 or 1: without gaps (1, 2, 2, 3), or with a gap
    after a tie (1, 2, 2, 4)."""
    ordered = sorted(values)
    if ordered[0] not in (0, 1):
        return False
    dense = set(ordered) == {ordered[0] + step for step in range(len(set(ordered)))}
    return dense or all(value == ordered[0] + sum(v < value for v in ordered) for value in ordered)


def order_of(name: Iterable[str], rankings: Iterable[Sequence[float]], where: str) -> tuple[Order | None, str]:
    """Whether numbers are ranks (1 is the best) or ratings (larger is better), and why; None if name and values
    contradict each other or say nothing.

    Args:
        name: words of the column's name.
        rankings: the numbers of each ranking, one per answer.
        where: the columns, for the reason.
    """
    distinct = [values for values in rankings if len(values) > 1 and len(set(values)) > 1]
    places = sum(map(are_places, distinct))
    from_zero = any(min(values) == 0 for values in distinct)
    looks_ranked = bool(distinct) and places >= 0.95 * len(distinct)
    low = min((min(values) for values in distinct), default=0.0)
    high = max((max(values) for values in distinct), default=0.0)
    span = f"values from {low:g} to {high:g}"
    called = set(name)
    if called & WIN_WORDS:
        return "ratings", "larger is better: 1 marks the winner"
    if called & RANK_WORDS:
        if looks_ranked or not distinct:
            return "ranks", "1 is best: the name says so, and each ranking's numbers are places"
        return None, f"{where} is named like ranks, but its numbers are not places of a ranking ({span})"
    if called & MARK_WORDS and (not distinct or (low >= 1 and high <= 6)):
        return (
            None,
            f"{where} may be marks of which 1 is the best, as in Germany, or of which the highest is ({span})",
        )
    if called & RATING_WORDS:
        if not looks_ranked or from_zero or len(distinct) < ENOUGH:
            return "ratings", f"larger is better: the name says so ({span})"
        return None, f"{where} is named like ratings, but its numbers are places: each ranking has 1, 2, ... once"
    if looks_ranked and not from_zero and len(distinct) >= ENOUGH and max(map(len, distinct)) > 2:
        return "ranks", "1 is best: each ranking's numbers are places, 1, 2, ..."
    if distinct and not looks_ranked:
        return "ratings", f"larger is better: the numbers are not places ({span})"
    return None, f"nothing says whether larger or smaller is better in {where} ({span})"


def rankings_of(sample: Sample, numbers: Family, texts: Family) -> list[list[float]]:
    """The numbers of each row, of the answers that are not empty."""
    rows = []
    for row in sample.rows:
        cells = [
            row.get(column) for index, column in numbers.members.items() if str(row.get(texts.members[index]) or "")
        ]
        rows.append([float(cell) for cell in cells if cell is not None and str(cell).strip()])
    return rows
