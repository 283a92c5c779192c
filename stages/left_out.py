"""What a stage cannot use: rows counted by reason, printed in one line, and an error when nothing is left.

Imports no torch: the report reads the metrics by the same names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.schema import Split
from pipeline.engine.stage import Metrics
from pipeline.errors import DataError

PREFIXES = {
    "": "training {rows}",
    "eval_": "held-out {rows}",
    "transfer_": "{rows} of data.eval_rankings",
    "collected_": "collected {rows}",
    "pretraining_": "{rows} of reward.pretrain_on",
    "corpus_": "{rows} of base.pretrain.corpus",
    "ptx_": "{rows} for ppo.ptx_coef",
}
"""Prefix of the metrics -> which rows they count."""
STEP = 8
"""Limits that messages propose are multiples of it, tokens."""
_METRIC = re.compile(rf"({'|'.join(PREFIXES)})dropped_(\w+)/(.+)")


def of_split(split: Split) -> str:
    """The prefix of a split's rows."""
    return "eval_" if split == "eval" else ""


@dataclass
class LeftOut:
    """Counts the rows of one kind that a stage leaves out, by reason. Each row counts once.

    Attributes:
        rows: what they are: prompts, demonstrations or rankings.
        prefix: which of them, one of `PREFIXES`.
        key: the recipe key, or sum of keys, that limits their length; its section is the stage.
        limit: its value, tokens; None: there is none.
        measured: what of a row the limit applies to, if not the row itself.
        read: number of rows read.
        counts: number of rows left out, by reason.
        longest: length of the longest row beyond the limit, tokens.
        hints: what to do about each reason that is not the length.
    """

    rows: str
    prefix: str
    key: str
    limit: int | None
    measured: str = ""
    read: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.key.partition(".")[0]

    @property
    def what(self) -> str:
        """The rows in words, such as `held-out prompts`."""
        return PREFIXES[self.prefix].format(rows=self.rows)

    @property
    def too_long(self) -> str:
        """The reason for rows beyond the limit, as it is in the metrics."""
        return f"longer than {self.key.replace(f'{self.stage}.', '')}"

    @property
    def raising(self) -> str:
        """The hint for rows beyond the limit: the value that keeps all, where a single key is the limit."""
        if " + " in self.key or not self.longest:
            return f"raise {self.key.replace(' + ', ' or ')}"
        return f"raise {self.key} to {-(-self.longest // STEP) * STEP}"

    @property
    def total(self) -> int:
        return self.counts.total()

    def fits(self, length: int) -> bool:
        """Counts a row of `length` tokens. Returns whether it is used."""
        self.read += 1
        if self.limit is None or length <= self.limit:
            return True
        self.counts[self.too_long] += 1
        self.longest = max(self.longest, length)
        return False

    def metrics(self) -> Metrics:
        """`dropped_<rows>` of `read_<rows>` are left out, the sum over `dropped_<rows>/<reason>`. `longest_<rows>`:
        tokens of the longest, if any is too long."""
        return {
            f"{self.prefix}read_{self.rows}": self.read,
            f"{self.prefix}dropped_{self.rows}": self.total,
            **{
                f"{self.prefix}dropped_{self.rows}/{reason}": count for reason, count in sorted(self.counts.items())
            },
            **({f"{self.prefix}longest_{self.rows}": self.longest} if self.longest else {}),
        }

    def words(self) -> dict[str, str]:
        """Each reason in words."""
        limit = f"longer than {self.key} = {self.limit} tokens (the longest has {self.longest:,})"
        return {self.too_long: f"{self.measured} {limit}".strip()}

    def describe(self) -> str:
        """How many rows are left out, and why; empty if none are."""
        if not self.counts:
            return ""
        words = self.words()
        reasons = [f"{count:,} {words.get(reason, reason)}" for reason, count in self.counts.most_common()]
        why = reasons[0].partition(" ")[2].removeprefix("with ") if len(reasons) == 1 else ", ".join(reasons)
        return f"{self.total:,} of {self.read:,} {self.what} left out: {why}"

    def hint(self) -> str:
        """What to change in order to use them; empty if none are left out."""
        hints = [self.raising] if self.counts[self.too_long] else []
        return "; ".join([*hints, *(hint for reason, hint in self.hints.items() if self.counts[reason])])

    def line(self) -> str:
        """The line to print; empty if nothing is left out."""
        what, hint = self.describe(), self.hint()
        if not what:
            return ""
        advice = f"To use them: {hint}." if hint else ""
        if hint == self.raising:  # the sentence before says why
            _, to, limit = hint.partition(" to ")
            lost = f"; {100 * self.total / self.read:.1f} % are lost" if self.total else ""
            advice = f"{limit} keeps all{lost}." if to else "Raise it."
        return f"{self.stage}: {what}. {advice}".strip()

    def report(self, say: Callable[[str], None]) -> None:
        """Prints the line, if anything is left out."""
        if line := self.line():
            say(line)

    def error(self, describe: Callable[[str], str], where: str, hint: str) -> DataError:
        """The error when no row is left: the reason if rows were left out; otherwise that there are none.

        Args:
            describe: recipe key -> where it is set.
            where, hint: for the error when there are no rows at all.
        """
        if not self.counts:
            return DataError(f"{self.stage}: there are no {self.what}", where=where, hint=hint)
        if self.counts[self.too_long]:
            where = describe(self.key.partition(" ")[0])
        return DataError(f"{self.stage}: {self.describe()}", where=where, hint=self.hint())


@dataclass(frozen=True)
class Loss:
    """Rows that a finished stage left out for one reason, as its metrics have them.

    Attributes:
        what: the rows in words.
        read: rows read; None where it is not recorded.
        reason: with the longest row, if it was too long.
    """

    what: str
    read: int | None
    reason: str
    count: int


def losses(metrics: Mapping[str, Any]) -> Iterator[Loss]:
    """What the metrics of a stage count as left out."""
    for name, count in metrics.items():
        if match := _METRIC.fullmatch(name):
            prefix, rows, reason = match.groups()
            longest = metrics.get(f"{prefix}longest_{rows}") if reason.startswith("longer than") else None
            yield Loss(
                PREFIXES[prefix].format(rows=rows),
                metrics.get(f"{prefix}read_{rows}"),
                reason + (f" (the longest has {longest:,} tokens)" if longest else ""),
                count,
            )
