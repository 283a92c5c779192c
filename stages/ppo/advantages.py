"""Token rewards, generalised advantage estimation and whitening.

Shapes: B responses, T response tokens; masks are bool, true on valid tokens. Input values at masked positions never
affect a result.
GAE: Schulman et al. 2015 (arXiv:1506.02438), equation 16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity on a single process."""


def token_rewards(penalty_BT: Tensor, score_B: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T): `-penalty` on every valid token, plus the score on each response's last valid token."""
    rewards = torch.where(mask_BT, -penalty_BT, torch.zeros_like(penalty_BT))
    position = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last = (mask_BT * (position + 1)).argmax(dim=1)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += score_B.to(rewards)
    return rewards


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T), zero where masked. Masked tokens are skipped: a token's successor is the next
    valid token, and the value after the last valid token is zero."""
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
    """The scalar sum over valid tokens."""
    return torch.where(mask, values, 0.0).sum()


def masked_moments(values: Tensor, mask: Tensor, reduce: Reduce = lambda x: x) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the valid tokens of all processes. Computed in float64, which
    not every device supports, hence on the CPU; `reduce` is called with CPU tensors."""
    wide, mask = values.cpu().double(), mask.cpu()
    sums = torch.stack([masked_sum(wide, mask), mask.sum().double()])
    total, count = reduce(sums)
    mean = total / count
    variance = reduce(masked_sum((wide - mean) ** 2, mask)[None])[0] / count
    return mean.to(values), variance.to(values)


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = lambda x: x, eps: float = 1e-8
) -> Tensor:
    """Scales to unit variance over all valid tokens and, unless `shift_mean` is false, shifts to zero mean. Zero
    where masked."""
    mean, variance = masked_moments(values, mask, reduce)
    white = (values - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)
