"""The optimizer of a role: loss scaling, gradient sums over processes, clipping, steps and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.ppo import PPOConfig
from pipeline.errors import StageError
from stages.models.bank import Bank
from stages.models.distributed import World
from stages.models.sharding import gathered, load_optimizer
from stages.training.loss_scale import LossScale, needs_loss_scale
from stages.training.optimizers import adamw


class RoleOptimizer:
    """Steps the parameters of a role.

    Attributes:
        parameters: the trainable ones.
        scale: the loss scale, active in float16 only.
    """

    def __init__(self, bank: Bank, role: str, config: PPOConfig, device: str, world: World) -> None:
        self.role, self.config, self.device, self.world = role, config, device, world
        self.parameters: Sequence[nn.Parameter] = [p for p in bank.parameters_of(role) if p.requires_grad]
        self.scale = LossScale(needs_loss_scale(bank))
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if config.value_learning_rate is not None and role in bank.heads:
            head = {id(p) for p in bank.heads[role].parameters()}
            estimating = [p for p in self.parameters if role == "value" or id(p) in head]
            others = [p for p in self.parameters if role != "value" and id(p) not in head]
            groups = [{"params": others}] if others else []
            groups.append({"params": estimating, "lr": config.value_learning_rate})
        self.optimizer = adamw(
            config.optimizer,
            groups,
            device,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    @property
    def lr(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def set_schedule(self, factor: float) -> None:
        """Sets the learning rate to `factor` times the initial one."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def backward(self, loss: Tensor) -> None:
        self.scale(loss).backward()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def started(self) -> bool:
        """Whether a step was taken."""
        return bool(self.optimizer.state)

    def step(self, sums: dict[str, Tensor], update: int, *, silent: bool = False) -> dict[str, float]:
        """Clips and applies the gradients. Returns the sums over all processes and the gradient norm before
        clipping; no norm if the step was skipped because a float16 gradient overflowed.

        Args:
            sums: this process's sums over the minibatch's tokens.
            update: counted from 0, for error messages.
            silent: the minibatch has nothing to learn from. No step is taken, and a gradient of zero is no error.

        Raises `StageError` if the gradient is not finite, or is zero in the role's first step.
        """
        self.world.sum_gradients(self.parameters)
        self.scale.unscale_(self.parameters)
        before_clipping = gathered(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        # The only synchronisation with the device in a step.
        norm, *values = torch.stack([before_clipping.to(self.device), *sums.values()]).tolist()
        skipped = self.scale.skips(math.isfinite(norm))
        if not math.isfinite(norm) and not skipped:
            raise StageError(
                f"the {self.role} role's gradient is {norm} at update {update + 1}",
                hint="lower ppo.learning_rate, or use base.dtype: float32",
            )
        # Only in the first step: later, clipping can leave a small minibatch with a zero gradient.
        if norm == 0 and not self.started and not silent:
            raise StageError(f"the {self.role} role gets no gradient", hint="report this with the recipe")
        if not skipped and not silent:
            self.optimizer.step()
        self.zero_grad()
        totals = self.world.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        by_name = dict(zip(sums, totals, strict=True))
        return by_name if skipped else by_name | {f"{self.role}_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "loss_scale": self.scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
        self.scale.load_state_dict(state["loss_scale"])


def schedule(config: PPOConfig, update: int, updates: int) -> float:
    """The learning-rate factor at `update`, counted from 0, of `updates`."""
    if update < config.warmup_updates:
        return (update + 1) / (config.warmup_updates + 1)
    progress = (update - config.warmup_updates) / max(1, updates - config.warmup_updates)
    if config.lr_scheduler_type == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.lr_scheduler_type == "cosine" else 1.0
