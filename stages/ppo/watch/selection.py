"""Checkpoint selection and detection of over-optimisation, by the judge's scores on the same prompts.

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
"""Permutations held in memory at a time."""


@dataclass(frozen=True)
class Regression:
    """The judge scores the point at index `now` lower than the one at `best`, while the reward model's score rose.

    `p` is the chance of such a fall without a difference, corrected for the number of earlier points.
    """

    best: int
    now: int
    p: float

    def describe(self, points: Sequence[Point]) -> str:
        best, now = points[self.best], points[self.now]
        return (
            f"since update {best['update']} the judge’s score fell from {best['judge']:.3f} to {now['judge']:.3f} "
            f"on {len(now['judged'])} held-out prompts while the reward model's score rose from "
            f"{best['score']:.3f} to {now['score']:.3f} (p = {self.p:.2g})"
        )


def selected(points: Sequence[Point], checkpoint: Literal["best", "last"]) -> int | None:
    """Index of the selected point: the one with the judge's highest score, the earliest of equals. None selects the
    last policy, because the recipe says so or there is no judge."""
    if checkpoint == "last" or not points or points[0].get("judge") is None:
        return None
    return best_of(points)


def best_of(points: Sequence[Point]) -> int:
    """Index of the point with the judge's highest mean score, the earliest of equals."""
    return max(range(len(points)), key=lambda i: (points[i]["judge"], -i))


def regression(points: Sequence[Point], now: int, significance: float) -> Regression | None:
    """The regression at index `now`: the judge prefers the best of the earlier points, and the reward model prefers
    the point at `now`. None if either difference is not significant.

    Both are one-sided paired randomisation tests over prompts. The judge's test is at `significance / now`
    (Bonferroni), because the best of `now` earlier points was selected by its score.
    """
    if not now or points[now].get("judge") is None:
        return None
    best = best_of(points[:now])
    earlier, current = points[best], points[now]
    if earlier["judge"] <= current["judge"] or earlier["score"] >= current["score"]:
        return None
    p = p_of_rise(current["judged"], earlier["judged"])
    if p > significance / now or p_of_rise(earlier["scores"], current["scores"]) > significance:
        return None
    return Regression(best, now, min(1.0, p * now))


def overoptimised(points: Sequence[Point], *, significance: float, patience: int) -> Regression | None:
    """The regression at the newest point, if each of the last `patience` points has one."""
    if len(points) <= patience:
        return None
    falls = [regression(points, now, significance) for now in range(len(points) - patience, len(points))]
    return falls[-1] if all(falls) else None


def p_of_rise(before: Sequence[float], after: Sequence[float]) -> float:
    """The p-value of the mean rise from `before` to `after`, one number per prompt, in the one-sided paired
    randomisation test (Fisher 1935, section 21). Enumerates all 2^n sign flips if they are few, else draws a fixed
    random sample."""
    differences = np.subtract(after, before, dtype=float)
    differences = differences[differences != 0]
    if len(differences) < 2:  # scipy requires at least 2
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
    """Rounds sums, so that those that differ by rounding error only count as equal."""
    return values.sum(axis).round(12)
