"""Advantage estimators: how good each sampled token was, from the rewards of a batch.

A prompt's responses (its group) may be on several processes: means over a group or over the batch are sums over all
processes. Shapes: B responses of this process, T response tokens, G prompts of the whole batch. Tensors are on the
CPU; statistics are float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.ppo import Estimator, PPOConfig
from stages.ppo.advantages import Reduce, gae

EPSILON = 1e-4
"""Added to the standard deviation of rewards, as in TRL's GRPO."""


@dataclass(frozen=True)
class Groups:
    """Which prompt each of this process's responses answers.

    Attributes:
        index_B: number of the prompt in the whole batch.
        count: G.
        size: responses per prompt.
        reduce: sums a tensor over all processes.
    """

    index_B: Tensor
    count: int
    size: int
    reduce: Reduce

    @classmethod
    def of(cls, rows_B: Tensor, batch_size: int, size: int, reduce: Reduce) -> Groups:
        """The groups of `rows_B`, which are rows of a batch with the responses to a prompt in consecutive rows."""
        return cls(rows_B // size, batch_size // size, size, reduce)

    def totals(self, values_B: Tensor) -> Tensor:
        """(G,): the sum over all responses to each prompt of the batch."""
        return self.reduce(torch.zeros(self.count).double().index_add_(0, self.index_B, values_B.double()))

    def sum(self, values_B: Tensor) -> Tensor:
        """(B,): the sum over all responses to the row's prompt."""
        return self.totals(values_B)[self.index_B]

    def mean(self, values_B: Tensor) -> Tensor:
        """(B,): the mean over all responses to the row's prompt."""
        return self.sum(values_B) / self.size

    def std(self, values_B: Tensor) -> Tensor:
        """(B,): the sample standard deviation over all responses to the row's prompt."""
        return (self.sum((values_B.double() - self.mean(values_B)) ** 2) / (self.size - 1)).sqrt()

    def equal(self, values_B: Tensor) -> Tensor:
        """(G,) bool: whether all responses to a prompt have the same value (float32, so that sums are exact)."""
        return self.totals((values_B.double() - self.mean(values_B)) ** 2) == 0

    def whole(self) -> Groups:
        """The batch as a single group."""
        return Groups(torch.zeros_like(self.index_B), 1, self.count * self.size, self.reduce)


class AdvantageEstimator(Protocol):
    """Computes advantages from rewards. What it needs is in `pipeline.config.ppo.METHODS`."""

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns (B, T), zero where masked. A critic learns the returns.

        Args:
            rewards_BT: zero where masked.
            values_BT: the critic's values; zeros without a critic.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """An estimator that keeps nothing from batch to batch."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No-op."""


class GAE(Stateless):
    """Generalised advantage estimation with a critic (Schulman et al. 2015, arXiv:1506.02438, equation 16)."""

    def __init__(self, config: PPOConfig) -> None:
        self.gamma, self.lam = config.gamma, config.lam

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        return gae(rewards_BT, values_BT, mask_BT, self.gamma, self.lam)


class Reinforce:
    """REINFORCE (Williams 1992, section 4): a token's return, less the mean return of the prompt's responses, of
    the batch, or of all earlier batches (the first batch uses its own).

    With advantages normalised over the batch this is REINFORCE++ (Hu et al. 2025, arXiv:2501.03262) and, with the
    prompt's mean, REINFORCE++-baseline. The running mean is the moving-average baseline of Ahmadian et al. 2024
    (arXiv:2402.14740).
    """

    def __init__(self, config: PPOConfig) -> None:
        self.gamma, self.mean_of = config.gamma, config.mean_of
        self.total = self.count = 0.0

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        # With zero values and lambda 1, GAE gives the return.
        _, returns_BT = gae(rewards_BT, torch.zeros_like(values_BT), mask_BT, self.gamma, 1.0)
        baseline_B = self._baseline(returns_BT[:, 0], groups)
        return torch.where(mask_BT, returns_BT - baseline_B[:, None].to(returns_BT), 0.0), returns_BT

    def _baseline(self, returns_B: Tensor, groups: Groups) -> Tensor:
        if self.mean_of == "group":
            return groups.mean(returns_B)
        batch = groups.whole()
        mean_B = batch.mean(returns_B)
        if self.mean_of == "batch":
            return mean_B
        earlier, known = self.total, self.count
        self.total += float(batch.reduce(returns_B.double().sum()[None])[0])
        self.count += batch.size
        return torch.full_like(mean_B, earlier / known) if known else mean_B

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.count = state["total"], state["count"]


class WholeResponse(Stateless, ABC):
    """A response is a single action: all of its tokens have the advantage of its reward, which is the sum of its
    token rewards."""

    def __init__(self, config: PPOConfig) -> None:
        self.scale_rewards = config.scale_rewards or config.method.scale_rewards

    def __call__(
        self, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        rewards_B = torch.where(mask_BT, rewards_BT, 0.0).double().sum(1)
        advantages_B = rewards_B - self.baseline(rewards_B, groups)
        if self.scale_rewards != "none":
            scope = groups if self.scale_rewards == "group" else groups.whole()
            advantages_B = advantages_B / (scope.std(rewards_B) + EPSILON)
        columns = (advantages_B, rewards_B)
        advantages_BT, returns_BT = (
            torch.where(mask_BT, values_B[:, None].to(rewards_BT), 0.0) for values_B in columns
        )
        return advantages_BT, returns_BT

    @abstractmethod
    def baseline(self, rewards_B: Tensor, groups: Groups) -> Tensor:
        """The reward (B,) to compare each response's with."""


class RLOO(WholeResponse):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740): the baseline is
    the mean reward of the prompt's other responses."""

    def baseline(self, rewards_B: Tensor, groups: Groups) -> Tensor:
        return (groups.sum(rewards_B) - rewards_B) / (groups.size - 1)


class GRPO(WholeResponse):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, section 4.1.2): the baseline is the
    mean reward of the prompt's responses, and advantages are divided by their standard deviation; with
    `scale_rewards: none`, that of Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)."""

    def baseline(self, rewards_B: Tensor, groups: Groups) -> Tensor:
        return groups.mean(rewards_B)


ESTIMATORS: dict[Estimator, Callable[[PPOConfig], AdvantageEstimator]] = {
    "gae": GAE,
    "reinforce": Reinforce,
    "rloo": RLOO,
    "grpo": GRPO,
}


def estimator_of(config: PPOConfig) -> AdvantageEstimator:
    """The estimator for `ppo.advantage_estimator`."""
    return ESTIMATORS[config.advantage_estimator](config)
