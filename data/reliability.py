"""How far each annotator is to be trusted, from agreement alone.

The model is the symmetric one of Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates
using the EM algorithm": an annotator orders a pair rightly with probability p_k, whatever the pair, and errs
independently of the others. With s_k = 2 p_k - 1 (1 never errs, 0 flips a coin), two annotators agree on a strict
pair with a chance-corrected frequency of

    c_kl = 2 P(agree) - 1 = s_k s_l,

so the matrix of agreements has rank one off its diagonal, and s is what fits it best (Dalvi et al. 2013,
"Aggregating crowdsourced binary ratings"; Ghosh, Kale and McAfee 2011). No answer key is needed, and two annotators
an item suffice, as long as annotators meet more than one other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from data.agreement import Overlap, signs

PRIOR = 30.0
"""Pairs' worth of belief that an annotator is like the others."""
SWEEPS = 200


def reliability(shared: Iterable[Overlap]) -> tuple[dict[str, float], dict[str, float], float]:
    """s_k by annotator, the strict pairs that it rests on, and the mean s.

    Least squares over pairs of annotators, weighted by the strict pairs n_kl that both ordered:
    sum n_kl (c_kl - s_k s_l)^2 + PRIOR s^2 sum (s_k - s)^2, with s the mean; solved one annotator at a time.
    s_k is held in [0, 1]: who disagrees more than chance says nothing, too.
    """
    agreed: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for overlap in shared:
        order = signs(overlap.ranks)
        for (i, a), (j, b) in combinations(enumerate(overlap.annotators), 2):
            product = order[i] * order[j]
            counts = agreed[(a, b) if a < b else (b, a)]
            counts[0] += float(product.sum())
            counts[1] += float(np.abs(product).sum())
    met: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for (a, b), (excess, strict) in agreed.items():
        if strict:
            met[a].append((b, excess, strict))
            met[b].append((a, excess, strict))
    pairs = {name: sum(n for _, _, n in others) for name, others in met.items()}
    everything = sum(pairs.values())
    if not everything:
        return {}, {}, 0.0
    overall = sum(excess for others in met.values() for _, excess, _ in others) / everything
    mean = float(np.sqrt(max(overall, 0.0)))
    s = dict.fromkeys(met, mean)
    for _ in range(SWEEPS):
        change = 0.0
        for name, others in met.items():
            fitted = sum(excess * s[other] for other, excess, _ in others) + PRIOR * mean**3
            scale = sum(n * s[other] ** 2 for other, _, n in others) + PRIOR * mean**2
            new = float(np.clip(fitted / scale, 0.0, 1.0)) if scale else mean
            change = max(change, abs(new - s[name]))
            s[name] = new
        if change < 1e-6:
            break
    return s, pairs, mean


def weights(shared: Iterable[Overlap], annotators: Iterable[str]) -> dict[str, float]:
    """How much each annotator's rankings should count: about 1 for one like the others, 0 for a coin.

    s_k over the mean of s (weighted by pairs), shrunk towards 1 by `PRIOR` pairs; 1 for who overlaps with nobody,
    and for all where nobody agrees beyond chance, since then nothing tells them apart.
    """
    s, pairs, mean = reliability(shared)
    if mean <= 0:
        return dict.fromkeys(annotators, 1.0)
    typical = sum(s[name] * pairs[name] for name in s) / sum(pairs.values())
    return {name: _shrunk(s, pairs, typical, name) for name in annotators}


def _shrunk(s: Mapping[str, float], pairs: Mapping[str, float], typical: float, name: str) -> float:
    if name not in s or typical <= 0:
        return 1.0
    return (pairs[name] * s[name] / typical + PRIOR) / (pairs[name] + PRIOR)
