"""PPO against its baselines: win rates by every judge, best-of-n at the same KL, DPO and RAFT."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.language import recorded, translate
from pipeline.wording import fixed, percent, sentences, span
from stages.eval import artifact
from stages.eval.artifact import BASELINES, Evaluation

NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "raft": "RAFT", "best_of_n": "Best of n", "ppo": "PPO"}
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
    labels = {name: translate(label) for name, label in NAMES.items() if name in models or name in always}
    if "best_of_n" in labels:
        labels["best_of_n"] = translate("Best of {n}", n=models["best_of_n"].n)
    if "raft" in labels:
        labels["raft"] = translate("RAFT, best of {n}", n=models["raft"].n)
    return labels


def rows(evaluation: Evaluation | None) -> list[Row]:
    """One row per judge and pair of models."""
    if evaluation is None:
        return []
    labels = names(evaluation)
    return [
        Row(
            recorded(contest.judge),
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
    notes = [translate("{count:,} prompts", count=contest.prompts)]
    if contest.disagreed is not None:
        share = percent(contest.disagreed)
        notes.append(translate("verdict changed with the order of answers for {share} of pairs", share=share))
    if contest.unreadable:
        notes.append(translate("{count} replies without a verdict", count=contest.unreadable))
    return translate("; ").join(notes)


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
    judge = recorded(contest.judge)
    return translate(
        "{judge} prefers PPO’s answer to {start}’s on {share} of {prompts:,} held-out prompts (95 % interval "
        "{interval}; ties count half).",
        judge=judge[:1].upper() + judge[1:],
        start=start,
        share=percent(contest.value),
        prompts=contest.prompts,
        interval=span(contest.low, contest.high),
    )


def caveats(evaluation: Evaluation) -> list[str]:
    """Baselines that beat PPO."""
    labels, models, notes = names(evaluation), evaluation.models, []
    seen = set()
    for contest in evaluation.wins:
        theirs = contest.theirs
        if contest.ours != "ppo" or theirs not in ("best_of_n", *BASELINES) or theirs in seen:
            continue
        seen.add(theirs)
        if contest.side < 0:
            kl = models[theirs].kl
            at_most = theirs == "best_of_n"
            notes.append(
                translate(
                    "{model} is better than PPO: PPO’s answer wins on {share} of {prompts:,} prompts ({interval}), "
                    "at a KL of {kl} nats against {other}.",
                    model=labels[theirs],
                    share=percent(contest.value),
                    prompts=contest.prompts,
                    interval=span(contest.low, contest.high),
                    kl=fixed(models["ppo"].kl),
                    other=translate("at most {kl}", kl=fixed(kl)) if at_most else fixed(kl),
                )
            )
    return notes


def reach(evaluation: Evaluation) -> str:
    """How near best-of-n comes to PPO's KL."""
    best = evaluation.best_of_n
    if not best:
        return ""
    kl = evaluation.models["ppo"].kl or 0.0
    text = translate(
        "Best of n takes the answer that the reward model scores highest among n answers of {start}. n = {n} is "
        "the one whose KL is nearest PPO’s {kl} nats; best-of-n’s KL is at most log n - (n-1)/n (Beirami et al. "
        "2024). The result is averaged over all subsets of n among {samples} answers per prompt.",
        start=evaluation.start,
        n=best.n,
        kl=fixed(kl),
        samples=best.samples,
    )
    if kl <= best.reaches:
        return text
    reaches = translate("{samples} answers reach at most {kl} nats.", samples=best.samples, kl=fixed(best.reaches))
    return sentences(text, reaches)
