"""The losses of PPO: sums over valid tokens, divided by a count from the caller.

The count is the number of valid tokens of the whole minibatch over all processes, so that the gradient depends on
neither the micro-batch size nor the number of processes. Other divisors than the number of tokens: see
`stages.ppo.update`. Shapes: B responses, T response tokens; masks are bool.
PPO: Schulman et al. 2017 (arXiv:1707.06347), equations 7 and 9. Dual clip: Ye et al. 2020 (arXiv:1912.09729),
equation 5. Value clip: Huang et al. 2024 (arXiv:2403.17031), detail 20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ppo.advantages import masked_sum
from stages.ppo.kl import ESTIMATORS, k3, log_ratio


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
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
    per_response: bool = False,
) -> Loss:
    """`-min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange_high) A)`, with one range for both by default (DAPO:
    Yu et al. 2025, arXiv:2503.14476, equation 10). With `dual_clip` = c > 1 the loss is at most `-c A` where A < 0.
    `weights_BT` multiplies each token's loss. With `per_response`, the tokens of a response count as their mean.

    Sums: `clipfrac` (tokens whose gradient is clipped to zero), `approxkl` (k3 estimate of KL(old policy || new
    policy)), `ratio`, `policy_loss`.
    """
    ratio = log_ratio(logp_BT, old_logp_BT).exp()
    plain = -advantages_BT * ratio
    clipped = -advantages_BT * ratio.clamp(
        1 - cliprange, 1 + (cliprange if cliprange_high is None else cliprange_high)
    )
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
    return Loss(_total(token_loss, mask_BT, per_response) / count, sums)


def kl_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    ref_logp_BT: Tensor,
    mask_BT: Tensor,
    *,
    count: float,
    coef: float,
    estimator: str,
    use_bias_correction: bool = False,
    per_response: bool = False,
) -> Loss:
    """`coef` times an estimate of KL(policy || reference) (GRPO: Shao et al. 2024, arXiv:2402.03300, equation 4).
    With `use_bias_correction` the estimate is multiplied by the ratio to the policy that sampled, so that its mean
    gradient is that of each token's KL (DeepSeek-V3.2, arXiv:2512.02556). `per_response`: as in `policy_loss`.

    Sums: `kl_loss`.
    """
    token_loss = coef * ESTIMATORS[estimator](logp_BT, ref_logp_BT)
    if use_bias_correction:
        token_loss = token_loss * log_ratio(logp_BT, old_logp_BT).exp()
    total = _total(token_loss, mask_BT, per_response)
    return Loss(total / count, {"kl_loss": masked_sum(token_loss.detach(), mask_BT)})


def _total(token_loss_BT: Tensor, mask_BT: Tensor, per_response: bool) -> Tensor:
    """The sum over tokens or, with `per_response`, over responses of the mean over their tokens."""
    if per_response:
        token_loss_BT = token_loss_BT / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return masked_sum(token_loss_BT, mask_BT)


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
