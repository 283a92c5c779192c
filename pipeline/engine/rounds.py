"""Rounds: collect, rank, reward and ppo repeat from the newest policy. How their steps are called.

A step of the first round is called as its stage is; one of round r > 1 `<stage>-<r>`: ppo, ppo-2, ppo-3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

REPEATED = ("collect", "rank", "reward", "ppo")
"""The stages that every round runs, in order."""

_LATER = re.compile(rf"({'|'.join(REPEATED)})-([1-9][0-9]*)")


def step_name(stage: str, number: int) -> str:
    """What a stage is called in a round, counted from 1."""
    return stage if number == 1 else f"{stage}-{number}"


def parse(step: str) -> tuple[str, int]:
    """A step's stage and round: "ppo-2" is ("ppo", 2), "ppo" is ("ppo", 1)."""
    found = _LATER.fullmatch(step)
    return (found[1], int(found[2])) if found else (step, 1)


def by_round(found: Mapping[str, T], stage: str) -> dict[int, T]:
    """What a mapping by step name holds of a stage: by round, in order."""
    numbers = {number: step for step in found for name, number in [parse(step)] if name == stage}
    return {number: found[numbers[number]] for number in sorted(numbers)}


def newest(found: Mapping[str, T], *stages: str) -> T:
    """The last round's, of the first of `stages` that is there at all. Raises `KeyError` when none is."""
    for stage in stages:
        rounds = by_round(found, stage)
        if rounds:
            return rounds[max(rounds)]
    raise KeyError(stages[0])
