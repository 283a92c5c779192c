"""The account of one table while a stage reads it: what is left out, what its columns hold, and how to say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data.tables.mapping import Table, located
from data.tables.profile import Profile, usage_lines
from data.tables.repeats import Repeats
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.formats import text_table

T = TypeVar("T")


class Reading:
    """Counts and lines of a table.

    Args:
        name: dotted path of the table in the recipe, such as `data.rankings`.
        table: what the recipe says about it; None where rows are generated, or there are none.

    Attributes:
        dropped: for the reader of the table.
        repeats: of a table of rankings, for its reader; set by whom reads it.
        kept: what the rows became, as counted by `passing`.
    """

    def __init__(self, name: str, table: Table | None) -> None:
        self.name, self.table = name, table
        self.dropped, self.profile = Dropped(), Profile()
        self.dropped.on_row = self.profile.add
        self.repeats: Repeats | None = None
        self.kept = 0

    def passing(self, items: Iterable[T], describe: Callable[[str], str]) -> Iterator[T]:
        """`items`, which the table's reader yields, counted. Raises errors about a missing column as `located`."""
        if self.table is None:
            yield from items
            return
        with located(self.name, self.table, describe, self.profile.columns):
            for item in items:
                self.kept += 1
                yield item

    def lines(self) -> Iterator[str]:
        """Lines for the user, after the last row: unused columns, repeated rankings, and what was left out."""
        if self.table is None:
            return
        yield from usage_lines(self.name, self.table, self.profile)
        if self.repeats is not None:
            yield from self.repeats.lines()
        what = "rankings" if isinstance(self.table, RankingTableConfig) else text_table(self.name).name
        if line := self.dropped.line(self.name, what, self.kept):
            yield line
