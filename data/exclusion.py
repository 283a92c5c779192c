"""Prompts that a recipe excludes (`data.exclude`), by group: all conversations with the same first user turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data.schema import Demonstration, MergedRanking, Prompt, Ranking, row_number
from data.splits import group_of
from data.tables.demonstrations import read_prompts
from data.tables.reading import Reading
from data.tables.sources import Dropped
from pipeline.config.data import TableConfig

REASON = "excluded prompt"
"""Why a row is left out."""
HINT = "data.exclude lists its prompt"

Row = TypeVar("Row", Demonstration, Prompt, Ranking)


class Excluded:
    """The groups of the excluded prompts.

    Attributes:
        groups: as `data.splits.group_of` names them.
        met: those of which a row was left out.
    """

    def __init__(self, groups: Iterable[str] = ()) -> None:
        self.groups = frozenset(groups)
        self.met: set[str] = set()

    def left(self, rows: Iterable[Row], dropped: Dropped) -> Iterator[Row]:
        """The rows whose prompt is not excluded; the others are counted in `dropped`."""
        for row in rows:
            if (group := group_of(row.prompt)) in self.groups:
                self.met.add(group)
                if not isinstance(row, MergedRanking):  # the rankings that it merges are counted
                    dropped.add(REASON, row_number(row.where), HINT)
            else:
                yield row


def read_excluded(
    tables: dict[str, TableConfig], describe: Callable[[str], str], say: Callable[[str], None]
) -> Excluded:
    """The prompts of the tables, by dotted path. What the tables themselves leave out is said.

    Raises `DataError` or `RecipeError` when a table cannot be read or has no prompt.
    """
    groups: set[str] = set()
    for name, table in tables.items():
        reading = Reading(name, table)
        rows = reading.passing(read_prompts(table, 0.0, reading.dropped, say, name=name), describe)
        groups.update(group_of(prompt.prompt) for prompt in rows)
        for line in reading.lines():
            say(line)
    return Excluded(groups)
