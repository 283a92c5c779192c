"""Shares and means with intervals. Their units are prompts, since what is seen of one prompt is not independent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 20  # draws held at a time


@dataclass(frozen=True)
class Share:
    """A share of pairs, or a mean, with its 95 % bootstrap interval over prompts; None where there are none.

    `pairs` is what it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: int


NOTHING = Share(None, None, None, 0)


def share(counts: Iterable[tuple[str, float, float]], *, resamples: int = 2000, seed: int = 0) -> Share:
    """sum(hits) / sum(totals) of (prompt, hits, total)."""
    by_prompt: dict[str, tuple[float, float]] = {}
    for prompt, hits, total in counts:
        before, of = by_prompt.get(prompt, (0, 0))
        by_prompt[prompt] = before + hits, of + total
    counted = [(hits, total) for hits, total in by_prompt.values() if total]
    if not counted:
        return NOTHING
    all_hits, totals = zip(*counted, strict=True)
    low, high = bootstrap(all_hits, totals, resamples=resamples, seed=seed)
    return Share(float(sum(all_hits) / sum(totals)), low, high, int(sum(totals)))


def bootstrap(
    hits: Sequence[float] | np.ndarray,
    totals: Sequence[float] | np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of sum(hits) / sum(totals), its units (prompts) drawn with replacement
    (Efron and Tibshirani 1993)."""
    h, t = np.asarray(hits, dtype=float), np.asarray(totals, dtype=float)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(t))
    shares = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(t), size=(min(rows, resamples - start), len(t)))
        of = t[drawn].sum(axis=1)
        shares.append(h[drawn].sum(axis=1)[of > 0] / of[of > 0])
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975])
    return float(low), float(high)
