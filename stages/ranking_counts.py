"""What the `data` stage counts of the rankings that it writes: of each table of rankings, and of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from data.held_out import RANKED, too_few
from data.schema import MergedRanking, Ranking, prompt_key, read_rankings_file
from data.tables.first_wins import FirstWins
from data.tables.summary import RankingSummary, summary
from pipeline.config.data import DataConfig, RankingTableConfig
from pipeline.engine.stage import Metrics
from stages.artifacts import MERGED, RANKINGS

K = TypeVar("K")


@dataclass
class TableCounts:
    """Counts of a table's rankings.

    Attributes:
        figures: of the rankings by single annotators.
        merges: whether the recipe merges annotators (`consensus`).
        splits: rankings by single annotators, by split.
        merged: rankings that merge annotators, by split.
        ranked: keys of the held-out prompts with rankings.
    """

    figures: RankingSummary
    merges: bool
    splits: Counter[str] = field(default_factory=Counter)
    merged: Counter[str] = field(default_factory=Counter)
    ranked: set[str] = field(default_factory=set)

    def add(self, ranking: Ranking, *, merged: bool) -> None:
        (self.merged if merged else self.splits)[ranking.split] += 1
        if not merged:
            self.figures.add(ranking)
        if ranking.split == "eval":
            self.ranked.add(prompt_key(ranking.prompt))

    @property
    def total(self) -> int:
        """All of them. Where annotators are merged, there may be no ranking by a single one."""
        return self.splits.total() + self.merged.total()

    def metrics(self) -> Metrics:
        return {
            **by_split("rankings", self.splits),
            **(by_split(MERGED, self.merged) if self.merges else {}),
            "ranked_prompts_eval": len(self.ranked),
            **self.figures.metrics(),
        }


class RankingCounts:
    """The counts of each table of rankings, by criterion. Use `counts()`."""

    def __init__(self, tables: dict[str | None, TableCounts]) -> None:
        self.tables = tables

    def add(self, ranking: Ranking, *, merged: bool | None = None) -> None:
        """Counts a ranking. `merged`: whether it merges annotators; None: as its class says."""
        is_merged = isinstance(ranking, MergedRanking) if merged is None else merged
        self.tables[ranking.criterion].add(ranking, merged=is_merged)

    def add_files(self, folder: Path) -> None:
        """Counts the rankings that the stage has written to a folder."""
        for file, merged in ((RANKINGS, False), (f"{MERGED}.jsonl", True)):
            if (folder / file).is_file():
                for ranking in read_rankings_file(folder / file):
                    self.add(ranking, merged=merged)

    def warnings(self) -> Iterator[str]:
        """Warnings about too few held-out prompts with rankings."""
        for criterion, table in self.tables.items():
            if warning := too_few(len(table.ranked), RANKED):
                yield warning if criterion is None else f"{criterion}: {warning}"

    def metrics(self) -> Metrics:
        """Of the only table; of several criteria, the counts that have a sum."""
        tables = list(self.tables.values())
        if None in self.tables or not tables:
            return tables[0].metrics() if tables else {}
        sizes = _sum(table.figures.sizes for table in tables)
        return {
            **by_split("rankings", _sum(table.splits for table in tables)),
            **(by_split(MERGED, _sum(table.merged for table in tables)) if any(t.merges for t in tables) else {}),
            "ranked_prompts_eval": len(set().union(*(table.ranked for table in tables))),
            **{f"rankings_of_{k}": count for k, count in sorted(sizes.items())},
            "annotators": len(_sum(table.figures.sample.annotators for table in tables)),
            "human": all(table.figures.sample.human for table in tables),
        }


def _sum(counters: Iterable[Counter[K]]) -> Counter[K]:
    return sum(counters, Counter[K]())


def by_split(table: str, counts: Counter[str]) -> dict[str, int]:
    return {f"{table}_{split}": counts.get(split, 0) for split in ("train", "eval")}


@contextmanager
def counts(config: DataConfig) -> Iterator[RankingCounts]:
    """Counts for the recipe's tables of rankings, whose memory spills to the disk beyond a few megabytes."""
    with ExitStack() as opened:

        def of(table: RankingTableConfig) -> TableCounts:
            return TableCounts(opened.enter_context(summary(FirstWins.of(table))), table.consensus != "none")

        yield RankingCounts({criterion: of(table) for criterion, table in config.ranking_tables.items()})
