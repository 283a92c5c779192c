"""The share of rankings whose first answer is better. Nearly all of them means labels read the wrong way."""

from __future__ import annotations

from collections.abc import Iterator

from data.schema import Ranking
from data.tables.formats import FORMATS
from pipeline.config.data import RankingTableConfig

SUSPICIOUS = 0.95
ENOUGH = 20
"""Strict pairs from which a share above `SUSPICIOUS`, or below one minus it, is a warning."""


class FirstWins:
    """Counts rankings of two answers whose first is better, in the order of the table.

    Args:
        config: the table; None: nothing is counted.
        name: dotted path of the table in the recipe.
    """

    def __init__(self, config: RankingTableConfig | None, name: str = "data.rankings") -> None:
        self.config, self.name = config, name
        self.counted = config is not None and not FORMATS[config.format].ordered
        self.first = self.strict = 0

    def add(self, ranking: Ranking) -> None:
        if self.counted and len(ranking.ranks) == 2 and ranking.ranks[0] != ranking.ranks[1]:
            self.strict += 1
            self.first += ranking.ranks[0] < ranking.ranks[1]

    @property
    def share(self) -> float | None:
        """Of strict pairs, those whose first answer is better; None without any."""
        return self.first / self.strict if self.strict else None

    def metrics(self) -> dict[str, float]:
        return {} if self.share is None else {"first_wins": self.share}

    def lines(self) -> Iterator[str]:
        """A line for the log, with a warning where the share is near 1 or near 0."""
        if self.share is None or self.config is None:
            return
        line = f"{self.name}: the first of two answers is better in {100 * self.share:.1f} % of {self.strict:,}"
        if self.strict >= ENOUGH and not 1 - SUSPICIOUS < self.share < SUSPICIOUS:
            line += (
                ". WARNING: the labels may be read the wrong way. Check a few rows of "
                f"{self.config.path}; this is right only if the table lists the better answer first (or last)"
            )
        yield line
