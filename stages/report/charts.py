"""The report's curves, and the metrics that their points come from. docs/ppo.md defines the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.engine.metrics import read_metrics
from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.language import translate
from pipeline.wording import number as shown
from stages.eval.artifact import FILE as EVALUATION
from stages.ppo.artifact import POINTS, PPOResult
from stages.report import sources
from stages.report.findings import ByCriterion, Findings
from stages.report.plots import Bounds, Chart, Kind, Line, Point
from stages.reward.artifact import FILE, Bin

TRAINING: list[tuple[str, str, str, dict[str, Kind]]] = [
    ("base", "Loss of the base model", "nats per token", {"loss": "train", "eval_loss": "held-out"}),
    ("sft", "Loss of SFT", "nats per token", {"loss": "train", "eval_loss": "held-out"}),
    ("reward", "Loss of the reward model", "nats", {"loss": "train"}),
    (
        "reward",
        "Accuracy of the reward model",
        "share of pairs ordered correctly",
        {"accuracy": "train", "eval_accuracy": "held-out"},
    ),
]
"""Charts of the stages before PPO: stage, title, unit, metric -> kind of line."""

DPO: list[tuple[str, str, str, dict[str, Kind]]] = [
    ("dpo", "Loss of DPO", "nats per pair", {"loss": "train"}),
    (
        "dpo",
        "Accuracy of DPO’s implicit reward",
        "share of pairs ordered correctly",
        {"rewards/accuracies": "train"},
    ),
]
RAFT: list[tuple[str, str, str, dict[str, Kind]]] = [
    ("raft", "Loss of RAFT", "nats per token of the selected answers", {"loss": "train"}),
]
"""DPO, RAFT: as `TRAINING`, for the baselines."""

PPO: list[tuple[str, str, str, Bounds | None]] = [
    ("KL coefficient", "reward per nat", "objective/kl_coef", None),
    ("Reward minus KL penalty", "normalised score", "objective/rlhf_reward", None),
    ("Disagreement of the reward models", "standard deviation of scores", "objective/scores_disagreement", None),
    ("Entropy", "nats per token", "objective/entropy", None),
    ("Response length", "tokens", "response/length", None),
    ("Ended with a stop token", "share of responses", "response/ended", (0, 1.05)),
    ("Clip fraction", "share of tokens", "policy/clipfrac_avg", None),
    ("Explained variance", "of returns, by the value model", "val/explained_variance", (-1.05, 1.05)),
    ("Value loss", "clipped squared error", "loss/value_avg", None),
    ("Gradient norm of the policy", "before clipping", "policy/grad_norm", None),
]
"""Charts of PPO's training batches: title, unit, metric, bounds."""


def curves(run: RunSummary) -> dict[str, list[Chart]]:
    """Charts of the finished training stages: of the reward model's last round, and of all rounds of PPO."""
    before, dpo, raft = (
        [
            Chart(
                translate(title) + (f" ({name})" if name else ""),
                translate(unit),
                [Line(kind, _points(_newest(run, stage), f"{prefix}{metric}")) for metric, kind in lines.items()],
                translate("step"),
                source=_source(run, (stage, sources.METRICS, ", ".join(f"{prefix}{metric}" for metric in lines))),
            )
            for stage, title, unit, lines in charts
            for name in (stage == "reward" and run.loaded.recipe.data.criteria) or ("",)
            for prefix in (f"{name}/" if name else "",)
        ]
        for charts in (TRAINING, DPO, RAFT)
    )
    rows = _ppo_rows(run)
    ppo = [
        Chart(
            translate(title),
            translate(unit),
            [Line("train", _points(rows, metric))],
            translate("update"),
            bounds,
            source=_source(run, ("ppo", sources.METRICS, metric)),
        )
        for title, unit, metric, bounds in PPO
    ]
    parts = {
        translate("Before PPO"): _with_points(before),
        translate("PPO"): _with_points(ppo),
        translate("DPO"): _with_points(dpo),
        translate("RAFT"): _with_points(raft),
    }
    return {part: charts for part, charts in parts.items() if charts}


