"""Rounds: the stages that repeat (collect, rank, reward, ppo) run again from the newest policy. How their steps are
named.

The step of a stage in the first round has the stage's name; in round r > 1 it is called `<stage>-<r>`: ppo, ppo-2,
ppo-3. Which stages repeat is a field of their `StageSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_LATER = re.compile(r"(.+)-([1-9][0-9]*)")


def step_name(stage: str, number: int) -> str:
    """The name of a stage's step in a round, counted from 1."""
    return stage if number == 1 else f"{stage}-{number}"


def parse(step: str) -> tuple[str, int]:
    """A step's stage and round: "ppo-2" is ("ppo", 2), "ppo" is ("ppo", 1)."""
    match = _LATER.fullmatch(step)
    return (match[1], int(match[2])) if match else (step, 1)


def by_round(steps: Mapping[str, T], stage: str) -> dict[int, T]:
    """The values of one stage in a mapping by step name: by round, in order."""
    numbers = {number: step for step in steps for name, number in [parse(step)] if name == stage}
    return {number: steps[numbers[number]] for number in sorted(numbers)}


def newest(steps: Mapping[str, T], *stages: str) -> T:
    """The value of the last round of the first of `stages` that the mapping has. Raises `KeyError` if it has
    none."""
    for stage in stages:
        rounds = by_round(steps, stage)
        if rounds:
            return rounds[max(rounds)]
    raise KeyError(stages[0])
