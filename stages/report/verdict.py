"""Did PPO help? The answer in a few sentences, from the numbers alone.

Only a judge that the reward model never saw can answer: yes when the 95 % interval of the change in fact
errors lies wholly below zero, no when it lies wholly above, and otherwise that the run does not tell. People who
compared the answers blind are such a judge: their win rate answers where the other judge cannot, and where the two
are at odds the run does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.wording import fixed, listing, number, percent, span
from stages.report import baselines, frontier, guarding, human
from stages.report.findings import Findings

Tone = Literal["good", "bad", "unclear", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """A headline, what it rests on, what it cost, and what to know before believing it."""

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


def reach(found: Findings) -> Verdict:
    evaluation = found["evaluation"]
    caveats = tuple(_caveats(found))
    if evaluation is None:
        return Verdict("unknown", "Not evaluated yet.", _progress(found), caveats=caveats)
    sft, ppo = evaluation["models"]["sft"], evaluation["models"]["ppo"]
    price = _price(sft, ppo)
    people, others = found["human"], baselines.other_judges(evaluation)
    if evaluation["judge"] is None and people is None and not others:
        return Verdict(
            "unknown",
            "Whether PPO helped is not known.",
            f"No independent judge read the answers. {_score(sft, ppo)}",
            price,
            caveats,
        )
    tone, headline = _direction(evaluation, people)
    evidence = [human.evidence(people)] if people else []
    if evaluation["judge"] is not None:
        evidence.append(_evidence(evaluation))
    evidence += [baselines.evidence(others)] if others else []
    return Verdict(tone, headline, " ".join(evidence), price, caveats)


def _progress(found: Findings) -> str:
    finished = [stage["name"] for stage in found["stages"] if stage["key"]]
    said = f"Finished: {listing(finished)}." if finished else "No stage is finished."
    if found["ppo"] and len(found["ppo"]["looks"]) > 1:
        looks = found["ppo"]["looks"]
        said += f" {_score(looks[0], looks[-1])}"
    return said


def _score(before: dict[str, Any], after: dict[str, Any]) -> str:
    return (
        f"The reward model’s mean score on held-out prompts went from {fixed(before['score'])} to "
        f"{fixed(after['score'])}, but that is what PPO optimises, and no evidence that answers are better."
    )


def _direction(evaluation: dict[str, Any], people: dict[str, Any] | None) -> tuple[Tone, str]:
    said = _sign(people["win_rate"], about=0.5) if people else 0
    sign = said
    if evaluation["judge"] is not None:
        errors, wins = _change(evaluation), _sign(evaluation["win_rate"], about=0.5)
        sign = -_sign(evaluation["reduction"]) if errors else wins
        if sign and said == -sign:
            return "unclear", "People and the judge of facts are at odds."
        if sign and wins == -sign:
            return "unclear", "The judge is of two minds."
        sign = sign or said
    others = {baselines.sign(row) for row in baselines.other_judges(evaluation)} - {0}
    if len(others | ({sign} - {0})) > 1:
        return "unclear", "The judges are at odds."
    sign = sign or next(iter(others), 0)
    if sign > 0:
        return "good", "PPO helped."
    if sign < 0:
        return "bad", "PPO did not help: answers got worse."
    return "unclear", "PPO made no difference that this run can tell from chance."


def _change(evaluation: dict[str, Any]) -> bool:
    """Whether there is a relative change of fact errors: an SFT model without any has none."""
    return bool(evaluation["models"]["sft"]["slot_error_rate"])


def _sign(interval: dict[str, float], about: float = 0.0) -> int:
    """1 when the interval lies above, -1 when it lies below, 0 when it holds the value of no change."""
    return (interval["low"] > about) - (interval["high"] < about)


def _evidence(evaluation: dict[str, Any]) -> str:
    sft, ppo = evaluation["models"]["sft"], evaluation["models"]["ppo"]
    win, change = evaluation["win_rate"], evaluation["reduction"]
    rates = f"from {percent(sft['slot_error_rate'], 1)} to {percent(ppo['slot_error_rate'], 1)}"
    if not _change(evaluation):
        errors = f"went {rates}"
    elif _sign(change) == 0:
        errors = (
            f"went {rates}, a change of {percent(change['value'], sign=True)} whose 95 % interval "
            f"({span(change['low'], change['high'], sign=True)}) holds zero"
        )
    else:
        verb = "fell" if change["value"] < 0 else "rose"
        low, high = sorted(abs(change[end]) for end in ("low", "high"))
        errors = f"{verb} {rates}, by {percent(abs(change['value']))} (95 % interval {span(low, high)})"
    return (
        f"By the independent judge ({evaluation['judge']}), fact errors on {evaluation['prompts']:,} "
        f"held-out prompts {errors}. PPO’s answer beats SFT’s on {percent(win['value'])} of them "
        f"({span(win['low'], win['high'])}; ties count half)."
    )


def _price(sft: dict[str, Any], ppo: dict[str, Any]) -> str:
    parts = [
        f"answers take {fixed(ppo['length'], 1)} tokens (were {fixed(sft['length'], 1)})",
        f"{percent(ppo['distinct_2'], 1)} of word pairs are distinct (were {percent(sft['distinct_2'], 1)})",
    ]
    if ppo["nll"] is not None:
        parts.append(
            f"a token of the held-out demonstrations costs {fixed(ppo['nll'], 3)} nats (was {fixed(sft['nll'], 3)})"
        )
    distance = f"PPO went {number(ppo['kl'])} nats of KL a response away from SFT."
    return f"{distance} Against SFT, {listing(parts)}."


def _caveats(found: Findings) -> list[str]:
    evaluation, ppo, reward = found["evaluation"], found["ppo"], found["reward"]
    said = []
    if found["annotators"] == "simulated":
        said.append("Annotators are simulated: no person ranks anything in this run.")
    elif found["annotators"] == "unknown" and found["ranking"]:
        said.append("It is not recorded whether people made the rankings.")
    if ppo and ppo["forced_past_gate"]:
        said.append(
            f"The reward model is unfit for PPO ({'; '.join(ppo['forced_past_gate'])}), "
            "and PPO ran all the same because --force insisted."
        )
    elif reward and reward["unfit"]:
        said.append(f"The reward model of this run is unfit for PPO: {'; '.join(reward['unfit'])}.")
    if reward:
        said += [f"Of the reward model of this run: {warning}." for warning in reward["warnings"]]
    if ppo and ppo["reward_model"]:
        said.append(
            f"PPO was rewarded by another reward model ({ppo['reward_model']}) than the one that this run trained."
        )
    if found["guards"]:
        said += guarding.caveats(found["guards"])
    if not evaluation:
        return said
    sft_model, ppo_model = evaluation["models"]["sft"], evaluation["models"]["ppo"]
    if ppo and ppo["kl_target"] and (ppo_model["kl"] or 0) > ppo["kl_target"]:
        said.append(f"The KL is beyond the recipe’s target of {number(ppo['kl_target'])} nats.")
    if ppo_model["ended"] < sft_model["ended"] - 0.02:
        said.append(
            f"Only {percent(ppo_model['ended'])} of PPO’s answers end by themselves; "
            f"of SFT’s {percent(sft_model['ended'])} do."
        )
    said += [*baselines.caveats(evaluation), *frontier.caveats(evaluation)]
    along = _last_round(evaluation["along"])
    # Of a run that its guard stopped, and of one that the form fits, it is said already.
    judged = ppo and evaluation["judge"] and not ppo["stopped"] and not frontier.caveats(evaluation)
    if judged and (peak := overoptimised(along, ppo["look_prompts"])):
        best, last = peak
        said.append(
            f"Over-optimised: after update {best['update']} the reward model’s score went on rising "
            f"({fixed(best['score'])} to {fixed(last['score'])}) while fact errors rose again "
            f"({percent(best['slot_error_rate'], 1)} to {percent(last['slot_error_rate'], 1)}, on the prompts of "
            "the looks)."
        )
    return said


def _last_round(along: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Another round's scores are another reward model's."""
    last = max((look.get("round", 1) for look in along), default=1)
    return [look for look in along if look.get("round", 1) == last]


def overoptimised(along: list[dict[str, Any]], prompts: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The look with the fewest fact errors and the last one, when errors rose since and the score did too.

    A rise counts beyond two standard errors of a share over the looks' prompts.
    """
    if len(along) < 3:
        return None
    best, last = min(along, key=lambda look: float(look["slot_error_rate"])), along[-1]
    worst = min(max(last["slot_error_rate"], 0.0), 1.0)
    noise = 2 * (worst * (1 - worst) / prompts) ** 0.5
    rose = last["slot_error_rate"] - best["slot_error_rate"] > noise
    return (best, last) if rose and last["score"] > best["score"] else None
