"""The losses of PPO: sums over valid tokens, divided by a count from the caller.

The count is the number of valid tokens of the whole minibatch over all processes, so that the gradient depends on
neither the micro-batch size nor the number of processes. Shapes: B responses, T response tokens; masks are bool.
PPO: Schulman et al. 2017 (arXiv:1707.06347), equations 7 and 9. Dual clip: Ye et al. 2020 (arXiv:1912.09729),
equation 5. Value clip: Huang et al. 2024 (arXiv:2403.17031), detail 20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ppo.advantages import masked_sum
from stages.ppo.kl import k3, log_ratio


@dataclass(frozen=True)
class Loss:
    """A loss to backpropagate, and detached sums over valid tokens for its metrics."""

    loss: Tensor
    sums: dict[str, Tensor]


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    count: float,
    cliprange: float,
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
) -> Loss:
    """`-min(ratio A, clip(ratio, 1 +- cliprange) A)`. With `dual_clip` = c > 1 the loss is at most `-c A` where
    A < 0. `weights_BT` multiplies each token's loss.

    Sums: `clipfrac` (tokens whose gradient is clipped to zero), `approxkl` (k3 estimate of KL(old policy || new
    policy)), `ratio`, `policy_loss`.
    """
    ratio = log_ratio(logp_BT, old_logp_BT).exp()
    plain = -advantages_BT * ratio
    clipped = -advantages_BT * ratio.clamp(1 - cliprange, 1 + cliprange)
    token_loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        bound = -advantages_BT * dual_clip
        token_loss = torch.where(advantages_BT < 0, torch.minimum(token_loss, bound), token_loss)
    if weights_BT is not None:
        token_loss = weights_BT * token_loss
    with torch.no_grad():
        sums = {
            "clipfrac": masked_sum((clipped > plain).float(), mask_BT),
            "approxkl": masked_sum(k3(old_logp_BT, logp_BT), mask_BT),
            "ratio": masked_sum(ratio, mask_BT),
            "policy_loss": masked_sum(token_loss, mask_BT),
        }
    return Loss(masked_sum(token_loss, mask_BT) / count, sums)


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    count: float,
    cliprange_value: float,
) -> Loss:
    """`max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2) / 2`.

    Sums: `vf_clipfrac` (tokens whose gradient is clipped to zero), `value_loss`, `value`.
    """
    clipped = torch.clamp(values_BT, old_values_BT - cliprange_value, old_values_BT + cliprange_value)
    plain_error, clipped_error = (values_BT - returns_BT) ** 2, (clipped - returns_BT) ** 2
    token_loss = 0.5 * torch.maximum(plain_error, clipped_error)
    with torch.no_grad():
        sums = {
            "vf_clipfrac": masked_sum((clipped_error > plain_error).float(), mask_BT),
            "value_loss": masked_sum(token_loss, mask_BT),
            "value": masked_sum(values_BT, mask_BT),
        }
    return Loss(masked_sum(token_loss, mask_BT) / count, sums)


def entropy_bonus(entropy_BT: Tensor, mask_BT: Tensor, *, count: float, coef: float) -> Loss:
    """`-coef * entropy`. Sums: `entropy`, in nats."""
    total = masked_sum(entropy_BT, mask_BT)
    return Loss(-coef * total / count, {"entropy": total.detach()})
