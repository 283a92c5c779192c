"""The share of strict pairs whose first answer is better. Nearly all of them means labels read the wrong way."""

from __future__ import annotations

from itertools import combinations

from data.schema import Ranking
from data.tables.formats import FORMATS
from data.tables.suggest import count_of
from pipeline.config.data import RankingTableConfig
from pipeline.config.table_files import shown

SUSPICIOUS = 0.95
ENOUGH = 20
"""Strict pairs from which a share above `SUSPICIOUS`, or below one minus it, is a warning."""


class FirstWins:
    """Counts strict pairs of answers whose first is better, in the order of the table.

    Args:
        path: the table's; "" counts nothing, for rankings whose answers are in no table's order.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.first = self.strict = 0

    @classmethod
    def of(cls, config: RankingTableConfig) -> FirstWins:
        """Of a table. A format that puts the better answer first, or has unrelated rows, is not counted."""
        return cls("" if FORMATS[config.format].ordered else shown(config.path))

    def add(self, ranking: Ranking) -> None:
        if self.path:
            for first, second in combinations(ranking.ranks, 2):
                self.strict += first != second
                self.first += first < second

    @property
    def share(self) -> float | None:
        """Of strict pairs, those whose first answer is better; None without any."""
        return self.first / self.strict if self.strict else None

    def metrics(self) -> dict[str, float]:
        return {} if self.share is None else {"first_wins": self.share, "first_wins_pairs": self.strict}

    def line(self) -> str:
        """A line for the log, with a warning where the share is near 1 or near 0; empty without strict pairs."""
        if self.share is None:
            return ""
        pairs = count_of(self.strict, "strict pairs")
        line = f"the answer listed first is better in {100 * self.share:.1f} % of {pairs}"
        if self.strict >= ENOUGH and not 1 - SUSPICIOUS < self.share < SUSPICIOUS:
            line += (
                ". WARNING: the labels may be read the wrong way. Check a few rows of "
                f"{self.path}; this is right only if the table lists the better answer first (or last)"
            )
        return line
