"""`quality.json` of the `reward` stage: the reward model's metrics on held-out rankings, and the gate's verdict.
Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine.stage import Artifact, Metrics, parse

FILE = "quality.json"
HELD_OUT = "eval_"
"""Prefix of metrics on held-out rankings."""
TRANSFER, TRANSFER_FILE = "transfer_", "eval_rankings.json"
"""Prefix of metrics on `data.eval_rankings`, and the file with them: one of its own, which no later stage reads, so
that another table of them does not make the policy stale."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Metrics on held-out rankings, defined in `stages.reward.quality` and `stages.reward.measure`. None if there
    was nothing to measure.

    Attributes:
        json: all metrics, by name.
    """

    pairs: int = 0
    prompts: int = 0
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_by_prompt: float | None = None
    length_accuracy: float | None = None
    above_length: float | None = None
    above_length_low: float | None = None
    above_length_high: float | None = None
    bag_of_words_accuracy: float | None = None
    above_bag_of_words: float | None = None
    above_bag_of_words_low: float | None = None
    above_bag_of_words_high: float | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    agreement_pairs: int = 0
    predicted_by_others: float | None = None
    length_correlation: float | None = None
    ece: float | None = None
    brier: float | None = None
    ended_preferred: float | None = None
    member_accuracy: Sequence[float] = ()
    disagreement: float | None = None
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, metrics: Mapping[str, Any], where: str, prefix: str = HELD_OUT) -> HeldOut:
        """Selects them from the metrics of the stage, by their prefix."""
        content = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        return parse(cls, content | {"json": content}, where)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A bin of the calibration table: mean predicted probability, observed frequency and number of pairs."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True, kw_only=True)
class AnnotatorAccuracy:
    """The reward model's accuracy on one annotator's held-out pairs."""

    annotator: str
    pairs: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FaultAccuracy:
    """Accuracy on pairs of held-out answers that differ in the number of faults of one kind only, with its 95 %
    bootstrap interval over prompts; None if there is no such pair (`stages.reward.by_fault`)."""

    kind: str
    pairs: int
    accuracy: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bin of a histogram."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class RewardQuality:
    """`quality.json`.

    Attributes:
        reliability: the calibration table; each pair counts from both sides.
        by_annotator: sorted by number of pairs, descending.
        by_fault: one row per kind of fault; empty without a rubric.
        by_prompt: histogram of accuracy per prompt.
        scores: histogram of the scores of held-out answers.
        hard_negatives: number of training pairs that the stage made (`stages.reward.hard_negatives`).
        unfit: why the model fails the gate; empty if it passes.
        transfer: the metrics on `data.eval_rankings`; None where the recipe has none.
    """

    held_out: HeldOut
    transfer: HeldOut | None = None
    reliability: Sequence[Calibration] = ()
    by_annotator: Sequence[AnnotatorAccuracy] = ()
    by_fault: Sequence[FaultAccuracy] = ()
    by_prompt: Sequence[Bin] = ()
    scores: Sequence[Bin] = ()
    hard_negatives: int = 0
    unfit: Sequence[str]
    warnings: Sequence[str] = ()

    @classmethod
    def read(cls, artifact: Artifact) -> RewardQuality:
        content, where = artifact.json(FILE), str(artifact.path / FILE)
        metrics = content["metrics"]
        measured = {"held_out": HeldOut.of(metrics, where), "hard_negatives": metrics.get("hard_negatives", 0)}
        if artifact.has(TRANSFER_FILE):
            place = str(artifact.path / TRANSFER_FILE)
            measured["transfer"] = HeldOut.of(artifact.json(TRANSFER_FILE), place, TRANSFER)
        return parse(cls, content | measured, where)


def read_unfit(artifact: Artifact) -> list[str]:
    """Why the model failed the gate; empty if it passed."""
    return list(artifact.json(FILE)["unfit"])


def write(out_dir: Path, metrics: Metrics, tables: Metrics, unfit: Sequence[str], warnings: Sequence[str]) -> None:
    """Writes `quality.json`.

    Args:
        metrics: the stage's metrics; those on held-out rankings have the prefix `HELD_OUT`.
        tables: reliability, by_annotator, by_prompt, scores and, with a rubric, by_fault.
    """
    content = {"metrics": metrics, **tables, "unfit": unfit, "warnings": warnings}
    (out_dir / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_transfer(out_dir: Path, metrics: Metrics) -> None:
    """Writes `eval_rankings.json`. The metrics have the prefix `TRANSFER`."""
    (out_dir / TRANSFER_FILE).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
