"""Everything that the report says of a run, read from its manifests and artifacts: what the page shows, and
report.json.

Sections of stages that are not finished are None.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.engine import registry
from pipeline.engine.plan import KEY_DIGITS, RunSummary, StageRun
from pipeline.engine.registry import StageSpec
from pipeline.files import jsonable, readable_bytes
from pipeline.language import translate
from stages.artifacts import RankMetrics
from stages.criteria import criteria_of, part
from stages.eval.artifact import (
    Evaluation,
    JudgedPrompt,
    Sample,
    in_words,
    read_judged,
    read_samples,
    reference_of,
)
from stages.export.artifact import ExportResult
from stages.ppo.artifact import PPOResult
from stages.report import exported, lineage, rankings, reward_terms, sources
from stages.report.human import HumanVerdict
from stages.report.jsonform import json_form, named
from stages.report.lineage import RoundRow
from stages.report.monitors import Monitors
from stages.report.overlaps import Overlap, overlaps, transfer
from stages.report.rankings import Dropped, Figures, Measured
from stages.report.reward_terms import TermSummary
from stages.reward.artifact import RewardQuality

Annotators = Literal["simulated", "human", "unknown"]


@dataclass(frozen=True, kw_only=True)
class InputSummary:
    key: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A finished stage; sizes in bytes. `summary` says what it made, in a few words, and `reused` the recipe whose
    run it is, if it is another's."""

    name: str
    key: str
    fingerprint: str
    summary: str = named("made")
    inputs: Mapping[str, InputSummary]
    started: str
    seconds: float
    resumed: bool
    reused: str | None
    forced: bool
    device: str
    simulated: bool
    peak_bytes: int | None
    peak_gpu_bytes: int | None
    predicted_bytes: int | None
    predicted_gpu_bytes: int | None
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage that is not finished."""

    name: str
    key: None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """An evaluation point: KL from the reference, the reward model's mean score, and length."""

    update: int
    kl: float | None
    score: float
    length: float | None


@dataclass(frozen=True, kw_only=True)
class PPOSummary:
    """PPO's last round.

    Attributes:
        prompts: held-out prompts of an evaluation point.
        stopped: whether a training monitor stopped it.
        terms: those of the reward; empty if it is the reward model alone.
    """

    kl_target: float | None
    reward_model: str | None
    forced_past_gate: Sequence[str]
    points: Sequence[Point]
    prompts: int
    stopped: bool
    terms: Sequence[TermSummary]

    @classmethod
    def of(cls, ppo: PPOResult) -> PPOSummary:
        return cls(
            kl_target=ppo.settings.kl_target,
            reward_model=ppo.settings.reward_model,
            forced_past_gate=ppo.metrics.forced_past_gate,
            points=[Point(update=p.update, kl=p.kl, score=p.score, length=p.length) for p in ppo.points],
            prompts=(len(ppo.points[0].prompts) if ppo.points else 0) or ppo.settings.eval_prompts,
            stopped=ppo.metrics.stopped_at is not None,
            terms=reward_terms.summaries(ppo),
        )


