"""Did PPO help? The answer in a few sentences, from the numbers alone.

Only a judge that the reward model never saw can answer: people, the rubric, a held-out reward model or a language
model (`stages.report.evidence`). If all evidence that decides points the same way, that is the answer. If it points
both ways, or there is none, the run cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from data.held_out import EVALUATED, RANKED, too_few
from pipeline.wording import fixed, listing, number, percent
from stages.eval.artifact import EvaluatedPoint, Evaluation, ModelResult
from stages.report import evidence, frontier, monitors, overlaps, win_rates
from stages.report.evidence import PEOPLE, RUBRIC, Evidence
from stages.report.findings import Findings

NEVER_ENDS = 0.05
"""Share of answers with a stop token up to which answers count as never ending."""

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
    reference, ppo = evaluation.models[evaluation.reference], evaluation.models["ppo"]
    price = _price(reference, ppo, evaluation.start)
    every = evidence.read(evaluation, findings.human)
    if not every:
        return Verdict(
            "unknown",
            "Whether PPO helped is not known.",
            f"No independent judge read the answers. {_score(reference, ppo, evaluation.prompts)}",
            price,
            caveats,
        )
    tone, headline = _direction(every)
    texts = [one.text for one in every]
    if not any(one.decides for one in every):
        texts.append(evidence.wanting(every))
    return Verdict(tone, headline, " ".join(texts), price, caveats)


def _progress(findings: Findings) -> str:
    finished = [stage.name for stage in findings.stages if stage.key]
    text = f"Finished: {listing(finished)}." if finished else "No stage is finished."
    if findings.ppo and len(findings.ppo.points) > 1:
        text += f" {_score(findings.ppo.points[0], findings.ppo.points[-1], findings.ppo.prompts)}"
    return text


def _score(before: _Scored, after: _Scored, prompts: int) -> str:
    return (
        f"The reward model’s mean score on {prompts:,} held-out prompts went from {fixed(before.score)} to "
        f"{fixed(after.score)}, but PPO optimises that score, so it is no evidence that answers are better."
    )


def _direction(every: Sequence[Evidence]) -> tuple[Tone, str]:
    if any(one.torn for one in every):
        return "unclear", "The judge’s fact errors and win rate disagree."
    deciding = [one for one in every if one.decides]
    sides = {one.side for one in deciding}
    if len(sides) > 1:
        by_source = {one.source: one.side for one in deciding}
        if by_source.get(PEOPLE, 0) == -by_source.get(RUBRIC, 0) != 0:
            return "unclear", "People and the judge of facts disagree."
        return "unclear", "The judges disagree."
    if sides == {1}:
        return "good", "PPO helped."
    if sides == {-1}:
        return "bad", "PPO did not help: answers got worse."
    return "unclear", "This evaluation cannot tell whether PPO helped."


def _price(reference: ModelResult, ppo: ModelResult, start: str) -> str:
    parts = [
        f"answers average {fixed(ppo.length, 1)} tokens ({start}: {fixed(reference.length, 1)})",
        f"{percent(ppo.distinct_2, 1)} of word pairs are distinct ({start}: {percent(reference.distinct_2, 1)})",
    ]
    if ppo.nll is not None:
        parts.append(
            f"the loss on held-out demonstrations is {fixed(ppo.nll, 3)} nats per token ({start}: "
            f"{fixed(reference.nll, 3)})"
        )
    return f"PPO’s KL from {start} is {number(ppo.kl)} nats per response; {listing(parts)}."


def _caveats(findings: Findings) -> list[str]:
    evaluation, ppo = findings.evaluation, findings.ppo
    notes = [*_about_rewards(findings), *overlaps.caveats(findings.overlaps)]
    if findings.monitors:
        notes += monitors.caveats(findings.monitors)
    if not evaluation:
        return notes
    reference, ppo_model = evaluation.models[evaluation.reference], evaluation.models["ppo"]
    if ppo and ppo.kl_target and (ppo_model.kl or 0) > ppo.kl_target:
        notes.append(f"The KL exceeds the recipe’s target of {number(ppo.kl_target)} nats.")
    notes += _unfinished(reference, ppo_model, evaluation)
    if warning := too_few(evaluation.prompts, EVALUATED):
        notes.append(f"There {'is' if evaluation.prompts == 1 else 'are'} {warning}.")
    fitted = frontier.caveats(evaluation)
    notes += [*win_rates.caveats(evaluation), *fitted]
    # If a training monitor stopped the run, or the fit shows over-optimisation, it is already in the list.
    unsaid = ppo and evaluation.judge and not ppo.stopped and not fitted
    if unsaid and ppo and (peak := overoptimised(_last_round(evaluation.along), ppo.prompts)):
        best, last = peak
        notes.append(
            f"Over-optimised: after update {best.update} the reward model’s score kept rising "
            f"({fixed(best.score)} to {fixed(last.score)}) while fact errors rose again "
            f"({percent(best.slot_error_rate, 1)} to {percent(last.slot_error_rate, 1)}, on the {ppo.prompts:,} "
            "prompts of the evaluation points)."
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
        measured = reward.held_out
        if measured.pairs and (warning := too_few(measured.prompts, RANKED)):
            notes.append(f"The reward model was measured on {warning}.")
    if ppo and ppo.reward_model:
        notes.append(f"PPO’s reward came from another reward model ({ppo.reward_model}) than the one trained here.")
    if trained := [term.name for term in ppo.terms if term.weight is not None] if ppo else []:
        notes.append(f"PPO’s reward, called the reward model’s score here, is the sum of {listing(trained)}.")
    return notes


def _unfinished(reference: ModelResult, ppo: ModelResult, evaluation: Evaluation) -> list[str]:
    """Notes on answers that do not end with a stop token, and what to change."""
    if ppo.ended is None or reference.ended is None:
        return []
    limit = f"{evaluation.settings.response_length} tokens" if evaluation.settings else "the length limit"
    share = {evaluation.start: reference.ended, "PPO": ppo.ended}
    never = [name for name, ended in share.items() if ended <= NEVER_ENDS]
    if never:
        exactly = not any(share[name] for name in never)
        who = (
            "No response of"
            if exactly
            else f"At most {percent(max(share[name] for name in never))} of responses of"
        )
        learned = ", check that the demonstrations are shorter than that" if evaluation.reference == "sft" else ""
        cut = "all are cut" if exactly else "the others are cut"
        return [
            f"{who} {' or '.join(never)} end{'s' * exactly} with a stop token; {cut} at {limit}. Raise "
            f"eval.response_length and ppo.response_length if answers need more{learned}, or set "
            "ppo.missing_eos_penalty."
        ]
    if ppo.ended < reference.ended - 0.02:
        return [
            f"Only {percent(ppo.ended)} of PPO’s answers end with a stop token, and {percent(reference.ended)} of "
            f"{evaluation.start}’s; the others are cut at {limit}. Set ppo.missing_eos_penalty, or raise "
            "ppo.response_length."
        ]
    return []


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
