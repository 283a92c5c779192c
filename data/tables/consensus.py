"""The consensus of the annotators of a prompt: one ranking, also where each of them rated other answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.schema import MergedRanking, Message, Ranking, prompt_key, ranks_from_scores, same_text
from data.tables.columns import Candidates, Columns
from data.tables.combine import connected
from data.tables.sources import Dropped
from data.tables.spill import Grouping
from data.tables.suggest import count_of

CONSENSUS = "consensus"
"""The annotator of merged rankings."""
TIE = 1e-9
"""Means that differ by less than this are equal: sums of the same ratings in another order differ by rounding."""
PRIOR = 0.01
"""Bradley-Terry strengths have a Gaussian prior of variance 1/(2 PRIOR), so that those of an answer that never lost
are finite. It is the `alpha` of `choix.opt_pairwise`."""
TIED_STRENGTHS = 1e-6
NEWTON_STEPS = 100


@dataclass
class Spread:
    """Running mean and sum of squared deviations of an annotator's ratings (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)

    def standardised(self, value: float) -> float:
        """0 where all ratings are equal: they say nothing about any answer."""
        std = math.sqrt(self.squares / self.count)
        return (value - self.mean) / std if std > TIE * max(1.0, abs(self.mean)) else 0.0


class Consensus:
    """Collects what annotators said, and merges it by prompt.

    Args:
        method: `consensus` of the recipe's table.
        groups: an empty grouping, for what waits until all rows are read.
    """

    def __init__(self, method: Literal["mean", "zscore", "bradley_terry"], groups: Grouping) -> None:
        self.method, self.groups = method, groups
        self.of_ratings = method != "bradley_terry"
        self.spreads: dict[str, Spread] = defaultdict(Spread)
        self.ratings = 0

    def add_ratings(self, candidates: Candidates, columns: Columns, human: bool) -> bool:
        """Takes the ratings of the answers that one annotator rated, which may be a single answer. Returns whether
        there are any.

        Raises `RecipeError` for answers that are ordered in another way.
        """
        row, weight, annotator = candidates.row, candidates.weight, candidates.annotator
        whole = candidates.whole
        if whole is not None:
            scores: Sequence[float | None] | None = whole.ratings
            texts, models = whole.completions, whole.models or [""] * len(whole.completions)
            weight, human = whole.weight, human and whole.human
        else:
            scores = [answer.score for answer in candidates.answers] if candidates.rated else None
            texts = [answer.text for answer in candidates.answers]
            models = [answer.model or "" for answer in candidates.answers]
        if scores is None:
            if all(answer.score is None for answer in candidates.answers) and whole is None:
                return False
            raise columns.error(
                f"`consensus: {self.method}` merges ratings, and the answers at {row.where} are ordered without",
                "set consensus: bradley_terry, which needs an order only",
            )
        answers = [
            (text, score, model)
            for text, score, model in zip(texts, scores, models, strict=True)
            if score is not None and text.strip()
        ]
        for _, score, _ in answers:
            self.spreads[annotator].add(score)
        self._add(candidates.prompt, annotator, weight, human, row.where, row.number, answers)
        return bool(answers)

    def add_ranking(self, ranking: Ranking) -> None:
        """Takes the order of one annotator."""
        models = ranking.models or [""] * len(ranking.completions)
        scores = [-rank for rank in ranking.ranks]
        answers = list(zip(ranking.completions, scores, models, strict=True))
        self._add(ranking.prompt, ranking.annotator, ranking.weight, ranking.human, ranking.where, 0, answers)

    def _add(
        self,
        prompt: list[Message],
        annotator: str,
        weight: float | None,
        human: bool,
        where: str,
        number: int,
        answers: Sequence[tuple[str, float, str]],
    ) -> None:
        if answers and prompt:
            self.ratings += len(answers)
            entry = [prompt, annotator, 1.0 if weight is None else weight, human, where, number, answers]
            self.groups.add(prompt_key(prompt), entry)

    @property
    def is_empty(self) -> bool:
        """Whether no prompt has two answers."""
        return all(len(_texts(group)) < 2 for group in self.groups)

    def rankings(self, dropped: Dropped, say: Callable[[str], None] | None, path: str) -> Iterator[MergedRanking]:
        """The merged rankings, in the order of each prompt's first row. Prompts with a single answer are counted in
        `dropped`, once per annotator, and the sum is printed with `say`."""
        merged = 0
        for group in self.groups:
            texts = _texts(group)
            if len(texts) < 2:
                for _, _, _, _, _, number, _ in group:
                    dropped.add("fewer than 2 completions left", number)
                continue
            for keys, scores in self._scores(group, list(texts)):
                merged += 1
                yield _ranking(group, texts, keys, scores, TIE if self.of_ratings else TIED_STRENGTHS)
        if say is not None:
            flat = sum(spread.squares == 0 for spread in self.spreads.values()) if self.method == "zscore" else 0
            say(
                f"{path}: consensus ({self.method}) of {count_of(self.groups.groups, 'prompts')}: "
                f"{count_of(merged, 'merged rankings')} from {self.ratings:,} ratings or ranks"
                + (f"; {count_of(flat, 'annotators')} rated all answers alike, which says nothing" if flat else "")
            )

    def _scores(self, group: Sequence[Any], keys: list[str]) -> Iterator[tuple[list[str], list[float]]]:
        """Sets of answers that can be compared, and the score of each answer."""
        if self.of_ratings:
            values: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for _, annotator, weight, _, _, _, answers in group:
                for text, rating, _ in answers:
                    if self.method == "zscore":
                        rating = self.spreads[annotator].standardised(rating)
                    values[same_text(text)].append((weight, rating))
            yield keys, [weighted_mean(values[key]) for key in keys]
            return
        place = {key: number for number, key in enumerate(keys)}
        wins = np.zeros((len(keys), len(keys)))
        for _, _, weight, _, _, _, answers in group:
            for i, (text, score, _) in enumerate(answers):
                for other, its_score, _ in answers[:i]:
                    a, b = place[same_text(text)], place[same_text(other)]
                    wins[a, b] += weight * ((score > its_score) + 0.5 * (score == its_score))
                    wins[b, a] += weight * ((score < its_score) + 0.5 * (score == its_score))
        for members in connected([same_text(text) for text, _, _ in answers] for *_, answers in group):
            at = [place[key] for key in members]
            yield members, list(strengths(wins[np.ix_(at, at)]))


