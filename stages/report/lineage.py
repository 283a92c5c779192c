"""One row per round: its rankings, its reward model, how far its policy went, and what the judge says of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import parse
from stages.artifacts import CollectMetrics, RankMetrics
from stages.eval.artifact import Evaluation, ModelResult
from stages.intervals import Interval
from stages.ppo.artifact import PPOMetrics
from stages.report.jsonform import named
from stages.reward.artifact import HeldOut


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """A round. Values of stages that are not finished are None.

    Attributes:
        accuracy: of the round's reward model, on the held-out rankings of all rounds so far.
        change: relative change of fact errors from the round before; from the reference in the first round.
    """

    number: int = named("round")
    prompts: int | None
    candidates: int | None
    prompts_again: int
    rankings: int
    rankings_total: int
    agreement: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    accuracy_pairs: int | None
    episodes: int | None
    kl_coef: float | None
    kl: float | None
    length: float | None
    slot_error_rate: float | None
    slot_error_low: float | None
    slot_error_high: float | None
    change: Interval | None


def rows(run: RunSummary, evaluation: Evaluation | None) -> list[RoundRow]:
    """A row for every round whose rankings are finished."""
    lineage: list[RoundRow] = []
    collected, rewards, policies = (by_round(run.stages, name) for name in ("collect", "reward", "ppo"))
    for number, ranked in by_round(run.stages, "rank").items():
        collect = collected.get(number)
        prompts = parse(CollectMetrics, collect.manifest.metrics if collect else {}, "collect")
        ranking = RankMetrics.of(ranked)
        reward = rewards.get(number)
        quality = HeldOut.of(reward.manifest.metrics if reward else {}, "reward")
        policy = policies.get(number)
        ppo = parse(PPOMetrics, policy.manifest.metrics if policy else {}, "ppo")
        result = _evaluated(evaluation, number, run.loaded.recipe.rounds)
        lineage.append(
            RoundRow(
                number=number,
                prompts=prompts.prompts,
                candidates=prompts.candidates,
                prompts_again=prompts.prompts_again,
                rankings=ranking.rankings,
                rankings_total=ranking.rankings + (lineage[-1].rankings_total if lineage else 0),
                agreement=ranking.agreement,
                accuracy=quality.accuracy,
                accuracy_low=quality.accuracy_low,
                accuracy_high=quality.accuracy_high,
                accuracy_pairs=quality.pairs if reward else None,
                episodes=ppo.episodes,
                kl_coef=ppo.kl_coef,
                kl=result.kl,
                length=result.length,
                slot_error_rate=result.slot_error_rate,
                slot_error_low=result.slot_error_low,
                slot_error_high=result.slot_error_high,
                change=_change(evaluation, number),
            )
        )
    return lineage


def _evaluated(evaluation: Evaluation | None, number: int, last: int) -> ModelResult:
    """The evaluation of a round's policy."""
    models = evaluation.models if evaluation else {}
    return models.get("ppo" if number == last else f"ppo-{number}", ModelResult())


def _change(evaluation: Evaluation | None, number: int) -> Interval | None:
    changes = evaluation.by_round if evaluation else ()
    return changes[number - 1] if number <= len(changes) else None
