"""Estimators of the KL divergence from the reference policy, and controllers of the KL coefficient.

Shapes: B responses, T response tokens.
Estimators: J. Schulman, "Approximating KL Divergence" (2020). Controller: Ziegler et al. 2019
(arXiv:1909.08593), section 2.2.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


def log_ratio(logp_BT: Tensor, other_logp_BT: Tensor) -> Tensor:
    """`log p - log q` of each sampled token (B, T), nats, float32, clamped to +-20 so that its exponential is
    finite."""
    return (logp_BT.float() - other_logp_BT.float()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def k1(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """Unbiased estimate of KL(p || ref) from tokens sampled from p: `log p - log ref`, clamped to +-10.

    May be negative for a sample; its mean under p is the KL.
    """
    return log_ratio(logp_BT, ref_logp_BT).clamp(-KL_LIMIT, KL_LIMIT)


def k2(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """Biased estimate of low variance: `(log p - log ref)^2 / 2`. Its mean gradient under p is that of the KL."""
    return 0.5 * log_ratio(logp_BT, ref_logp_BT) ** 2


def k3(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """Unbiased and non-negative estimate of lower variance than `k1`: `ref/p - 1 - log(ref/p)`, clamped to 10.

    `expm1` preserves small log-ratios, which `exp(x) - 1` would round away.
    """
    negative = -log_ratio(logp_BT, ref_logp_BT)
    return (torch.expm1(negative) - negative).clamp(0, KL_LIMIT)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By `ppo.kl.estimator`."""


class KLController(Protocol):
    """Sets the KL coefficient, beta.

    Attributes:
        value: the current beta.
    """

    value: float

    def update(self, kl: float, episodes: int) -> None:
        """Adapts beta after an update, from the batch's KL in nats per response and its number of episodes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedKL:
    """A constant coefficient, from the recipe or solved before training."""

    def __init__(self, init: float) -> None:
        self.value = init

    def update(self, kl: float, episodes: int) -> None:
        """No-op."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class AdaptiveKL(FixedKL):
    """Proportional control of log(beta) towards a target KL (Ziegler et al. 2019, section 2.2).

    Args:
        init: the initial beta.
        target: the KL target, nats per response.
        horizon: episodes over which a constant error of 1 would roughly double beta; errors are clipped to +-0.2.
    """

    def __init__(self, init: float, target: float, horizon: int) -> None:
        super().__init__(init)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, episodes: int) -> None:
        """`beta *= 1 + clip(kl/target - 1, +-0.2) * episodes/horizon`; `kl` in nats per response."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * episodes / self.horizon


def controller(kind: str, init: float, target: float, horizon: int) -> KLController:
    """The controller for `ppo.kl.kind`."""
    return AdaptiveKL(init, target, horizon) if kind == "adaptive" else FixedKL(init)
