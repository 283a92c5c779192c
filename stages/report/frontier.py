"""Reward against KL along PPO: the gains of judge and proxy, best-of-n beside them, and where over-optimisation
sets in."""

from __future__ import annotations

from pipeline.language import mark, recorded, translate
from pipeline.wording import between, counted, fixed, percent, sentences, span
from stages.eval.artifact import Evaluation, Fit, FrontierPoint
from stages.report.plots import Chart, Kind, Line, Point

BASELINES: dict[str, Kind] = {"dpo": "point", "raft": "triangle"}
"""Policies trained beside PPO, and how they are drawn."""


def charts(evaluation: Evaluation | None) -> list[Chart]:
    """Judge and proxy by KL with the fitted form; and the judge's gain of PPO and its baselines."""
    if evaluation is None or evaluation.frontier is None:
        return []
    start = evaluation.start
    unit = translate("standard deviations above {start}’s answers", start=start)
    x = translate("KL from {start}, nats per response", start=start)
    points = sorted(evaluation.frontier.points, key=lambda point: point.kl.value or 0.0)
    proxy, gold = ([_point(point, name) for point in points] for name in ("proxy", "gold"))
    drawn = [
        Chart(
            translate("Judge and reward model by KL"),
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
        title = translate("Reward model’s score: how much is possible")
        drawn.append(Chart(title, unit, lines, x, fraction=True))
    if best:
        lines = [
            Line("held-out", gold),
            Line("other", [(row.kl, row.gold.value or 0.0) for row in best.rows]),
        ]
        for name, kind in BASELINES.items():
            if name in evaluation.points:
                policy = evaluation.points[name]
                lines.append(Line(kind, [(policy.kl, policy.gold.value or 0.0)]))
        drawn.append(Chart(translate("Judge’s gain by method"), unit, lines, x, fraction=True))
    return drawn


def _point(point: FrontierPoint, name: str) -> Point:
    gain = point.proxy if name == "proxy" else point.gold
    return point.kl.value or 0.0, gain.value or 0.0


def _curve(fit: Fit) -> list[Line]:
    return [Line("level", list(fit.curve))] if fit.reason is None else []


WHY = mark(
    "The further PPO moves from {start}, the higher the reward model scores its answers. Whether answers get "
    "better is for the judge to say: its gain may stop rising, or fall."
)


def explain(evaluation: Evaluation | None) -> str:
    """What the charts are about, and where over-optimisation set in."""
    frontier = evaluation.frontier if evaluation else None
    if evaluation is None or frontier is None:
        return ""
    return sentences(translate(WHY, start=evaluation.start), conclude(evaluation))


def possible(evaluation: Evaluation | None) -> str:
    """How much of the score that is possible at its KL PPO has, in a sentence."""
    optimum = evaluation.optimum if evaluation else None
    if evaluation is None or optimum is None:
        return ""
    kl = evaluation.models["ppo"].kl
    if optimum.share is None:
        return translate(
            "How much of the possible score PPO has cannot be told from {samples} answers per prompt: they resolve "
            "KLs up to {reach} nats, and PPO’s is {kl}. Raise eval.best_of_n.",
            samples=optimum.samples,
            reach=fixed(optimum.reach),
            kl=fixed(kl),
        )
    share = optimum.share
    return translate(
        "PPO has {share} ({interval}) of the gain in the reward model’s score that is possible at its KL of {kl} "
        "nats: no policy with that KL can score higher than {start}’s answers, weighted by exp(score / β).",
        share=percent(share.value),
        interval=span(share.low or 0.0, share.high or 0.0),
        kl=fixed(kl),
        start=evaluation.start,
    )


def form(evaluation: Evaluation | None) -> str:
    """The form of the fitted curve; empty where none was fitted."""
    fitted = evaluation.frontier.fit.form if evaluation and evaluation.frontier else ""
    if not fitted:
        return ""
    return translate("The fitted curve (Gao et al. 2022) is {form}, with d = √KL.", form=fitted)


def conclude(evaluation: Evaluation | None) -> str:
    """Where over-optimisation set in, in words."""
    frontier = evaluation.frontier if evaluation else None
    if not frontier:
        return ""
    fit, peak = frontier.fit, frontier.fit.peak_kl
    if fit.reason is not None or peak is None:
        return translate(
            "Where over-optimisation sets in cannot be fitted: {reason}.", reason=recorded(str(fit.reason))
        )
    points = counted(len(frontier.points), "evaluation point", "evaluation points")
    if peak.value is None:
        return translate(
            "The curve fitted to {points} has no peak: within this run more KL does no harm.", points=points
        )
    beyond = peak.high is None or peak.high > fit.farthest
    values = {
        "points": points,
        "peak": fixed(peak.value),
        "interval": between(fixed(peak.low), translate("beyond this run") if beyond else fixed(peak.high)),
    }
    if fit.set_in:
        return translate(
            "The curve fitted to {points} peaks at {peak} nats (95 % interval {interval}). Beyond the peak the "
            "judge’s gain falls by {lost}.",
            lost=fixed(fit.lost),
            **values,
        )
    if peak.value >= fit.farthest:
        return translate(
            "The curve fitted to {points} peaks at {peak} nats (95 % interval {interval}), beyond the {farthest} "
            "nats of this run.",
            farthest=fixed(fit.farthest),
            **values,
        )
    return translate(
        "The curve fitted to {points} peaks at {peak} nats (95 % interval {interval}), but the run is too short to "
        "be sure: only {share} of the bootstrap resamples have a peak before their farthest point.",
        share=percent(fit.share, 1),
        **values,
    )


def caveats(evaluation: Evaluation) -> list[str]:
    frontier = evaluation.frontier
    if not (frontier and frontier.fit.set_in):
        return []
    return [sentences(translate("Over-optimised."), conclude(evaluation))]
