"""The reliability of each annotator, from agreement alone.

The model is the symmetric one of Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates
using the EM algorithm": an annotator orders any pair correctly with probability p_k, independently of the others.
With s_k = 2 p_k - 1 (1 never errs, 0 flips a coin), two annotators agree on a strict pair with a chance-corrected
frequency of

    c_kl = 2 P(agree) - 1 = s_k s_l,

so the matrix of agreements has rank one off its diagonal, and s is its best fit (Dalvi et al. 2013, "Aggregating
crowdsourced binary ratings"; Ghosh, Kale and McAfee 2011). No answer key is needed, and two annotators per item are
enough, as long as each annotator overlaps with more than one other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from data.annotators.agreement import Overlap, signs

PRIOR = 30.0
"""Strength of the prior that an annotator is like the others, in pairs."""
LEAST = 0.05
"""Mean reliability below which all agreement is taken for chance."""
SWEEPS = 500


def reliability(shared: Iterable[Overlap]) -> tuple[dict[str, float], dict[str, float]]:
    """s_k by annotator, and the number of strict pairs with the other annotators that it is estimated from.

    Least squares over pairs of annotators, weighted by the strict pairs n_kl that both ordered:
    sum n_kl (c_kl - s_k s_l)^2 + PRIOR s^2 sum (s_k - s)^2, with s the mean, by damped fixed-point iteration.
    s_k is clipped to [0, 1]: an annotator who disagrees more than chance carries no information either.
    """
    agreed: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for overlap in shared:
        order = signs(overlap.ranks)
        for (i, a), (j, b) in combinations(enumerate(overlap.annotators), 2):
            product = order[i] * order[j]
            counts = agreed[(a, b) if a < b else (b, a)]
            counts[0] += float(product.sum())
            counts[1] += float(np.abs(product).sum())
    overlapping: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for (a, b), (excess, strict) in agreed.items():
        if strict:
            overlapping[a].append((b, excess, strict))
            overlapping[b].append((a, excess, strict))
    pairs = {name: sum(n for _, _, n in others) for name, others in overlapping.items()}
    s = dict.fromkeys(overlapping, 0.5)
    for _ in range(SWEEPS):
        mean = typical(s, pairs)
        new = {}
        for name, others in overlapping.items():
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
    """The weight of each annotator's rankings: about 1 for a typical annotator, 0 for a coin flip.

    s_k over the mean of s (weighted by pairs), shrunk towards 1 by `PRIOR` pairs. It is 1 for annotators without
    overlaps, and for all where nobody agrees beyond chance, since the data cannot tell them apart then.
    """
    s, pairs = reliability(shared)
    mean = typical(s, pairs)
    known = s if mean > LEAST else {}
    return {
        name: (pairs[name] * s[name] / mean + PRIOR) / (pairs[name] + PRIOR) if name in known else 1.0
        for name in annotators
    }
