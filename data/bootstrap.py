"""Bootstrap intervals over prompts: what is measured on one prompt is not independent, so prompts are resampled.

The percentile bootstrap of Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK = 1 << 20
"""Indices held in memory at a time."""


@dataclass(frozen=True)
class Share:
    """A share of pairs, or a mean, with its 95 % bootstrap interval over prompts; None where there are none.

    Attributes:
        pairs: what it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: int


NOTHING = Share(None, None, None, 0)


def share(counts: Iterable[tuple[str, float, float]], *, resamples: int = 2000, seed: int = 0) -> Share:
    """sum(hits) / sum(totals) of (prompt, hits, total), summed by prompt first."""
    by_prompt: dict[str, tuple[float, float]] = {}
    for prompt, hits, total in counts:
        hits_before, total_before = by_prompt.get(prompt, (0, 0))
        by_prompt[prompt] = hits_before + hits, total_before + total
    counted = [(hits, total) for hits, total in by_prompt.values() if total]
    if not counted:
        return NOTHING
    all_hits, totals = zip(*counted, strict=True)
    low, high = bootstrap(all_hits, totals, resamples=resamples, seed=seed)
    return Share(float(sum(all_hits) / sum(totals)), low, high, int(sum(totals)))


def bootstrap(
    hits: Sequence[float] | np.ndarray,
    totals: Sequence[float] | np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of sum(hits) / sum(totals), one entry per prompt; of the mean of hits without totals.

    Resamples whose total is 0 do not count.
    """
    h = np.asarray(hits, dtype=float)
    t = np.ones_like(h) if totals is None else np.asarray(totals, dtype=float)

    def ratio(drawn_RP: np.ndarray) -> np.ndarray:
        total_R = t[drawn_RP].sum(axis=1)
        return np.asarray(h[drawn_RP].sum(axis=1) / np.where(total_R > 0, total_R, np.nan))

    low, high = interval(resample(ratio, len(t), resamples=resamples, seed=seed))
    return float(low), float(high)


def resample(
    statistic: Callable[[np.ndarray], Any], prompts: int, *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """A statistic of `resamples` draws of the prompts with replacement, (resamples, ...).

    The draws depend on the seed and the number of prompts alone, so that statistics of the same prompts are paired.

    Args:
        statistic: from the indices of the drawn prompts (R, prompts) to a value per draw (R, ...). It is called
            with a few draws at a time, so that memory does not grow with `resamples`.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // prompts)
    sizes = (min(rows, resamples - start) for start in range(0, resamples, rows))
    return np.concatenate([np.asarray(statistic(rng.integers(prompts, size=(size, prompts)))) for size in sizes])


def interval(draws: np.ndarray) -> tuple[Any, Any]:
    """The 95 % percentile interval of draws (R, ...), without those that are not a number: low and high (...)."""
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    return low, high
