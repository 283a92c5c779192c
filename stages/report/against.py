"""This run against the same recipe under other values, prompt by prompt: which of the two does the judge prefer?"""

from __future__ import annotations

from typing import Any

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.errors import StageError
from pipeline.wording import fixed, listing, percent, span
from stages.report.findings import Findings
from stages.report.verdict import Tone

RESAMPLES = 2000


def compare(run: RunSummary, other: RunSummary, values: str) -> Findings:
    """Fact errors of both final policies on the same held-out prompts, and the relative change from the other's to
    this run's with a 95 % interval, a paired bootstrap over prompts.

    Args:
        values: what was set for the other, as the user wrote it.

    Raises `StageError` when either is not evaluated by a judge, or on other prompts than the other.
    """
    ours, theirs = _judged(run), _judged(other)
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        raise StageError(
            "the two runs were not evaluated on the same prompts",
            where=str(other.need("eval").folder),
            hint="compare runs with the same values of data, eval and seed",
        )
    return {
        "values": values,
        "ours": _describe(run, ours),
        "theirs": _describe(other, theirs),
        "prompts": len(ours),
        "change": paired_change([row["errors"]["ppo"] for row in ours], [row["errors"]["ppo"] for row in theirs]),
    }


def conclude(found: Findings) -> tuple[Tone, str, str]:
    """Tone, headline, and what it rests on."""
    ours, theirs, change = found["ours"], found["theirs"], found["change"]
    fewer, more = change["high"] < 0, change["low"] > 0
    tone: Tone = "good" if fewer else "bad" if more else "unclear"
    says = {
        "good": "It makes fewer fact errors than the run compared with.",
        "bad": "It makes more fact errors than the run compared with.",
        "unclear": "It does not beat the run compared with, nor does that beat it.",
    }[tone]
    rests = (
        f"Compared with: the same recipe under {found['values']}. Fact errors are "
        f"{percent(ours['slot_error_rate'], 1)} here ({_budget(ours)}), {percent(theirs['slot_error_rate'], 1)} "
        f"there ({_budget(theirs)}), on the same {found['prompts']:,} held-out prompts: a change of "
        f"{percent(change['value'], sign=True)} (95 % interval {span(change['low'], change['high'], sign=True)}"
        f"{', which holds zero' if tone == 'unclear' else ''})."
    )
    unequal = [name for name in ("rankings", "episodes") if ours[name] != theirs[name]]
    if unequal:
        rests += f" The two did not have the same number of {listing(unequal)}."
    return tone, says, rests


def _judged(run: RunSummary) -> list[dict[str, Any]]:
    evaluated = run.need("eval").artifact
    if evaluated.json("eval.json")["judge"] is None:
        raise StageError(
            "a comparison needs a judge, and none read the answers",
            where=str(evaluated.path),
            hint="set eval.judge and run `tutelage run eval`",
        )
    return list(evaluated.jsonl("judged.jsonl"))


def _describe(run: RunSummary, judged: list[dict[str, Any]]) -> Findings:
    errors, given = sum(row["errors"]["ppo"] for row in judged), sum(row["given"] for row in judged)
    return {
        "rounds": run.loaded.recipe.rounds,
        "rankings": sum(made.manifest.metrics["rankings"] for made in by_round(run.stages, "rank").values()),
        "episodes": sum(made.manifest.metrics["episodes"] for made in by_round(run.stages, "ppo").values()),
        "kl": run.need("eval").artifact.json("eval.json")["models"]["ppo"]["kl"],
        "slot_error_rate": errors / max(1, given),
    }


def _budget(side: Findings) -> str:
    rounds = f"{side['rounds']} rounds" if side["rounds"] > 1 else "one round"
    budget = f"{rounds}, {side['rankings']:,} rankings, {side['episodes']:,} PPO episodes"
    return f"{budget}, KL {fixed(side['kl'])}"


def paired_change(ours: list[int], theirs: list[int]) -> dict[str, float]:
    import numpy as np

    a, b = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    pick = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    draws = a[pick].sum(1) / np.maximum(b[pick].sum(1), 1) - 1
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": float(a.sum() / max(1.0, b.sum()) - 1), "low": float(low), "high": float(high)}
