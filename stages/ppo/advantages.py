"""Rewards of tokens, advantages, and whitening.

Shapes: B responses, T response tokens; masks are bool, true on the tokens that count. What stands at masked
positions of an input never reaches a result.
GAE: Schulman et al. 2015 (arXiv:1506.02438), equation 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity on one."""


def token_rewards(penalty_BT: Tensor, score_B: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T): `-penalty` on every response token, and the score added at each response's last one."""
    rewards = torch.where(mask_BT, -penalty_BT, torch.zeros_like(penalty_BT))
    position = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last = (mask_BT * (position + 1)).argmax(dim=1)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += score_B.to(rewards)
    return rewards


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T), zero where masked. Masked tokens are skipped: the successor of a token is
    the next one that counts, and after the last one there is nothing more to come."""
    advantages = torch.zeros_like(rewards_BT)
    next_value = torch.zeros_like(rewards_BT[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(rewards_BT.shape[1])):
        keep = mask_BT[:, t]
        delta = rewards_BT[:, t] + gamma * next_value - values_BT[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(keep, advantage, 0.0)
        next_value = torch.where(keep, values_BT[:, t], next_value)
        next_advantage = torch.where(keep, advantage, next_advantage)
    returns = torch.where(mask_BT, advantages + values_BT, 0.0)
    return advantages, returns


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the sum over the tokens that count."""
    return torch.where(mask, values, 0.0).sum()


def masked_moments(values: Tensor, mask: Tensor, reduce: Reduce = lambda x: x) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance over the tokens that count, of all processes. In float64, which not every
    device has, hence on the CPU; `reduce` is given CPU tensors."""
    wide, mask = values.cpu().double(), mask.cpu()
    sums = torch.stack([masked_sum(wide, mask), mask.sum().double()])
    total, count = reduce(sums)
    mean = total / count
    variance = reduce(masked_sum((wide - mean) ** 2, mask)[None])[0] / count
    return mean.to(values), variance.to(values)


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = lambda x: x, eps: float = 1e-8
) -> Tensor:
    """Unit variance over all valid tokens of the batch and, unless `shift_mean` is false, zero mean. Zero where
    masked."""
    mean, variance = masked_moments(values, mask, reduce)
    white = (values - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


# --- Estimators ---


class AdvantageEstimator(Protocol):
    """How rewards become advantages.

    Attributes:
        critic: whether it reads the values of a critic, which then learns its returns.
    """

    critic: bool

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, group_size: int, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns (B, T), zero where masked; on the CPU.

        Args:
            values_BT: of the critic; zeros without one.
            group_size: so many consecutive rows are responses to one prompt.
        """


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation with a critic (`gae`)."""

    gamma: float
    lam: float
    critic = True

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, group_size: int, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        return gae(rewards_BT, values_BT, mask_BT, self.gamma, self.lam)


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE with a mean baseline (Williams 1992, section 4): the discounted sum of the rewards still to come,
    less the mean return of the prompt's responses, or of the whole batch where each prompt has one response."""

    gamma: float
    lam: float
    critic = False

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, group_size: int, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        # With values of zero and lambda 1, GAE is the return.
        _, returns_BT = gae(rewards_BT, torch.zeros_like(values_BT), mask_BT, self.gamma, 1.0)
        total_B = returns_BT[:, 0].double()
        if group_size > 1:
            baseline_B = total_B.view(-1, group_size).mean(1).repeat_interleave(group_size)
        else:
            total, count = reduce(torch.stack([total_B.sum(), torch.tensor(float(len(total_B))).double()]))
            baseline_B = (total / count).expand(len(total_B))
        return torch.where(mask_BT, returns_BT - baseline_B[:, None].to(returns_BT), 0.0), returns_BT


ESTIMATORS: dict[str, Callable[[float, float], AdvantageEstimator]] = {"gae": GAE, "reinforce": Reinforce}
"""By `ppo.advantage_estimator`; called with gamma and lambda."""
