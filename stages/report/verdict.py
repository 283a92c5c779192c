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
from pipeline.language import recorded, translate
from pipeline.wording import between, fixed, listing, number, percent, sentences
from stages.eval.artifact import EvaluatedPoint, Evaluation, ModelResult
from stages.report import evidence, frontier, monitors, overlaps, win_rates
from stages.report.evidence import PEOPLE, RUBRIC, Evidence
from stages.report.findings import Findings
from stages.reward.artifact import RewardQuality

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
        first = sentences(self.headline, self.evidence, self.price)
        return "\n".join([first, *(translate("Note: {note}", note=caveat) for caveat in self.caveats)])


class _Scored(Protocol):
    @property
    def score(self) -> float | None: ...


def reach(findings: Findings) -> Verdict:
    evaluation = findings.evaluation
    caveats = tuple(_caveats(findings))
    if evaluation is None:
        return Verdict("unknown", translate("Not evaluated yet."), _progress(findings), caveats=caveats)
    reference, ppo = evaluation.models[evaluation.reference], evaluation.models["ppo"]
    price = _price(reference, ppo, evaluation.start)
    every = evidence.read(evaluation, findings.human)
    if not every:
        return Verdict(
            "unknown",
            translate("Whether PPO helped is not known."),
            sentences(
                translate("No independent judge read the answers."), _score(reference, ppo, evaluation.prompts)
            ),
            price,
            caveats,
        )
    tone, headline = _direction(every)
    texts = [one.text for one in every]
    if not any(one.decides for one in every):
        texts.append(evidence.wanting(every))
    return Verdict(tone, headline, sentences(*texts), price, caveats)


def _progress(findings: Findings) -> str:
    finished = [stage.name for stage in findings.stages if stage.key]
    text = (
        translate("Finished: {stages}.", stages=listing(finished))
        if finished
        else translate("No stage is finished.")
    )
    if findings.ppo and len(findings.ppo.points) > 1:
        return sentences(text, _score(findings.ppo.points[0], findings.ppo.points[-1], findings.ppo.prompts))
    return text


def _score(before: _Scored, after: _Scored, prompts: int) -> str:
    return translate(
        "The reward model’s mean score on {prompts:,} held-out prompts went from {before} to {after}, but PPO "
        "optimises that score, so it is no evidence that answers are better.",
        prompts=prompts,
        before=fixed(before.score),
        after=fixed(after.score),
    )


def _direction(every: Sequence[Evidence]) -> tuple[Tone, str]:
    if any(one.torn for one in every):
        return "unclear", translate("The judge’s fact errors and win rate disagree.")
    deciding = [one for one in every if one.decides]
    sides = {one.side for one in deciding}
    if len(sides) > 1:
        by_source = {one.source: one.side for one in deciding}
        if by_source.get(PEOPLE, 0) == -by_source.get(RUBRIC, 0) != 0:
            return "unclear", translate("People and the judge of facts disagree.")
        return "unclear", translate("The judges disagree.")
    if sides == {1}:
        return "good", translate("PPO helped.")
    if sides == {-1}:
        return "bad", translate("PPO did not help: answers got worse.")
    return "unclear", translate("This evaluation cannot tell whether PPO helped.")


def _price(reference: ModelResult, ppo: ModelResult, start: str) -> str:
    values = {
        "start": start,
        "kl": number(ppo.kl),
        "length": fixed(ppo.length, 1),
        "length_before": fixed(reference.length, 1),
        "distinct": percent(ppo.distinct_2, 1),
        "distinct_before": percent(reference.distinct_2, 1),
    }
    if ppo.nll is None:
        return translate(
            "PPO’s KL from {start} is {kl} nats per response; answers average {length} tokens ({start}: "
            "{length_before}) and {distinct} of word pairs are distinct ({start}: {distinct_before}).",
            **values,
        )
    return translate(
        "PPO’s KL from {start} is {kl} nats per response; answers average {length} tokens ({start}: "
        "{length_before}), {distinct} of word pairs are distinct ({start}: {distinct_before}) and the loss on "
        "held-out demonstrations is {loss} nats per token ({start}: {loss_before}).",
        loss=fixed(ppo.nll, 3),
        loss_before=fixed(reference.nll, 3),
        **values,
    )


