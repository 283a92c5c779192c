"""How much would a ranking of a prompt's answers tell about the members of a reward ensemble? Pure tensor maths."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_information_gain(scores_MNK: Tensor) -> Tensor:
    """For each of N prompts, from M members' scores of its K answers: (N,) nats, 0 where all members agree.

    The information that one comparison is expected to give about the members: for answers i and j, member m prefers
    i with probability p_m = sigmoid(s_mi - s_mj); the mutual information between the outcome and the member is
    H(mean p) - mean H(p_m) (BALD: Houlsby et al. 2011, arXiv:1112.5745, equation 2, for preferences), averaged over
    the pairs of a prompt.

    Only differences of scores enter, since rankings do not determine a member's offset, which a standard deviation
    of the scores themselves would count. It is also 0 where all members expect a toss-up (two equal answers), which
    no ranking settles, and where all are sure of the same order and differ only in how sure they are.
    """
    k = scores_MNK.shape[-1]
    i, j = torch.triu_indices(k, k, offset=1)
    preferred_MNP = torch.sigmoid((scores_MNK[..., i] - scores_MNK[..., j]).double())
    gain_NP = _entropy(preferred_MNP.mean(0)) - _entropy(preferred_MNP).mean(0)
    return gain_NP.mean(-1).clamp(min=0.0)


def _entropy(p: Tensor) -> Tensor:
    """The entropy of a coin that shows heads with probability p, in nats."""
    return torch.special.entr(p) + torch.special.entr(1 - p)
