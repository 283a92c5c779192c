"""What each judge says about PPO against the model that it started from, in the order in which the verdict reads it
(docs/evaluation.md).

Evidence that decides comes before evidence that does not. Among equals, people come first, then the rubric, then
the other judges in the order of `eval.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.held_out import FEW
from pipeline.wording import percent, span
from stages.eval.artifact import Evaluation
from stages.intervals import Interval
from stages.report import human, win_rates
from stages.report.human import HumanVerdict

PEOPLE, RUBRIC = "people", "rubric"
MOST = 10_000
"""Prompts beyond which no estimate of the needed number is given."""
_POWER = 1.96 + 0.84
"""Standard errors that a difference must have for a test at 5 % to show it with a probability of 80 %."""


@dataclass(frozen=True)
class Evidence:
    """A judge's comparison of PPO's answers with the reference's.

    Attributes:
        source: `people`, `rubric`, or another judge's name.
        side: 1 if PPO is better, -1 if it is worse, 0 if the interval includes no change.
        prompts: how many prompts it rests on.
        text: the evidence in words, with the number of prompts.
        needed: see `needed`.
        torn: whether two measures of the same judge point in different directions.
    """

    source: str
    side: int
    prompts: int
    text: str
    needed: int | None
    torn: bool = False

    @property
    def decides(self) -> bool:
        """Whether it answers if PPO helped."""
        return self.side != 0 and self.prompts >= FEW


def read(evaluation: Evaluation, people: HumanVerdict | None) -> list[Evidence]:
    """All evidence of a run, the strongest first."""
    every = [_people(people, evaluation)] if people else []
    if evaluation.judge is not None:
        every.append(_rubric(evaluation))
    for contest in win_rates.other_judges(evaluation):
        rate = Interval(value=contest.value, low=contest.low, high=contest.high)
        text = win_rates.evidence(contest)
        every.append(_by_win_rate(contest.judge, rate, contest.prompts, text))
    return sorted(every, key=lambda evidence: not evidence.decides)


def needed(value: Interval, null: float, prompts: int) -> int | None:
    """About how many prompts would show a difference of this size, if the spread between prompts stays the same:
    the standard error falls with the square root of their number. None above `MOST`.

    Args:
        null: the value that means no difference.
    """
    if value.value is None or value.low is None or value.high is None:
        return None
    difference, error = abs(value.value - null), (value.high - value.low) / (2 * 1.96)
    if not difference:
        return None
    count = max(prompts * (_POWER * error / difference) ** 2, FEW)
    if count > MOST:
        return None
    step = 10 ** (math.floor(math.log10(count)) - 1)
    return math.ceil(count / step) * step


def wanting(evidence: Sequence[Evidence]) -> str:
    """What it would take for undecided evidence to decide."""
    counts = sorted(one.needed for one in evidence if one.needed is not None)
    how = (
        "hold out more prompts (data.eval_fraction, eval.num_prompts)"
        if any(one.source != PEOPLE for one in evidence)
        else "let people judge more answers (judge --prompts)"
    )
    if all(one.prompts < FEW for one in evidence):  # too few for an estimate of the spread
        return f"It takes at least {max([FEW, *counts[:1]]):,} prompts: {how}."
    if not counts:
        return (
            f"If there is a difference, it is so small that {MOST:,} prompts would not show it: treat the two "
            "models as equally good."
        )
    return f"A difference of this size would show on about {counts[0]:,} prompts: {how}."


def _by_win_rate(source: str, rate: Interval, prompts: int, text: str) -> Evidence:
    side = rate.side(0.5)
    return Evidence(source, side, prompts, f"{text}{_doubt(side, prompts)}", needed(rate, 0.5, prompts))


def _doubt(side: int, prompts: int) -> str:
    """Why a win rate does not decide; empty if it does."""
    reasons = []
    if not side:
        reasons.append("the interval includes one half")
    if prompts < FEW:
        reasons.append(f"{prompts} prompts are fewer than {FEW}" if prompts != 1 else "one prompt is no sample")
    return f" That decides nothing: {' and '.join(reasons)}." if reasons else ""


def _people(verdict: HumanVerdict, evaluation: Evaluation) -> Evidence:
    return _by_win_rate(PEOPLE, verdict.win_rate, verdict.prompts, human.evidence(verdict, evaluation.start))


def _rubric(evaluation: Evaluation) -> Evidence:
    """Yes, if the relative change of fact errors lies below zero; without errors before, the win rate decides."""
    win, change, prompts = evaluation.win_rate, evaluation.reduction, evaluation.prompts
    assert win is not None
    assert change is not None
    wins, has_errors = win.side(0.5), bool(evaluation.models[evaluation.reference].slot_error_rate)
    side = -change.side() if has_errors else wins
    text = f"By the independent judge ({evaluation.judge}), fact errors on {prompts:,} held-out prompts "
    text += _errors(evaluation, change, has_errors)
    beats = f"PPO’s answer beats {evaluation.start}’s on {percent(win.value)} of them"
    text += f" {beats} ({_span(win)}; ties count half)."
    if prompts < FEW:
        text += f" That decides nothing: {prompts} prompts are fewer than {FEW}."
    return Evidence(
        RUBRIC,
        side,
        prompts,
        text,
        needed(change, 0.0, prompts) if has_errors else needed(win, 0.5, prompts),
        torn=bool(side) and wins == -side,
    )


def _errors(evaluation: Evaluation, change: Interval, has_errors: bool) -> str:
    """The rest of the sentence about fact errors."""
    before, after = (evaluation.models[name].slot_error_rate for name in (evaluation.reference, "ppo"))
    rates = f"from {percent(before, 1)} to {percent(after, 1)}"
    if not has_errors:
        return f"went {rates}."
    if change.side() == 0:
        return (
            f"went {rates}, a change of {percent(change.value, sign=True)} whose 95 % interval "
            f"({_span(change, sign=True)}) contains zero."
        )
    assert change.value is not None
    verb = "fell" if change.value < 0 else "rose"
    low, high = sorted(abs(end) for end in (change.low, change.high) if end is not None)
    return f"{verb} {rates}, by {percent(abs(change.value))} (95 % interval {span(low, high)})."


def _span(interval: Interval, *, sign: bool = False) -> str:
    assert interval.low is not None
    assert interval.high is not None
    return span(interval.low, interval.high, sign=sign)
