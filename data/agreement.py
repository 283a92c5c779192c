"""How far annotators agree: what can be expected of a reward model that learns from them.

Annotators are compared where they ranked the same completions of the same prompt, in whatever order these
were shown. A *pair* is two of those completions; an annotator's pair is *strict* when it is not a tie.

- pairwise agreement (as in Stiennon et al. 2020, "Learning to summarize from human feedback"): of the pairs
  that two annotators both order strictly, the share that they order alike;
- prediction by the others: of an annotator's strict pairs, the share that the mean of the other annotators'
  ranks orders alike; it is the accuracy of a reward model that knows those ranks and nothing else;
- Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"), ordinal, on ranks
  within a ranking: 1 is perfect agreement, 0 is chance. It counts ties, which the shares leave out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from data.schema import Ranking, prompt_key


@dataclass(frozen=True)
class Share:
    """A share of pairs with its 95 % bootstrap interval over prompts; None where there are no pairs."""

    value: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Agreement:
    """The measures above, with what they rest on.

    Attributes:
        pairwise: of the pairs that two annotators both order strictly.
        by_others: of the strict pairs of one annotator, on which the others are not tied on average.
        alpha: Krippendorff's; None when it is undefined (no overlap, or everything tied).
        overlaps: sets of completions that at least two annotators ranked.
        annotators: how many took part in those.
    """

    pairwise: Share
    by_others: Share
    alpha: float | None
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


def agreement(rankings: Iterable[Ranking], *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """All measures over `rankings`. Of an annotator's rankings of the same completions the first counts."""
    shared = list(overlaps(rankings))
    return Agreement(
        pairwise=_share(shared, _alike, resamples, seed),
        by_others=_share(shared, _alike_to_others, resamples, seed),
        alpha=krippendorff_alpha(shared),
        overlaps=len(shared),
        annotators=len({name for overlap in shared for name in overlap.annotators}),
    )


def overlaps(rankings: Iterable[Ranking]) -> Iterator[Overlap]:
    """The sets of completions that at least two annotators ranked."""
    sets: dict[tuple[str, tuple[str, ...]], dict[str, np.ndarray]] = defaultdict(dict)
    for ranking in rankings:
        order = sorted(range(len(ranking.completions)), key=lambda i: ranking.completions[i])
        texts = tuple(ranking.completions[i] for i in order)
        ranks = mid_ranks([ranking.ranks[i] for i in order])
        sets[prompt_key(ranking.prompt), texts].setdefault(ranking.annotator, ranks)
    for (prompt, _), by_annotator in sets.items():
        if len(by_annotator) > 1:
            yield Overlap(prompt, list(by_annotator), np.stack(list(by_annotator.values())))


def mid_ranks(ranks: Sequence[int]) -> np.ndarray:
    """Ranks 1..K where ties share the mean of the places that they take: [1, 2, 2] -> [1, 2.5, 2.5]."""
    r = np.asarray(ranks)
    below = (r[:, None] > r[None, :]).sum(axis=1)
    equal = (r[:, None] == r[None, :]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2)


def krippendorff_alpha(shared: Sequence[Overlap]) -> float | None:
    """Krippendorff's ordinal alpha of the mid-ranks; each completion is a unit. None when it is undefined."""
    import krippendorff

    domain = sorted({float(rank) for overlap in shared for rank in overlap.ranks.flat})
    if len(domain) < 2:
        return None
    place = {rank: i for i, rank in enumerate(domain)}
    units = [unit for overlap in shared for unit in overlap.ranks.T]
    counts = np.zeros((len(units), len(domain)), dtype=int)
    for row, unit in zip(counts, units, strict=True):
        for rank in unit:
            row[place[float(rank)]] += 1
    return float(krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement="ordinal"))


def bootstrap(
    hits: Sequence[float], totals: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of sum(hits) / sum(totals), its units (prompts) drawn with replacement."""
    h, t = np.asarray(hits, dtype=float), np.asarray(totals, dtype=float)
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(resamples):
        drawn = rng.integers(len(t), size=len(t))
        if (total := t[drawn].sum()) > 0:
            shares.append(h[drawn].sum() / total)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def _share(
    shared: Sequence[Overlap],
    count: Callable[[np.ndarray], tuple[int, int]],
    resamples: int,
    seed: int,
) -> Share:
    """Counts by prompt, since the overlaps of one prompt are not independent of each other."""
    by_prompt: dict[str, tuple[int, int]] = {}
    for overlap in shared:
        hits, total = by_prompt.get(overlap.prompt, (0, 0))
        more, of = count(overlap.ranks)
        by_prompt[overlap.prompt] = hits + more, total + of
    counted = [(hits, total) for hits, total in by_prompt.values() if total]
    if not counted:
        return Share(None, None, None, 0)
    all_hits, totals = zip(*counted, strict=True)
    low, high = bootstrap(all_hits, totals, resamples=resamples, seed=seed)
    return Share(sum(all_hits) / sum(totals), low, high, sum(totals))


def _alike(ranks: np.ndarray) -> tuple[int, int]:
    """(ordered alike, strict for both) over all pairs of annotators and of completions."""
    return _count(np.stack([a * b for a, b in combinations(_signs(ranks), 2)]))


def _alike_to_others(ranks: np.ndarray) -> tuple[int, int]:
    """(ordered alike, strict for both) for each annotator and the mean of all others."""
    others = (ranks.sum(axis=0) - ranks) / (len(ranks) - 1)
    return _count(_signs(ranks) * _signs(others))


def _signs(ranks: np.ndarray) -> np.ndarray:
    """Annotators x pairs: the sign of the first completion's rank less the second's."""
    first, second = np.triu_indices(ranks.shape[1], k=1)
    return np.asarray(np.sign(ranks[:, first] - ranks[:, second]))


def _count(products: np.ndarray) -> tuple[int, int]:
    return int((products > 0).sum()), int((products != 0).sum())
