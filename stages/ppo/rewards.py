"""PPO's reward: aggregates the scores of an ensemble's members, then normalises and clips them.

Shapes: N responses of this process, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.config.ppo import AggregateConfig, ScoreConfig
from stages.models.distributed import World
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Scorer


class RewardSignal:
    """The score that PPO optimises: the scores of a scorer's members, aggregated by `ppo.reward`."""

    def __init__(self, scorer: Scorer, config: AggregateConfig) -> None:
        self.scorer, self.config = scorer, config
        self._spread_N = torch.zeros(0)

    def __call__(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """Scores (N,), float32, on the CPU."""
        scores_MN = self.scorer.members(prompts, responses)
        self._spread_N = scores_MN.std(0, unbiased=False)
        return aggregate(scores_MN, self.config)

    def everywhere(
        self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]], world: World
    ) -> Tensor:
        """Scores of responses that all processes have."""
        return self(prompts, responses)

    def metrics(self, scores_N: Tensor, world: World) -> dict[str, float]:
        """What is logged of the scores besides their mean and standard deviation. Collective."""
        return self.disagreement(world)

    def normalizer(self, config: ScoreConfig, world: World) -> ScoreNormalizer:
        return ScoreNormalizer(config, world)

    def disagreement(self, world: World) -> dict[str, float]:
        """`objective/scores_disagreement`: the standard deviation over members, averaged over the last scored
        responses of all processes. Empty for a single model."""
        if self.scorer.size == 1:
            return {}
        spread = self._spread_N.double()
        sums = torch.stack([spread.sum(), torch.tensor(float(len(spread))).double()])
        total, count = world.sum(sums).tolist()
        return {"objective/scores_disagreement": total / count}


def aggregate(scores_MN: Tensor, config: AggregateConfig) -> Tensor:
    """Aggregates M members' scores per response, (N,): their mean, their minimum, or their mean minus
    `uncertainty_coef` standard deviations over members.

    Coste et al. 2023 (arXiv:2310.02743), section 3.3: worst-case and uncertainty-weighted optimisation. They
    subtract the variance. The standard deviation has the unit of the scores, so the coefficient does not depend on
    their scale.
    """
    if config.aggregate == "min":
        return scores_MN.min(0).values
    mean = scores_MN.mean(0)
    if config.aggregate == "uncertainty":
        return mean - config.uncertainty_coef * scores_MN.std(0, unbiased=False)
    return mean


def penalised(rewards_N: Tensor, ended_N: Tensor, penalty: float | None) -> Tensor:
    """Subtracts `ppo.missing_eos_penalty` from the rewards of responses that do not end with a stop token."""
    return rewards_N if penalty is None else rewards_N - penalty * (~ended_N).float()


class ScoreNormalizer:
    """Subtracts a mean, divides by a standard deviation, clips. Running mean and std are part of the checkpoint."""

    def __init__(self, config: ScoreConfig, world: World) -> None:
        self.config, self.world = config, world
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        return max((self.square / self.count) ** 0.5 if self.count else 1.0, 1e-6)

    def observe(self, scores_B: Tensor) -> None:
        """Updates the running mean and std with the scores of all processes (parallel variance, Chan et al.
        1979)."""
        wide = scores_B.double()
        count, total = self.world.sum(torch.stack([torch.tensor(float(len(wide))).double(), wide.sum()])).tolist()
        if not count:
            return
        mean = total / count
        square = float(self.world.sum(((wide - mean) ** 2).sum()[None])[0])
        both = self.count + count
        self.square += square + (mean - self.mean) ** 2 * self.count * count / both
        self.mean += (mean - self.mean) * count / both
        self.count = both

    def prepare(self, sample: Callable[[], Tensor]) -> None:
        """Before training, sets mean and std to those of the reference's scores, if the recipe says so."""
        if self.config.normalization == "reference" and not self.count:
            self.observe(sample())

    def __call__(self, scores_B: Tensor) -> Tensor:
        if self.config.normalization == "running":
            self.observe(scores_B)
        return self.scaled(scores_B)

    def scaled(self, scores_B: Tensor) -> Tensor:
        """Normalised and clipped scores, under the present statistics."""
        if self.config.normalization != "none":
            scores_B = (scores_B - self.mean) / self.std
        clip = self.config.clip
        return scores_B if clip is None else scores_B.clamp(-clip, clip)

    def shown(self, scores_B: Tensor) -> Tensor:
        """The scores that metrics and evaluation points show: those of the reward model."""
        return scores_B

    def run_model_scale(self) -> tuple[float, float]:
        """Mean and standard deviation that turn a raw score into the reward."""
        return self.mean, self.std

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]
