"""A small PPO problem, in a module so that other processes can import it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from torch import Tensor

from pipeline.config.ppo import AggregateConfig, KLConfig, PPOConfig, ScoreConfig
from pipeline.config.terms import TermConfig
from stages.models.text import IGNORED, pad
from stages.ppo.rewards import RewardSignal
from stages.ppo.terms import TermSignal
from stages.ppo.trainer import PPOTrainer
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import Sampler
from stages.scoring.scorer import Scorer

STOPS = frozenset({tiny.EOS, 9, 12, 17, 25, 33, 41})
CODEC: Any = SimpleNamespace(stop_ids=STOPS, pad_id=tiny.PAD)
PROMPTS = [EncodedPrompt([], ids, "train") for ids in tiny.rows(11, 1, 7, seed=1)]

CONFIG = {
    "value": "adapter",
    "total_episodes": 32,
    "batch_size": 8,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "response_length": 6,
    "learning_rate": 3e-3,
    "adam_epsilon": 1e-3,  # rounding errors of tiny gradients stay tiny
    "logits_chunk_size": 7,
    "kl": KLConfig(kind="fixed", init=0.1),
    "score": ScoreConfig(normalization="none", clip=None),
}
EVERYTHING = {
    "kl": KLConfig(kind="adaptive", init=0.1, target=0.5, horizon=50),
    "score": ScoreConfig(normalization="running", clip=2.0),
    "entropy_coef": 0.01,
    "dual_clip": 2.0,
    "whiten_rewards": True,
    "missing_eos_penalty": 0.5,
    "ptx_coef": 0.2,
    "gamma": 0.98,
    "temperature": 0.9,
}
"""Every option that changes the loss."""


Score = Callable[[Sequence[EncodedPrompt], Sequence[Sequence[int]]], Tensor]


class Rigged(Scorer):
    """A reward computed from token ids."""

    name = "rigged"

    def __init__(self, score: Score) -> None:
        self.score = score

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        return self.score(prompts, responses)[None]


def count_of(token: int) -> Score:
    """A reward that counts a token in a response."""
    return lambda prompts, responses: torch.tensor([float(list(r).count(token)) for r in responses])


def varied(prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
    """An arbitrary reward that differs for every response."""
    return torch.tensor([math.fsum(math.sin(i * 12.9898) for i in response) for response in responses])


TERMS = AggregateConfig(
    terms=[
        TermConfig(name="model", model="reward", weight=0.5),
        TermConfig(name="count", pattern="x", weight=-2.0, score=ScoreConfig(normalization="none", clip=0.5)),
        TermConfig(name="scaled", pattern="x", score=ScoreConfig(normalization="running", clip=None)),
        TermConfig(name="shown", pattern="x", held_out=True),
    ]
)
"""Terms that are scaled in different ways. `TERM_SCORES` rigs them."""


def sometimes(prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
    """A reward that does not apply to every third number of tokens."""
    return torch.tensor([math.nan if len(r) % 3 == 0 else 10.0 + len(r) for r in responses])


TERM_SCORES: list[Score] = [varied, count_of(20), sometimes, count_of(21)]


def demonstrations(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A constant batch of rows of unequal length. The first two tokens of each row have no labels."""
    rows = tiny.rows(3, 3, 7, seed=8)
    ids, _ = pad(rows, tiny.PAD, left=False)
    labels, _ = pad([[IGNORED, IGNORED, *row[2:]] for row in rows], IGNORED, left=False)
    return ids, labels


def make(
    kind: str = "lora",
    *,
    bank: Any = None,
    bank_seed: int = 2,
    scorer: Scorer | Score | Sequence[Score] = varied,
    seed: int = 0,
    device: str = "cpu",
    engine: Sampler | None = None,
    **values: Any,
) -> PPOTrainer:
    config = PPOConfig(**(CONFIG | values))
    if bank is None:
        bank = tiny.BANKS[kind](value=config.critic, seed=bank_seed)
    if bank.mesh is None:
        bank = bank.to(device)
    reward: RewardSignal | TermSignal
    if isinstance(scorer, Sequence):
        reward = TermSignal([Rigged(score) for score in scorer], config.reward)
    else:
        reward = RewardSignal(scorer if isinstance(scorer, Scorer) else Rigged(scorer), config.reward)
    return PPOTrainer(
        bank,
        config,
        CODEC,
        PROMPTS,
        reward,
        seed=seed,
        device=device,
        demonstrations=demonstrations,
        sampler=engine,
    )


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {
        f"{role} {name}": tensor
        for role in sorted(trainer.bank.trainable)
        for name, tensor in trainer.bank.state_of(role).items()
    }


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    worst = {name: float((actual[name] - expected[name]).abs().max()) for name in expected}
    name = max(worst, key=worst.__getitem__)
    assert worst[name] <= tolerance, f"{name} differs by {worst[name]:.2g}, more than {tolerance:.2g}"
