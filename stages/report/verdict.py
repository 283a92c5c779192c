"""Did PPO help? The answer in a few sentences, from the numbers alone.

Only a judge that the reward model never saw can answer. Yes, if the 95 % interval of the change in fact errors lies
below zero; no, if it lies above; otherwise the run cannot tell. People who compared the answers blind are such a
judge too: their win rate answers where the other judge cannot, and if the two contradict each other the run cannot
tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.wording import fixed, listing, number, percent, span
from stages.eval.artifact import EvaluatedPoint, Evaluation, ModelResult
from stages.intervals import Interval
from stages.report import frontier, human, monitors, win_rates
from stages.report.findings import Findings
from stages.report.human import HumanVerdict

Tone = Literal["good", "bad", "unclear", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """A headline, its evidence, what the improvement cost, and what to know before believing it."""

    tone: Tone
    headline: str
    evidence: str
    price: str = ""
    caveats: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For a terminal."""
        first = " ".join(part for part in (self.headline, self.evidence, self.price) if part)
        return "\n".join([first, *(f"Note: {caveat}" for caveat in self.caveats)])


class _Scored(Protocol):
    @property
    def score(self) -> float | None: ...


def reach(findings: Findings) -> Verdict:
    evaluation = findings.evaluation
    caveats = tuple(_caveats(findings))
    if evaluation is None:
        return Verdict("unknown", "Not evaluated yet.", _progress(findings), caveats=caveats)
    sft, ppo = evaluation.models["sft"], evaluation.models["ppo"]
    price = _price(sft, ppo)
    people, others = findings.human, win_rates.other_judges(evaluation)
    if evaluation.judge is None and people is None and not others:
        return Verdict(
            "unknown",
            "Whether PPO helped is not known.",
            f"No independent judge read the answers. {_score(sft, ppo)}",
            price,
            caveats,
        )
    tone, headline = _direction(evaluation, people)
    evidence = [human.evidence(people)] if people else []
    if evaluation.judge is not None:
        evidence.append(_evidence(evaluation))
    evidence += [win_rates.evidence(others)] if others else []
    return Verdict(tone, headline, " ".join(evidence), price, caveats)


def _progress(findings: Findings) -> str:
    finished = [stage.name for stage in findings.stages if stage.key]
    text = f"Finished: {listing(finished)}." if finished else "No stage is finished."
    if findings.ppo and len(findings.ppo.points) > 1:
        text += f" {_score(findings.ppo.points[0], findings.ppo.points[-1])}"
    return text


def _score(before: _Scored, after: _Scored) -> str:
    return (
        f"The reward model’s mean score on held-out prompts went from {fixed(before.score)} to "
        f"{fixed(after.score)}, but PPO optimises that score, so it is no evidence that answers are better."
    )


def _direction(evaluation: Evaluation, people: HumanVerdict | None) -> tuple[Tone, str]:
    by_people = people.win_rate.side(0.5) if people else 0
    side = by_people
    if evaluation.judge is not None and evaluation.win_rate is not None and evaluation.reduction is not None:
        wins = evaluation.win_rate.side(0.5)
        side = -evaluation.reduction.side() if _sft_has_errors(evaluation) else wins
        if side and by_people == -side:
            return "unclear", "People and the judge of facts disagree."
        if side and wins == -side:
            return "unclear", "The judge’s fact errors and win rate disagree."
        side = side or by_people
    others = {contest.side for contest in win_rates.other_judges(evaluation)} - {0}
    if len(others | ({side} - {0})) > 1:
        return "unclear", "The judges disagree."
    side = side or next(iter(others), 0)
    if side > 0:
        return "good", "PPO helped."
    if side < 0:
        return "bad", "PPO did not help: answers got worse."
    return "unclear", "PPO made no difference that this run can tell from chance."


def _sft_has_errors(evaluation: Evaluation) -> bool:
    """Otherwise there is no relative change of fact errors."""
    return bool(evaluation.models["sft"].slot_error_rate)


def _evidence(evaluation: Evaluation) -> str:
    sft, ppo = evaluation.models["sft"], evaluation.models["ppo"]
    win, change = evaluation.win_rate, evaluation.reduction
    assert win is not None
    assert change is not None
    rates = f"from {percent(sft.slot_error_rate, 1)} to {percent(ppo.slot_error_rate, 1)}"
    if not _sft_has_errors(evaluation):
        errors = f"went {rates}"
    elif change.side() == 0:
        errors = (
            f"went {rates}, a change of {percent(change.value, sign=True)} whose 95 % interval "
            f"({_span(change, sign=True)}) contains zero"
        )
    else:
        assert change.value is not None
        verb = "fell" if change.value < 0 else "rose"
        low, high = sorted(abs(end) for end in (change.low, change.high) if end is not None)
        errors = f"{verb} {rates}, by {percent(abs(change.value))} (95 % interval {span(low, high)})"
    return (
        f"By the independent judge ({evaluation.judge}), fact errors on {evaluation.prompts:,} held-out prompts "
        f"{errors}. PPO’s answer beats SFT’s on {percent(win.value)} of them ({_span(win)}; ties count half)."
    )


