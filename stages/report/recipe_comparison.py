"""This run against the same recipe under other values, prompt by prompt: which of the two does the judge prefer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import invocation
from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.errors import StageError
from pipeline.language import translate
from pipeline.wording import fixed, listing, percent, sentences, span
from stages.artifacts import RankMetrics
from stages.eval.artifact import Evaluation, JudgedPrompt, read_judged
from stages.intervals import Interval
from stages.ppo.artifact import PPOResult
from stages.report.verdict import Tone

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs: its budget, its final policy's KL from the reference, and that policy's fact errors."""

    rounds: int
    rankings: int
    episodes: int
    kl: float | None
    slot_error_rate: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on the same prompts.

    Attributes:
        values: the values that were set for the other run, as the user wrote them.
        change: relative change of fact errors from the other run to this one.
    """

    values: str
    ours: Side
    theirs: Side
    prompts: int
    change: Interval


def compare(run: RunSummary, other: RunSummary, values: str) -> Comparison:
    """Compares the final policies on the same held-out prompts. The interval is a paired bootstrap over prompts.

    Raises `StageError` if a run has no judge, or if the two were evaluated on different prompts.
    """
    ours, theirs = _judged(run), _judged(other)
    if [row.prompt for row in ours] != [row.prompt for row in theirs]:
        raise StageError(
            "the two runs were not evaluated on the same prompts",
            where=str(other.need("eval").folder),
            hint="compare runs with the same values of data, eval and seed",
        )
    return Comparison(
        values=values,
        ours=_side(run, ours),
        theirs=_side(other, theirs),
        prompts=len(ours),
        change=paired_change([row.errors["ppo"] for row in ours], [row.errors["ppo"] for row in theirs]),
    )


def conclude(comparison: Comparison) -> tuple[Tone, str, str]:
    """Tone, headline and evidence."""
    ours, theirs, change = comparison.ours, comparison.theirs, comparison.change
    side = change.side()
    tone: Tone = "good" if side < 0 else "bad" if side > 0 else "unclear"
    headline = {
        "good": translate("It makes fewer fact errors than the run it is compared with."),
        "bad": translate("It makes more fact errors than the run it is compared with."),
        "unclear": translate("This comparison cannot tell which run is better."),
    }[tone]
    evidence = translate(
        "Compared with the same recipe under {values}. Fact errors are {ours} here ({our_budget}) and {theirs} "
        "there ({their_budget}), on the same {prompts:,} held-out prompts: a change of {change}.",
        values=comparison.values,
        ours=percent(ours.slot_error_rate, 1),
        our_budget=_budget(ours),
        theirs=percent(theirs.slot_error_rate, 1),
        their_budget=_budget(theirs),
        prompts=comparison.prompts,
        change=change_text(change),
    )
    budgets = {
        translate("rankings"): (ours.rankings, theirs.rankings),
        translate("episodes"): (ours.episodes, theirs.episodes),
    }
    unequal = listing([name for name, (here, there) in budgets.items() if here != there])
    if unequal:
        note = translate("The two did not have the same number of {unequal}.", unequal=unequal)
        return tone, headline, sentences(evidence, note)
    return tone, headline, evidence


def change_text(change: Interval) -> str:
    """A relative change with its interval."""
    assert change.low is not None
    assert change.high is not None
    values = {
        "change": percent(change.value, sign=True),
        "interval": span(change.low, change.high, sign=True),
    }
    if change.side():
        return translate("{change} (95 % interval {interval})", **values)
    return translate("{change} (95 % interval {interval}, which contains zero)", **values)


def _judged(run: RunSummary) -> list[JudgedPrompt]:
    evaluated = run.need("eval").artifact
    if Evaluation.read(evaluated).judge is None:
        raise StageError(
            "a comparison needs a judge, and no judge read the answers",
            where=str(evaluated.path),
            hint=f"set eval.judge and run `{invocation.command('run', 'eval')}`",
        )
    return list(read_judged(evaluated))


def _side(run: RunSummary, judged: Sequence[JudgedPrompt]) -> Side:
    errors, given = sum(row.errors["ppo"] for row in judged), sum(row.given for row in judged)
    policies = [PPOResult.read(stage_run) for stage_run in by_round(run.stages, "ppo").values()]
    return Side(
        rounds=run.loaded.recipe.rounds,
        rankings=sum(RankMetrics.of(stage_run).rankings for stage_run in by_round(run.stages, "rank").values()),
        episodes=sum(policy.metrics.episodes or 0 for policy in policies),
        kl=Evaluation.read(run.need("eval").artifact).models["ppo"].kl,
        slot_error_rate=errors / max(1, given),
    )


def _budget(side: Side) -> str:
    return translate(
        "{rounds}, {rankings:,} rankings, {episodes:,} PPO episodes, KL {kl}",
        rounds=translate("{rounds} rounds", rounds=side.rounds) if side.rounds > 1 else translate("one round"),
        rankings=side.rankings,
        episodes=side.episodes,
        kl=fixed(side.kl),
    )


def paired_change(ours: Sequence[int], theirs: Sequence[int]) -> Interval:
    """Relative change from their sum to ours, with a 95 % bootstrap interval over pairs."""
    import numpy as np

    a, b = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    pick = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    draws = a[pick].sum(1) / np.maximum(b[pick].sum(1), 1) - 1
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=float(a.sum() / max(1.0, b.sum()) - 1), low=float(low), high=float(high))
