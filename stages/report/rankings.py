"""The report's section on rankings and annotators, from the `data`, `rank` and `reward` stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.plan import RunSummary, StageRun
from pipeline.engine.stage import Artifact
from pipeline.language import recorded, translate
from pipeline.wording import counted
from stages.artifacts import MERGED, Agreement, AnnotatorAgreement, ModelStrength, read_dropped
from stages.criteria import criteria_of, part, table_name
from stages.left_out import losses
from stages.reward.artifact import RewardQuality

FIRST_ROWS = 12
"""Rows that are listed for each reason."""
MOST_ANNOTATORS = 60
SHOWN = 12
"""Annotators that the table shows unfolded. `MOST_ANNOTATORS` are in the page; agreement.json has all."""
TABLES = {
    "demonstrations": "demonstrations",
    "prompts": "prompts",
    "rankings": "rankings",
    "completions": "rankings",
    "eval_rankings": "eval_rankings",
    MERGED: "rankings",
}
"""What can be left out -> the recipe's table that it is in."""
LEAVE_OUT = ("base", "sft", "collect", "rank", "reward", "ppo", "dpo", "raft", "eval")
"""The stages that leave rows out of what others made."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Agreement, with the annotators who ranked most.

    Attributes:
        agreement: `agreement.json`.
        annotators: name and measures, those with the most rankings first.
        count: how many annotators there are.
        json: for report.json.
    """

    agreement: Agreement
    annotators: Sequence[tuple[str, AnnotatorAgreement]]
    count: int
    json: Mapping[str, Any] = field(repr=False)


def measured(rank: Artifact | None) -> Measured | None:
    """None before the stage is finished."""
    agreement = Agreement.read(rank) if rank else None
    if agreement is None:
        return None
    ordered = sorted(agreement.by_annotator.items(), key=lambda entry: -entry[1].rankings)
    content = {name: value for name, value in agreement.json.items() if name not in ("by_annotator", "weights")}
    everyone = agreement.json.get("by_annotator", {})
    content["by_annotator"] = [{"name": name, **everyone[name]} for name, _ in ordered[:MOST_ANNOTATORS]]
    content["all_annotators"] = len(ordered)
    return Measured(agreement=agreement, annotators=ordered[:MOST_ANNOTATORS], count=len(ordered), json=content)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is counted over all rankings (`data.tables.summary`); None where a stage did not record it.

    Attributes:
        rows: of the recipe's table that were read; None where the rankings are from none.
        kept: rankings that the `data` stage kept of them.
        sizes: rankings by their number of answers.
        tied: rankings with all answers tied.
        first_wins: of `first_wins_pairs`, which are strict, those whose first answer in the table is better.
        repeats: rankings by the same annotator of the same prompt and answers as an earlier one.
        copies: those of them in the same order.
    """

    rows: int | None
    kept: int | None
    sizes: Mapping[str, int]
    tied: int | None
    first_wins: float | None
    first_wins_pairs: int | None
    repeats: int | None
    copies: int | None


SIZE = "rankings_of_"


def figures(data: StageRun | None, rank: StageRun | None, criterion: str = "") -> Figures | None:
    """Of the newest rankings, or those by one of several criteria; None before the `rank` stage is finished."""
    if rank is None:
        return None
    metrics = _own(rank, criterion)
    of_table: Mapping[str, Any] = {}
    if data is not None and rank.manifest.config.get("source") == "data":
        of_table = _own(data, criterion)
    rows = of_table.get("read_rankings")
    return Figures(
        rows=rows,
        kept=None if rows is None else of_table["rankings_train"] + of_table["rankings_eval"],
        sizes={name.removeprefix(SIZE): count for name, count in metrics.items() if name.startswith(SIZE)},
        tied=metrics.get("tied_rankings"),
        first_wins=metrics.get("first_wins"),
        first_wins_pairs=metrics.get("first_wins_pairs"),
        repeats=metrics.get("repeated_rankings"),
        copies=metrics.get("copied_rankings"),
    )


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was left out of a table for one reason.

    Attributes:
        file: the table's file, or the stage that left it out.
        read: rows read in all; None where that is not recorded.
        rows: numbers of the first rows; only the `data` stage has them.
    """

    table: str
    file: str
    read: int | None
    reason: str
    count: int
    rows: Sequence[int]


