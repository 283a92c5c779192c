"""Judges: who says how good answers are, and is never what PPO optimised.

A judge scores every answer on its own (`ScoringJudge`), or compares two answers to a prompt (`PairJudge`). The same
objects judge PPO's evaluation steps, the contests of `eval` and its frontier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from data.schema import Message
from pipeline.engine.stage import Progress
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Scorer


class Judge(ABC):
    """
    Attributes:
        name: as reports call it.
        unit: of its scores; the higher the better.
    """

    name: str
    unit: str


class ScoringJudge(Judge):
    """Scores every answer by a `Scorer`."""

    def __init__(self, name: str, unit: str, scorer: Scorer) -> None:
        self.name, self.unit, self.scorer = name, unit, scorer

    def scores(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> list[float]:
        """One number per response (N); arguments as of `Scorer.members`."""
        return self.scorer(prompts, responses).tolist()


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt."""

    prompt: Sequence[Message]
    ours: str
    theirs: str


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts on pairs.

    Attributes:
        wins: 1 where ours is preferred, 0 where theirs is, else 0.5.
        disagreed: how many pairs got another verdict when the order was swapped.
        unreadable: how many replies held no verdict; they count as ties.
    """

    wins: list[float]
    disagreed: int
    unreadable: int


class PairJudge(Judge):
    """Compares two answers to the same prompt."""

    unit = "preference"

    @abstractmethod
    def compare(self, pairs: Sequence[Pair], progress: AbstractContextManager[Progress]) -> Verdicts:
        """Judges every pair in both orders; the bar advances by 2 per pair."""
