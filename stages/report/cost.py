"""What each model costs: its training once, and the answers it samples for each reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.files import readable_seconds
from pipeline.language import translate
from pipeline.wording import commas, counted, listing, percent, sentences, span
from stages.eval.artifact import BASELINES, Contest, Evaluation
from stages.report import win_rates

STAGES = {
    "sft": ("sft",),
    "dpo": ("collect", "dpo"),
    "raft": ("collect", "reward", "raft"),
    "best_of_n": ("collect", "reward"),
    "ppo": ("collect", "reward", "ppo"),
}
"""Model -> the stages that it takes, besides SFT. People's ranking time is not counted."""

SAMPLED = {"collect": "answers", "ppo": "episodes", "raft": "answers"}
"""Stage that samples for training -> the metric that counts its samples."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A model's cost.

    Attributes:
        seconds: of training, over all rounds; `stages` lists each stage's share.
        sampled: answers sampled for training; None where that is not recorded.
        per_reply: answers sampled for each reply of the finished model.
    """

    key: str
    model: str
    seconds: float
    stages: str
    sampled: int | None
    per_reply: int


def costs(run: RunSummary, evaluation: Evaluation | None) -> list[Cost]:
    """A row for each evaluated model that this run trained or selects with."""
    names = win_rates.names(evaluation)
    rows = []
    for key in names if evaluation else ():
        by_stage = {stage: list(by_round(run.stages, stage).values()) for stage in STAGES.get(key, ())}
        seconds = {stage: sum(r.manifest.seconds for r in runs) for stage, runs in by_stage.items() if runs}
        if not seconds:
            continue
        counts = [
            stage_run.manifest.metrics.get(count)
            for stage, count in SAMPLED.items()
            for stage_run in by_stage.get(stage, ())
        ]
        known = [count for count in counts if count is not None]
        rows.append(
            Cost(
                key=key,
                model=names[key],
                seconds=sum(seconds.values()),
                stages=commas(f"{stage} {readable_seconds(time)}" for stage, time in seconds.items()),
                sampled=sum(known) if len(known) == len(counts) else None,
                per_reply=evaluation.models[key].n or 1 if evaluation and key == "best_of_n" else 1,
            )
        )
    return rows


def why_ppo(rows: Sequence[Cost], evaluation: Evaluation | None) -> str:
    """PPO against its baselines: what each costs, and what the judge says of their answers. Empty without
    either."""
    by_key = {row.key: row for row in rows}
    ppo, best = by_key.get("ppo"), by_key.get("best_of_n")
    if ppo is None or evaluation is None:
        return ""
    text = []
    if best:
        names = {"name": best.model[:1].lower() + best.model[1:], "model": best.model}
        text += [
            _per_reply(ppo, best),
            _compared(
                _contest(evaluation, "best_of_n"),
                better=translate("PPO’s answers are better than those of {name}", **names),
                worse=translate(
                    "{model} gives better answers here, so it suits few replies, and PPO many", **names
                ),
                equal=translate(
                    "The judge cannot tell PPO’s answers from those of {name}; for many replies PPO is cheaper",
                    **names,
                ),
            ),
        ]
    for baseline in (by_key[key] for key in BASELINES if key in by_key):
        name = translate(win_rates.NAMES[baseline.key])
        text.append(
            _compared(
                _contest(evaluation, baseline.key),
                better=translate("PPO’s answers are better than {name}’s", name=name),
                worse=translate("{name}’s answers are better than PPO’s here", name=name),
                equal=translate("The judge cannot tell PPO’s answers from {name}’s", name=name),
            )
        )
    return sentences(*text)


def _per_reply(ppo: Cost, best: Cost) -> str:
    values = {"model": best.model, "count": best.per_reply}
    if ppo.sampled is None or best.sampled is None or best.per_reply < 2:
        return translate(
            "PPO trains once, then samples one answer per reply. {model} needs no PPO, but samples and scores "
            "{count} answers per reply.",
            **values,
        )
    replies = -(-(ppo.sampled - best.sampled) // (best.per_reply - 1))
    return translate(
        "PPO trains once, then samples one answer per reply. {model} needs no PPO, but samples and scores {count} "
        "answers per reply: after {replies}, more than PPO sampled in training.",
        replies=counted(replies, "reply", "replies"),
        **values,
    )


def left_out(rows: Sequence[Cost]) -> str:
    """What the times do not include."""
    models = [row.model for row in rows if row.key != "sft"]
    rest = translate("Evaluation, export and the time of those who ranked are not counted.")
    if not 0 < len(models) < len(rows):
        return rest
    return sentences(translate("The times of {models} come on top of SFT’s.", models=listing(models)), rest)


def _contest(evaluation: Evaluation, theirs: str) -> Contest | None:
    return next((c for c in evaluation.wins if (c.ours, c.theirs) == ("ppo", theirs)), None)


def _compared(contest: Contest | None, *, better: str, worse: str, equal: str) -> str:
    if contest is None:
        return ""
    return translate(
        "{verdict} (PPO’s is preferred on {share} of prompts, 95 % interval {interval}).",
        verdict={1: better, -1: worse, 0: equal}[contest.side],
        share=percent(contest.value),
        interval=span(contest.low, contest.high),
    )
