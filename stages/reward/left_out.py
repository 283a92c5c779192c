"""Counts the rankings that training cannot use, by reason. Each ranking counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from data.schema import Ranking
from pipeline.engine.stage import Metrics

TOO_LONG, EQUAL, TIED = "longer than max_length", "all answers equal", "all answers tied"


@dataclass
class LeftOut:
    """Counts of the rankings of a table that are left out.

    A ranking is left out if it has no strict pair of distinct answers that fit into `max_length`. Otherwise it is
    used without the answers that are too long.

    Attributes:
        max_length: limit on prompt and answer together, in tokens.
        ties_teach: whether the objective learns from a ranking whose answers are all tied.
        read: number of rankings read.
        shortened: number of rankings used without some of their answers.
        counts: number of rankings left out, by reason.
        too_long: hashes of (prompt key, answer) that exceed the limit; the texts could take too much memory.
        longest: length of the longest of these, in tokens.
        key: the recipe key of `max_length`.
    """

    max_length: int
    ties_teach: bool = False
    read: int = 0
    shortened: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    too_long: set[int] = field(default_factory=set)
    longest: int = 0
    key: str = "reward.max_length"

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
            self.counts[TOO_LONG] += 1

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def used(self) -> int:
        return self.read - self.total

    def ties_count(self) -> None:
        """Counts the used rankings as left out too, for a table without a strict pair."""
        if self.used:
            self.counts[TIED] += self.used

    def metrics(self, prefix: str = "") -> Metrics:
        """Metrics. `dropped_rankings` of `read_rankings` are left out; it is the sum over
        `dropped_rankings/<reason>`."""
        return {
            f"{prefix}read_rankings": self.read,
            f"{prefix}dropped_rankings": self.total,
            **{f"{prefix}dropped_rankings/{reason}": count for reason, count in sorted(self.counts.items())},
            f"{prefix}rankings_shortened": self.shortened,
            f"{prefix}completions_too_long": len(self.too_long),
        }

    def describe(self, what: str) -> str:
        """Says how many of `what` are left out, and why; empty if none are."""
        words = {
            TOO_LONG: f"longer than {self.key} = {self.max_length} tokens (the longest: {self.longest})",
            EQUAL: "with answers that are all the same text",
            TIED: "with all answers tied",
        }
        parts = []
        if len(self.counts) == 1:
            parts.append(f"{self.total} of {self.read} {what} left out: {words[next(iter(self.counts))]}")
        elif self.counts:
            reasons = ", ".join(f"{count} {words[reason]}" for reason, count in self.counts.most_common())
            parts.append(f"{self.total} of {self.read} {what} left out: {reasons}")
        if self.shortened:
            answers = f"{self.shortened} of {self.read} {what} used without some answers"
            parts.append(answers if self.counts[TOO_LONG] else f"{answers}, {words[TOO_LONG]}")
        return "; ".join(parts)

    def hint(self, *, learns: bool = True) -> str:
        """Says what to change. `learns`: whether the rankings are for training rather than evaluation."""
        hints = []
        if self.counts[TOO_LONG] or self.shortened:
            hints.append(f"raise {self.key}")
        if self.counts[EQUAL]:
            hints.append("rank answers that differ")
        if self.counts[TIED]:
            davidson = ", or set reward.objective: davidson, which learns from ties"
            hints.append(f"rank answers strictly{davidson if learns and self.used else ''}")
        return "; ".join(hints)