def dropped(run: RunSummary) -> list[Dropped]:
    """What each stage left out: `data` of its tables, the newest run of the others of what they read."""
    data = run.stages.get("data")
    newest = {stage: stage_run for stage in LEAVE_OUT if (stage_run := run.newest(stage))}
    return [
        *(_dropped_rows(data) if data else []),
        *(row for stage, stage_run in newest.items() for row in _dropped_by_stage(stage, stage_run)),
    ]


def _dropped_rows(data: StageRun) -> list[Dropped]:
    metrics, config = data.manifest.metrics, data.manifest.config
    first: dict[tuple[str, str], list[int]] = {}
    for place in read_dropped(data.artifact):
        rows = first.setdefault((place.table, place.reason), [])
        if len(rows) < FIRST_ROWS and place.row not in rows:
            rows.append(place.row)
    sources = [(what, table, "", config.get(table) or {}) for what, table in TABLES.items()]
    if criteria := criteria_of(data.artifact):
        sources = [source for source in sources if source[1] != "rankings"] + [
            (what, table, name, config[table]["criteria"][name])
            for name in criteria
            for what, table in TABLES.items()
            if table == "rankings"
        ]
    return [
        Dropped(
            table=recorded(what.replace("_", " ")) + (f" ({name})" if name else ""),
            file=source.get("path", ""),
            read=metrics.get(f"{_prefix(name)}read_{table}"),
            reason=recorded(reason),
            count=count,
            rows=first.get((table_name(name or None, what if what == MERGED else table), reason), []),
        )
        for what, table, name, source in sources
        for reason, count in _reasons(metrics, f"{_prefix(name)}dropped_{what}/")
    ]


def _own(run: StageRun, criterion: str) -> Mapping[str, Any]:
    return part(run.artifact, criterion).metrics if criterion else run.manifest.metrics


def _prefix(criterion: str) -> str:
    return f"{criterion}/" if criterion else ""


def _dropped_by_stage(stage: str, run: StageRun) -> list[Dropped]:
    parts = [("", run.manifest.metrics)]
    parts += [(f" ({name})", part(run.artifact, name).metrics) for name in criteria_of(run.artifact)]
    return [
        Dropped(
            table=recorded(loss.what) + label,
            file=translate("{stage} stage", stage=stage),
            read=loss.read,
            reason=recorded(loss.reason),
            count=loss.count,
            rows=[],
        )
        for label, metrics in parts
        for loss in losses(metrics)
    ]


def _reasons(metrics: Mapping[str, Any], prefix: str) -> list[tuple[str, int]]:
    return [(name.removeprefix(prefix), count) for name, count in metrics.items() if name.startswith(prefix)]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A model's strength with places on a common axis, in percent of its width."""

    model: ModelStrength
    at: float
    start: float
    end: float
    zero: float


def strengths(section: Measured) -> list[Bar]:
    """The models behind the answers; empty where no interval is known."""
    models = section.agreement.models
    ends = [end for model in models for end in (model.low, model.high) if end is not None]
    if not ends:
        return []
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return float(round(100 * (value - low) / width, 1))

    return [
        Bar(
            model=model,
            at=place(model.strength),
            start=place(model.low if model.low is not None else model.strength),
            end=place(model.high if model.high is not None else model.strength),
            zero=place(0.0),
        )
        for model in models
    ]


def hard_negatives(reward: RewardQuality | None) -> str:
    """A sentence on the pairs that the reward stage made beside the rankings; empty if it made none."""
    if reward is None or not reward.hard_negatives:
        return ""
    if reward.hard_negatives == 1:
        return translate(
            "The reward model also learned from 1 pair that was made, not ranked by people: an answer, and a copy "
            "with one wrong value."
        )
    return translate(
        "The reward model also learned from {pairs} that were made, not ranked by people: an answer, and a copy "
        "with one wrong value.",
        pairs=counted(reward.hard_negatives, "pair"),
    )
