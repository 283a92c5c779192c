"""The reward as a sum of weighted terms (docs/rewards.md).

Each term's scores are scaled on their own (normalised, then clipped) and multiplied by its weight. PPO optimises
the sum. Held-out terms are scored and logged only. A response that a term does not apply to (NaN) gets nothing
from it.

Shapes: T terms, N responses of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.ppo import AggregateConfig
from pipeline.config.terms import UNSCALED, ScoreConfig, TermConfig
from pipeline.errors import StageError
from stages.models.distributed import World
from stages.ppo.rewards import RewardSignal, ScoreNormalizer
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Scorer
from stages.scoring.terms import WrittenTerms, paths


@dataclass(frozen=True)
class Term:
    """A term of the reward and what scores it."""

    config: TermConfig
    signal: RewardSignal

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def scorer(self) -> Scorer:
        return self.signal.scorer


class TermSignal:
    """The scores of all terms.

    Args:
        scorers: one per term of the recipe.
        config: `ppo.reward`.
    """

    def __init__(self, scorers: Sequence[Scorer], config: AggregateConfig) -> None:
        self.config = config
        self.terms = [
            Term(term, RewardSignal(scorer, config))
            for term, scorer in zip(config.terms or (), scorers, strict=True)
        ]

    def __call__(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores (T, N), float32, on the CPU; NaN where a term does not apply."""
        if not responses:
            for term in self.terms:
                with term.scorer.scoring():  # other processes gather a sharded role
                    pass
            return torch.zeros(len(self.terms), 0)
        return torch.stack([term.signal(prompts, responses) for term in self.terms])

    def everywhere(
        self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]], world: World
    ) -> Tensor:
        """Scores of responses that all processes have. Each process scores a share, so that no function or endpoint
        is asked twice."""
        mine = world.mine(len(responses)).tolist()
        scores = self([prompts[i] for i in mine], [responses[i] for i in mine])
        return torch.tensor(world.together(scores.T.tolist(), len(responses))).T

    def metrics(self, scores_TN: Tensor, world: World) -> dict[str, float]:
        """Of each term, over the responses of all processes: mean and standard deviation of its raw scores, and for
        a term that may not apply, the share of responses that it applies to. Collective."""
        there = ~scores_TN.isnan()
        wide = scores_TN.nan_to_num().double()
        every = torch.full((len(self.terms),), float(scores_TN.shape[1])).double()
        sums = world.sum(torch.stack([every, there.sum(1).double(), wide.sum(1), (wide**2).sum(1)]))
        metrics: dict[str, float] = {}
        for term, (responses, count, total, square) in zip(self.terms, sums.T.tolist(), strict=True):
            mean = total / max(count, 1)
            metrics[f"rewards/{term.name}/mean"] = mean
            metrics[f"rewards/{term.name}/std"] = max(0.0, square / max(count, 1) - mean**2) ** 0.5
            if term.scorer.optional:
                metrics[f"rewards/{term.name}/applied"] = count / responses
            if term.config.run_model:
                spread = term.signal.disagreement(world)
                if term.config.criterion is not None:
                    spread = {f"rewards/{term.name}/disagreement": value for value in spread.values()}
                metrics |= spread
        return metrics

    def normalizer(self, config: ScoreConfig, world: World) -> TermNormalizer:
        return TermNormalizer([term.config for term in self.terms], config, world)


class TermNormalizer:
    """Scales the terms' scores and adds them. The running statistics of each term are part of the checkpoint.

    Args:
        score: `ppo.score`.
    """

    def __init__(self, terms: Sequence[TermConfig], score: ScoreConfig, world: World) -> None:
        self.terms = terms
        self.normalizers = {
            term.name: ScoreNormalizer(term.scaling(score) if term.trained else UNSCALED, world) for term in terms
        }

    def prepare(self, sample: Callable[[], Tensor]) -> None:
        """Before training, sets mean and std of each term that needs it to those of the reference's scores. Raises
        `StageError` when these are all the same, which no division can scale."""
        chosen = [
            (place, term)
            for place, term in enumerate(self.terms)
            if self.normalizers[term.name].config.normalization == "reference"
            and not self.normalizers[term.name].count
        ]
        if not chosen:
            return
        scores_TN = sample()
        for place, term in chosen:
            normalizer = self.normalizers[term.name]
            normalizer.observe(_applied(scores_TN[place]))
            if not normalizer.square:
                same = f"gives all of the reference's answers the score {normalizer.mean:g}"
                none = "gives none of the reference's answers a score"
                raise StageError(
                    f"the term {term.name} {same if normalizer.count else none}: there is no standard deviation to "
                    "divide by",
                    where=f"{paths(self.terms)[place]}.score.normalization",
                    hint="set score.normalization of this term to none, or to running",
                )

    def __call__(self, scores_TN: Tensor) -> Tensor:
        """What PPO optimises (N,), after the running statistics have taken in these scores."""
        for term, scores_N in zip(self.terms, scores_TN, strict=True):
            normalizer = self.normalizers[term.name]
            if normalizer.config.normalization == "running":
                normalizer.observe(_applied(scores_N))
        return self.shown(scores_TN)

    def shown(self, scores_TN: Tensor) -> Tensor:
        """The same under the present statistics: the sum of the trained terms, each scaled and weighted."""
        total_N = torch.zeros(scores_TN.shape[1])
        for term, scores_N in zip(self.terms, scores_TN, strict=True):
            if term.trained:
                scaled_N = self.normalizers[term.name].scaled(scores_N)
                total_N = total_N + term.weight * scaled_N.nan_to_num(nan=0.0)
        return total_N

    def run_model_scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation that turn a raw score of the run's reward model into its part of the reward;
        None if PPO is not trained on it, or if there is one for each criterion."""
        for term in self.terms:
            if term.run_model and term.trained and term.criterion is None:
                normalizer = self.normalizers[term.name]
                return normalizer.mean, normalizer.std / term.weight
        return None

    def state_dict(self) -> dict[str, Any]:
        return {name: normalizer.state_dict() for name, normalizer in self.normalizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, normalizer in self.normalizers.items():
            normalizer.load_state_dict(state[name])


def _applied(scores_N: Tensor) -> Tensor:
    return scores_N[~scores_N.isnan()]


class CombinedScorer(Scorer):
    """The sum of the trained terms as a finished PPO stage computed it, under its last statistics."""

    def __init__(self, scorers: Sequence[Scorer], written: WrittenTerms) -> None:
        self.name, self.scorers = "reward", list(scorers)
        trained = [term for term in written.terms if term.trained]
        self.signal = TermSignal(self.scorers, AggregateConfig(**vars(written.reward) | {"terms": trained}))
        self.normalizer = self.signal.normalizer(written.score, World())
        self.normalizer.load_state_dict(dict(written.statistics))

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        scores_TN = self.signal(prompts, responses)
        self.on_batch(len(responses))
        return self.normalizer.shown(scores_TN)[None]
