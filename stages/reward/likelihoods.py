"""Losses of a ranking, given a score for each of its K answers: negative log-likelihoods, and regression.

Shapes: K answers to one prompt; `scores_K` float, `ranks_K` ints, 1 = best, equal ranks are ties.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(scores_K: Tensor, ranks_K: Tensor, margins_KK: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of all pairs of a ranking, each weighted 1/C(K,2); ties contribute nothing.

    Ouyang et al. 2022 (arXiv:2203.02155), equation 1: K forward passes serve all K(K-1)/2 pairs. `margins_KK[i, j]`
    is subtracted from the score difference of i and j (Touvron et al. 2023, arXiv:2307.09288, equation 2).
    """
    k = len(scores_K)
    better = ranks_K[:, None] < ranks_K[None, :]
    differences = scores_K[:, None] - scores_K[None, :]
    if margins_KK is not None:
        differences = differences - margins_KK
    return -logsigmoid(differences)[better].sum() / (k * (k - 1) / 2)


def davidson(scores_K: Tensor, ranks_K: Tensor, log_nu: float) -> Tensor:
    """As `bradley_terry`, but a tie is an observation too, which pulls its two scores together.

    Davidson 1970 (JASA 65), equation 2.6: of i and j, i wins with a probability proportional to exp(s_i), j with
    one proportional to exp(s_j), and they tie with one proportional to nu * exp((s_i + s_j) / 2). `davidson_nu`
    computes nu from the share of ties.
    """
    k = len(scores_K)
    halves = (scores_K[:, None] - scores_K[None, :]) / 2
    log_total = torch.logaddexp(torch.logaddexp(halves, -halves), torch.full_like(halves, log_nu))
    better = ranks_K[:, None] < ranks_K[None, :]
    tied = (ranks_K[:, None] == ranks_K[None, :]).triu(diagonal=1)
    wins, ties = (log_total - halves)[better].sum(), (log_total - log_nu)[tied].sum()
    return (wins + ties) / (k * (k - 1) / 2)


def davidson_nu(tie_share: float) -> float:
    """The nu for which answers of equal score tie with probability `tie_share` = nu / (nu + 2)."""
    return 2 * tie_share / (1 - tie_share)


def plackett_luce(scores_K: Tensor, ranks_K: Tensor) -> Tensor:
    """Negative log-likelihood under Plackett-Luce: the best answer is chosen first, then the best of the rest, and
    so on, each with probability softmax(score) over the remaining answers (Plackett 1975, section 3).

    For m tied answers the likelihood is summed exactly over their orders, by a recursion over their 2^m subsets.
    With K = 2 and no tie it equals Bradley-Terry.
    """
    loss = scores_K[:0].sum()  # zero with a graph, so that backward works if all are tied
    ranks = ranks_K.tolist()
    left = list(range(len(ranks)))
    for rank in sorted(set(ranks)):
        group = [i for i in left if ranks[i] == rank]
        if len(group) == len(left):
            break  # the remaining answers come last in any order, with probability 1
        loss = loss - _log_chosen_first(scores_K, group, left)
        left = [i for i in left if ranks[i] != rank]
    return loss


def _log_chosen_first(scores_K: Tensor, group: list[int], left: list[int]) -> Tensor:
    """Log-probability that the answers of `group`, in any order, are chosen first from `left`."""
    # Set of answers chosen so far -> log-probability that these are chosen first.
    log_reached: dict[tuple[int, ...], Tensor] = {(): scores_K.new_zeros(())}
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


def regression(scores_K: Tensor, targets_K: Tensor) -> Tensor:
    """Mean squared error between centred scores and centred targets: a ranking does not determine the offset."""
    return ((scores_K - scores_K.mean()) - (targets_K - targets_K.mean())).square().mean()


def borda_targets(ranks_K: Tensor) -> Tensor:
    """Targets from ranks: an answer's log-odds of winning a comparison within the ranking, log((w + 1/2) / (l +
    1/2)). w is the number of answers that it beats (its Borda count; a tie is half a win), l the number that beat
    it. Adding 1/2 keeps the log-odds finite (Haldane 1956). Log-odds have the unit of Bradley-Terry scores."""
    wins = (ranks_K[:, None] < ranks_K[None, :]).sum(1) + ((ranks_K[:, None] == ranks_K[None, :]).sum(1) - 1) / 2
    return ((wins + 0.5) / (len(ranks_K) - 1 - wins + 0.5)).log()


def rating_targets(ratings_K: Tensor) -> Tensor:
    """Targets from ratings, standardised within the ranking because annotators use a scale differently. Zero if all
    ratings are equal."""
    centred = ratings_K - ratings_K.mean()
    spread = centred.square().mean().sqrt()
    return centred / spread if spread > 0 else centred


def centering(scores_K: Tensor) -> Tensor:
    """Squared mean of a prompt's scores. It penalises the offset, which rankings leave free (Eisenstein et al.
    2023, arXiv:2312.09244, equation 2, for K answers)."""
    return scores_K.mean() ** 2
