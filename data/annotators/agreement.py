"""Agreement between annotators, which bounds the accuracy of a reward model that learns from them.

Annotators are compared where they ranked the same completions of the same prompt, in any order of display. A *pair*
is two of those completions; an annotator's pair is *strict* when it is not a tie.

- pairwise agreement (as in Stiennon et al. 2020, "Learning to summarize from human feedback"): of the pairs
  that two annotators both order strictly, the share that they order alike;
- prediction by the others: of an annotator's strict pairs, the share that the mean of the other annotators'
  ranks orders alike; it is the accuracy of a reward model that knows those ranks and nothing else;
- Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability") on ranks that are centred
  and scaled by K, so that rankings of different K can be pooled: 1 is perfect agreement, 0 is chance. Unlike the
  shares, it counts ties;
- Kendall's tau-b (Kendall 1945, "The treatment of ties in ranking problems") of two annotators' rankings, the mean
  over all pairs of annotators: 1 is the same order, -1 the reverse, 0 is chance; ties lower what can be reached.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from data.annotators.sample import CompactRanking
from data.bootstrap import Share, share
from data.schema import Ranking


@dataclass(frozen=True)
class Agreement:
    """The measures above, and the data they are computed from.

    Attributes:
        pairwise: of the pairs that two annotators both order strictly.
        by_others: of the strict pairs of one annotator, on which the others are not tied on average.
        alpha: Krippendorff's; None when it is undefined (no overlap, or everything tied).
        tau: Kendall's, over pairs of annotators of whom neither ties everything.
        overlaps: sets of completions that at least two annotators ranked.
        annotators: how many ranked one of those.
    """

    pairwise: Share
    by_others: Share
    alpha: float | None
    tau: Share
    overlaps: int
    annotators: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """Completions that several annotators ranked: their mid-ranks, annotators x K."""

    prompt: str
    annotators: list[str]
    ranks: np.ndarray


def agreement(rankings: Iterable[Ranking | CompactRanking], *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """All measures over `rankings`. Where an annotator ranked the same completions twice, the first time counts."""
    shared = list(overlaps(rankings))

    def over_prompts(count: Callable[[np.ndarray], tuple[float, float]]) -> Share:
        return share(((o.prompt, *count(o.ranks)) for o in shared), resamples=resamples, seed=seed)

    return Agreement(
        pairwise=over_prompts(_alike),
        by_others=over_prompts(_alike_to_others),
        alpha=krippendorff_alpha(shared),
        tau=over_prompts(_tau),
        overlaps=len(shared),
        annotators=len({name for overlap in shared for name in overlap.annotators}),
    )


def pairwise(rankings: Iterable[Ranking | CompactRanking]) -> tuple[int, int]:
    """(ordered alike, all) of the pairs that two annotators both order strictly: `Agreement.pairwise` without its
    interval."""
    counts = [_alike(overlap.ranks) for overlap in overlaps(rankings)]
    return int(sum(alike for alike, _ in counts)), int(sum(total for _, total in counts))


def overlaps(rankings: Iterable[Ranking | CompactRanking]) -> Iterator[Overlap]:
    """The sets of completions that at least two annotators ranked."""
    sets: dict[tuple[str, bytes], dict[str, tuple[float, ...]]] = defaultdict(dict)
    for ranking in rankings:
        compact = CompactRanking.of(ranking) if isinstance(ranking, Ranking) else ranking
        sets[compact.prompt, compact.item].setdefault(compact.annotator, compact.ranks)
    for (prompt, _), by_annotator in sets.items():
        if len(by_annotator) > 1:
            yield Overlap(prompt, list(by_annotator), np.asarray(list(by_annotator.values())))


def krippendorff_alpha(shared: Sequence[Overlap]) -> float | None:
    """Krippendorff's alpha of standardised mid-ranks; each completion is a unit. None when it is undefined.

    alpha = 1 - D_o / D_e (Krippendorff 2011, section C) with the squared distance of the values
    z = (rank - (K + 1) / 2) / sqrt((K^2 - 1) / 12): ranks less their mean, over the standard deviation of a ranking
    of K without ties. For n values in units of m annotators each,

        D_o = 1/n sum over units of 2 m/(m - 1) sum (z - mean of the unit)^2,    D_e = 2/(n - 1) sum z^2.

    D_e is what chance gives only where values are comparable across units. Raw ranks are not: those of K = 2 lie in
    1..2 and those of K = 6 in 1..6, whoever ranked, so pooling them makes annotators seem to agree. Neither are
    Krippendorff's ordinal distances, which depend on how often each rank occurs: rankings with one best and the
    rest tied then have another mean than those with one worst. The z of every ranking have mean 0, whatever K and
    ties, so that D_o of annotators who rank at random has the expectation 2 E(z^2). For one K without ties every
    rank occurs equally often and the ordinal distance is proportional to this one: alpha is the ordinal alpha.
    """
    observed = squares = 0.0
    n = 0
    for overlap in shared:
        m, k = overlap.ranks.shape
        z = (overlap.ranks - (k + 1) / 2) / np.sqrt((k * k - 1) / 12)
        observed += 2 * m / (m - 1) * float(np.square(z - z.mean(axis=0)).sum())
        squares += float(np.square(z).sum())
        n += z.size
    return 1 - (observed / n) / (2 * squares / (n - 1)) if squares else None


def signs(ranks: np.ndarray) -> np.ndarray:
    """Annotators x pairs: the sign of the first completion's rank less the second's."""
    first, second = np.triu_indices(ranks.shape[1], k=1)
    return np.asarray(np.sign(ranks[:, first] - ranks[:, second]))


def tau_b(order: np.ndarray) -> np.ndarray:
    """Annotators x annotators: Kendall's tau-b, from the signs of their pairs. NaN where one ties everything.

    (concordant - discordant) / sqrt(strict pairs of one * strict pairs of the other), Kendall 1945. All annotators
    at once: scipy.stats.kendalltau compares two per call, and each call takes 0.1 ms.
    """
    strict = np.abs(order).sum(axis=1)
    both = np.outer(strict, strict)
    return np.asarray(order @ order.T / np.sqrt(np.where(both > 0, both, np.nan)))


def _tau(ranks: np.ndarray) -> tuple[float, float]:
    """(sum of tau-b, how many) over all pairs of annotators of whom neither ties everything."""
    taus = tau_b(signs(ranks))[np.triu_indices(len(ranks), k=1)]
    return float(np.nansum(taus)), float(np.isfinite(taus).sum())


def _alike(ranks: np.ndarray) -> tuple[float, float]:
    """(ordered alike, strict for both) over all pairs of annotators and of completions."""
    return _count(np.stack([a * b for a, b in combinations(signs(ranks), 2)]))


def _alike_to_others(ranks: np.ndarray) -> tuple[float, float]:
    """(ordered alike, strict for both) for each annotator and the mean of all others."""
    others = (ranks.sum(axis=0) - ranks) / (len(ranks) - 1)
    return _count(signs(ranks) * signs(others))


def _count(products: np.ndarray) -> tuple[float, float]:
    return float((products > 0).sum()), float((products != 0).sum())
