"""`export.json` of the `export` stage: the metrics of each written file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine.stage import Artifact, parse

FILE = "export.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's metrics: the reward model's mean score, perplexity on held-out demonstrations (None without any)
    and, with a judge, the slot error rate with its 95 % interval."""

    score: float
    perplexity: float | None
    slot_error_rate: float | None = None
    slot_error_low: float | None = None
    slot_error_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportedFile(Measured):
    """A written format.

    Attributes:
        change: how the format changes the policy, in words; "none" if it does not.
        bytes: total size of its files.
        kl: KL from the policy, nats per response.
        top_1: share of positions at which file and policy have the same most likely token.
    """

    format: str
    change: str
    bytes: int
    kl: float
    top_1: float


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """`export.json`. `policy` holds the metrics of the policy itself, `json` the file's content."""

    prompts: int
    judge: str | None
    policy: Measured
    formats: Sequence[ExportedFile]
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = FILE) -> ExportResult:
        return replace(parse(cls, content, where), json=content)

    @classmethod
    def read(cls, artifact: Artifact) -> ExportResult | None:
        """Reads the artifact's file; None if there is none."""
        if not (artifact.path / FILE).exists():
            return None
        return cls.of(artifact.json(FILE), str(artifact.path / FILE))
