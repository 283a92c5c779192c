"""The quality of scores on held-out rankings: accuracy against baselines, calibration, length bias and spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from data.bootstrap import bootstrap
from data.schema import Ranking, prompt_key
from pipeline.engine.stage import Metrics

Scores = Mapping[tuple[str, str], float]
"""(prompt key, completion) -> score."""


def quality(
    rankings: Iterable[Ranking], scores: Scores, seed: int, baselines: Mapping[str, Scores] | None = None
) -> tuple[Metrics, Metrics]:
    """Metrics over held-out rankings, in one pass, and tables for the report: reliability, by_annotator, by_prompt,
    scores.

    accuracy: share of strict pairs that the scores order as the annotator did; equal scores count half;
    accuracy_by_prompt: mean over prompts instead of pairs;
    <baseline>_accuracy: accuracy of each of `baselines` and of `length`, which prefers the answer with more
    characters; above_<baseline>: accuracy minus that of the baseline, on the same pairs. Intervals are 95 %
    bootstrap intervals over prompts, paired for differences;
    ece, brier: of sigmoid(score difference) as the probability that the first of a pair is preferred, over 10 bins
    (Guo et al. 2017, arXiv:1706.04599, equation 3; Brier 1950);
    length_correlation: Spearman correlation of score and length of the answer in characters;
    score_spread: standard deviation of the scores of a prompt's answers, averaged over prompts.
    """
    sizes = {pair: float(len(pair[1])) for pair in scores}
    rivals = {"length": sizes, **(baselines or {})}
    margins: dict[str, list[float]] = defaultdict(list)
    by_rival: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in rivals}
    by_annotator: dict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        key = prompt_key(ranking.prompt)
        for better, worse in ranking.pairs():
            first, second = (key, ranking.completions[better]), (key, ranking.completions[worse])
            if first not in scores or second not in scores or first == second:
                continue
            margin = scores[first] - scores[second]
            margins[key].append(margin)
            by_annotator[ranking.annotator].append(margin)
            for name, rival in rivals.items():
                by_rival[name][key].append(rival[first] - rival[second])
    if not margins:
        return {"pairs": 0}, {"reliability": []}
    flat = np.array([m for group in margins.values() for m in group])
    ece, brier, reliability = calibration(flat)
    values = np.array(list(scores.values()))
    right, pairs = _right_by_prompt(margins), np.array([len(group) for group in margins.values()])
    low, high = bootstrap(right, pairs, seed=seed)
    metrics: Metrics = {
        "pairs": len(flat),
        "prompts": len(margins),
        "accuracy": float(right.sum() / pairs.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_by_prompt": float((right / pairs).mean()),
        **{
            name: value
            for rival, rival_margins in by_rival.items()
            for name, value in _against(rival, right, _right_by_prompt(rival_margins), pairs, seed).items()
        },
        "ece": ece,
        "brier": brier,
        "length_correlation": spearman(values, np.array(list(sizes.values()))),
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


def _right_by_prompt(margins: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.array([_right(np.array(group)).sum() for group in margins.values()])


def _against(name: str, right: np.ndarray, rival: np.ndarray, pairs: np.ndarray, seed: int) -> Metrics:
    """Accuracy of a baseline and the margin over it, from the number of correct pairs per prompt."""
    low, high = bootstrap(right - rival, pairs, seed=seed)
    return {
        f"{name}_accuracy": float(rival.sum() / pairs.sum()),
        f"above_{name}": float((right - rival).sum() / pairs.sum()),
        f"above_{name}_low": low,
        f"above_{name}_high": high,
    }


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


def calibration(margins: np.ndarray, bins: int = 10) -> tuple[float, float, list[dict[str, float]]]:
    """ECE, Brier score and reliability table of sigmoid(margin), for pairs whose first answer is preferred.

    Each pair counts from both sides, so the table is symmetric about one half.
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
    """Spearman's rank correlation; 0 if either input is constant."""
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return 0.0
    return float(spearmanr(x, y).statistic)
