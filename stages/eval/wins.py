"""Win rates and their intervals. Shapes: P prompts, S answers to each.

Everything is an expectation over a prompt's answers. Intervals are bootstrapped over prompts, since the answers to
one prompt are not independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bootstrap import bootstrap

Array = NDArray[np.float64]
Interval = dict[str, Any]
"""`value`, and the 95 % interval's `low` and `high`; None when there is nothing to measure."""


def wins(ours_PS: Array, our_weights_PS: Array, theirs_PS: Array, their_weights_PS: Array) -> Array:
    """(P,): the probability that an answer of ours has a higher score than one of theirs; a tie counts half.

    Args:
        ours_PS, theirs_PS: a judge's scores; the two may have different S.
        our_weights_PS, their_weights_PS: the probability of each answer; rows sum to 1.
    """
    outcome_PST = 0.5 * (1 + np.sign(ours_PS[:, :, None] - theirs_PS[:, None, :]))
    return np.einsum("ps,pst,pt->p", our_weights_PS, outcome_PST, their_weights_PS)


def ties(ours_PS: Array, our_weights_PS: Array, theirs_PS: Array, their_weights_PS: Array) -> float:
    """The probability of a tie, over all prompts. Arguments as of `wins`."""
    same_PST = (ours_PS[:, :, None] == theirs_PS[:, None, :]).astype(float)
    return float(np.einsum("ps,pst,pt->p", our_weights_PS, same_PST, their_weights_PS).mean())


def mean(values_P: Array, resamples: int, seed: int) -> Interval:
    """The mean over prompts."""
    low, high = bootstrap(values_P, resamples=resamples, seed=seed)
    return {"value": float(values_P.mean()), "low": low, "high": high}


def ratio(hits_P: Array, totals_P: Array, resamples: int, seed: int) -> Interval:
    """sum(hits) / sum(totals)."""
    low, high = bootstrap(hits_P, totals_P, resamples=resamples, seed=seed)
    return {"value": float(hits_P.sum() / max(1.0, totals_P.sum())), "low": low, "high": high}


def relative_change(ours_P: Array, theirs_P: Array, resamples: int, seed: int) -> Interval:
    """sum(ours) / sum(theirs) - 1, -0.5 for half."""
    if not theirs_P.sum():
        return {"value": None, "low": None, "high": None}  # nothing to reduce
    low, high = bootstrap(ours_P, theirs_P, resamples=resamples, seed=seed)
    return {"value": float(ours_P.sum() / theirs_P.sum() - 1), "low": low - 1, "high": high - 1}
