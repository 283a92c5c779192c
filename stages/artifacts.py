"""What the stages that are one module write, for those who read it: `data`, `collect` and `rank`. Imports no
torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.engine.plan import StageRun
from pipeline.engine.stage import Artifact, parse
from stages.intervals import Share

AGREEMENT, DROPPED, RANKINGS = "agreement.json", "dropped.jsonl", "rankings.jsonl"
EXCLUDED = "excluded.jsonl"
MERGED = "merged_rankings"
"""The rankings that are the consensus of annotators, as a table of the `data` stage."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long rankings took."""

    median: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class MeasuredSample:
    """The part of all rankings (`of`) that was measured."""

    rankings: int
    of: int
    prompts: int
    share: float


@dataclass(frozen=True, kw_only=True)
class AnnotatorAgreement:
    """One annotator's agreement with others and with themselves, and their biases. `weight` is their
    reliability."""

    rankings: int
    agreement: Share
    tau: Share
    self_consistency: Share
    first_shown: Share
    longer: Share
    seconds: Seconds | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class ModelStrength:
    """Bradley-Terry strength of a model behind the answers, in log-odds, and the share of comparisons it won."""

    model: str
    strength: float
    low: float | None
    high: float | None
    win_rate: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """`agreement.json`, which data/annotators measures. `json` is the file's content."""

    pairwise: Share
    alpha: float | None
    tau: Share
    self_consistency: Share
    first_shown: Share
    longer: Share
    seconds: Seconds | None
    sample: MeasuredSample
    by_annotator: Mapping[str, AnnotatorAgreement] = field(default_factory=dict)
    models: Sequence[ModelStrength] = ()
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, artifact: Artifact) -> Agreement | None:
        """None for a run from before it was measured."""
        if not (artifact.path / AGREEMENT).is_file():
            return None
        content = artifact.json(AGREEMENT)
        return replace(parse(cls, content, str(artifact.path / AGREEMENT)), json=content)


def read_weights(artifact: Artifact) -> dict[str, float] | None:
    """The reliability of each annotator that the `rank` stage measured; None for a run from before it did."""
    weights: dict[str, float] | None = artifact.json(AGREEMENT).get("weights")
    return weights


@dataclass(frozen=True, kw_only=True)
class DroppedRow:
    """A row that the `data` stage left out: the recipe's table, its number there, and why."""

    table: str
    row: int
    reason: str


def read_dropped(artifact: Artifact) -> Iterator[DroppedRow]:
    if (artifact.path / DROPPED).is_file():
        yield from artifact.rows(DROPPED, DroppedRow)


def excluded_groups(data: Artifact) -> frozenset[str]:
    """The groups (`data.splits.group_of`) of the prompts that `data.exclude` lists."""
    if not data.has(EXCLUDED):
        return frozenset()
    return frozenset(row["group"] for row in data.jsonl(EXCLUDED))


def rankings_file(artifact: Artifact) -> Path:
    """The rankings of a `data` or `rank` artifact, one JSON object per line (`data.schema`)."""
    return artifact.file(RANKINGS)


def merged_file(artifact: Artifact) -> Path | None:
    """The rankings of a `data` or `rank` artifact that are the consensus of annotators; None where the recipe asks
    for none (`data.rankings.consensus`)."""
    name = f"{MERGED}.jsonl"
    return artifact.file(name) if artifact.has(name) else None


def learned_file(artifact: Artifact) -> Path:
    """The rankings of a `rank` artifact that models learn from: the consensus, or those of single annotators."""
    return merged_file(artifact) or rankings_file(artifact)


@dataclass(frozen=True, kw_only=True)
class CollectMetrics:
    """The metrics of the `collect` stage that others read.

    Attributes:
        candidates: prompts that were answered to choose among; None where all were kept.
        prompts_again: prompts that an earlier round had already ranked.
    """

    prompts: int | None = None
    candidates: int | None = None
    prompts_again: int = 0


@dataclass(frozen=True, kw_only=True)
class RankMetrics:
    """The metrics of the `rank` stage that others read.

    Attributes:
        human: whether people ranked; None where it was not recorded.
        agreement: share of pairs on which two annotators agree.
        tie_share: share of pairs that are ties.
        json: all metrics, by name.
    """

    rankings: int = 0
    annotators: int = 0
    human: bool | None = None
    agreement: float | None = None
    tie_share: float | None = None
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, run: StageRun) -> RankMetrics:
        return cls.read(run.artifact)

    @classmethod
    def read(cls, artifact: Artifact) -> RankMetrics:
        return replace(parse(cls, artifact.metrics, str(artifact.path)), json=artifact.metrics)
