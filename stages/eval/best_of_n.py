"""Best of n: the answer among n of the reference that the reward model scores highest, as a policy to beat.

It needs no training, and its distance from the reference is known beforehand. Shapes: P prompts, N samples.
"""

from __future__ import annotations

from math import comb, log

import numpy as np

from stages.eval.wins import Array


def kl_bound(n: int) -> float:
    """log n - (n-1)/n, nats per response: the KL of best-of-n from the model sampled from.

    Equal to it for a continuous score without ties (Stiennon et al. 2020, appendix G.3), an upper bound in general
    (Beirami et al. 2024, arXiv:2401.01879, theorem 1).
    """
    return log(n) - (n - 1) / n


def nearest(kl: float, most: int) -> int:
    """The n of 1..most whose `kl_bound` is nearest."""
    return min(range(1, most + 1), key=lambda n: abs(kl_bound(n) - kl))


def weights(scores_PN: Array, n: int) -> Array:
    """(P, N): the share of all subsets of n of a prompt's N samples in which each has the highest score.

    With these weights a mean over the samples is the unbiased estimate of best-of-n's expectation (Nakano et al.
    2021, arXiv:2112.09332, appendix I; Gao et al. 2022, arXiv:2210.10760, appendix): the i-th in ascending order
    is the best of C(i-1, n-1) of the C(N, n) subsets. Samples of equal score come in the order they were drawn.
    """
    count = scores_PN.shape[1]
    by_rank = np.array([comb(i, n - 1) for i in range(count)], dtype=float) / comb(count, n)
    weights_PN = np.zeros_like(scores_PN, dtype=float)
    np.put_along_axis(weights_PN, scores_PN.argsort(axis=1, kind="stable"), by_rank[None, :], axis=1)
    return weights_PN


def ladder(most: int) -> list[int]:
    """1, 2, 4, ... up to and including `most`."""
    steps = [1]
    while 2 * steps[-1] < most:
        steps.append(2 * steps[-1])
    return [*steps, most]
