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

from data.annotators.agreement import Overlap, signs

PRIOR = 30.0
"""Pairs' worth of belief that an annotator is like the others."""
LEAST = 0.05
"""Mean reliability below which annotators are taken to agree by chance only."""
SWEEPS = 500


def reliability(shared: Iterable[Overlap]) -> tuple[dict[str, float], dict[str, float]]:
    """s_k by annotator, and the strict pairs that it rests on, each annotator's with every other.

    Least squares over pairs of annotators, weighted by the strict pairs n_kl that both ordered:
    sum n_kl (c_kl - s_k s_l)^2 + PRIOR s^2 sum (s_k - s)^2, with s the mean; solved for all at once, again and
    again, half a step each time. s_k is held in [0, 1]: who disagrees more than chance says nothing, too.
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
    s = dict.fromkeys(met, 0.5)
    for _ in range(SWEEPS):
        mean = typical(s, pairs)
        new = {}
        for name, others in met.items():
            fitted = sum(excess * s[other] for other, excess, _ in others) + PRIOR * mean**3
            scale = sum(n * s[other] ** 2 for other, _, n in others) + PRIOR * mean**2
            new[name] = (s[name] + float(np.clip(fitted / scale, 0.0, 1.0) if scale else 0.0)) / 2
        change = max((abs(new[name] - s[name]) for name in s), default=0.0)
        s = new
        if change < 1e-6:
            break
    return s, pairs


def typical(s: Mapping[str, float], pairs: Mapping[str, float]) -> float:
    """The mean of s, weighted by pairs; 0 where there are none."""
    total = sum(pairs.values())
    return sum(s[name] * pairs[name] for name in s) / total if total else 0.0


def weights(shared: Iterable[Overlap], annotators: Iterable[str]) -> dict[str, float]:
    """How much each annotator's rankings should count: about 1 for one like the others, 0 for a coin.

    s_k over the mean of s (weighted by pairs), shrunk towards 1 by `PRIOR` pairs; 1 for who overlaps with nobody,
    and for all where nobody agrees beyond chance, since then nothing tells them apart.
    """
    s, pairs = reliability(shared)
    mean = typical(s, pairs)
    known = s if mean > LEAST else {}
    return {
        name: (pairs[name] * s[name] / mean + PRIOR) / (pairs[name] + PRIOR) if name in known else 1.0
        for name in annotators
    }
