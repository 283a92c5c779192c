"""What each round brought: rankings, a reward model, how far the policy went and what the judge says."""

from __future__ import annotations

from typing import Any

from pipeline.engine.plan import RunSummary, StageRun
from pipeline.engine.rounds import by_round


def rows(run: RunSummary, evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A row a round that has at least its rankings; None for what is not known yet."""
    found: list[dict[str, Any]] = []
    stages = {stage: by_round(run.stages, stage) for stage in ("collect", "rank", "reward", "ppo")}
    for number, ranked in stages["rank"].items():
        collected, reward, ppo = (_metrics(stages[name].get(number)) for name in ("collect", "reward", "ppo"))
        rankings = ranked.manifest.metrics["rankings"]
        judged = _judged(evaluation, number, run.loaded.recipe.rounds)
        found.append(
            {
                "round": number,
                "prompts": collected.get("prompts"),
                "candidates": collected.get("candidates"),
                "prompts_again": collected.get("prompts_again", 0),
                "rankings": rankings,
                "rankings_total": rankings + (found[-1]["rankings_total"] if found else 0),
                "agreement": ranked.manifest.metrics.get("agreement"),
                "accuracy": reward.get("eval_accuracy"),
                "accuracy_low": reward.get("eval_accuracy_low"),
                "accuracy_high": reward.get("eval_accuracy_high"),
                "accuracy_pairs": reward.get("eval_pairs"),
                "episodes": ppo.get("episodes"),
                "kl_coef": ppo.get("kl_coef"),
                **{name: judged.get(name) for name in ("kl", "length", *_ERRORS)},
                "change": _change(evaluation, number),
            }
        )
    return found


_ERRORS = ("slot_error_rate", "slot_error_low", "slot_error_high")


def _metrics(run: StageRun | None) -> dict[str, Any]:
    return run.manifest.metrics if run else {}


def _judged(evaluation: dict[str, Any] | None, number: int, last: int) -> dict[str, Any]:
    """What `eval` found of a round's policy."""
    models: dict[str, Any] = evaluation["models"] if evaluation else {}
    return dict(models.get("ppo" if number == last else f"ppo-{number}", {}))


def _change(evaluation: dict[str, Any] | None, number: int) -> dict[str, Any] | None:
    """Relative change of fact errors from the round before; from SFT for the first."""
    changes = evaluation.get("by_round", []) if evaluation else []
    return dict(changes[number - 1]) if number <= len(changes) else None
