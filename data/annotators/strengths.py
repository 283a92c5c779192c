"""How strong each model behind the answers is, by the annotators' orders alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from data.annotators.judgements import Judgement

ALPHA = 0.01
"""Regularisation of choix: keeps the strength of a model that never lost finite."""


RESAMPLES = 200


def strengths(
    judgements: Iterable[Judgement],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Bradley-Terry strengths (Bradley and Terry 1952) of the models, strongest first; empty for fewer than two.

    P(a beats b) = 1 / (1 + exp(strength_b - strength_a)); a tie is half a win for each, two answers of one model
    are no comparison, and the mean strength is 0. Fitted by I-LSR (Maystre and Grossglauser 2015), with 95 %
    percentile intervals from a bootstrap over prompts.

    `advance` is called after each resample.

    Each is {"model", "strength", "low", "high", "win_rate", "pairs"}.
    """
    names: dict[str, int] = {}
    found: dict[str, dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for one in judgements:
        if one.models is None:
            continue
        ids = [names.setdefault(model, len(names)) if model else -1 for model in one.models]
        for i, a in enumerate(ids):
            for j, b in enumerate(ids):
                if a >= 0 and b >= 0 and a != b and one.ranks[i] <= one.ranks[j]:
                    found[one.prompt][a, b] += 0.5 if one.ranks[i] == one.ranks[j] else 1.0
    if len(names) < 2 or not any(found.values()):
        return []
    # One line a win: prompt, winner, loser, weight. A resample weighs lines by how often their prompt was drawn.
    lines = [(p, a, b, w) for p, wins in enumerate(found.values()) for (a, b), w in wins.items()]
    prompt, winner, loser, weight = (np.asarray(column) for column in zip(*lines, strict=True))
    k = len(names)

    def fit(drawn: np.ndarray) -> np.ndarray:
        import choix

        counts = np.bincount(winner * k + loser, weights=weight * drawn[prompt], minlength=k * k)
        wins = counts.astype(np.float64).reshape(k, k)
        try:
            return np.asarray(choix.ilsr_pairwise_dense(wins, alpha=ALPHA, max_iter=1000))
        except RuntimeError:  # it did not converge
            return np.full(k, np.nan)

    best = fit(np.ones(len(found)))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        draws.append(fit(np.bincount(rng.integers(len(found), size=len(found)), minlength=len(found))))
        advance()
    low, high = np.nanquantile(np.stack(draws), [0.025, 0.975], axis=0)
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