def along(run: RunSummary, findings: Findings) -> list[Chart]:
    """Reward, KL and the independent judge along PPO, one round after another."""
    if not findings.ppo:
        return []
    rows, evaluation, starts = _ppo_rows(run), findings.evaluation, _starts(run)
    held_out = [
        (starts[number] + point.update, point)
        for number, stage_run in by_round(run.stages, "ppo").items()
        for point in PPOResult.read(stage_run).points
    ]
    judged = [
        (starts[point.round] + point.update, point.slot_error_rate)
        for point in (evaluation.along if evaluation and evaluation.judge else [])
    ]
    target = findings.ppo.kl_target
    kl = [
        Line("train", _points(rows, "objective/kl")),
        Line("held-out", [(update, point.kl) for update, point in held_out if point.kl is not None]),
    ]
    highest = max((y for line in kl for _, y in line.points), default=0.0)
    if target and rows and highest > target / 2:  # a target far above would only flatten the curve
        kl.append(Line("level", [(rows[0]["step"], target), (rows[-1]["step"], target)]))
    score = [
        Line("train", _points(rows, "objective/scores")),
        Line("held-out", [(update, point.score) for update, point in held_out]),
    ]
    errors = [Line("held-out", [(update, rate) for update, rate in judged if rate is not None])]

    def both(metric: str, of_point: str) -> str:
        return _source(run, ("ppo", sources.METRICS, metric), ("ppo", sources.out(POINTS), of_point))

    update, nats = translate("update"), translate("nats per response")
    charts = [
        Chart(
            translate("Reward model’s score"),
            translate("mean"),
            score,
            update,
            source=both("objective/scores", "score"),
        ),
        Chart(
            translate("KL from {start}", start=findings.start),
            translate("nats per response (target {target})", target=shown(target)) if target else nats,
            kl,
            update,
            source=both("objective/kl", "kl"),
        ),
        Chart(
            translate("Fact errors"),
            translate("share of facts, by the independent judge"),
            errors,
            update,
            (0, None),
            source=_source(run, ("eval", sources.out(EVALUATION), "along[].slot_error_rate")),
        ),
    ]
    monitors, selected = findings.monitors, None
    if monitors and monitors.watched and monitors.selected not in (None, monitors.updates):
        selected = starts[max(starts)] + monitors.selected
    return [replace(chart, mark=selected) for chart in _with_points(charts)]


def _source(run: RunSummary, *read: tuple[str, str, str]) -> str:
    """The files and the values that were read there, from (stage, file, value)."""
    return "; ".join(f"{path}: {what}" for stage, file, what in read for path in sources.of(run, stage, file))


def reliability(findings: Findings, part: ByCriterion) -> list[Chart]:
    """How often pairs were ordered as predicted, by predicted probability."""
    table = part.reward.reliability if part.reward else []
    lines = [
        Line("level", [(0.0, 0.0), (1.0, 1.0)]),
        Line("held-out", [(row.predicted, row.observed) for row in table]),
    ]
    chart = Chart(
        translate("Calibration"),
        translate("share preferred"),
        lines,
        translate("predicted probability of being preferred"),
        (0, 1),
        square=True,
        source=f"{_quality(findings, part)}: reliability",
    )
    return [chart] if table else []


def distributions(findings: Findings, part: ByCriterion) -> list[Chart]:
    """Histograms of the reward model's scores, and of its accuracy by prompt, on held-out prompts."""
    reward = part.reward
    if reward is None:
        return []
    charts = [
        Chart(
            title,
            unit,
            [Line("histogram", _bars(bins))],
            x,
            (0, None),
            source=f"{_quality(findings, part)}: {table}",
        )
        for table, bins, title, unit, x in (
            (
                "scores",
                reward.scores,
                translate("Scores of held-out answers"),
                translate("answers"),
                translate("score"),
            ),
            (
                "by_prompt",
                reward.by_prompt,
                translate("Accuracy by held-out prompt"),
                translate("prompts"),
                translate("share of its pairs ordered correctly"),
            ),
        )
    ]
    return _with_points(charts)


def _quality(findings: Findings, part: ByCriterion) -> str:
    paths = findings.sources.get("reward", [])
    return next((path for path in paths if not part.name or path.endswith(f"/{part.name}/{FILE}")), "")


def _bars(histogram: Iterable[Bin]) -> list[Point]:
    """The bins of a histogram at their centres, between two empty ones."""
    bins = [((row.low + row.high) / 2, float(row.count)) for row in histogram]
    if len(bins) < 2:
        return []
    width = bins[1][0] - bins[0][0]
    return [(bins[0][0] - width, 0.0), *bins, (bins[-1][0] + width, 0.0)]


def _newest(run: RunSummary, stage: str) -> list[dict[str, Any]]:
    stage_run = run.newest(stage)
    return list(read_metrics(stage_run.folder / sources.METRICS)) if stage_run else []


def _ppo_rows(run: RunSummary) -> list[dict[str, Any]]:
    """PPO's metrics of all rounds, with updates numbered across rounds."""
    starts = _starts(run)
    return [
        row | {"step": starts[number] + row["step"]}
        for number, stage_run in by_round(run.stages, "ppo").items()
        for row in read_metrics(stage_run.folder / sources.METRICS)
    ]


def _starts(run: RunSummary) -> dict[int, int]:
    """The number of updates before each round."""
    starts, done = {}, 0
    for number, stage_run in by_round(run.stages, "ppo").items():
        starts[number] = done
        done += PPOResult.read(stage_run).metrics.updates or 0
    return starts


def _points(rows: Iterable[dict[str, Any]], metric: str) -> list[Point]:
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def _with_points(charts: Iterable[Chart]) -> list[Chart]:
    """Without lines and charts that have no points."""
    kept = [replace(chart, lines=[line for line in chart.lines if line.points]) for chart in charts]
    return [chart for chart in kept if chart.lines]
