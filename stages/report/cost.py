"""What each model costs: its training once, and the answers it samples for each reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.files import readable_seconds
from pipeline.wording import counted, listing, percent, span
from stages.eval.artifact import Contest, Evaluation
from stages.report import win_rates

STAGES = {
    "sft": ("sft",),
    "dpo": ("collect", "dpo"),
    "best_of_n": ("collect", "reward"),
    "ppo": ("collect", "reward", "ppo"),
}
"""Model -> the stages that it takes, besides SFT. People's ranking time is not counted."""


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
            stage_run.manifest.metrics.get({"collect": "answers", "ppo": "episodes"}[stage])
            for stage in ("collect", "ppo")
            for stage_run in by_stage.get(stage, ())
        ]
        known = [count for count in counts if count is not None]
        rows.append(
            Cost(
                key=key,
                model=names[key],
                seconds=sum(seconds.values()),
                stages=", ".join(f"{stage} {readable_seconds(time)}" for stage, time in seconds.items()),
                sampled=sum(known) if len(known) == len(counts) else None,
                per_reply=evaluation.models[key].n or 1 if evaluation and key == "best_of_n" else 1,
            )
        )
    return rows


def why_ppo(rows: Sequence[Cost], evaluation: Evaluation | None) -> str:
    """PPO against best-of-n and DPO: what each costs, and what the judge says of their answers. Empty without
    either."""
    by_key = {row.key: row for row in rows}
    ppo, best, dpo = (by_key.get(key) for key in ("ppo", "best_of_n", "dpo"))
    if ppo is None or evaluation is None:
        return ""
    text = []
    if best:
        name = best.model[:1].lower() + best.model[1:]
        text += [
            _per_reply(ppo, best, name),
            _compared(
                _contest(evaluation, "best_of_n"),
                better=f"PPO’s answers are better than those of {name}",
                worse=f"{best.model} gives better answers here, so it suits few replies, and PPO many",
                equal=f"The judge cannot tell PPO’s answers from those of {name}; for many replies PPO is cheaper",
            ),
        ]
    if dpo:
        text.append(
            _compared(
                _contest(evaluation, "dpo"),
                better="PPO’s answers are better than DPO’s",
                worse="DPO’s answers are better than PPO’s here",
                equal="The judge cannot tell PPO’s answers from DPO’s",
            )
        )
    return " ".join(part for part in text if part)


def _per_reply(ppo: Cost, best: Cost, name: str) -> str:
    text = (
        f"PPO trains once, then samples one answer per reply. {best.model} needs no PPO, but samples and scores "
        f"{best.per_reply} answers per reply"
    )
    if ppo.sampled is None or best.sampled is None or best.per_reply < 2:
        return f"{text}."
    replies = -(-(ppo.sampled - best.sampled) // (best.per_reply - 1))
    return f"{text}: after {counted(replies, 'reply', 'replies')}, more than PPO sampled in training."


def left_out(rows: Sequence[Cost]) -> str:
    """What the times do not include."""
    models = [row.model for row in rows if row.key != "sft"]
    after = f"The times of {listing(models)} come on top of SFT’s. " if 0 < len(models) < len(rows) else ""
    return f"{after}Evaluation, export and the time of those who ranked are not counted."


def _contest(evaluation: Evaluation, theirs: str) -> Contest | None:
    return next((c for c in evaluation.wins if (c.ours, c.theirs) == ("ppo", theirs)), None)


def _compared(contest: Contest | None, *, better: str, worse: str, equal: str) -> str:
    if contest is None:
        return ""
    verdict = {1: better, -1: worse, 0: equal}[contest.side]
    return (
        f"{verdict} (PPO’s is preferred on {percent(contest.value)} of prompts, 95 % interval "
        f"{span(contest.low, contest.high)})."
    )
