"""`export.json` of the `export` stage: what was measured of each written file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine.stage import Artifact, parse

FILE = "export.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's measures: the reward model's mean score, perplexity on held-out demonstrations (None without any),
    and with a judge the fact errors with their 95 % interval."""

    score: float
    perplexity: float | None
    slot_error_rate: float | None = None
    slot_error_low: float | None = None
    slot_error_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportedFile(Measured):
    """A written format.

    Attributes:
        change: what the format does to the policy, in words; "none" if nothing.
        bytes: of all its files.
        kl: from the policy, nats per response.
        top_1: share of positions at which file and policy have the same likeliest token.
    """

    format: str
    change: str
    bytes: int
    kl: float
    top_1: float


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """`export.json`. `policy` is the policy before it was written; `json` is the file's content."""

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
        """None where nothing was measured."""
        if not (artifact.path / FILE).exists():
            return None
        return cls.of(artifact.json(FILE), str(artifact.path / FILE))