def _span(interval: Interval, *, sign: bool = False) -> str:
    assert interval.low is not None
    assert interval.high is not None
    return span(interval.low, interval.high, sign=sign)


def _price(sft: ModelResult, ppo: ModelResult) -> str:
    parts = [
        f"answers take {fixed(ppo.length, 1)} tokens (were {fixed(sft.length, 1)})",
        f"{percent(ppo.distinct_2, 1)} of word pairs are distinct (were {percent(sft.distinct_2, 1)})",
    ]
    if ppo.nll is not None:
        parts.append(
            f"a token of the held-out demonstrations costs {fixed(ppo.nll, 3)} nats (was {fixed(sft.nll, 3)})"
        )
    distance = f"PPO’s KL from SFT is {number(ppo.kl)} nats per response."
    return f"{distance} Compared with SFT, {listing(parts)}."


def _caveats(findings: Findings) -> list[str]:
    evaluation, ppo = findings.evaluation, findings.ppo
    notes = _about_rewards(findings)
    if findings.monitors:
        notes += monitors.caveats(findings.monitors)
    if not evaluation:
        return notes
    sft_model, ppo_model = evaluation.models["sft"], evaluation.models["ppo"]
    if ppo and ppo.kl_target and (ppo_model.kl or 0) > ppo.kl_target:
        notes.append(f"The KL exceeds the recipe’s target of {number(ppo.kl_target)} nats.")
    if ppo_model.ended is not None and sft_model.ended is not None and ppo_model.ended < sft_model.ended - 0.02:
        notes.append(
            f"Only {percent(ppo_model.ended)} of PPO’s answers end with a stop token; {percent(sft_model.ended)} "
            "of SFT’s do."
        )
    fitted = frontier.caveats(evaluation)
    notes += [*win_rates.caveats(evaluation), *fitted]
    # If a training monitor stopped the run, or the fit shows over-optimisation, it is already in the list.
    unsaid = ppo and evaluation.judge and not ppo.stopped and not fitted
    if unsaid and ppo and (peak := overoptimised(_last_round(evaluation.along), ppo.prompts)):
        best, last = peak
        notes.append(
            f"Over-optimised: after update {best.update} the reward model’s score kept rising "
            f"({fixed(best.score)} to {fixed(last.score)}) while fact errors rose again "
            f"({percent(best.slot_error_rate, 1)} to {percent(last.slot_error_rate, 1)}, on the prompts of the "
            "evaluation points)."
        )
    return notes


def _about_rewards(findings: Findings) -> list[str]:
    """Caveats about annotators and the reward model."""
    ppo, reward = findings.ppo, findings.reward
    notes = []
    if findings.annotators == "simulated":
        text = "Annotators are simulated: no person ranked anything in this run."
        if findings.human:
            text = "The reward model learned from simulated rankings; people only compared the final answers."
        notes.append(text)
    elif findings.annotators == "unknown" and findings.ranking:
        notes.append("It is not recorded whether people made the rankings.")
    if ppo and ppo.forced_past_gate:
        notes.append(
            f"The reward model is unfit for PPO ({'; '.join(ppo.forced_past_gate)}), and PPO ran anyway because of "
            "--force."
        )
    elif reward and reward.unfit:
        notes.append(f"The reward model of this run is unfit for PPO: {'; '.join(reward.unfit)}.")
    if reward:
        notes += [f"About this run’s reward model: {warning}." for warning in reward.warnings]
    if ppo and ppo.reward_model:
        notes.append(f"PPO’s reward came from another reward model ({ppo.reward_model}) than the one trained here.")
    return notes


def _last_round(along: Sequence[EvaluatedPoint]) -> list[EvaluatedPoint]:
    """Scores of another round come from another reward model."""
    last = max((point.round for point in along), default=1)
    return [point for point in along if point.round == last]


def overoptimised(along: Sequence[EvaluatedPoint], prompts: int) -> tuple[EvaluatedPoint, EvaluatedPoint] | None:
    """The evaluation point with the fewest fact errors and the last one, if errors rose in between and the score
    did too.

    A rise counts beyond two standard errors of a share of `prompts` prompts.
    """
    if len(along) < 3:
        return None
    best, last = min(along, key=_errors), along[-1]
    largest = min(max(_errors(last), 0.0), 1.0)
    noise = 2 * (largest * (1 - largest) / prompts) ** 0.5
    rose = _errors(last) - _errors(best) > noise
    return (best, last) if rose and last.score > best.score else None


def _errors(point: EvaluatedPoint) -> float:
    assert point.slot_error_rate is not None
    return point.slot_error_rate
