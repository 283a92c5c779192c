"""PPO against its baselines: win rates by every judge, best-of-n at the same KL, and DPO."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.wording import fixed, percent, span
from stages.eval import artifact
from stages.eval.artifact import Evaluation

NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "best_of_n": "Best of n", "ppo": "PPO"}
"""Models in the report's order."""


@dataclass(frozen=True)
class Row:
    """A judge's win rate of one model against another. `tone` is good or bad if the interval excludes one half."""

    judge: str
    ours: str
    theirs: str
    rate: str
    interval: str
    ties: str
    note: str
    tone: str


def names(evaluation: Evaluation | None) -> dict[str, str]:
    """Model -> its name in the report, for the evaluated models, in order."""
    models = evaluation.models if evaluation else {}
    always = ("base", "ppo") if models else ("base", "sft", "ppo")
    labels = {name: label for name, label in NAMES.items() if name in models or name in always}
    if "best_of_n" in labels:
        labels["best_of_n"] = f"Best of {models['best_of_n'].n}"
    return labels


def rows(evaluation: Evaluation | None) -> list[Row]:
    """One row per judge and pair of models."""
    if evaluation is None:
        return []
    labels = names(evaluation)
    return [
        Row(
            contest.judge,
            labels[contest.ours],
            labels[contest.theirs],
            percent(contest.value),
            span(contest.low, contest.high),
            percent(contest.ties),
            _note(contest),
            {1: "good", -1: "bad", 0: ""}[contest.side],
        )
        for contest in evaluation.wins
    ]


def _note(contest: artifact.Contest) -> str:
    note = f"{contest.prompts:,} prompts"
    if contest.disagreed is not None:
        note += f"; verdict changed with the order of answers for {percent(contest.disagreed)} of pairs"
    if contest.unreadable:
        note += f"; {contest.unreadable} replies without a verdict"
    return note


def against_reference(evaluation: Evaluation | None) -> dict[str, artifact.Contest]:
    """By model, the first judge's win rate against the model that PPO started from."""
    first: dict[str, artifact.Contest] = {}
    for contest in evaluation.wins if evaluation else ():
        if evaluation and contest.theirs == evaluation.reference:
            first.setdefault(contest.ours, contest)
    return first


def other_judges(evaluation: Evaluation) -> list[artifact.Contest]:
    """PPO against the reference by the judges besides the rubric."""
    return [
        contest
        for contest in evaluation.wins
        if (contest.ours, contest.theirs) == ("ppo", evaluation.reference) and contest.judge != evaluation.judge
    ]


def evidence(contest: artifact.Contest) -> str:
    """A win rate of PPO against the reference in words."""
    start = artifact.in_words(contest.theirs)
    judge = contest.judge[:1].upper() + contest.judge[1:]
    return (
        f"{judge} prefers PPO’s answer to {start}’s on {percent(contest.value)} of {contest.prompts:,} held-out "
        f"prompts (95 % interval {span(contest.low, contest.high)}; ties count half)."
    )


def caveats(evaluation: Evaluation) -> list[str]:
    """Baselines that beat PPO."""
    labels, models, notes = names(evaluation), evaluation.models, []
    seen = set()
    for contest in evaluation.wins:
        theirs = contest.theirs
        if contest.ours != "ppo" or theirs not in ("best_of_n", "dpo") or theirs in seen:
            continue
        seen.add(theirs)
        if contest.side < 0:
            kl = models[theirs].kl
            at = f"at most {fixed(kl)}" if theirs == "best_of_n" else fixed(kl)
            notes.append(
                f"{labels[theirs]} is better than PPO: PPO’s answer wins on {percent(contest.value)} of "
                f"{contest.prompts:,} prompts "
                f"({span(contest.low, contest.high)}), at a KL of {fixed(models['ppo'].kl)} nats against {at}."
            )
    return notes


def reach(evaluation: Evaluation) -> str:
    """How near best-of-n comes to PPO's KL."""
    best = evaluation.best_of_n
    if not best:
        return ""
    kl = evaluation.models["ppo"].kl or 0.0
    text = (
        f"Best of n takes the answer that the reward model scores highest among n answers of {evaluation.start}. "
        f"n = {best.n} is the one whose KL is nearest PPO’s {fixed(kl)} nats; best-of-n’s KL is at most log n - "
        f"(n-1)/n (Beirami et al. 2024). The result is averaged over all subsets of n among {best.samples} answers "
        "per prompt."
    )
    if kl > best.reaches:
        text += f" {best.samples} answers reach at most {fixed(best.reaches)} nats."
    return text
