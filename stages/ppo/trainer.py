"""PPO under a KL penalty (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022), one update at a time.

Deviations from TRL's last PPO trainer, each a bug there: the score is placed on the last valid token; every
minibatch is one optimizer step; gradients are clipped; means are over valid tokens; whitening is over all
processes; value role and heads are in the checkpoint; logits exist in chunks only. The numbered steps are those
of docs/ppo.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.ppo import PPOConfig
from pipeline.errors import StageError
from pipeline.machine import trim_memory
from stages.models.bank import Actor, Bank, FullBank
from stages.models.microbatch import MicroBatch
from stages.models.precision import COMPUTE, Deviation, exact, spread_of
from stages.models.sharding import gathered, whole_states
from stages.models.text import IGNORED, Codec
from stages.ppo import experience, mismatch
from stages.ppo.cost import attainable, shape_of, update_flops
from stages.ppo.experience import Experience
from stages.ppo.kl import AdaptiveKL, FixedKL
from stages.ppo.losses import Loss, entropy_bonus, policy_loss, value_loss
from stages.ppo.rewards import RewardSignal, ScoreNormalizer
from stages.sampling import episodes as trajectory
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import Record, generate
from stages.training.distributed import World
from stages.training.loss_scale import LossScale, needs_loss_scale
from stages.training.optimizers import adamw

LanguageModelBatch = tuple[Tensor, Tensor]
"""Ids and labels (B, L), right-padded; labels of `IGNORED` are left out."""


class PPOTrainer:
    """Holds everything that an update changes; `state_dict` and `load_state_dict` are complete to the bit.

    Args:
        bank: roles policy, reference and, unless `config.value` is trunk, value.
        prompts: the training prompts.
        reward: scores responses.
        demonstrations: draws a batch for PPO-ptx from a generator; needed when `config.ptx_coef` > 0.
        is_copy: whether the policy starts as the reference's copy, which the first batch must then show.
        say: told when a micro-batch did not fit into memory.
    """

    def __init__(
        self,
        bank: Bank,
        config: PPOConfig,
        codec: Codec,
        prompts: Sequence[EncodedPrompt],
        reward: RewardSignal,
        *,
        seed: int,
        device: str = "cpu",
        demonstrations: Callable[[torch.Generator], LanguageModelBatch] | None = None,
        is_copy: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.bank, self.config, self.codec, self.reward = bank, config, codec, reward
        self.prompts, self.seed, self.device = prompts, seed, device
        self.demonstrations, self.is_copy = demonstrations, is_copy
        self.world = World()
        self.micro = MicroBatch(config.micro_batch_size, "training", say)
        self.decoding = MicroBatch(config.rollout_batch_size, "sampling", say)
        self.updates = config.total_episodes // config.batch_size
        self.update = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.cursor = torch.arange(0), 0
        kl = config.kl
        self.kl: FixedKL = AdaptiveKL(kl.init, kl.target, kl.horizon) if kl.kind == "adaptive" else FixedKL(kl.init)
        self.normalizer = ScoreNormalizer(config.score, self.world)
        with bank.active("policy") as actor:
            self.shape = shape_of(actor.lm)
        weight = next(p for p in bank.parameters() if p.is_floating_point())
        self.attainable = attainable(device, getattr(actor.lm, COMPUTE, weight.dtype))
        self._work = [0.0, 0.0]  # operations, seconds
        self._learning = {
            role: [p for p in bank.parameters_of(role) if p.requires_grad] for role in sorted(bank.trainable)
        }
        self.optimizers = {role: self._optimizer(role) for role in self._learning}
        self.exact = exact(bank)
        self.scales = {role: LossScale(needs_loss_scale(bank)) for role in self._learning}
        self.frozen = {role: bank.checksum(role) for role in bank.roles if role not in bank.trainable}

    # --- The loop -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Before the first update: the moments that scores are normalised by, from the reference's own answers."""

        def scores() -> Tensor:
            prompts = self.next_prompts()
            return self.reward(prompts, responses_of(self.sample(prompts, role="reference")))

        self.normalizer.prepare(scores)

    def step(self) -> dict[str, float]:
        """One update: sample a batch of episodes, learn from it. Returns its metrics (docs/ppo.md)."""
        clock = _Clock()
        # 1. Sample responses.
        record = self._record()
        prompts = self.next_prompts()
        episodes = self.sample(prompts, record)
        clock.lap("rollout")
        # 2. Score them.
        scores = self.reward(prompts, responses_of(episodes))
        disagreement = self.reward.disagreement(self.world)
        rewards = self.normalizer(scores)
        ended = episodes.ended(self.codec.stop_ids).cpu()
        if self.config.missing_eos_penalty is not None:
            rewards = rewards - self.config.missing_eos_penalty * (~ended).float()
        clock.lap("score")
        # 3. to 5. Log-probs, values, rewards, advantages.
        reused = record if self.exact else None
        data = experience.build(
            self.bank, episodes, scores, rewards, self.config, self.kl.value, self.world, reused, self.micro
        )
        if not self.exact:
            data = mismatch.measured(data, record, self.config, self.world)
        if self.update == 0 and self.is_copy:
            self._check_start(data)
        trim_memory()  # room that the sampling's cache took, and that training's tensors would not fit into
        clock.lap("passes")
        # 6. Optimise.
        learnt = self._optimise(data)
        clock.lap("train")
        # 7. Steer the price of KL.
        self.kl.update(data.metrics["objective/kl"], self.config.batch_size)
        self.update += 1
        tokens = float(episodes.response_lengths_B.sum())
        counts = [float(ended.sum()), len(ended), tokens, self._flops(episodes)]
        count = self.world.sum(torch.tensor(counts, dtype=torch.float64))
        flops = float(count[3])
        self._work[0] += flops / self.world.size
        self._work[1] += clock.total
        return (
            data.metrics
            | disagreement
            | {"response/ended": float(count[0] / count[1])}
            | learnt
            | {f"time/{name}": seconds for name, seconds in clock.laps.items()}
            | {
                "episode": self.update * self.config.batch_size,
                "tokens_per_second": float(count[2]) / clock.total,
                "flops": flops,
                "mfu": flops / self.world.size / clock.total / self.attainable,
            }
        )

    def _flops(self, episodes: Episodes) -> float:
        """Operations that this process's share of the update asked for (`stages.ppo.cost`)."""
        lengths = torch.stack([episodes.prompt_lengths_B, episodes.response_lengths_B], dim=1)
        by_phase = update_flops(
            self.shape,
            [(prompt, response) for prompt, response in lengths.tolist()],
            epochs=self.config.num_ppo_epochs,
            adapter_value=self.config.value == "adapter",
            full=isinstance(self.bank, FullBank),
            rewards=sum(role.startswith("reward") for role in self.bank.roles),
        )
        return sum(by_phase.values())

    @property
    def mfu(self) -> float:
        """Model-FLOPs utilisation of this process's updates so far: operations that the mathematics asks for, a
        second, over what one large matrix product reaches."""
        return self._work[0] / self._work[1] / self.attainable if self._work[1] else 0.0

    def next_prompts(self) -> list[EncodedPrompt]:
        """The next batch of prompts, this process's share. They come in a random order, and in a new one each time
        all were used."""
        chosen: list[int] = []
        while len(chosen) < self.config.batch_size:
            if self.cursor == len(self.order):
                self.order, self.cursor = torch.randperm(len(self.prompts), generator=self.generator), 0
            taken = self.order[self.cursor :][: self.config.batch_size - len(chosen)]
            self.cursor += len(taken)
            chosen += taken.tolist()
        return [self.prompts[chosen[i]] for i in self.world.mine(self.config.batch_size).tolist()]

    def sample(
        self, prompts: Sequence[EncodedPrompt], record: Record | None = None, role: str = "policy"
    ) -> Episodes:
        """Episodes of this process's prompts under a role."""
        uniform = torch.rand((self.config.batch_size, self.config.response_length), generator=self.generator)
        return self.respond(prompts, uniform[self.world.mine(self.config.batch_size)], record, role)

    def respond(
        self,
        prompts: Sequence[EncodedPrompt],
        uniform_BT: Tensor,
        record: Record | None = None,
        role: str = "policy",
    ) -> Episodes:
        """Episodes from given random numbers."""
        ids = [prompt.ids for prompt in prompts]
        with self.bank.active(role, decode=True) as actor:
            responses = generate(
                actor,
                ids,
                uniform_BT,
                temperature=self.config.temperature,
                stop_ids=self.codec.stop_ids,
                pad_id=self.codec.pad_id,
                batch_size=self.decoding,
                record=record,
            )
        return Episodes.build(ids, responses, self.codec.stop_ids, self.codec.pad_id, self.device)

    # --- 6. Optimisation ----------------------------------------------------------------------------------------

    def _optimise(self, data: Experience) -> dict[str, float]:
        config, totals = self.config, _Totals()
        warming_up = self.update < config.critic_warmup_updates and config.value == "adapter"
        for group in (group for optimizer in self.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * self._schedule(self.update)
        stop = False
        for epoch in range(config.num_ppo_epochs):
            for number, rows in enumerate(self._mini_batches()):
                count = float(self.world.sum(data.episodes.response_lengths_B[rows].sum()[None].double())[0])
                if not warming_up:
                    sums = self._train_policy(data, rows, count)
                    self._check_ratio(data, sums, count, first=epoch == 0 and number == 0)
                    totals.add(sums, count)
                    stop = config.target_kl is not None and sums["approxkl"] / count > config.target_kl
                if config.value == "adapter":
                    totals.add(self._train_value(data, rows, count), count)
                if stop:
                    break
            if stop:
                break
        means = totals.means()
        names = {
            "policy_loss": "loss/policy_avg",
            "value_loss": "loss/value_avg",
            "ptx_loss": "loss/ptx_avg",
            "approxkl": "policy/approxkl_avg",
            "clipfrac": "policy/clipfrac_avg",
            "ratio": "val/ratio",
            "vf_clipfrac": "val/clipfrac_avg",
            "value": "val/value_avg",
            "policy_norm": "policy/grad_norm",
            "value_norm": "val/grad_norm",
        }
        return {names[name]: value for name, value in means.items() if name in names} | {
            "lr": self.optimizers["policy"].param_groups[0]["lr"],
            "optimizer_steps": float(totals.steps),
            **{f"loss_scale/{role}": scale.value for role, scale in self.scales.items() if scale.active},
        }

    def _mini_batches(self) -> Iterator[Tensor]:
        """This process's rows of each minibatch of one epoch: the batch in a random order, cut into equal parts."""
        size = self.config.batch_size // self.config.num_mini_batches
        order = torch.randperm(self.config.batch_size, generator=self.generator)
        for part in order.split(size):
            yield part[part % self.world.size == self.world.rank] // self.world.size

    def _train_policy(self, data: Experience, rows: Tensor, count: float) -> dict[str, float]:
        """One optimizer step of the policy (and, on a shared trunk, of the value head)."""
        with self.bank.active("policy", train=True) as actor:
            sums = self._fitting(
                "policy", rows, lambda size: self._policy_gradients(actor, data, rows, count, size)
            )
        return self._step("policy", sums)

    def _policy_gradients(
        self, actor: Actor, data: Experience, rows: Tensor, count: float, size: int | None
    ) -> dict[str, Tensor]:
        config = self.config
        sums: dict[str, Tensor] = {}
        for part_rows, part in self._parts(data, rows, size):
            hidden = actor.hidden(part.ids_BL)
            logp, entropy = trajectory.logprobs(
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
                    count=count,
                    cliprange=config.cliprange,
                    dual_clip=config.dual_clip,
                    weights_BT=None if data.weights_BT is None else data.weights_BT[part_rows],
                )
            ]
            if config.entropy_coef:
                losses.append(entropy_bonus(entropy, part.mask_BT, count=count, coef=config.entropy_coef))
            if config.value == "trunk":
                value = self._value_loss(data, part_rows, part, trajectory.values(actor, part, hidden), count)
                losses.append(Loss(config.vf_coef * value.loss, value.sums))
            self.scales["policy"](torch.stack([loss.loss for loss in losses]).sum()).backward()
            _accumulate(sums, losses)
        if config.ptx_coef:
            sums["ptx_loss"] = self._ptx(actor, size) * count / self.world.size
        return sums

    def _parts(self, data: Experience, rows: Tensor, size: int | None) -> Iterator[tuple[Tensor, Episodes]]:
        """Micro-batches. The passes of sharded roles are made together: who has fewer makes passes of no weight."""
        parts = list(data.episodes.micro_batches(rows, size))
        most = self.world.most(len(parts)) if self.bank.sharded else len(parts)
        yield from parts
        for _ in range(len(parts), most):
            yield from data.episodes.micro_batches(rows[:0], size)

    def _fitting(
        self, role: str, rows: Tensor, work: Callable[[int | None], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """A minibatch's gradients, at the micro-batch that fits: what an attempt left behind is taken back."""
        drawn = self.generator.get_state()

        def undo() -> None:
            self.optimizers[role].zero_grad(set_to_none=True)
            self.generator.set_state(drawn)

        return self.micro.run(work, max(1, len(rows)), undo)

    def _train_value(self, data: Experience, rows: Tensor, count: float) -> dict[str, float]:
        """One optimizer step of a value role of its own."""

        def gradients(size: int | None) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            for part_rows, part in self._parts(data, rows, size):
                new = trajectory.values(actor, part, actor.hidden(part.ids_BL))
                loss = self._value_loss(data, part_rows, part, new, count)
                self.scales["value"](loss.loss).backward()
                _accumulate(sums, [loss])
            return sums

        with self.bank.active("value", train=True) as actor:
            sums = self._fitting("value", rows, gradients)
        return self._step("value", sums)

    def _value_loss(self, data: Experience, rows: Tensor, part: Episodes, values_BT: Tensor, count: float) -> Loss:
        return value_loss(
            values_BT,
            data.values_BT[rows],
            data.returns_BT[rows],
            part.mask_BT,
            count=count,
            cliprange_value=self.config.cliprange_value,
        )

    def _ptx(self, actor: Actor, size: int | None) -> Tensor:
        """PPO-ptx: backward of `ptx_coef` times the language-modelling loss on demonstrations (Ouyang et al. 2022,
        equation 2), in micro-batches of `size`. Every process takes the same batch, so their sum is divided by
        their number."""
        assert self.demonstrations is not None
        ids_BL, labels_BL = self.demonstrations(self.generator)
        ids_BL, labels_BL = ids_BL[:, :-1], labels_BL[:, 1:]
        size, keep_BL = size or len(ids_BL), labels_BL != IGNORED
        count = max(1, int(keep_BL.sum()))
        places = [part.flatten().nonzero()[:, 0] for part in keep_BL.split(size)]
        counts = [len(part) for part in places]
        # Found on the host and copied before the first pass: no micro-batch makes the host wait.
        tensors = ids_BL, torch.cat(places), labels_BL[keep_BL]
        ids, where, targets = (tensor.to(self.device) for tensor in tensors)
        parts = list(zip(ids.split(size), where.split(counts), targets.split(counts), strict=True))
        total = torch.zeros((), device=self.device)
        # Sharded roles need the same number of passes on every process (`_parts`): the last one again, for nothing.
        for number in range(self.world.most(len(parts)) if self.bank.sharded else len(parts)):
            (ids, where, targets), weight = parts[min(number, len(parts) - 1)], float(number < len(parts))
            logps, _ = actor.logprobs(
                actor.hidden(ids).flatten(0, 1).index_select(0, where),
                targets,
                temperature=1.0,
                chunk_size=self.config.logits_chunk_size,
                entropy=False,
            )
            loss = -logps.sum() * (weight / count)
            self.scales["policy"](self.config.ptx_coef * loss / self.world.size).backward()
            total += loss.detach()
        return total

    def _step(self, role: str, sums: dict[str, Tensor]) -> dict[str, float]:
        """Clips and applies the gradients. Returns the sums over all processes and the gradient's norm."""
        parameters = self._learning[role]
        self.world.sum_gradients(parameters)
        self.scales[role].unscale_(parameters)
        before_clipping = gathered(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        # The only time in a step that the host waits for the device.
        norm, *values = torch.stack([before_clipping, *sums.values()]).tolist()
        skipped = self.scales[role].skips(math.isfinite(norm))
        if not math.isfinite(norm) and not skipped:
            raise StageError(
                f"the {role} role's gradient is {norm} at update {self.update + 1}",
                hint="lower ppo.learning_rate, or use base.dtype: float32",
            )
        # Of a role's very first step only: later the clip may leave a small minibatch without any gradient.
        if norm == 0 and not self.optimizers[role].state:
            raise StageError(f"the {role} role gets no gradient", hint="report this with the recipe")
        if not skipped:
            self.optimizers[role].step()
        self.optimizers[role].zero_grad(set_to_none=True)
        totals = self.world.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        found = dict(zip(sums, totals, strict=True))
        return found if skipped else found | {f"{role}_norm": norm}

    # --- Set-up and run-time checks ------------------------------------------------------------------------------

    def _optimizer(self, role: str) -> torch.optim.Optimizer:
        config = self.config
        rate = config.value_learning_rate if role == "value" else None
        optimizer = adamw(
            config.optimizer,
            self._learning[role],
            self.device,
            lr=config.learning_rate if rate is None else rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        whole_states(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def _schedule(self, update: int) -> float:
        config = self.config
        if update < config.warmup_updates:
            return (update + 1) / (config.warmup_updates + 1)
        done = (update - config.warmup_updates) / max(1, self.updates - config.warmup_updates)
        if config.lr_scheduler_type == "linear":
            return 1 - done
        return 0.5 * (1 + math.cos(math.pi * done)) if config.lr_scheduler_type == "cosine" else 1.0

    def _record(self) -> Record:
        rows = len(self.world.mine(self.config.batch_size))
        return Record.empty((rows, self.config.response_length), self.device)

    def _check_start(self, data: Experience) -> None:
        mask = data.episodes.mask_BT.cpu()
        deviation = Deviation.between(data.logp_BT.cpu()[mask], data.ref_logp_BT.cpu()[mask])
        if not deviation.is_rounding(self.exact):
            raise StageError(
                f"policy and reference differ before the first step, in nats per token: {deviation}",
                hint="the policy must start as the reference's copy; train the SFT model again",
            )

    def _check_ratio(self, data: Experience, sums: dict[str, float], count: float, *, first: bool) -> None:
        if not first:
            return
        ratio, k3 = sums["ratio"] / count, sums["approxkl"] / count
        relative = 0.0
        if not self.exact:
            # k3 is half the square of a small difference of log-probs.
            relative = abs(2 * k3) ** 0.5 / spread_of(data.logp_BT.cpu()[data.episodes.mask_BT.cpu()])
        if not Deviation(abs(ratio - 1), relative).is_rounding(self.exact):
            raise StageError(
                f"the policy's ratio to itself is {ratio:.4f} before its first step of an update, with a KL of "
                f"{k3:.2g} nats per token",
                hint="something in the model is random or depends on the batch; report this with the recipe",
            )

    def check_frozen(self) -> None:
        """Raises `StageError` when a frozen role has changed."""
        for role, checksum in self.frozen.items():
            if self.bank.checksum(role) != checksum:
                raise StageError(f"the frozen role {role!r} has changed during training", hint="report this")

    # --- Checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of sharded roles complete on rank 0 only; every process must ask."""
        return {
            "update": self.update,
            "roles": {role: self.bank.state_of(role) for role in sorted(self.bank.trainable)},
            "optimizers": {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()},
            "loss_scales": {role: scale.state_dict() for role, scale in self.scales.items()},
            "kl": self.kl.state_dict(),
            "scores": self.normalizer.state_dict(),
            "order": self.order,
            "cursor": self.cursor,
            "generator": self.generator.get_state(),
            "micro_batch": self.micro.state_dict(),
            "decoding": self.decoding.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.update = state["update"]
        for role, tensors in state["roles"].items():
            self.bank.load_state_of(role, tensors)
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][role])
            self.scales[role].load_state_dict(state["loss_scales"][role])
        self.kl.load_state_dict(state["kl"])
        self.normalizer.load_state_dict(state["scores"])
        self.order, self.cursor = state["order"], state["cursor"]
        self.generator.set_state(state["generator"])
        self.micro.load_state_dict(state["micro_batch"])
        self.decoding.load_state_dict(state["decoding"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def responses_of(episodes: Episodes) -> list[list[int]]:
    """The ids of each response, up to and including its first stop token."""
    lengths = episodes.response_lengths_B.tolist()
    return [row[:n] for row, n in zip(episodes.responses_BT.tolist(), lengths, strict=True)]


def _accumulate(sums: dict[str, Tensor], losses: Sequence[Loss]) -> None:
    for name, value in (item for loss in losses for item in loss.sums.items()):
        sums[name] = sums[name] + value if name in sums else value


class _Totals:
    """Sums over an update's steps, to be divided by the tokens they were taken over."""

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


class _Clock:
    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return self.last - self.start
