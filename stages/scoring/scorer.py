"""What the reward model says about responses, and what is done to it before it becomes a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from data.schema import Message
from pipeline.config.ppo import AggregateConfig, ScoreConfig
from stages.models.bank import Bank
from stages.models.microbatch import MicroBatch
from stages.models.text import Codec
from stages.sampling.episodes import Episodes
from stages.scoring.classifier import TextClassifier
from stages.scoring.reward_model import score_rows
from stages.scoring.text_encoder import TextEncoder
from stages.training.distributed import World


class Scorer(Protocol):
    """Scores (B,) of episodes on the CPU, float32; higher is better."""

    def __call__(self, episodes: Episodes) -> Tensor: ...


def token_scorer(score: Any, batch_size: int, device: str | torch.device, codec: Codec | None = None) -> Scorer:
    """A reward model with the policy's tokenizer: ids go in as they were sampled, except that with `codec` the stop
    token is always the one that the reward model was trained on. The `members` of an ensemble give (M, B)."""
    batch = MicroBatch.of(batch_size)  # what turns out to fit is kept for the next update

    def scores(episodes: Episodes) -> Tensor:
        rows = [row[:n] for row, n in zip(episodes.ids_BL.tolist(), episodes.lengths_B.tolist(), strict=True)]
        if codec is not None:
            rows = [codec.ended_as_trained(row) for row in rows]
        return score_rows(score, rows, batch, device)

    return scores


class HeldScorer:
    """Scores with a role of a bank, gathered once for all batches: processes have unequal numbers of them."""

    def __init__(self, scorer: Scorer, bank: Bank, role: str) -> None:
        self._scorer, self._bank, self._role = scorer, bank, role

    def __call__(self, episodes: Episodes) -> Tensor:
        with self._bank.whole(self._role):
            return self._scorer(episodes)


class EnsembleScorer:
    """The members' scores as one, by `ppo.reward`; remembers how far they disagreed on the episodes scored last."""

    def __init__(
        self,
        model: Any,
        config: AggregateConfig,
        batch_size: int,
        device: str | torch.device,
        codec: Codec | None = None,
    ) -> None:
        self._members = token_scorer(model.members, batch_size, device, codec)
        self._config = config
        self.disagreement_B = torch.zeros(0)

    def __call__(self, episodes: Episodes) -> Tensor:
        scores_MB = self._members(episodes)
        self.disagreement_B = scores_MB.std(0, unbiased=False)
        return aggregate(scores_MB, self._config)


def aggregate(scores_MB: Tensor, config: AggregateConfig) -> Tensor:
    """Scores of M members -> one score each (B,): their mean, their lowest, or their mean less
    `uncertainty_coef` standard deviations over members.

    Coste et al. 2023 (arXiv:2310.02743), section 3.3: worst-case and uncertainty-weighted optimisation. They
    take off the variance; the standard deviation has the scores' own unit, so that the coefficient means the
    same on any scale.
    """
    if config.aggregate == "min":
        return scores_MB.min(0).values
    mean = scores_MB.mean(0)
    if config.aggregate == "uncertainty":
        return mean - config.uncertainty_coef * scores_MB.std(0, unbiased=False)
    return mean


def disagreement(scorer: Scorer, world: World) -> dict[str, float]:
    """`objective/scores_disagreement` of the episodes scored last, over all processes; nothing for a single
    model."""
    if not isinstance(scorer, EnsembleScorer):
        return {}
    spread = scorer.disagreement_B.double()
    total, count = world.sum(torch.stack([spread.sum(), torch.tensor(float(len(spread))).double()])).tolist()
    return {"objective/scores_disagreement": total / count}


class TextScorer:
    """A sequence classifier (one label) with a tokenizer of its own, which reads conversations as text.

    Args:
        prompts: the conversation of each prompt's ids. The chat template of the classifier must take all of them,
            or `templates.Refused` is raised here, before any episode is sampled.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        codec: Codec,
        batch_size: int,
        prompts: Mapping[tuple[int, ...], list[Message]],
    ) -> None:
        self.encoder, self.batch_size, self.prompts = TextEncoder(classifier, codec), batch_size, prompts
        for messages in prompts.values():
            self.encoder.check(messages)

    def __call__(self, episodes: Episodes) -> Tensor:
        prompts, responses = [], []
        for ids, start, end in zip(
            episodes.ids_BL.tolist(),
            episodes.prompt_lengths_B.tolist(),
            episodes.lengths_B.tolist(),
            strict=True,
        ):
            prompts.append(self.prompts[tuple(ids[:start])])
            responses.append(ids[start:end])
        return self.encoder.score(prompts, responses, self.batch_size)


class ScoreNormalizer:
    """Subtracts a mean, divides by a standard deviation, clips; the moments are part of the checkpoint."""

    def __init__(self, config: ScoreConfig, world: World) -> None:
        self.config, self.world = config, world
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        return max((self.square / self.count) ** 0.5 if self.count else 1.0, 1e-6)

    def observe(self, scores_B: Tensor) -> None:
        """Takes scores into the moments, over all processes (Chan et al. 1979, parallel variance)."""
        wide = scores_B.double()
        count, total = self.world.sum(torch.stack([torch.tensor(float(len(wide))).double(), wide.sum()])).tolist()
        mean = total / count
        square = float(self.world.sum(((wide - mean) ** 2).sum()[None])[0])
        both = self.count + count
        self.square += square + (mean - self.mean) ** 2 * self.count * count / both
        self.mean += (mean - self.mean) * count / both
        self.count = both

    def prepare(self, sample: Callable[[], Tensor]) -> None:
        """Before training: the moments of the reference's answers, when the recipe wants them."""
        if self.config.normalization == "reference" and not self.count:
            self.observe(sample())

    def __call__(self, scores_B: Tensor) -> Tensor:
        if self.config.normalization == "running":
            self.observe(scores_B)
        if self.config.normalization != "none":
            scores_B = (scores_B - self.mean) / self.std
        clip = self.config.clip
        return scores_B if clip is None else scores_B.clamp(-clip, clip)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]
