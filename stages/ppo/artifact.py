"""Reads the records of a finished `ppo` stage: evaluation points, alerts, settings, metrics. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from pipeline.config.ppo import kl_goal
from pipeline.config.terms import TermConfig
from pipeline.engine.plan import StageRun
from pipeline.engine.stage import parse

POINTS, ALERTS, OPTIMUM = "evaluations.jsonl", "alerts.jsonl", "optimum.json"
STOPPED = "stopped"
"""The rule of the alert that stopped training."""
JUDGE_FALLS = "judge-falls"
"""The rule of the alert for a judge's score that falls while the reward model's score rises."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    """Means over the answers to held-out prompts at one update.

    Attributes:
        kl: KL from the reference, nats per response.
        judge: the independent judge's mean score, higher is better; None without a judge.
        prompts: the held-out prompts, as conversations.
        terms: each term's raw scores by its name, None where it does not apply; empty without terms.
    """

    update: int
    kl: float | None
    score: float
    length: float | None
    judge: float | None = None
    prompts: Sequence[Any] = ()
    terms: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert of a training monitor.

    Attributes:
        update, last: the first and the last update at which the rule held.
        updates: number of updates at which it held.
    """

    rule: str
    update: int
    last: int
    updates: int
    symptom: str
    cause: str
    hint: str

    @property
    def reason(self) -> str:
        """The symptom, without the prefix of the alert that stopped training."""
        return self.symptom.removeprefix(f"{STOPPED}: ")


@dataclass(frozen=True, kw_only=True)
class KLSettings:
    kind: str
    target: float


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """The reward's terms as recipe values; None without terms."""

    terms: Sequence[Mapping[str, Any]] | None = None

    def read(self) -> list[TermConfig]:
        return [TypeAdapter(TermConfig).validate_json(json.dumps(term)) for term in self.terms or ()]


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    normalization: str = "reference"


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """The values of `PPOConfig` that explain a result."""

    kl: KLSettings
    eval_prompts: int
    reward_model: str | None = None
    checkpoint: str = "last"
    reward: RewardSettings = field(default_factory=RewardSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)

    @property
    def kl_target(self) -> float | None:
        """The KL target, nats per response; None with a fixed coefficient."""
        return kl_goal(self.kl.kind, self.kl.target)


@dataclass(frozen=True, kw_only=True)
class PPOMetrics:
    """The metrics that other packages read.

    Attributes:
        selected_update: the update whose policy is the stage's result; None: the last one.
        stopped_at: the update at which the training monitor stopped PPO; None if it did not.
        planned_updates: how many updates were planned, if it was stopped.
        forced_past_gate: why the reward model failed the gate, if PPO ran with --force.
    """

    updates: int | None = None
    episodes: int | None = None
    kl_coef: float | None = None
    judge: str = "none"
    selected_update: int | None = None
    stopped_at: int | None = None
    planned_updates: int | None = None
    forced_past_gate: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class PPOResult:
    """A finished `ppo` stage.

    Attributes:
        alerts: None if the run predates training monitors.
    """

    points: Sequence[EvaluationPoint]
    alerts: Sequence[Alert] | None
    settings: PPOSettings
    metrics: PPOMetrics

    @property
    def selected(self) -> int | None:
        """The update whose policy is the stage's result."""
        return self.metrics.updates if self.metrics.selected_update is None else self.metrics.selected_update

    @classmethod
    def read(cls, run: StageRun) -> PPOResult:
        artifact, where = run.artifact, str(run.folder)
        has_alerts = (artifact.path / ALERTS).is_file()
        return cls(
            points=list(artifact.rows(POINTS, EvaluationPoint)),
            alerts=list(artifact.rows(ALERTS, Alert)) if has_alerts else None,
            settings=parse(PPOSettings, run.manifest.config, where),
            metrics=parse(PPOMetrics, run.manifest.metrics, where),
        )
