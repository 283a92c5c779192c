"""Step 6 of an update: optimisation of the policy and the critic on a batch of experience.

Each minibatch is one optimizer step per role. The micro-batch size affects memory only: losses are sums divided by
the token count of the whole minibatch over all processes. Shapes: B responses, L positions, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.models.actor import Actor
from stages.models.bank import Bank
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.ppo import checks
from stages.ppo.experience import Experience
from stages.ppo.losses import Loss, entropy_bonus, kl_loss, policy_loss, value_loss
from stages.ppo.prompts import Shares
from stages.ppo.ptx import Demonstrations, PtxBatch
from stages.ppo.role_optimizer import RoleOptimizer, schedule
from stages.sampling import episodes as sequences
from stages.sampling.episodes import Episodes

METRICS = {
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "ptx_loss": "loss/ptx_avg",
    "kl_loss": "loss/kl_avg",
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "vf_clipfrac": "val/clipfrac_avg",
    "value": "val/value_avg",
    "policy_norm": "policy/grad_norm",
    "value_norm": "val/grad_norm",
}
"""Name of a sum over tokens -> metric name of its mean (docs/ppo.md)."""


class Optimisation:
    """Holds and steps the optimizers of the trainable roles.

    Args:
        exact: whether the bank computes in float32, in which case the first ratio must be exactly 1.
        updates: number of updates in the run, for the learning-rate schedule.
        micro: the micro-batch size, which persists from update to update.
        shares: this process's rows of each batch.
        demonstrations: draws batches for PPO-ptx; needed when `config.ptx_coef` > 0.
    """

    def __init__(
        self,
        bank: Bank,
        config: PPOConfig,
        *,
        exact: bool,
        updates: int,
        device: str,
        micro: MicroBatch,
        world: World,
        shares: Shares,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self.bank, self.config, self.exact, self.updates = bank, config, exact, updates
        self.device, self.micro, self.demonstrations = device, micro, demonstrations
        self.world, self.shares = world, shares
        self.optimizers = {
            role: RoleOptimizer(bank, role, config, device, world) for role in sorted(bank.trainable)
        }

    def run(self, data: Experience, update: int, generator: torch.Generator) -> dict[str, float]:
        """Runs all epochs over one batch and returns the metrics of the update, which is counted from 0."""
        config, totals = self.config, Totals()
        for optimizer in self.optimizers.values():
            optimizer.set_schedule(schedule(config, update, self.updates))
        trains_policy = config.critic != "adapter" or update >= config.critic_warmup_updates
        stop = False
        for epoch in range(config.num_ppo_epochs):
            for number, rows in enumerate(self.shares.mini_batches(config.num_mini_batches, generator)):
                tokens = data.episodes.response_lengths_B[rows].sum()
                count = float(self.world.sum(tokens[None].double())[0])
                if trains_policy:
                    sums = self.train_policy(data, rows, count, generator, update)
                    if epoch == 0 and number == 0:
                        checks.first_ratio(data, sums, count, self.exact)
                    totals.add(sums, count)
                    stop = config.target_kl is not None and sums["approxkl"] / count > config.target_kl
                if config.critic == "adapter":
                    totals.add(self.train_value(data, rows, count, generator, update), count)
                if stop:
                    break
            if stop:
                break
        return (
            {METRICS[name]: mean for name, mean in totals.means().items() if name in METRICS}
            | {
                "lr": self.optimizers["policy"].lr,
                "optimizer_steps": float(totals.steps),
            }
            | {f"loss_scale/{role}": o.scale.value for role, o in self.optimizers.items() if o.scale.active}
        )

    def train_policy(
        self, data: Experience, rows: Tensor, count: float, generator: torch.Generator, update: int
    ) -> dict[str, float]:
        """Takes one optimizer step of the policy and, with a shared trunk, of the value head."""
        with self.bank.active("policy", train=True) as actor:
            sums = self._fitting(
                "policy",
                rows,
                generator,
                lambda size: self.policy_gradients(actor, data, rows, count, size, generator),
            )
        return self.optimizers["policy"].step(sums, update, silent=self._silent(data, rows))

    def _silent(self, data: Experience, rows: Tensor) -> bool:
        """Whether no response of a minibatch has an advantage, before the policy's first step. The gradient of the
        KL term is then zero or rounding, and AdamW would scale rounding up to a whole step."""
        if not self.config.compares or self.optimizers["policy"].started:
            return False
        return not float(self.world.sum((data.advantages_BT.cpu()[rows] != 0).sum()[None].double())[0])

    def policy_gradients(
        self,
        actor: Actor,
        data: Experience,
        rows: Tensor,
        count: float,
        size: int | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Accumulates a minibatch's gradients in micro-batches of `size`. Returns the loss sums over its tokens."""
        config = self.config
        divisor, per_response = self._divisor(data, count)
        sums: dict[str, Tensor] = {}
        for part_rows, part in self._parts(data, rows, size):
            hidden = part.hidden(actor)
            logp, entropy = sequences.logprobs(
                actor,
                part,
                hidden,
                temperature=config.temperature,
                chunk_size=config.logits_chunk_size,
                entropy=config.entropy_coef > 0,
            )
            losses = [
                policy_loss(
                    logp,
                    data.logp_BT[part_rows],
                    data.advantages_BT[part_rows],
                    part.mask_BT,
                    count=divisor,
                    cliprange=config.cliprange,
                    cliprange_high=config.cliprange_high,
                    dual_clip=config.dual_clip,
                    weights_BT=None if data.weights_BT is None else data.weights_BT[part_rows],
                    per_response=per_response,
                )
            ]
            if config.kl_loss is not None:
                losses.append(
                    kl_loss(
                        logp,
                        data.logp_BT[part_rows],
                        data.ref_logp_BT[part_rows],
                        part.mask_BT,
                        count=divisor,
                        coef=data.kl_coef,
                        estimator=config.kl_loss,
                        use_bias_correction=config.kl.use_bias_correction,
                        per_response=per_response,
                    )
                )
            if config.entropy_coef:
                losses.append(entropy_bonus(entropy, part.mask_BT, count=count, coef=config.entropy_coef))
            if config.critic == "trunk":
                value = self._value_loss(data, part_rows, part, sequences.values(actor, part, hidden), count)
                losses.append(Loss(config.vf_coef * value.loss, value.sums))
            self.optimizers["policy"].backward(torch.stack([loss.loss for loss in losses]).sum())
            _accumulate(sums, losses)
        if config.ptx_coef:
            sums["ptx_loss"] = self._ptx(actor, size, generator) * count / self.world.size
        return sums

    def _divisor(self, data: Experience, count: float) -> tuple[float, bool]:
        """What a minibatch's sum of token losses is divided by (`ppo.loss_type`), and whether the tokens of a
        response count as their mean.

        bnpo and dapo: TRL's GRPO; dapo: Yu et al. 2025 (arXiv:2503.14476), equation 12. grpo: Shao et al. 2024
        (arXiv:2402.03300), equation 3. dr_grpo: Liu et al. 2025 (arXiv:2503.20783), with a constant for the length.
        """
        config = self.config
        responses = config.batch_size // config.num_mini_batches
        match config.loss_type or config.method.loss_type:
            case "dapo":
                return data.tokens / config.num_mini_batches, False
            case "dr_grpo":
                return responses * config.response_length, False
            case "grpo":
                return responses, True
        return count, False

    def train_value(
        self, data: Experience, rows: Tensor, count: float, generator: torch.Generator, update: int
    ) -> dict[str, float]:
        """Takes one optimizer step of the separate value role."""

        def gradients(size: int | None) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            for part_rows, part in self._parts(data, rows, size):
                values = sequences.values(actor, part, part.hidden(actor))
                loss = self._value_loss(data, part_rows, part, values, count)
                self.optimizers["value"].backward(loss.loss)
                _accumulate(sums, [loss])
            return sums

        with self.bank.active("value", train=True) as actor:
            sums = self._fitting("value", rows, generator, gradients)
        return self.optimizers["value"].step(sums, update)

    def _value_loss(self, data: Experience, rows: Tensor, part: Episodes, values_BT: Tensor, count: float) -> Loss:
        return value_loss(
            values_BT,
            data.values_BT[rows],
            data.returns_BT[rows],
            part.mask_BT,
            count=count,
            cliprange_value=self.config.cliprange_value,
        )

    def _ptx(self, actor: Actor, size: int | None, generator: torch.Generator) -> Tensor:
        assert self.demonstrations is not None
        batch = PtxBatch.of(self.demonstrations(generator), size, self.device)
        passes = self.world.most(len(batch)) if self.bank.mesh else len(batch)
        weight, optimizer = self.config.ptx_coef / self.world.size, self.optimizers["policy"]
        chunk_size = self.config.logits_chunk_size
        return batch.backward(actor, lambda loss: optimizer.backward(weight * loss), passes, chunk_size)

    def _parts(self, data: Experience, rows: Tensor, size: int | None) -> Iterator[tuple[Tensor, Episodes]]:
        """Yields (rows, episodes) micro-batches.

        Sharded roles need the same number of passes on every process, so processes with fewer micro-batches add
        passes of weight zero.
        """
        parts = list(data.episodes.micro_batches(rows, size))
        most = self.world.most(len(parts)) if self.bank.mesh else len(parts)
        yield from parts
        for _ in range(len(parts), most):
            yield from data.episodes.micro_batches(rows[:0], size)

    def _fitting(
        self,
        role: str,
        rows: Tensor,
        generator: torch.Generator,
        work: Callable[[int | None], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Computes a minibatch's gradients at the largest micro-batch size that fits. An attempt that runs out of
        memory is undone."""
        state = generator.get_state()

        def undo() -> None:
            self.optimizers[role].zero_grad()
            generator.set_state(state)

        return self.micro.run(work, max(1, len(rows)), undo)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()},
            "micro_batch": self.micro.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][role])
        self.micro.load_state_dict(state["micro_batch"])


def _accumulate(sums: dict[str, Tensor], losses: Sequence[Loss]) -> None:
    for name, value in (item for loss in losses for item in loss.sums.items()):
        sums[name] = sums[name] + value if name in sums else value


class Totals:
    """Accumulates sums over an update's steps, and the number of tokens (or steps) in each."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.steps = 0

    def add(self, sums: dict[str, float], count: float) -> None:
        self.steps += 1
        for name, value in sums.items():
            weight = 1.0 if name.endswith("_norm") else count
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}
