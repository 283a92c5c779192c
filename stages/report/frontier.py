"""Reward against KL along PPO: the gains of judge and proxy, best-of-n beside them, and where over-optimisation
sets in."""

from __future__ import annotations

from pipeline.wording import counted, fixed, percent, span
from stages.eval.artifact import Evaluation, Fit, FrontierPoint
from stages.report.plots import Chart, Line, Point


def charts(evaluation: Evaluation | None) -> list[Chart]:
    """Judge and proxy by KL with the fitted form; and the judge's gain of PPO, best-of-n and DPO."""
    if evaluation is None or evaluation.frontier is None:
        return []
    start = evaluation.start
    unit, x = f"standard deviations above {start}’s answers", f"KL from {start}, nats per response"
    points = sorted(evaluation.frontier.points, key=lambda point: point.kl.value or 0.0)
    proxy, gold = ([_point(point, name) for point in points] for name in ("proxy", "gold"))
    drawn = [
        Chart(
            "Judge and reward model by KL",
            unit,
            [Line("train", proxy), Line("held-out", gold), *_curve(evaluation.frontier.fit)],
            x,
            fraction=True,
        )
    ]
    best = evaluation.best_of_n
    if best and evaluation.optimum:
        lines = [
            Line("level", [(point.kl, point.gain.value or 0.0) for point in evaluation.optimum.points]),
            Line("train", proxy),
            Line("other", [(row.kl, row.proxy.value or 0.0) for row in best.rows]),
        ]
        drawn.append(Chart("Reward model’s score: how much is possible", unit, lines, x, fraction=True))
    if best:
        lines = [
            Line("held-out", gold),
            Line("other", [(row.kl, row.gold.value or 0.0) for row in best.rows]),
        ]
        if "dpo" in evaluation.points:
            dpo = evaluation.points["dpo"]
            lines.append(Line("point", [(dpo.kl, dpo.gold.value or 0.0)]))
        drawn.append(Chart("Judge’s gain by method", unit, lines, x, fraction=True))
    return drawn


def _point(point: FrontierPoint, name: str) -> Point:
    gain = point.proxy if name == "proxy" else point.gold
    return point.kl.value or 0.0, gain.value or 0.0


def _curve(fit: Fit) -> list[Line]:
    return [Line("level", list(fit.curve))] if fit.reason is None else []


WHY = (
    "The further PPO moves from {start}, the higher the reward model scores its answers. Whether answers get "
    "better is for the judge to say: its gain may stop rising, or fall."
)


def explain(evaluation: Evaluation | None) -> str:
    """What the charts are about, and where over-optimisation set in."""
    frontier = evaluation.frontier if evaluation else None
    if evaluation is None or frontier is None:
        return ""
    return f"{WHY.format(start=evaluation.start)} {conclude(evaluation)}"


def possible(evaluation: Evaluation | None) -> str:
    """How much of the score that is possible at its KL PPO has, in a sentence."""
    optimum = evaluation.optimum if evaluation else None
    if evaluation is None or optimum is None:
        return ""
    kl = evaluation.models["ppo"].kl
    if optimum.share is None:
        return (
            f"How much of the possible score PPO has cannot be told from {optimum.samples} answers per prompt: "
            f"they resolve KLs up to {fixed(optimum.reach)} nats, and PPO’s is {fixed(kl)}. Raise eval.best_of_n."
        )
    share = optimum.share
    return (
        f"PPO has {percent(share.value)} ({span(share.low or 0.0, share.high or 0.0)}) of the gain in the reward "
        f"model’s score that is possible at its KL of {fixed(kl)} nats: no policy with that KL can score higher "
        f"than {evaluation.start}’s answers, weighted by exp(score / β)."
    )


def form(evaluation: Evaluation | None) -> str:
    """The form of the fitted curve; empty where none was fitted."""
    fitted = evaluation.frontier.fit.form if evaluation and evaluation.frontier else ""
    return f"The fitted curve (Gao et al. 2022) is {fitted}, with d = √KL." if fitted else ""


def conclude(evaluation: Evaluation | None) -> str:
    """Where over-optimisation set in, in words."""
    frontier = evaluation.frontier if evaluation else None
    if not frontier:
        return ""
    fit, peak = frontier.fit, frontier.fit.peak_kl
    if fit.reason is not None or peak is None:
        return f"Where over-optimisation sets in cannot be fitted: {fit.reason}."
    curve = f"The curve fitted to {counted(len(frontier.points), 'evaluation point', 'evaluation points')}"
    if peak.value is None:
        return f"{curve} has no peak: within this run more KL does no harm."
    high = "beyond this run" if peak.high is None or peak.high > fit.farthest else fixed(peak.high)
    where = f"{fixed(peak.value)} nats (95 % interval {fixed(peak.low)} to {high})"
    if fit.set_in:
        return f"{curve} peaks at {where}. Beyond the peak the judge’s gain falls by {fixed(fit.lost)}."
    if peak.value >= fit.farthest:
        return f"{curve} peaks at {where}, beyond the {fixed(fit.farthest)} nats of this run."
    return (
        f"{curve} peaks at {where}, but the run is too short to be sure: only {percent(fit.share, 1)} of the "
        f"bootstrap resamples have a peak before their farthest point."
    )


def caveats(evaluation: Evaluation) -> list[str]:
    frontier = evaluation.frontier
    return [f"Over-optimised. {conclude(evaluation)}"] if frontier and frontier.fit.set_in else []
