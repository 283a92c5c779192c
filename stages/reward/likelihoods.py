"""How likely is a ranking, given a score for each of its K answers?

Shapes: K answers to one prompt; `scores_K` float, `ranks_K` ints, 1 = best, equal ranks are ties.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(scores_K: Tensor, ranks_K: Tensor) -> Tensor:
    """Negative log-likelihood of all pairs of a ranking, each weighted 1/C(K,2); ties add nothing.

    Ouyang et al. 2022 (arXiv:2203.02155), equation 1: K forward passes serve all K(K-1)/2 pairs.
    """
    k = len(scores_K)
    better = ranks_K[:, None] < ranks_K[None, :]
    differences = scores_K[:, None] - scores_K[None, :]
    return -logsigmoid(differences)[better].sum() / (k * (k - 1) / 2)


def plackett_luce(scores_K: Tensor, ranks_K: Tensor) -> Tensor:
    """Negative log-likelihood under Plackett-Luce: the best is chosen first, then the best of the rest, and so on,
    each with probability softmax(score) over those left (Plackett 1975, section 3).

    A tie says that its answers come next in *some* order: the sum over all of them, exactly (by a recursion over
    the 2^m subsets of m tied answers). With K = 2 and no tie it is Bradley-Terry.
    """
    loss = scores_K[:0].sum()  # zero with a graph behind it: backward works when all are tied
    ranks = ranks_K.tolist()
    left = list(range(len(ranks)))
    for rank in sorted(set(ranks)):
        group = [i for i in left if ranks[i] == rank]
        if len(group) == len(left):
            break  # whoever is left comes last, in whatever order
        loss = loss - _log_chosen_first(scores_K, group, left)
        left = [i for i in left if ranks[i] != rank]
    return loss


def _log_chosen_first(scores_K: Tensor, group: list[int], left: list[int]) -> Tensor:
    """Log-probability that the answers of `group`, in any order, are the first ones chosen from `left`."""
    log_reached: dict[tuple[int, ...], Tensor] = {
        (): scores_K.new_zeros(())
    }  # chosen so far (as a set) -> log-probability of getting there
    for size in range(1, len(group) + 1):
        reached: dict[tuple[int, ...], Tensor] = {}
        for chosen in combinations(group, size):
            ways = []
            for last in chosen:
                before = tuple(i for i in chosen if i != last)
                rest = [i for i in left if i not in before]
                ways.append(log_reached[before] + scores_K[last] - scores_K[rest].logsumexp(0))
            reached[chosen] = torch.stack(ways).logsumexp(0)
        log_reached = reached
    return log_reached[tuple(group)]


def centering(scores_K: Tensor) -> Tensor:
    """Squared mean of a prompt's scores: pins the offset that rankings leave free (Eisenstein et al. 2023,
    arXiv:2312.09244, equation 2, for K answers)."""
    return scores_K.mean() ** 2
