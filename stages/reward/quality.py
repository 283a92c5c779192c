"""How good is a reward model on held-out rankings? Accuracy, calibration, length; and the gate before PPO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.schema import Ranking, prompt_key
from pipeline.config.reward import GateConfig
from pipeline.stage import Metrics

Scores = Mapping[tuple[str, str], float]
"""(prompt key, completion) -> score."""


def quality(rankings: Sequence[Ranking], scores: Scores, lengths: Scores, seed: int) -> tuple[Metrics, Any]:
    """Metrics over held-out rankings, and a reliability table for the report.

    accuracy: share of strict pairs that the scores order as the annotator did (95 % bootstrap interval over
    prompts); length_accuracy: the same for "the longer one"; ece, brier: of sigmoid(score difference) as the
    probability that the first of a pair is preferred, over 10 bins (Guo et al. 2017, arXiv:1706.04599, equation 3;
    Brier 1950); length_correlation: Spearman's between score and completion length in tokens.
    """
    margins: dict[str, list[float]] = defaultdict(list)
    longer: list[float] = []
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
            longer.append(lengths[first] - lengths[second])
    if not margins:
        return {"pairs": 0}, []
    flat = np.array([m for group in margins.values() for m in group])
    ece, brier, table = calibration(flat)
    keys = list(scores)
    values = np.array([scores[k] for k in keys])
    metrics: Metrics = {
        "pairs": len(flat),
        "prompts": len(margins),
        "accuracy": _accuracy(flat),
        "accuracy_low": 0.0,
        "accuracy_high": 0.0,
        "length_accuracy": _accuracy(np.array(longer)),
        "ece": ece,
        "brier": brier,
        "length_correlation": spearman(values, np.array([lengths[k] for k in keys])),
        "score_mean": float(values.mean()),
        "score_std": float(values.std()),
        "accuracy_by_annotator": {name: _accuracy(np.array(m)) for name, m in sorted(by_annotator.items())},
    }
    metrics["accuracy_low"], metrics["accuracy_high"] = _interval([np.array(m) for m in margins.values()], seed)
    return metrics, table


def _accuracy(margins: np.ndarray) -> float:
    return float(((margins > 0) + 0.5 * (margins == 0)).mean())


def _interval(groups: list[np.ndarray], seed: int, resamples: int = 1000) -> tuple[float, float]:
    right = np.array([((g > 0) + 0.5 * (g == 0)).sum() for g in groups])
    size = np.array([len(g) for g in groups])
    pick = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    draws = right[pick].sum(1) / size[pick].sum(1)
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


def gate(config: GateConfig, metrics: Mapping[str, Any]) -> list[str]:
    """Why PPO should not trust this reward model; empty when it may."""
    reasons = []
    if not metrics.get("pairs"):
        return ["it was measured on no held-out pair at all"]
    if metrics["accuracy"] < config.min_accuracy:
        reasons.append(
            f"its accuracy on held-out pairs is {metrics['accuracy']:.3f}, below {config.min_accuracy} "
            "(reward.gate.min_accuracy)"
        )
    if abs(metrics["length_correlation"]) > config.max_length_correlation:
        reasons.append(
            f"its scores follow length: Spearman {metrics['length_correlation']:.2f}, beyond "
            f"{config.max_length_correlation} (reward.gate.max_length_correlation)"
        )
    return reasons
