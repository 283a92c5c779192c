"""How good are scores on held-out rankings? Accuracy, calibration, length, spread. numpy only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from data.schema import Ranking, prompt_key
from pipeline.stage import Metrics

Scores = Mapping[tuple[str, str], float]
"""(prompt key, completion) -> score."""


def quality(rankings: Iterable[Ranking], scores: Scores, lengths: Scores, seed: int) -> tuple[Metrics, Metrics]:
    """Metrics over held-out rankings, read once, and tables for the report: reliability, by_annotator,
    by_prompt, scores.

    accuracy: share of strict pairs that the scores order as the annotator did; length_accuracy: the same for "the
    longer one"; above_length: the first less the second (95 % bootstrap intervals over prompts, the difference
    paired);
    accuracy_by_prompt: mean over prompts instead of pairs; ece, brier: of sigmoid(score difference) as the
    probability that the first of a pair is preferred, over 10 bins (Guo et al. 2017, arXiv:1706.04599, equation
    3; Brier 1950);
    length_correlation: Spearman's between score and completion length in tokens; score_spread: mean over
    prompts of the standard deviation of the scores of a prompt's answers.
    """
    margins: dict[str, list[float]] = defaultdict(list)
    longer: dict[str, list[float]] = defaultdict(list)
    by_annotator: dict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        key = prompt_key(ranking.prompt)
        for better, worse in ranking.pairs():
            first, second = (key, ranking.completions[better]), (key, ranking.completions[worse])
            if first not in scores or second not in scores:
                continue
            margin = scores[first] - scores[second]
            margins[key].append(margin)
            by_annotator[ranking.annotator].append(margin)
            longer[key].append(lengths[first] - lengths[second])
    if not margins:
        return {"pairs": 0}, {"reliability": []}
    flat = np.array([m for group in margins.values() for m in group])
    ece, brier, reliability = calibration(flat)
    values, sizes = np.array(list(scores.values())), np.array([lengths[k] for k in scores])
    right, right_by_length = (
        np.array([_right(np.array(group)).sum() for group in groups.values()]) for groups in (margins, longer)
    )
    pairs = np.array([len(group) for group in margins.values()])
    low, high = _interval(right, pairs, seed)
    beyond_low, beyond_high = _interval(right - right_by_length, pairs, seed)
    metrics: Metrics = {
        "pairs": len(flat),
        "prompts": len(margins),
        "accuracy": float(right.sum() / pairs.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_by_prompt": float((right / pairs).mean()),
        "length_accuracy": float(right_by_length.sum() / pairs.sum()),
        "above_length": float((right - right_by_length).sum() / pairs.sum()),
        "above_length_low": beyond_low,
        "above_length_high": beyond_high,
        "ece": ece,
        "brier": brier,
        "length_correlation": spearman(values, sizes),
        "score_mean": float(values.mean()),
        "score_std": float(values.std()),
        "score_spread": _spread(scores),
        "accuracy_by_annotator": {name: _accuracy(np.array(m)) for name, m in sorted(by_annotator.items())},
    }
    tables: Metrics = {
        "reliability": reliability,
        "by_annotator": sorted(
            (
                {"annotator": name, "pairs": len(m), "accuracy": _accuracy(np.array(m))}
                for name, m in by_annotator.items()
            ),
            key=lambda row: (-row["pairs"], row["annotator"]),
        ),
        "by_prompt": _histogram(right / pairs, 10, (0.0, 1.0)),
        "scores": _histogram(values, 20),
    }
    return metrics, tables


def _right(margins: np.ndarray) -> np.ndarray:
    return (margins > 0) + 0.5 * (margins == 0)


def _spread(scores: Scores) -> float:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (key, _), score in scores.items():
        by_prompt[key].append(score)
    return float(np.mean([np.std(group) for group in by_prompt.values()]))


def _histogram(values: np.ndarray, bins: int, bounds: tuple[float, float] | None = None) -> list[dict[str, float]]:
    if not np.isfinite(values).all():
        return []
    counts, edges = np.histogram(values, bins, bounds)
    return [
        {"low": float(low), "high": float(high), "count": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _accuracy(margins: np.ndarray) -> float:
    return float(_right(margins).mean())


def _interval(hits: np.ndarray, totals: np.ndarray, seed: int, resamples: int = 1000) -> tuple[float, float]:
    pick = np.random.default_rng(seed).integers(len(totals), size=(resamples, len(totals)))
    draws = hits[pick].sum(1) / totals[pick].sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def calibration(margins: np.ndarray, bins: int = 10) -> tuple[float, float, list[dict[str, float]]]:
    """ECE, Brier score, and the reliability table, of sigmoid(margin) where the first was always preferred.

    Each pair is seen from both sides, so that the table is symmetric about one half.
    """
    p = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    outcome = np.concatenate([np.ones_like(margins), np.zeros_like(margins)])
    index = np.minimum((p * bins).astype(int), bins - 1)
    table = [
        {
            "predicted": float(p[index == b].mean()),
            "observed": float(outcome[index == b].mean()),
            "count": int(n),
        }
        for b in range(bins)
        if (n := (index == b).sum())
    ]
    ece = sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in table) / len(p)
    return float(ece), float(((p - outcome) ** 2).mean()), table


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties given their mean rank; 0 when one of both does not vary."""
    a, b = (_mean_ranks(v) for v in (x, y))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - counts + 1 + last) / 2)[inverse]
