"""The strength of each model that wrote completions, from the annotators' rankings alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from data.annotators.sample import CompactRanking
from data.bootstrap import interval, resample

ALPHA = 0.01
"""Regularisation of choix: keeps the strength of a model that never lost finite."""
RESAMPLES = 200


def strengths(
    rankings: Iterable[CompactRanking],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Bradley-Terry strengths (Bradley and Terry 1952) of the models, strongest first; empty for fewer than two.

    P(a beats b) = 1 / (1 + exp(strength_b - strength_a)). A tie is half a win for each, two completions of the same
    model are not compared, and the mean strength is 0. Fitted by I-LSR (Maystre and Grossglauser 2015), with 95 %
    percentile intervals from a bootstrap over prompts.

    Args:
        advance: called after each resample.

    Returns:
        {"model", "strength", "low", "high", "win_rate", "pairs"} per model.
    """
    names: dict[str, int] = {}
    wins_by_prompt: dict[str, dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for ranking in rankings:
        if ranking.models is None:
            continue
        ids = [names.setdefault(model, len(names)) if model else -1 for model in ranking.models]
        ranks = ranking.ranks
        for i, a in enumerate(ids):
            for j, b in enumerate(ids):
                if a >= 0 and b >= 0 and a != b and ranks[i] <= ranks[j]:
                    wins_by_prompt[ranking.prompt][a, b] += 0.5 if ranks[i] == ranks[j] else 1.0
    if len(names) < 2 or not any(wins_by_prompt.values()):
        return []
    # One line per win: prompt, winner, loser, weight. A resample weighs lines by how often their prompt was drawn.
    lines = [(p, a, b, w) for p, wins in enumerate(wins_by_prompt.values()) for (a, b), w in wins.items()]
    prompt, winner, loser, weight = (np.asarray(column) for column in zip(*lines, strict=True))
    k, prompts = len(names), len(wins_by_prompt)

    def fit(drawn: np.ndarray) -> np.ndarray:
        import choix

        counts = np.bincount(winner * k + loser, weights=weight * drawn[prompt], minlength=k * k)
        wins = counts.astype(np.float64).reshape(k, k)
        try:
            return np.asarray(choix.ilsr_pairwise_dense(wins, alpha=ALPHA, max_iter=1000))
        except RuntimeError:  # it did not converge
            return np.full(k, np.nan)

    def fit_each(drawn_RP: np.ndarray) -> list[np.ndarray]:
        fits = []
        for drawn in drawn_RP:
            fits.append(fit(np.bincount(drawn, minlength=prompts)))
            advance()
        return fits

    best = fit(np.ones(prompts))
    low, high = interval(resample(fit_each, prompts, resamples=resamples, seed=seed))
    won, lost = (np.bincount(side, weights=weight, minlength=k) for side in (winner, loser))
    rows = [
        {
            "model": name,
            "strength": float(best[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "win_rate": float(won[i] / (won[i] + lost[i])),
            "pairs": int(won[i] + lost[i]),
        }
        for name, i in names.items()
        if won[i] + lost[i] > 0
    ]
    return sorted(rows, key=lambda row: -float(row["strength"]))
