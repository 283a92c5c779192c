"""Rankings of the same answers by `unknown`: people whom the table tells apart and the recipe does not.

Two people who ranked the same answers become one where the recipe does not name the column that tells who ranked,
and their agreement is lost. The rule, for tables of people's rankings in a format with an `annotator` column:

- An error where an unused column that looks like annotators differs between repeats.
- An error where repeats order the answers differently, since a row cannot be a copy of another then. Tables of
  `pairs` are exempt: public ones hold repeated comparisons and do not tell who compared. So are other tables whose
  repeats are of two answers and fewer than a tenth of all rankings, where short answers may be alike by chance.
- Otherwise repeats are kept and counted, in one line.

`columns: {annotator: ""}` says that the table tells nobody apart, and switches the check off.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data.schema import Ranking, prompt_key, same_text
from data.tables.columns import ANONYMOUS
from data.tables.formats import FORMATS
from data.tables.mapping import paste
from data.tables.profile import SHORT, Profile
from data.tables.sources import Row
from data.tables.spill import Values, values
from data.tables.suggest import count_of
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

CHANCE = 0.1
"""Share of rankings below which repeats of two answers may be chance."""


class Repeats:
    """Counts the rankings by `unknown` whose prompt and answers an earlier one has.

    Args:
        name: dotted path of the table in a recipe.
        profile: of the table; it may still be filled.
    """

    def __init__(self, first: Values, name: str, table: RankingTableConfig, profile: Profile) -> None:
        self._first = first
        self.name, self.table, self.profile = name, table, profile
        roles = {column.name for column in FORMATS[table.format].columns}
        self.counted = table.human and "annotator" in roles and table.columns.get("annotator") != ""
        self.rankings = self.repeats = self.grouped = 0
        self.contrary: Counter[bool] = Counter()
        """Repeats in another order, by whether they are of more than two answers."""
        self.differing: Counter[str] = Counter()
        self.example: tuple[str, str] | None = None

    def add(self, ranking: Ranking, row: Row) -> None:
        self.rankings += 1
        if not self.counted or ranking.annotator != ANONYMOUS:
            return
        answers = sorted(zip(map(same_text, ranking.completions), ranking.ranks, strict=True))
        key = json.dumps([prompt_key(ranking.prompt), [text for text, _ in answers]])
        places = sorted({rank for _, rank in answers})
        order = [places.index(rank) for _, rank in answers]
        cells = {name: str(value) for name, value in row.items() if _is_short(value)}
        earlier = self._first.setdefault(key, [ranking.where, order, cells])
        if earlier is None:
            return
        where, its_order, its_cells = earlier
        self.differing.update(name for name in cells if its_cells.get(name) not in (None, cells[name]))
        self._note(where, ranking.where, its_order != order, len(answers) > 2)

    def add_contested(self, first: str, second: str, answers: int) -> None:
        """Two rows of one group (format `long`) that place the same answer differently; `answers` are in it."""
        if self.counted and first != second:
            self.grouped += 1
            self._note(first, second, True, answers > 2)

    def _note(self, first: str, second: str, contrary: bool, several: bool) -> None:
        self.repeats += 1
        if (contrary and not self.contrary) or self.example is None:
            self.example = first, second
        if contrary:
            self.contrary[several] += 1

    def problem(self) -> DataError | None:
        """The error, if this table's repeats are one."""
        if not self.repeats or self.example is None:
            return None
        columns = self.profile.annotators(self.name, self.table)
        telling = [column for column in columns if self.differing[column] or self.table.format == "long"]
        too_many = self.repeats >= CHANCE * (self.rankings + self.grouped)
        contrary = self.contrary.total() if too_many else self.contrary[True] and self.table.format != "long"
        if not telling and (not contrary or self.table.format == "pairs"):
            return None
        if self.grouped:
            alone = f"set {paste(self.name, {'group': 'COLUMN'})} if a column tells rankings apart"
        else:
            alone = f"set {paste(self.name, {'annotator': ''})} if they are by one person"
        column = next(iter(telling or self._distinguishing() or columns), None)
        if column is not None:
            hint = (
                f"set {paste(self.name, {'annotator': column})} if column {column!r} names who ranked; or {alone}"
            )
        else:
            hint = (
                "add a column that names who ranked each row, and set "
                f"{paste(self.name, {'annotator': 'COLUMN'})}; or {alone}"
                + ("" if self.grouped else ", or nobody knows")
            )
        return DataError(
            f"{self._count()}, all by {ANONYMOUS!r}: people are not told apart, and their agreement is not known",
            where=" and ".join(self.example),
            hint=hint,
        )

    def _distinguishing(self) -> list[str]:
        """Unused columns of a few short values that differ in every repeat."""
        columns = self.profile.columns
        return [
            column
            for column in self.profile.unused(self.name, self.table)
            if self.differing[column] == self.repeats and columns[column].is_short and columns[column].repeats
        ]

    def check(self) -> None:
        """Raises `problem`."""
        if problem := self.problem():
            raise problem

    def lines(self) -> Iterator[str]:
        """A line for the log, where repeats are no error."""
        if not self.repeats or self.example is None:
            return
        order = f"{self.contrary.total():,} in another order" if self.contrary else "all in the same order"
        yield (
            f"{self.name}: {self._count()}, by {ANONYMOUS!r} ({order}; {' and '.join(self.example)}). They are "
            "kept. Remove them if they are copies; "
            f"set {paste(self.name, {'annotator': 'COLUMN'})} if a column names who ranked"
        )

    def _count(self) -> str:
        if self.grouped:
            verb = "holds" if self.grouped == 1 else "hold"
            return f"{count_of(self.grouped, 'groups')} of rows with the same prompt {verb} an answer at two places"
        verb = "repeats" if self.repeats == 1 else "repeat"
        return f"{self.repeats:,} of {self.rankings:,} rankings {verb} the prompt and answers of an earlier one"


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= SHORT)


@contextmanager
def repeats(name: str, table: RankingTableConfig, profile: Profile) -> Iterator[Repeats]:
    """A `Repeats` that spills to the disk beyond a few megabytes."""
    with values() as first:
        yield Repeats(first, name, table, profile)
