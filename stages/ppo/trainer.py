"""PPO under a KL penalty (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022), one update at a time.

It deviates from TRL's last PPO trainer where that has bugs: the score goes to the last valid token, each minibatch
is one optimizer step, gradients are clipped, means are over valid tokens, whitening covers all processes, the
checkpoint includes the value role and heads, and logits are computed in chunks. Step numbers follow docs/ppo.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from pipeline.engine.stage import Progress, Silent
from pipeline.machine import trim_memory
from stages.models.bank import Bank
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.models.precision import exact
from stages.models.text import Codec
from stages.ppo import checks, experience, mismatch
from stages.ppo.cost import Clock, Meter
from stages.ppo.estimators import Groups, estimator_of
from stages.ppo.kl import controller
from stages.ppo.prompts import PromptQueue, Shares
from stages.ppo.ptx import Demonstrations
from stages.ppo.resampling import Scored, replace_equal
from stages.ppo.rewards import RewardSignal, penalised
from stages.ppo.solve import Solution, solve
from stages.ppo.terms import TermSignal
from stages.ppo.update import Optimisation
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import Sampler, SamplingParams, Share, sampler_of


class PPOTrainer:
    """Holds all training state. A run restored from `state_dict` continues bit for bit.

    Args:
        bank: the roles policy and reference, and value if the critic is a separate role.
        prompts: the training prompts.
        reward: scores responses.
        demonstrations: draws a batch for PPO-ptx from a generator; needed when `config.ptx_coef` > 0.
        is_copy: whether the policy starts as a copy of the reference; if so, the first batch checks it.
        sampler: samples responses; None: the built-in one.
        say: called with a message when a micro-batch does not fit into memory.
    """

    def __init__(
        self,
        bank: Bank,
        config: PPOConfig,
        codec: Codec,
        prompts: Sequence[EncodedPrompt],
        reward: RewardSignal | TermSignal,
        *,
        seed: int,
        device: str = "cpu",
        demonstrations: Demonstrations | None = None,
        is_copy: bool = True,
        sampler: Sampler | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.bank, self.config, self.codec, self.reward = bank, config, codec, reward
        self.device, self.is_copy, self.exact = device, is_copy, exact(bank)
        self.world = World()
        self.update, self.updates = 0, config.total_episodes // config.batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.prompts = PromptQueue(prompts, self.generator)
        self.shares = Shares(config.batch_size, config.num_generations, self.world)
        self.decoding = MicroBatch(config.rollout_batch_size, "sampling", say)
        self.sampler = sampler or sampler_of(codec, self.decoding)
        self.sampling = SamplingParams(
            max_new_tokens=config.response_length, stop_ids=codec.stop_ids, temperature=config.temperature
        )
        self.normalizer = reward.normalizer(config.score, self.world)
        self.estimator = estimator_of(config)
        self.kl = controller(config.kl.kind, config.kl.init, config.kl.target, config.kl.horizon)
        self.solution: Solution | None = None
        self.micro = MicroBatch(config.micro_batch_size, "training", say)
        self.optimisation = Optimisation(
            bank,
            config,
            exact=self.exact,
            updates=self.updates,
            device=device,
            micro=self.micro,
            world=self.world,
            shares=self.shares,
            demonstrations=demonstrations,
        )
        self.meter = Meter(bank, config, device, self.world)
        self.frozen = checks.FrozenRoles(bank)

    def start(self, progress: Callable[..., AbstractContextManager[Progress]] = Silent.progress) -> None:
        """Before the first update, prepares the score normaliser from scores of the reference's responses, and
        solves the KL coefficient if the recipe says so.

        Args:
            progress: opens a progress display.
        """

        def scores() -> Tensor:
            prompts = self.next_prompts()
            return self.reward(prompts, self.sample(prompts, role="reference").responses)

        self.normalizer.prepare(scores)
        if self.config.kl.kind == "solved":
            self.solution = solve(
                self.config.kl,
                len(self.prompts.prompts),
                lambda rows: self.reference_rewards(rows, progress),
                self.generator,
            )
            self.kl.value = self.solution.target.beta

    def reference_rewards(
        self, rows: Sequence[int], progress: Callable[..., AbstractContextManager[Progress]] = Silent.progress
    ) -> Tensor:
        """Samples a response of the reference to each training prompt in `rows`, by index. Returns what PPO would
        optimise for them, on every process."""
        size, parts = self.config.batch_size, []
        with progress("ppo: samples for the KL coefficient", total=len(rows)) as bar:
            for batch in (rows[i : i + size] for i in range(0, len(rows), size)):
                shares = Shares(len(batch), 1, self.world)
                prompts = shares.of([self.prompts.prompts[i] for i in batch])
                episodes = self.sample(prompts, role="reference", share=shares.share)
                rewards = torch.zeros(len(batch))
                scores = self.reward(prompts, episodes.responses)
                rewards[shares.rows] = self.rewards(scores, self.ended(episodes))
                parts.append(self.world.sum(rewards))
                bar.advance(len(batch))
        return torch.cat(parts)

    def ended(self, episodes: Episodes) -> Tensor:
        """Which responses end with a stop token, (N,), on the CPU."""
        return episodes.ended(self.codec.stop_ids).cpu()

    def rewards(self, scores: Tensor, ended_N: Tensor) -> Tensor:
        """What PPO optimises, (N,): scores (N,) of a model or (T, N) of terms, normalised, clipped and added, less
        the penalty for a missing stop token."""
        return penalised(self.normalizer(scores), ended_N, self.config.missing_eos_penalty)

    def step(self) -> dict[str, float]:
        """Runs one update: samples a batch of episodes and trains on it. Returns its metrics (docs/ppo.md)."""
        config, clock = self.config, Clock()
        # 1. Sample responses.
        prompts = self.next_prompts()
        episodes = self.sample(prompts, record=True)
        clock.lap("rollout")
        # 2. Score them.
        scores = self.reward(prompts, episodes.responses)
        ended = self.ended(episodes)
        rewards = self.rewards(scores, ended)
        scored = self.reward.metrics(scores, self.world)
        if config.max_resamples:
            batch, count = self.resample(Scored(prompts, episodes, scores, rewards))
            episodes, scores, rewards = batch.episodes, batch.scores, batch.rewards_B
            ended = self.ended(episodes)
            scored["objective/resampled"] = float(count)
        clock.lap("score")
        # 3. to 5. Log-probs, values, rewards, advantages.
        reuse = self.exact and self.sampler.native
        data = experience.build(
            self.bank, episodes, self.normalizer.shown(scores), rewards, config, self.kl.value, self.world,
            estimator=self.estimator, rows_B=self.shares.rows, reuse=reuse, micro=self.micro,
        )  # fmt: skip
        if not reuse:
            data = mismatch.with_mismatch(data, config, self.world)
        if not self.sampler.native:
            checks.same_sampler(data)
        if self.update == 0 and self.is_copy:
            checks.same_start(data, self.exact)
        trim_memory()  # training's tensors do not fit into the blocks that the KV cache left in the allocator
        clock.lap("passes")
        # 6. Optimise.
        optimised = self.optimisation.run(data, self.update, self.generator)
        clock.lap("train")
        # 7. Adapt the KL coefficient.
        self.kl.update(data.metrics["objective/kl"], config.batch_size)
        self.update += 1
        return (
            data.metrics
            | scored
            | optimised
            | {f"time/{name}": seconds for name, seconds in clock.laps.items()}
            | {"episode": self.update * config.batch_size}
            | self.meter.measure(episodes, ended, clock.total)
        )

    def resample(self, batch: Scored) -> tuple[Scored, int]:
        """Replaces prompts whose responses have equal rewards (`ppo.max_resamples`). Returns the batch and the
        number of replaced prompts."""
        config, rows = self.config, self.shares.rows

        def sample(prompts: Sequence[EncodedPrompt], share: Share, kept: Tensor) -> Scored:
            episodes = self.sample(prompts, record=True, share=share)
            scores, ended = self.reward(prompts, episodes.responses)[..., kept], self.ended(episodes)[kept]
            return Scored(prompts, episodes, scores, self.rewards(scores, ended))

        groups = Groups.of(rows, config.batch_size, config.num_generations, self.world.sum)
        return replace_equal(
            batch, groups, rows, config.max_resamples, take=self.prompts.take, sample=sample, codec=self.codec
        )

    def next_prompts(self) -> list[EncodedPrompt]:
        """The prompts of this process's rows of the next batch, one per row."""
        return self.shares.of(self.prompts.take(self.config.batch_size // self.config.num_generations))

    def sample(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        role: str = "policy",
        record: bool = False,
        share: Share | None = None,
    ) -> Episodes:
        """Samples episodes for this process's prompts of a batch.

        Args:
            share: this process's rows of it; None: those of an update's batch.
        """
        with self.bank.active(role, decode=self.sampler.native) as actor:
            return self.sampler.sample(
                actor,
                [prompt.ids for prompt in prompts],
                self.sampling,
                self.generator,
                share=share or self.shares.share,
                record=record,
            )

    def respond(self, prompts: Sequence[EncodedPrompt], seed: int) -> Episodes:
        """Samples the policy's episodes for any prompts, outside of training. The same on every process."""
        with self.bank.active("policy", decode=self.sampler.native) as actor:
            return self.sampler.sample(actor, [prompt.ids for prompt in prompts], self.sampling, seed)

    # --- Checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The training state. Sharded roles are complete on rank 0 only, and every process must call this."""
        return {
            "update": self.update,
            "roles": {role: self.bank.state_of(role) for role in sorted(self.bank.trainable)},
            **self.optimisation.state_dict(),
            "kl": self.kl.state_dict(),
            "solution": self.solution and self.solution.state_dict(),
            "scores": self.normalizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            **self.prompts.state_dict(),
            "generator": self.generator.get_state(),
            "decoding": self.decoding.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.update = state["update"]
        for role, tensors in state["roles"].items():
            self.bank.load_state_of(role, tensors)
        self.optimisation.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
        self.solution = state["solution"] and Solution.of(state["solution"])
        self.normalizer.load_state_dict(state["scores"])
        if state.get("estimator"):
            self.estimator.load_state_dict(state["estimator"])
        self.prompts.load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.decoding.load_state_dict(state["decoding"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
