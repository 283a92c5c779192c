"""The report's table of the reward's terms: what each is, and its raw scores before and after PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.language import recorded, translate
from pipeline.wording import fixed
from stages.ppo.artifact import EvaluationPoint, PPOResult


@dataclass(frozen=True, kw_only=True)
class TermSummary:
    """A term, and the mean of its raw scores over the answers of an evaluation point.

    Attributes:
        what: what scores, in words.
        weight: None for a term that PPO was not trained on.
        normalization: how its scores were scaled.
        before: at the first evaluation point; None without points, or where the term applies to no answer.
        after: at the selected one, or else the last.
    """

    name: str
    what: str
    weight: float | None
    normalization: str
    before: float | None
    after: float | None


def summaries(ppo: PPOResult) -> list[TermSummary]:
    """The terms of the last round; empty for a reward without terms."""
    chosen = [point for point in ppo.points if point.update == ppo.selected] or list(ppo.points[-1:])
    return [
        TermSummary(
            name=term.name,
            what=term.describe(),
            weight=term.weight if term.trained else None,
            normalization=(
                term.score.normalization
                if term.score
                else ppo.settings.score.normalization
                if term.model
                else "none"
            ),
            before=_mean(term.name, ppo.points[:1]),
            after=_mean(term.name, chosen),
        )
        for term in ppo.settings.reward.read()
    ]


def _mean(name: str, points: Sequence[EvaluationPoint]) -> float | None:
    values = [value for point in points for value in point.terms.get(name, ()) if value is not None]
    return fmean(values) if values else None


def rows(terms: Sequence[TermSummary]) -> list[dict[str, str]]:
    """The terms as a table."""
    return [
        {
            "name": term.name,
            "what": recorded(term.what),
            "weight": translate("held out") if term.weight is None else f"{term.weight:g}",
            "scaled": "" if term.weight is None or term.normalization == "none" else term.normalization,
            "before": fixed(term.before),
            "after": fixed(term.after),
        }
        for term in terms
    ]
