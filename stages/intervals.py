"""Numbers with an interval, as the stages write them into their JSON files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95 % interval. All are None where there was nothing to measure."""

    value: float | None
    low: float | None
    high: float | None

    def side(self, of: float = 0.0) -> int:
        """1 if the interval lies above a number, -1 if it lies below, 0 if it contains it."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > of) - int(self.high < of)


@dataclass(frozen=True, kw_only=True)
class Share(Interval):
    """A share of pairs, with its 95 % interval and the number of pairs."""

    pairs: int
