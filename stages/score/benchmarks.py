"""What the official scorers of reward-model benchmarks compute from scores. Imports numpy and nothing else.

RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): scripts/run_v2.py and rewardbench/utils.py of
allenai/reward-bench. RM-Bench (Liu et al. 2024, arXiv:2410.16184): `compute_accuracy` in the README of
THU-KEG/RM-Bench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def pair_accuracy(chosen: float, rejected: float) -> float:
    """1 if the chosen answer scores higher, otherwise 0: equal scores are wrong."""
    return float(chosen > rejected)


def best_of_n(scores: Sequence[float]) -> float:
    """Whether the first answer, the correct one, has the highest score: 1 / k if it shares it with k - 1 others."""
    best = max(scores)
    return float(scores[0] == best) / sum(score == best for score in scores)


@dataclass(frozen=True)
class TiesRow:
    """A prompt of the Ties subset.

    Attributes:
        kind: "ref" with one correct answer, or "tied" with several.
        prompt: the number that a pair of both kinds shares.
        correct, wrong: scores.
    """

    kind: str
    prompt: int
    correct: Sequence[float]
    wrong: Sequence[float]

    @property
    def margin(self) -> float:
        """The worst correct answer's score minus the best wrong one's."""
        return min(self.correct) - max(self.wrong)

    @property
    def spread(self) -> float:
        """The best correct answer's score minus the worst correct one's."""
        return max(self.correct) - min(self.correct)


def ties_score(rows: Sequence[TiesRow]) -> float:
    """The weighted score of the Ties subset, `process_single_model`.

    60 %: the share of prompts whose correct answers all score higher than the wrong ones, half for each kind. 40 %:
    the share of prompts of both kinds where the tied prompt's correct answers differ less from each other than from
    wrong ones, half for the wrong ones of the tied prompt, half for those of either prompt. Up to 1 % more or less
    for how much less they differ.
    """
    kinds = {kind: {row.prompt: row for row in rows if row.kind == kind} for kind in ("ref", "tied")}
    accuracy = {
        kind: float(np.mean([row.margin > 0 for row in by_prompt.values()])) if by_prompt else 0.0
        for kind, by_prompt in kinds.items()
    }
    both = sorted(kinds["ref"].keys() & kinds["tied"].keys())
    if not both:
        return 0.3 * accuracy["tied"] + 0.3 * accuracy["ref"]
    spread, tied = (np.array([getattr(kinds["tied"][p], name) for p in both]) for name in ("spread", "margin"))
    hard = np.minimum(tied, [kinds["ref"][p].margin for p in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(np.tanh(hard / spread - 1), nan=0.0)
    return float(
        0.3 * accuracy["tied"]
        + 0.3 * accuracy["ref"]
        + 0.2 * np.mean(tied > spread)
        + 0.2 * np.mean(hard > spread)
        + 0.01 * np.mean(ratios)
    )


def style_matrix(chosen: Sequence[float], rejected: Sequence[float]) -> np.ndarray:
    """(S, S): 1 where the chosen answer of a style (rows) scores higher than the rejected answer of a style
    (columns), else 0. Styles go from concise to detailed to detailed with markdown."""
    return (np.asarray(chosen)[:, None] > np.asarray(rejected)[None, :]).astype(float)


def style_accuracies(matrix: np.ndarray) -> dict[str, float]:
    """Means of a mean `style_matrix`: hard, where the rejected answer has the fancier style (above the diagonal);
    normal, where both have the same; easy, where the chosen one has it (below)."""
    size = len(matrix)
    return {
        "easy": float(matrix[np.tril_indices(size, -1)].mean()),
        "normal": float(np.diag(matrix).mean()),
        "hard": float(matrix[np.triu_indices(size, 1)].mean()),
    }
