"""Reward and KL along a run: what the judge and the proxy gain, best-of-n beside them, and where it goes too
far."""

from __future__ import annotations

from typing import Any

from pipeline.wording import fixed, percent
from stages.report.plots import Chart, Line, Point

UNIT = "standard deviations above SFT’s answers"


def charts(evaluation: dict[str, Any] | None) -> list[Chart]:
    """Judge and proxy at each look's KL with the fitted form; and the judge's gain of PPO, best-of-n and DPO."""
    found = evaluation.get("frontier") if evaluation else None
    if not evaluation or not found:
        return []
    looks = sorted(found["looks"], key=lambda look: float(look["kl"]["value"]))
    made = [
        Chart(
            "Judge and proxy by KL",
            UNIT,
            [
                Line("train", _points(looks, "proxy")),
                Line("held-out", _points(looks, "gold")),
                *_curve(found["fit"]),
            ],
            "KL from SFT, nats a response",
            fraction=True,
        )
    ]
    best = evaluation.get("best_of_n")
    if best:
        lines = [
            Line("held-out", _points(looks, "gold")),
            Line("other", [(row["kl"], row["gold"]["value"]) for row in best["rows"]]),
        ]
        if "dpo" in evaluation["points"]:
            dpo = evaluation["points"]["dpo"]
            lines.append(Line("point", [(dpo["kl"], dpo["gold"]["value"])]))
        made.append(
            Chart("Judge, by way of getting there", UNIT, lines, "KL from SFT, nats a response", fraction=True)
        )
    return made


def _points(looks: list[dict[str, Any]], what: str) -> list[Point]:
    return [(look["kl"]["value"], look[what]["value"]) for look in looks]


def _curve(fit: dict[str, Any]) -> list[Line]:
    return [Line("level", [(kl, gain) for kl, gain in fit["curve"]])] if fit["reason"] is None else []


def conclude(evaluation: dict[str, Any] | None) -> str:
    """Where over-optimisation set in, in words."""
    found = evaluation.get("frontier") if evaluation else None
    if not found:
        return ""
    fit = found["fit"]
    if fit["reason"] is not None:
        return f"Where over-optimisation sets in cannot be fitted: {fit['reason']}."
    peak = fit["peak_kl"]
    rule = f"The form of Gao et al. 2022, {fit['form']} with d = √KL, fitted to {len(found['looks'])} looks"
    if peak["value"] is None:
        return f"{rule}, has no peak: within this run more KL does no harm."
    where = (
        f"{fixed(peak['value'])} nats (95 % interval {fixed(peak['low'])} to "
        f"{'beyond the run' if peak['high'] is None or peak['high'] > fit['farthest'] else fixed(peak['high'])})"
    )
    if fit["set_in"]:
        return f"{rule}, peaks at {where}: beyond it the judge loses {fixed(fit['lost'])} again."
    if peak["value"] >= fit["farthest"]:
        return f"{rule}, peaks at {where}, beyond the {fixed(fit['farthest'])} nats of this run."
    return (
        f"{rule}, peaks at {where}, but this run does not tell it from none: only {percent(fit['share'], 1)} of "
        "the resamples have a peak before their farthest look."
    )


def caveats(evaluation: dict[str, Any]) -> list[str]:
    found = evaluation.get("frontier")
    return [f"Over-optimised. {conclude(evaluation)}"] if found and found["fit"].get("set_in") else []
