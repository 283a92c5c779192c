"""Everything that is measured of a set of rankings, as `agreement.json` holds it.

docs/rankings/agreement.md defines each measure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from data.annotators.agreement import agreement, overlaps, signs
from data.annotators.judgements import Judgement, Sample
from data.annotators.reliability import weights
from data.annotators.strengths import RESAMPLES, strengths
from data.bootstrap import NOTHING, share
from data.tables.columns import ANONYMOUS

Counts = tuple[str, float, float]
"""Prompt, hits, of how many."""


def steps(sample: Sample) -> int:
    """How often `measure` calls `advance`: after each annotator and each resample of the strengths of models."""
    models = {model for one in sample for model in one.models or () if model}
    return len(sample.annotators) + (RESAMPLES if len(models) > 1 else 0)


def measure(
    sample: Sample, *, seed: int = 0, resamples: int = 1000, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Agreement, consistency, biases, time and weights of annotators, and strengths of models, as JSON values.

    `sample.share` below 1 says that they rest on a sample of the prompts, not on all.
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
    for one in sample:
        if one.seconds is not None:
            times[one.annotator].append(one.seconds)

    def of(found: Iterable[Counts]) -> dict[str, Any]:
        return asdict(share(found, resamples=resamples, seed=seed))

    def all_of(name: str) -> dict[str, Any]:
        return of(row for rows in counts[name].values() for row in rows)

    by_annotator = {}
    for name, made in sample.annotators.most_common():
        by_annotator[name] = {
            "rankings": made,
            **{key: of(rows[name]) if name in rows else asdict(NOTHING) for key, rows in counts.items()},
            "seconds": _times(times[name]) if name in times else None,
            "weight": trust[name],
        }
        advance()
    return {
        **agreement(sample, resamples=resamples, seed=seed).to_json(),
        **{name: all_of(name) for name in ("self_consistency", "first_shown", "longer")},
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


def longer(one: Judgement) -> tuple[float, float]:
    """(the longer answer wins, strict pairs of unequal length)."""
    return _wins(one.ranks, one.lengths)


def first_shown(one: Judgement) -> tuple[float, float]:
    """(the answer shown first wins, strict pairs that it is part of)."""
    if one.shown is None:
        return 0, 0
    first = int(np.argmin(one.shown))
    others = [rank for i, rank in enumerate(one.ranks) if i != first and rank != one.ranks[first]]
    return sum(one.ranks[first] < rank for rank in others), len(others)


def _wins(ranks: tuple[float, ...], sizes: tuple[int, ...]) -> tuple[float, float]:
    """(the larger wins, strict pairs of unequal size)."""
    hits = total = 0
    for i, j in combinations(range(len(ranks)), 2):
        product = (ranks[i] - ranks[j]) * (sizes[i] - sizes[j])
        hits += product < 0
        total += product != 0
    return hits, total


def _by_annotator(sample: Sample, count: Any) -> dict[str, list[Counts]]:
    found: dict[str, list[Counts]] = defaultdict(list)
    for one in sample:
        found[one.annotator].append((one.prompt, *count(one)))
    return found


def _consistency(sample: Sample) -> dict[str, list[Counts]]:
    """Of the pairs that an annotator ordered strictly twice: those ordered alike. Who is not named is nobody."""
    before: dict[tuple[str, bytes], Judgement] = {}
    found: dict[str, list[Counts]] = defaultdict(list)
    for one in sample:
        first = before.setdefault((one.annotator, one.item), one)
        if first is not one and one.annotator != ANONYMOUS:
            product = first.signs() * one.signs()
            found[one.annotator].append((one.prompt, float((product > 0).sum()), float((product != 0).sum())))
    return found


def _with_others(sample: Sample) -> tuple[dict[str, list[Counts]], dict[str, list[Counts]]]:
    """Of each annotator with every other: strict pairs ordered alike; and the sum of Kendall's tau-b."""
    alike: dict[str, list[Counts]] = defaultdict(list)
    taus: dict[str, list[Counts]] = defaultdict(list)
    for overlap in overlaps(sample):
        order = signs(overlap.ranks)
        strict = np.abs(order).sum(axis=1)
        together = order @ order.T
        both = np.abs(order) @ np.abs(order).T
        for i, name in enumerate(overlap.annotators):
            others = [j for j in range(len(order)) if j != i]
            total = float(both[i, others].sum())
            alike[name].append((overlap.prompt, (float(together[i, others].sum()) + total) / 2, total))
            defined = [j for j in others if strict[i] and strict[j]]
            tau = sum(float(together[i, j] / np.sqrt(strict[i] * strict[j])) for j in defined)
            taus[name].append((overlap.prompt, tau, len(defined)))
    return alike, taus


def _times(values: list[float]) -> dict[str, float] | None:
    """Median and 90th percentile, in seconds a ranking; None where no time was noted."""
    if not values:
        return None
    median, most = np.quantile(values, [0.5, 0.9])
    return {"median": float(median), "p90": float(most), "rankings": len(values)}
