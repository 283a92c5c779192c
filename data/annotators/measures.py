"""The measures of a set of rankings that `agreement.json` holds. docs/rankings/agreement.md defines each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from data.annotators.agreement import agreement, overlaps, signs, tau_b
from data.annotators.reliability import weights
from data.annotators.sample import CompactRanking, RankingSample
from data.annotators.strengths import RESAMPLES, strengths
from data.bootstrap import NOTHING, share
from data.tables.columns import ANONYMOUS

Counts = tuple[str, float, float]
"""Prompt, hits, of how many."""


def steps(sample: RankingSample) -> int:
    """How often `measure_annotators` calls `advance`: per annotator, and per resample of the models' strengths."""
    models = {model for ranking in sample for model in ranking.models or () if model}
    return len(sample.annotators) + (RESAMPLES if len(models) > 1 else 0)


def measure_annotators(
    sample: RankingSample, *, seed: int = 0, resamples: int = 1000, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Agreement, consistency, biases, time and weights of annotators, and strengths of models, as JSON values.

    They are computed on a sample of the prompts where `sample.share` is below 1.
    """
    shared = list(overlaps(sample))
    trust = weights(shared, sample.annotators)
    alike, tau = _with_others(sample)
    counts = {
        "agreement": alike,
        "tau": tau,
        "self_consistency": _consistency(sample),
        "first_shown": _by_annotator(sample, first_shown),
        "longer": _by_annotator(sample, longer),
    }
    times: dict[str, list[float]] = defaultdict(list)
    for ranking in sample:
        if ranking.seconds is not None:
            times[ranking.annotator].append(ranking.seconds)

    def as_share(rows: Iterable[Counts]) -> dict[str, Any]:
        return asdict(share(rows, resamples=resamples, seed=seed))

    def over_all(name: str) -> dict[str, Any]:
        return as_share(row for rows in counts[name].values() for row in rows)

    by_annotator = {}
    for name, number in sample.annotators.most_common():
        by_annotator[name] = {
            "rankings": number,
            **{key: as_share(rows[name]) if name in rows else asdict(NOTHING) for key, rows in counts.items()},
            "seconds": _times(times[name]) if name in times else None,
            "weight": trust[name],
        }
        advance()
    return {
        **agreement(sample, resamples=resamples, seed=seed).to_json(),
        **{name: over_all(name) for name in ("self_consistency", "first_shown", "longer")},
        "seconds": _times([value for values in times.values() for value in values]),
        "sample": {
            "rankings": sample.kept,
            "of": sample.rankings,
            "prompts": len(sample.by_prompt),
            "share": sample.share,
        },
        "weights": trust,
        "by_annotator": by_annotator,
        "models": strengths(sample, seed=seed, advance=advance),
    }


def longer(ranking: CompactRanking) -> tuple[float, float]:
    """(the longer completion wins, strict pairs of unequal length)."""
    return larger_wins(ranking.ranks, ranking.lengths)


def first_shown(ranking: CompactRanking) -> tuple[float, float]:
    """(the completion shown first wins, strict pairs that it is part of)."""
    return (0, 0) if ranking.shown is None else first_wins(ranking.ranks, ranking.shown)


def first_wins(ranks: Sequence[float], shown: Sequence[int]) -> tuple[int, int]:
    """(the completion at the first of the places `shown` wins, strict pairs that it is part of)."""
    first = ranks[shown.index(min(shown))]
    others = [rank for rank in ranks if rank != first]
    return sum(first < rank for rank in others), len(others)


def larger_wins(ranks: Sequence[float], sizes: Sequence[int]) -> tuple[int, int]:
    """(the larger wins, strict pairs of unequal size)."""
    hits = total = 0
    for i, j in combinations(range(len(ranks)), 2):
        product = (ranks[i] - ranks[j]) * (sizes[i] - sizes[j])
        hits += product < 0
        total += product != 0
    return hits, total


def _by_annotator(
    sample: RankingSample, count: Callable[[CompactRanking], tuple[float, float]]
) -> dict[str, list[Counts]]:
    counts: dict[str, list[Counts]] = defaultdict(list)
    for ranking in sample:
        counts[ranking.annotator].append((ranking.prompt, *count(ranking)))
    return counts


def _consistency(sample: RankingSample) -> dict[str, list[Counts]]:
    """Of the pairs that an annotator ordered strictly twice: those ordered alike. Leaves `ANONYMOUS` out."""
    earlier: dict[tuple[str, bytes], CompactRanking] = {}
    counts: dict[str, list[Counts]] = defaultdict(list)
    for ranking in sample:
        first = earlier.setdefault((ranking.annotator, ranking.item), ranking)
        if first is not ranking and ranking.annotator != ANONYMOUS:
            product = first.signs() * ranking.signs()
            alike, strict = float((product > 0).sum()), float((product != 0).sum())
            counts[ranking.annotator].append((ranking.prompt, alike, strict))
    return counts


def _with_others(sample: RankingSample) -> tuple[dict[str, list[Counts]], dict[str, list[Counts]]]:
    """Of each annotator with every other: strict pairs ordered alike; and the sum of Kendall's tau-b."""
    alike: dict[str, list[Counts]] = defaultdict(list)
    taus: dict[str, list[Counts]] = defaultdict(list)
    for overlap in overlaps(sample):
        order = signs(overlap.ranks)
        excess, strict, tau = order @ order.T, np.abs(order) @ np.abs(order).T, tau_b(order)
        for matrix in (excess, strict):
            np.fill_diagonal(matrix, 0)
        np.fill_diagonal(tau, np.nan)
        for i, name in enumerate(overlap.annotators):
            total = float(strict[i].sum())
            alike[name].append((overlap.prompt, (float(excess[i].sum()) + total) / 2, total))
            taus[name].append((overlap.prompt, float(np.nansum(tau[i])), float(np.isfinite(tau[i]).sum())))
    return alike, taus


def _times(values: list[float]) -> dict[str, float] | None:
    """Median and 90th percentile in seconds per ranking; None where no time was recorded."""
    if not values:
        return None
    median, most = np.quantile(values, [0.5, 0.9])
    return {"median": float(median), "p90": float(most), "rankings": len(values)}