def _caveats(findings: Findings) -> list[str]:
    evaluation, ppo = findings.evaluation, findings.ppo
    notes = [*_about_rewards(findings), *overlaps.caveats(findings.overlaps)]
    if findings.monitors:
        notes += monitors.caveats(findings.monitors)
    if not evaluation:
        return notes
    reference, ppo_model = evaluation.models[evaluation.reference], evaluation.models["ppo"]
    if ppo and ppo.kl_target and (ppo_model.kl or 0) > ppo.kl_target:
        notes.append(translate("The KL exceeds the recipe’s target of {kl} nats.", kl=number(ppo.kl_target)))
    notes += _unfinished(reference, ppo_model, evaluation)
    if warning := too_few(evaluation.prompts, EVALUATED):
        one = evaluation.prompts == 1
        notes.append(
            translate("There is {warning}.", warning=warning)
            if one
            else translate("There are {warning}.", warning=warning)
        )
    fitted = frontier.caveats(evaluation)
    notes += [*win_rates.caveats(evaluation), *fitted]
    # If a training monitor stopped the run, or the fit shows over-optimisation, it is already in the list.
    unsaid = ppo and evaluation.judge and not ppo.stopped and not fitted
    if unsaid and ppo and (peak := overoptimised(_last_round(evaluation.along), ppo.prompts)):
        best, last = peak
        notes.append(
            translate(
                "Over-optimised: after update {update} the reward model’s score kept rising ({scores}) while fact "
                "errors rose again ({errors}, on the {prompts:,} prompts of the evaluation points).",
                update=best.update,
                scores=between(fixed(best.score), fixed(last.score)),
                errors=between(percent(best.slot_error_rate, 1), percent(last.slot_error_rate, 1)),
                prompts=ppo.prompts,
            )
        )
    return notes


def _about_reward(reward: RewardQuality, label: str, *, unfit: bool) -> list[str]:
    """Caveats about a reward model.

    Args:
        label: of its criterion (`ByCriterion.label`).
        unfit: whether they say that it failed the gate.
    """
    notes = []
    if unfit and reward.unfit:
        reasons = _recorded(reward.unfit)
        notes.append(
            translate(
                "The reward model of this run{criterion} is unfit for PPO: {reasons}.",
                criterion=label,
                reasons=reasons,
            )
        )
    notes += [
        translate(
            "About this run’s reward model{criterion}: {warning}.", criterion=label, warning=recorded(warning)
        )
        for warning in reward.warnings
    ]
    measured = reward.held_out
    if measured.pairs and (warning := too_few(measured.prompts, RANKED)):
        notes.append(
            translate("The reward model{criterion} was measured on {warning}.", criterion=label, warning=warning)
        )
    return notes


def _about_rewards(findings: Findings) -> list[str]:
    """Caveats about annotators and the reward model."""
    ppo = findings.ppo
    notes = []
    if findings.annotators == "simulated":
        notes.append(
            translate("The reward model learned from simulated rankings; people only compared the final answers.")
            if findings.human
            else translate("Annotators are simulated: no person ranked anything in this run.")
        )
    elif findings.annotators == "unknown" and findings.ranking:
        notes.append(translate("It is not recorded whether people made the rankings."))
    if ppo and ppo.forced_past_gate:
        notes.append(
            translate(
                "The reward model is unfit for PPO ({reasons}), and PPO ran anyway because of --force.",
                reasons=_recorded(ppo.forced_past_gate),
            )
        )
    for part in findings.parts:
        if part.reward:
            notes += _about_reward(part.reward, part.label, unfit=not (ppo and ppo.forced_past_gate))
    if ppo and ppo.reward_model:
        notes.append(
            translate(
                "PPO’s reward came from another reward model ({model}) than the one trained here.",
                model=ppo.reward_model,
            )
        )
    if trained := [term.name for term in ppo.terms if term.weight is not None] if ppo else []:
        notes.append(
            translate(
                "PPO’s reward, called the reward model’s score here, is the sum of {terms}.", terms=listing(trained)
            )
        )
    return notes


def _recorded(reasons: Sequence[str]) -> str:
    return translate("; ").join(map(recorded, reasons))


def _unfinished(reference: ModelResult, ppo: ModelResult, evaluation: Evaluation) -> list[str]:
    """Notes on answers that do not end with a stop token, and what to change."""
    if ppo.ended is None or reference.ended is None:
        return []
    settings = evaluation.settings
    limit = (
        translate("{count} tokens", count=settings.response_length) if settings else translate("the length limit")
    )
    share = {evaluation.start: reference.ended, translate("PPO"): ppo.ended}
    never = [name for name, ended in share.items() if ended <= NEVER_ENDS]
    if never:
        values = {"models": translate(" or ").join(never), "limit": limit}
        if any(share[name] for name in never):
            ends = translate(
                "At most {share} of responses of {models} end with a stop token; the others are cut at {limit}.",
                share=percent(max(share[name] for name in never)),
                **values,
            )
        else:
            ends = translate("No response of {models} ends with a stop token; all are cut at {limit}.", **values)
        if evaluation.reference == "sft":
            hint = translate(
                "Raise eval.response_length and ppo.response_length if answers need more, check that the "
                "demonstrations are shorter than that, or set ppo.missing_eos_penalty."
            )
        else:
            hint = translate(
                "Raise eval.response_length and ppo.response_length if answers need more, or set "
                "ppo.missing_eos_penalty."
            )
        return [sentences(ends, hint)]
    if ppo.ended < reference.ended - 0.02:
        return [
            translate(
                "Only {ppo} of PPO’s answers end with a stop token, and {reference} of {start}’s; the others are "
                "cut at {limit}. Set ppo.missing_eos_penalty, or raise ppo.response_length.",
                ppo=percent(ppo.ended),
                reference=percent(reference.ended),
                start=evaluation.start,
                limit=limit,
            )
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