def _texts(group: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """The distinct answers of a prompt, with the text and the model that come first."""
    texts: dict[str, tuple[str, str]] = {}
    for *_, answers in group:
        for text, _, model in answers:
            first = texts.setdefault(same_text(text), (text, model))
            if not first[1]:
                texts[same_text(text)] = (first[0], model)
    return texts


def _ranking(
    group: Sequence[Any], texts: dict[str, tuple[str, str]], keys: list[str], scores: list[float], tie: float
) -> MergedRanking:
    prompt, _, _, _, where, _, _ = group[0]
    models = [texts[key][1] for key in keys]
    return MergedRanking(
        prompt=prompt,
        completions=[texts[key][0] for key in keys],
        ranks=ranks_from_scores(scores, tie),
        annotator=CONSENSUS,
        human=all(human for _, _, _, human, _, _, _ in group),
        ratings=[float(score) for score in scores],
        models=models if any(models) else None,
        where=where,
    )


def weighted_mean(values: Sequence[tuple[float, float]]) -> float:
    """The mean of (weight, value)."""
    return math.fsum(weight * value for weight, value in values) / math.fsum(weight for weight, _ in values)


def strengths(wins: np.ndarray) -> np.ndarray:
    """Bradley-Terry strengths (K,) from `wins` (K, K), how often each answer beat each other one, which may be
    fractions: the maximum of the likelihood times the prior, by Newton's method. Their mean is 0."""
    k = len(wins)
    played, theta = wins + wins.T, np.zeros(k)

    def loss(at: np.ndarray) -> float:
        gaps = at[:, None] - at[None, :]
        return float((wins * np.logaddexp(0.0, -gaps)).sum() + PRIOR * (at**2).sum())

    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))  # [i, j]: that i beats j
        gradient = (wins - played * chance).sum(1) - 2 * PRIOR * theta
        curvature = played * chance * (1 - chance)
        hessian = np.diag(curvature.sum(1) + 2 * PRIOR) - curvature
        step = np.linalg.solve(hessian, gradient)
        while loss(theta + step) > loss(theta) and np.abs(step).max() > TIE:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < TIE:
            break
    return theta
