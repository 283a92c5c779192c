"""`tutelage judge`: people compare two models' answers to held-out prompts, blind, for a human win rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from data.annotators.agreement import agreement
from data.bootstrap import bootstrap
from data.held_out import too_few
from data.schema import Ranking, prompt_key
from pipeline.config.rank import AppConfig
from pipeline.engine.plan import RunSummary
from pipeline.errors import StageError
from pipeline.files import write_atomic
from ranking.campaign import Campaign, Source
from ranking.export import rankings
from ranking.judged import judged_file
from ranking.serve import collect_rankings

CAMPAIGN = "judge"
MODEL = "ppo"
"""The model whose wins are counted."""


def judge(
    run: RunSummary,
    config: AppConfig,
    *,
    prompts: int | None,
    say: Callable[[str], None],
    database: str,
) -> dict[str, Any]:
    """Serves the comparison until it is complete, and writes the result where the report finds it.

    Args:
        prompts: how many of the evaluated prompts to use; None: all.
        database: the file name in the recipe's folder.
    """
    evaluation = run.need("eval")
    rows = islice(evaluation.artifact.jsonl("answers.jsonl"), prompts)
    campaign = Campaign.of(CAMPAIGN, sources(rows), config, f"{run.folder.name}, comparison")
    if warning := too_few(len(campaign.sources), "to compare", "raise --prompts, or evaluate on more"):
        say(f"warning: {warning}")
    store = collect_rankings(run.folder / database, campaign, config, say=say)
    try:
        comparisons = list(rankings(store, campaign))
    finally:
        store.close()
    outcome = result(campaign.sources, comparisons, run.loaded.recipe.eval.bootstrap, run.loaded.recipe.seed)
    outcome["eval"] = evaluation.manifest.fingerprint
    outcome["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    path: Path = judged_file(run.folder, evaluation.manifest.fingerprint)
    write_atomic(path, json.dumps(outcome, indent=1) + "\n")
    say(f"{summary(outcome)}\nwritten to {path}")
    return outcome


def sources(rows: Iterable[dict[str, Any]]) -> list[Source]:
    """The answers of PPO and of the model that it started from (SFT, or the base model without SFT) to each prompt,
    from rows of the `eval` stage's answers.jsonl."""
    compared = []
    for row in rows:
        models = [MODEL, "sft" if "sft" in row["answers"] else "base"]
        compared.append(Source(row["prompt"], [row["answers"][name] for name in models], models, "eval"))
    return compared


def result(compared: Sequence[Source], comparisons: Sequence[Ranking], resamples: int, seed: int) -> dict[str, Any]:
    """Win rate of the first model, each prompt with the mean of its judges (ties count half), and a 95 % bootstrap
    interval over prompts.

    Prompts with two equal answers are ties, and nobody is asked about them. When judging ended early, only those
    before the last judged prompt count. Repetitions are left out. Raises `StageError` when nobody judged anything.
    """
    first = [ranking for ranking in comparisons if not ranking.metadata["repeat"]]
    by_prompt: dict[str, list[float]] = {}
    for ranking in first:
        score = 0.5 if ranking.ranks[0] == ranking.ranks[1] else float(ranking.ranks[0] < ranking.ranks[1])
        by_prompt.setdefault(_key(ranking.prompt, ranking.completions), []).append(score)
    judged = [_key(source.prompt, source.completions) in by_prompt for source in compared]
    if not any(judged):
        raise StageError("nobody compared anything", hint="run the command again and judge at least one pair")
    last = max(i for i, is_judged in enumerate(judged) if is_judged)
    reached = (
        compared if all(j or s.item is None for j, s in zip(judged, compared, strict=True)) else compared[:last]
    )
    identical = sum(source.item is None for source in reached)
    wins = [mean(scores) for scores in by_prompt.values()] + [0.5] * identical
    low, high = bootstrap(wins, resamples=resamples, seed=seed)
    agreed = agreement(first, resamples=resamples, seed=seed).pairwise
    return {
        "models": compared[0].models,
        "prompts": len(wins),
        "identical": identical,
        "judgements": len(first),
        "judges": len({ranking.annotator for ranking in first}),
        "win_rate": {
            "value": mean(wins),
            "low": low,
            "high": high,
            "ties": mean(r.ranks[0] == r.ranks[1] for r in first),
        },
        "both_bad": mean(bool(r.metadata["all_bad"]) for r in first),
        "agreement": {"value": agreed.value, "low": agreed.low, "high": agreed.high, "pairs": agreed.pairs},
    }


def summary(outcome: dict[str, Any]) -> str:
    win = outcome["win_rate"]
    return (
        f"{outcome['judges']} judges, {outcome['judgements']} comparisons on {outcome['prompts']} prompts: "
        f"{outcome['models'][0]} wins {100 * win['value']:.1f} % against {outcome['models'][1]} "
        f"(95 % interval {100 * win['low']:.1f} to {100 * win['high']:.1f}; ties count half)"
    )


def _key(prompt: Any, completions: Sequence[str]) -> str:
    return json.dumps([prompt_key(prompt), *completions])
