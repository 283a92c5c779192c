"""Counts the rankings that training cannot use, by reason. Each ranking counts once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from data.schema import Ranking
from pipeline.engine.stage import Metrics
from stages.left_out import LeftOut

EQUAL, TIED = "all answers equal", "all answers tied"
TEACHES_TIES = ("davidson", "regression")
"""Objectives that learn from a ranking in which all answers are tied."""
NO_STRICT_PAIR = "give rankings with at least one strict preference"
"""The hint where there are no rankings at all."""


@dataclass
class RankingsLeftOut(LeftOut):
    """Counts of the rankings of a table that are left out.

    A ranking is left out if it has no strict pair of distinct answers that fit into the limit. Otherwise it is used
    without the answers that are too long.

    Attributes:
        ties_teach: whether the objective learns from a ranking whose answers are all tied.
        shortened: number of rankings used without some of their answers.
        long_answers: hashes of (prompt key, answer) that exceed the limit; the texts could take too much memory.
    """

    measured: str = "with prompt and answer"
    ties_teach: bool = False
    shortened: int = 0
    long_answers: set[int] = field(default_factory=set)

    def count(self, ranking: Ranking, fitting: Collection[int]) -> None:
        """Counts a ranking. `fitting`: the indices of its distinct completions that fit."""
        self.read += 1
        distinct = len(set(ranking.completions))
        levels = len({ranking.ranks[place] for place in fitting})
        if levels > 1 or (len(fitting) > 1 and self.ties_teach):
            self.shortened += len(fitting) < distinct
        elif distinct < 2:
            self.counts[EQUAL] += 1
        elif len(fitting) == distinct or (len(fitting) > 1 and len(set(ranking.ranks)) == 1):
            self.counts[TIED] += 1
        else:
            self.counts[self.too_long] += 1

    @property
    def used(self) -> int:
        return self.read - self.total

    def ties_count(self) -> None:
        """Counts the used rankings as left out too, for a table without a strict pair."""
        if self.used:
            self.counts[TIED] += self.used

    def metrics(self) -> Metrics:
        return {
            **super().metrics(),
            f"{self.prefix}rankings_shortened": self.shortened,
            f"{self.prefix}completions_too_long": len(self.long_answers),
        }

    def words(self) -> dict[str, str]:
        return super().words() | {
            EQUAL: "with answers that are all the same text",
            TIED: "with all answers tied",
        }

    def describe(self) -> str:
        left_out = super().describe()
        if not self.shortened:
            return left_out
        answers = f"{self.shortened:,} of {self.read:,} {self.what} used without some answers"
        if self.counts[self.too_long]:
            return f"{left_out}; {answers}"
        return "; ".join(
            part for part in (left_out, f"{answers}: {self.words()[self.too_long].removeprefix('with ')}") if part
        )

    def hint(self) -> str:
        hints = []
        if self.counts[self.too_long] or self.shortened:
            hints.append(self.raising)
        if self.counts[EQUAL]:
            hints.append("rank answers that differ")
        if self.counts[TIED]:
            learns = self.stage == "reward" and self.prefix not in ("eval_", "transfer_") and self.used
            davidson = ", or set reward.objective: davidson, which learns from ties" if learns else ""
            hints.append(f"rank answers strictly{davidson}")
        return "; ".join(hints)