@dataclass(frozen=True, kw_only=True)
class Value:
    """A recipe value and where it was set."""

    path: str
    value: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class ByCriterion:
    """The rankings and the reward model of a criterion; of all rankings (`name` is empty) where there is only
    one."""

    name: str = ""
    ranking: RankMetrics | None
    figures: Figures | None
    rankings: Measured | None
    reward: RewardQuality | None

    @property
    def label(self) -> str:
        """For behind a text: the criterion's name in brackets, if it has one."""
        return f" ({self.name})" if self.name else ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of a run.

    Attributes:
        finished: when the last stage finished; None if none has.
        seconds: of all stages together.
        ranking: metrics of the newest `rank` stage.
        figures: counts over all rankings; None with several criteria, as `rankings` and `reward`.
        rankings: agreement and annotators.
        criteria: the rankings and the reward model of each of several criteria.
        dropped: what each stage left out.
        overlaps: rows that repeat others, and training rows with a held-out prompt.
        transfer_notes: on prompts of `data.eval_rankings` that were trained on.
        monitors: training monitors; None before PPO is finished.
        lineage: one row per round; empty with one round.
        human: people's verdict on the evaluation's answers.
        judged: the rubric's counts by prompt. A hash stands for the prompt, so that another run on the same prompts
            can be compared.
        environment: section -> name -> the stages' values; several where stages ran in different environments.
        sources: section -> the files that its numbers come from.
    """

    recipe: str
    seed: int
    finished: str | None
    seconds: float
    annotators: Annotators
    stages: Sequence[FinishedStage | OpenStage]
    ranking: RankMetrics | None
    figures: Figures | None
    rankings: Measured | None
    dropped: Sequence[Dropped]
    overlaps: Sequence[Overlap]
    transfer_notes: Sequence[str]
    reward: RewardQuality | None
    ppo: PPOSummary | None
    monitors: Monitors | None = named("monitors")  # noqa: RUF009 (`named` is a `field`)
    lineage: Sequence[RoundRow]
    evaluation: Evaluation | None
    human: HumanVerdict | None
    judged: Sequence[Mapping[str, Any]]
    export: ExportResult | None
    samples: Sequence[Sample] = field(default_factory=list)
    environment: Mapping[str, Mapping[str, Sequence[str]]]
    values: Sequence[Value]
    sources: Mapping[str, Sequence[str]]
    criteria: Sequence[ByCriterion] = ()

    @property
    def parts(self) -> Sequence[ByCriterion]:
        """The criteria, or the only part without a name."""
        whole = ByCriterion(ranking=self.ranking, figures=self.figures, rankings=self.rankings, reward=self.reward)
        return self.criteria or [whole]

    @property
    def start(self) -> str:
        """The model that PPO starts from, as texts name it."""
        return in_words(reference_of(stage.name for stage in self.stages))

    def as_json(self) -> dict[str, Any]:
        """The findings as report.json has them."""
        return dict(jsonable(json_form(self)))


def collect(run: RunSummary) -> Findings:
    recipe = run.loaded.recipe
    manifests = [stage_run.manifest for stage_run in run.stages.values()]
    ranking, reward, ppo, evaluated = (run.newest(name) for name in ("rank", "reward", "ppo", "eval"))
    evaluation = Evaluation.read(evaluated.artifact) if evaluated else None
    result = PPOResult.read(ppo) if ppo else None
    criteria = _criteria(run)
    return Findings(
        recipe=recipe.name,
        seed=recipe.seed,
        finished=max((manifest.finished for manifest in manifests), default=None),
        seconds=sum(manifest.seconds for manifest in manifests),
        annotators=annotators(run),
        stages=[_stage(spec, run) for spec in registry.steps(recipe).values()],
        ranking=RankMetrics.of(ranking) if ranking else None,
        figures=None if criteria else rankings.figures(run.stages.get("data"), ranking),
        rankings=None if criteria else rankings.measured(ranking.artifact if ranking else None),
        dropped=rankings.dropped(run),
        overlaps=overlaps(run),
        transfer_notes=transfer(run),
        reward=RewardQuality.read(reward.artifact) if reward and not criteria else None,
        ppo=PPOSummary.of(result) if result else None,
        monitors=Monitors.of(result) if result else None,
        lineage=lineage.rows(run, evaluation) if recipe.rounds > 1 else [],
        evaluation=evaluation,
        human=HumanVerdict.read(run),
        judged=[_by_hash(row) for row in read_judged(evaluated.artifact)] if evaluated else [],
        export=exported.read(run),
        samples=read_samples(evaluated.artifact) if evaluated else [],
        environment=_environment(run.stages),
        values=[
            Value(path=path, value=value, origin=run.loaded.describe(path))
            for path, value in run.loaded.values().items()
        ],
        sources=sources.read(run),
        criteria=criteria,
    )


def _criteria(run: RunSummary) -> list[ByCriterion]:
    """The findings of each criterion; none where the rankings have no criteria."""
    rank, reward = run.newest("rank"), run.newest("reward")
    criteria: list[ByCriterion] = []
    for name in criteria_of(rank.artifact) if rank else []:
        assert rank is not None
        ranked = part(rank.artifact, name)
        criteria.append(
            ByCriterion(
                name=name,
                ranking=RankMetrics.read(ranked),
                figures=rankings.figures(run.stages.get("data"), rank, name),
                rankings=rankings.measured(ranked),
                reward=RewardQuality.read(part(reward.artifact, name)) if reward else None,
            )
        )
    return criteria


def annotators(run: RunSummary) -> Annotators:
    """Who made the rankings."""
    rank = run.newest("rank")
    if rank is None:
        return "simulated" if run.loaded.recipe.rank.source == "simulated" else "unknown"
    if rank.manifest.simulated:
        return "simulated"
    return "human" if RankMetrics.of(rank).human else "unknown"


def _stage(spec: StageSpec, run: RunSummary) -> FinishedStage | OpenStage:
    if spec.name not in run.stages:
        return OpenStage(name=spec.name)
    manifest = run.stages[spec.name].manifest
    return FinishedStage(
        name=spec.name,
        key=manifest.key[:KEY_DIGITS],
        fingerprint=manifest.fingerprint,
        summary=_summary(spec, run),
        inputs={
            need: InputSummary(key=record.key[:KEY_DIGITS], fingerprint=record.fingerprint)
            for need, record in manifest.inputs.items()
        },
        started=manifest.started,
        seconds=manifest.seconds,
        resumed=manifest.resumed,
        reused=None if manifest.recipe == run.loaded.recipe.name else manifest.recipe,
        forced=manifest.forced,
        device=manifest.device,
        simulated=manifest.simulated,
        peak_bytes=manifest.memory.get("peak_bytes"),
        peak_gpu_bytes=manifest.memory.get("peak_gpu_bytes"),
        predicted_bytes=manifest.predicted.get("peak_bytes"),
        predicted_gpu_bytes=manifest.predicted.get("allocated_bytes"),
        metrics=manifest.metrics,
    )


def _summary(spec: StageSpec, run: RunSummary) -> str:
    metrics = run.stages[spec.name].manifest.metrics
    size = readable_bytes(metrics.get("bytes", 0))
    alone = metrics.get("annotators") == 1
    people = {
        "simulated": translate("simulated annotators"),
        "human": translate("person") if alone else translate("people"),
    }
    who = people.get(annotators(run), translate("annotators"))
    try:
        text = translate(spec.summary).format_map({**metrics, "who": who, "size": size})
    except KeyError:
        return ""
    return re.sub(r"\b1 ((?:simulated )?\w+)s\b", r"1 \1", text)


def _by_hash(row: JudgedPrompt) -> dict[str, Any]:
    prompt = hashlib.sha256(row.prompt.encode()).hexdigest()[:KEY_DIGITS]
    faults = {} if row.faults is None else {"faults": row.faults}
    return {"prompt": prompt, "given": row.given, "errors": row.errors, **faults}


def _environment(stages: Mapping[str, StageRun]) -> dict[str, dict[str, list[str]]]:
    environment: dict[str, dict[str, list[str]]] = {"code": {}, "hardware": {}, "packages": {}}
    for run in stages.values():
        manifest = run.manifest
        machine = {name: str(value) for name, value in manifest.hardware.items() if value is not None}
        if memory := manifest.hardware.get("memory_bytes"):
            machine["memory_bytes"] = readable_bytes(memory)
        of_stage = {
            "code": {"commit": _commit(manifest.code)},
            "hardware": {"device": manifest.device, **machine},
            "packages": manifest.packages,
        }
        for section, values in of_stage.items():
            for name, value in values.items():
                known = environment[section].setdefault(name.removesuffix("_bytes"), [])
                if value not in known:
                    known.append(value)
    return environment


def _commit(code: Mapping[str, Any]) -> str:
    if not code.get("commit"):
        return translate("not a git checkout")
    commit = code["commit"][:KEY_DIGITS]
    return translate("{commit} with uncommitted changes", commit=commit) if code.get("dirty") else commit
