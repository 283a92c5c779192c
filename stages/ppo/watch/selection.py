"""Checkpoint selection, and when PPO is over-optimised: decided by the judge, over the same prompts.

Pure functions of the points (dicts with `update`, `judged` and `scores`, one number per prompt, higher is better).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import permutation_test

Point = Mapping[str, Any]

DRAWS = 20_000
BATCH = 1000
"""Exchanges held in memory at a time."""


@dataclass(frozen=True)
class Regression:
    """The judge says that the point at index `now` is worse than the one at `best`, while the score rose."""

    best: int
    now: int
    p: float

    def describe(self, points: Sequence[Point]) -> str:
        best, now = points[self.best], points[self.now]
        return (
            f"since update {best['update']} the judge’s mark fell from {best['judge']:.3f} to {now['judge']:.3f} "
            f"on {len(now['judged'])} held-out prompts while the reward model's score rose from "
            f"{best['score']:.3f} to {now['score']:.3f} (chance of such a fall by luck: {self.p:.2g})"
        )


def selected(points: Sequence[Point], checkpoint: Literal["best", "last"]) -> int | None:
    """Index of the point whose policy is selected: the one that the judge marks highest, the earliest of equals.
    None: the last policy, because the recipe asks for it or there is no judge."""
    if checkpoint == "last" or not points or points[0].get("judge") is None:
        return None
    return best_of(points)


def best_of(points: Sequence[Point]) -> int:
    """Index of the point with the highest mean judgement, the earliest of equals."""
    return max(range(len(points)), key=lambda i: (points[i]["judge"], -i))


def regression(points: Sequence[Point], now: int, significance: float) -> Regression | None:
    """Whether the judge prefers the best of the earlier points to the one at index `now`, and the reward model the
    reverse.

    Both by paired randomisation tests over prompts, one-sided. The best of `now` earlier points is partly the
    luckiest one, so that the judge's test is at `significance / now` (Bonferroni).
    """
    if not now or points[now].get("judge") is None:
        return None
    best = best_of(points[:now])
    was, present = points[best], points[now]
    if was["judge"] <= present["judge"] or was["score"] >= present["score"]:
        return None
    p = p_of_rise(present["judged"], was["judged"])
    if p > significance / now or p_of_rise(was["scores"], present["scores"]) > significance:
        return None
    return Regression(best, now, min(1.0, p * now))


def overoptimised(points: Sequence[Point], *, significance: float, patience: int) -> Regression | None:
    """The newest point's regression, if each of the last `patience` points has one."""
    if len(points) <= patience:
        return None
    falls = [regression(points, now, significance) for now in range(len(points) - patience, len(points))]
    return falls[-1] if all(falls) else None


def p_of_rise(before: Sequence[float], after: Sequence[float]) -> float:
    """Chance of a mean rise from `before` to `after` as large as theirs, if the two numbers of each prompt were
    exchangeable: the paired randomisation test (Fisher 1935, section 21), one-sided. All 2^n exchanges where these
    are few, else a sample of them that is the same each time."""
    differences = np.subtract(after, before, dtype=float)
    differences = differences[differences != 0]
    if len(differences) < 2:  # fewer than scipy takes
        return 0.5 if differences.sum() > 0 else 1.0
    test = permutation_test(
        (differences,),
        _rounded_sum,
        permutation_type="samples",
        alternative="greater",
        n_resamples=DRAWS,
        batch=BATCH,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _rounded_sum(values: Any, axis: int) -> Any:
    """Sums that differ by rounding only are equal, and count as rises of the same size."""
    return values.sum(axis).round(12)
