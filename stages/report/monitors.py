"""The report's section on training monitors: the alerts during PPO, and which checkpoint was selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.language import recorded, translate
from pipeline.wording import fixed
from stages.ppo.artifact import JUDGE_FALLS, STOPPED, Alert, PPOResult
from stages.report.jsonform import named


@dataclass(frozen=True, kw_only=True)
class PointSummary:
    """An evaluation point without its texts."""

    update: int
    kl: float | None
    score: float
    judge: float | None
    length: float | None


@dataclass(frozen=True, kw_only=True)
class Monitors:
    """Alerts and checkpoint selection of the last round.

    Attributes:
        watched: whether the run has training monitors; older runs have none.
        checkpoint: `ppo.checkpoint`, best or last.
        selected: the update whose policy is PPO's result.
        updates: how many updates were made.
        planned_updates, stopped_at: set if training was stopped.
        prompts: how many held-out prompts an evaluation point has.
    """

    watched: bool
    judge: str
    alerts: Sequence[Alert] = named("events")
    checkpoint: str
    selected: int | None
    updates: int | None
    planned_updates: int | None
    stopped_at: int | None
    points: Sequence[PointSummary]
    prompts: int

    @classmethod
    def of(cls, ppo: PPOResult) -> Monitors:
        return cls(
            watched=ppo.alerts is not None,
            judge=ppo.metrics.judge,
            alerts=ppo.alerts or [],
            checkpoint=ppo.settings.checkpoint,
            selected=ppo.selected,
            updates=ppo.metrics.updates,
            planned_updates=ppo.metrics.planned_updates,
            stopped_at=ppo.metrics.stopped_at,
            points=[
                PointSummary(update=p.update, kl=p.kl, score=p.score, judge=p.judge, length=p.length)
                for p in ppo.points
            ],
            prompts=len(ppo.points[0].prompts) if ppo.points else 0,
        )


def summary(monitors: Monitors) -> str:
    """Which checkpoint was selected, in a sentence; empty for a run without monitors."""
    if not monitors.watched:
        return ""
    last, selected = monitors.updates, monitors.selected
    if monitors.judge == "none":
        return translate("No independent judge watched PPO, so the last policy was selected.")
    if monitors.checkpoint == "last":
        return translate(
            "The last policy (update {last}) was selected, because the recipe sets ppo.checkpoint: last.", last=last
        )
    values = {"last": last, "judge": recorded(monitors.judge), "prompts": monitors.prompts}
    if selected == last:
        return translate(
            "The last policy (update {last}) was selected: it is the best of all evaluation points by the judge "
            "{judge}, on {prompts} held-out prompts that are not used in the evaluation.",
            **values,
        )
    if selected == 0:
        return translate(
            "The policy that PPO started from was selected rather than the last one (update {last}): it is the "
            "best of all evaluation points by the judge {judge}, on {prompts} held-out prompts that are not used "
            "in the evaluation.",
            **values,
        )
    return translate(
        "The policy of update {selected} was selected rather than the last one (update {last}): it is the best of "
        "all evaluation points by the judge {judge}, on {prompts} held-out prompts that are not used in the "
        "evaluation.",
        selected=selected,
        **values,
    )


def caveats(monitors: Monitors) -> list[str]:
    """What to know before believing the verdict."""
    notes = []
    if monitors.stopped_at:
        stops = [alert for alert in monitors.alerts if alert.rule == STOPPED]
        fell = translate("the judge’s score fell while the score rose")
        notes.append(
            translate(
                "Training was stopped early as over-optimised, at update {update} of {planned}: {reason}.",
                update=monitors.stopped_at,
                planned=monitors.planned_updates,
                reason=recorded(stops[0].reason) if stops else fell,
            )
        )
    if monitors.watched and monitors.selected != monitors.updates:
        notes.append(summary(monitors))
    count = sum(alert.rule not in (STOPPED, JUDGE_FALLS) for alert in monitors.alerts)
    if count > 1:
        notes.append(translate("There were {count} alerts during PPO.", count=count))
    elif count:
        notes.append(translate("There was 1 alert during PPO."))
    return notes


def rows(monitors: Monitors) -> list[dict[str, str]]:
    """The evaluation points as a table. A rubric's mark is the fact error rate with a minus sign."""
    return [
        {
            "number": str(point.update),
            "kl": fixed(point.kl),
            "score": fixed(point.score),
            "judge": fixed(point.judge, 3),
            "length": fixed(point.length, 1),
            "note": translate("selected") if point.update == monitors.selected else "",
        }
        for point in monitors.points
    ]
