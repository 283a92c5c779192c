"""Rows that repeat others, and training rows with a held-out prompt, as far as they stay in the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.overlaps import Kind
from pipeline.engine.plan import RunSummary, StageRun
from pipeline.language import recorded, translate
from pipeline.wording import listing
from stages import contamination
from stages.artifacts import MERGED
from stages.transfer import NAME

DUPLICATES = "duplicates.jsonl"
WORDS: dict[Kind, str] = {"exact": "repeat another row", "near": "nearly repeat another row"}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Rows of one table that overlap with others.

    Attributes:
        table: what they are: demonstrations, prompts, rankings, merged rankings, answers or documents.
        kind: `duplicate` (of another row) or `contaminated` (training rows with a held-out prompt).
        near: whether the overlap is only near.
        examples: the first rows, each with the start of its text and of what it overlaps with.
    """

    table: str
    kind: str
    near: bool
    count: int
    examples: list[tuple[int, str, str]]

    @property
    def what(self) -> str:
        kind: Kind = "near" if self.near else "exact"
        return translate(contamination.REASONS[kind] if self.kind == "contaminated" else WORDS[kind])


def overlaps(run: RunSummary) -> list[Overlap]:
    """Of all stages that were checked."""
    return [overlap for stage in ("data", "base", "reward") if (of := run.newest(stage)) for overlap in _of(of)]


def _of(run: StageRun) -> Iterator[Overlap]:
    metrics, artifact = run.manifest.metrics, run.artifact
    rows = list(artifact.jsonl(DUPLICATES)) if (artifact.path / DUPLICATES).is_file() else []
    for name, count in metrics.items():
        if name.startswith("duplicate_"):
            table, _, kind = name.removeprefix("duplicate_").rpartition("/")
            yield _overlap("duplicate", table, kind, count, rows, "first")
    checked = artifact.json(contamination.FILE) if (artifact.path / contamination.FILE).is_file() else {}
    for table, kind, count in contamination.counts(metrics):
        yield _overlap("contaminated", table, kind, count, checked.get("examples", []), "held_out")


def _overlap(
    what: str, table: str, kind: str, count: int, rows: Sequence[Mapping[str, Any]], other: str
) -> Overlap:
    examples = [
        (row["row"], row["text"], row[other]) for row in rows if (row["table"], row["kind"]) == (table, kind)
    ]
    return Overlap(
        table="merged rankings" if table == MERGED else table,
        kind=what,
        near=kind == "near",
        count=count,
        examples=examples[:3],
    )


def caveats(rows: Sequence[Overlap]) -> list[str]:
    """A note on contaminated training rows; none where there are none."""
    parts = [_contain(row) for row in rows if row.kind == "contaminated"]
    if not parts:
        return []
    return [
        translate(
            "Of what was trained on, {parts}: results on held-out prompts may be too good. data.contamination can "
            "drop these rows.",
            parts=listing(parts),
        )
    ]


def transfer(run: RunSummary) -> list[str]:
    """Notes on prompts of `data.eval_rankings` that are trained on as well; none where there are none."""
    data = run.newest("data")
    metrics = data.manifest.metrics if data else {}
    notes = []
    for name, count in metrics.items():
        table, _, kind = name.removeprefix(f"{NAME}_in_").rpartition("/")
        if name.startswith(f"{NAME}_in_"):
            values = {"count": count, "prompts": metrics[f"{NAME}_prompts"], "table": recorded(table)}
            exact = translate(
                "{count:,} of {prompts:,} prompts occur in the {table} that were trained on", **values
            )
            near = translate(
                "{count:,} of {prompts:,} prompts nearly occur in the {table} that were trained on", **values
            )
            notes.append(near if kind == "near" else exact)
    return notes


def _contain(row: Overlap) -> str:
    values = {"count": row.count, "rows": recorded(row.table)}
    if row.near:
        return translate("{count:,} {rows} nearly contain a held-out prompt", **values)
    return translate("{count:,} {rows} contain a held-out prompt", **values)
