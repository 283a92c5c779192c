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
from pipeline.language import translate
from pipeline.wording import listing, percent, sentences, span
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
        translate("hold out more prompts (data.eval_fraction, eval.num_prompts)")
        if any(one.source != PEOPLE for one in evidence)
        else translate("let people judge more answers (judge --prompts)")
    )
    if all(one.prompts < FEW for one in evidence):  # too few for an estimate of the spread
        return translate("It takes at least {count:,} prompts: {how}.", count=max([FEW, *counts[:1]]), how=how)
    if not counts:
        return translate(
            "If there is a difference, it is so small that {most:,} prompts would not show it: treat the two "
            "models as equally good.",
            most=MOST,
        )
    return translate(
        "A difference of this size would show on about {count:,} prompts: {how}.", count=counts[0], how=how
    )


def _by_win_rate(source: str, rate: Interval, prompts: int, text: str) -> Evidence:
    side = rate.side(0.5)
    words = sentences(text, _doubt(side, prompts))
    return Evidence(source, side, prompts, words, needed(rate, 0.5, prompts))


def _doubt(side: int, prompts: int) -> str:
    """Why a win rate does not decide; empty if it does."""
    reasons = []
    if not side:
        reasons.append(translate("the interval includes one half"))
    if prompts < FEW:
        reasons.append(_few(prompts) if prompts != 1 else translate("one prompt is no sample"))
    return translate("That decides nothing: {reasons}.", reasons=listing(reasons)) if reasons else ""


def _few(prompts: int) -> str:
    return translate("{count} prompts are fewer than {few}", count=prompts, few=FEW)


def _people(verdict: HumanVerdict, evaluation: Evaluation) -> Evidence:
    return _by_win_rate(PEOPLE, verdict.win_rate, verdict.prompts, human.evidence(verdict, evaluation.start))


def _rubric(evaluation: Evaluation) -> Evidence:
    """Yes, if the relative change of fact errors lies below zero; without errors before, the win rate decides."""
    win, change, prompts = evaluation.win_rate, evaluation.reduction, evaluation.prompts
    assert win is not None
    assert change is not None
    wins, has_errors = win.side(0.5), bool(evaluation.models[evaluation.reference].slot_error_rate)
    side = -change.side() if has_errors else wins
    beats = translate(
        "PPO’s answer beats {start}’s on {share} of them ({interval}; ties count half).",
        start=evaluation.start,
        share=percent(win.value),
        interval=_span(win),
    )
    few = translate("That decides nothing: {reasons}.", reasons=_few(prompts)) if prompts < FEW else ""
    return Evidence(
        RUBRIC,
        side,
        prompts,
        sentences(_errors(evaluation, change, has_errors), beats, few),
        needed(change, 0.0, prompts) if has_errors else needed(win, 0.5, prompts),
        torn=bool(side) and wins == -side,
    )


def _errors(evaluation: Evaluation, change: Interval, has_errors: bool) -> str:
    """The sentence about fact errors."""
    before, after = (percent(evaluation.models[name].slot_error_rate, 1) for name in (evaluation.reference, "ppo"))
    values = {"judge": evaluation.judge, "prompts": evaluation.prompts, "before": before, "after": after}
    if not has_errors:
        return translate(
            "By the independent judge ({judge}), fact errors on {prompts:,} held-out prompts went from {before} to "
            "{after}.",
            **values,
        )
    if change.side() == 0:
        return translate(
            "By the independent judge ({judge}), fact errors on {prompts:,} held-out prompts went from {before} to "
            "{after}, a change of {change} whose 95 % interval ({interval}) contains zero.",
            change=percent(change.value, sign=True),
            interval=_span(change, sign=True),
            **values,
        )
    assert change.value is not None
    low, high = sorted(abs(end) for end in (change.low, change.high) if end is not None)
    values |= {"change": percent(abs(change.value)), "interval": span(low, high)}
    if change.value < 0:
        return translate(
            "By the independent judge ({judge}), fact errors on {prompts:,} held-out prompts fell from {before} to "
            "{after}, by {change} (95 % interval {interval}).",
            **values,
        )
    return translate(
        "By the independent judge ({judge}), fact errors on {prompts:,} held-out prompts rose from {before} to "
        "{after}, by {change} (95 % interval {interval}).",
        **values,
    )


def _span(interval: Interval, *, sign: bool = False) -> str:
    assert interval.low is not None
    assert interval.high is not None
    return span(interval.low, interval.high, sign=sign)
