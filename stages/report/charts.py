"""Which curves the report shows, and where their points come from. Metrics are those of docs/ppo.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.engine.metrics import read_metrics
from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from pipeline.wording import number as shown
from stages.report import sources
from stages.report.findings import Findings
from stages.report.plots import Bounds, Chart, Kind, Line, Point

TRAINING: list[tuple[str, str, str, dict[str, Kind]]] = [
    ("base", "Loss of the base model", "nats a token", {"loss": "train", "eval_loss": "held-out"}),
    ("sft", "Loss of SFT", "nats a token", {"loss": "train", "eval_loss": "held-out"}),
    ("reward", "Loss of the reward model", "nats", {"loss": "train"}),
    (
        "reward",
        "Accuracy of the reward model",
        "share of pairs ordered rightly",
        {"accuracy": "train", "eval_accuracy": "held-out"},
    ),
]
"""Charts of what comes before PPO: stage, title, unit, metric -> kind of line."""

DPO: list[tuple[str, str, str, dict[str, Kind]]] = [
    ("dpo", "Loss of DPO", "nats a pair", {"loss": "train"}),
    ("dpo", "Accuracy of DPO’s implicit reward", "share of pairs ordered rightly", {"rewards/accuracies": "train"}),
]
"""As `TRAINING`, of the baseline."""

PPO: list[tuple[str, str, str, Bounds | None]] = [
    ("KL coefficient", "reward a nat", "objective/kl_coef", None),
    ("Reward less KL penalty", "normalised score", "objective/rlhf_reward", None),
    ("Disagreement of the reward models", "standard deviation of scores", "objective/scores_disagreement", None),
    ("Entropy", "nats a token", "objective/entropy", None),
    ("Response length", "tokens", "response/length", None),
    ("Ended by a stop token", "share of responses", "response/ended", (0, 1.05)),
    ("Clip fraction", "share of tokens", "policy/clipfrac_avg", None),
    ("Explained variance", "of returns, by the value role", "val/explained_variance", (-1.05, 1.05)),
    ("Value loss", "clipped squared error", "loss/value_avg", None),
    ("Gradient norm of the policy", "before clipping", "policy/grad_norm", None),
]
"""Charts of PPO's training batches: title, unit, metric, bounds."""


def curves(run: RunSummary) -> dict[str, list[Chart]]:
    """Charts of the stages that train, as far as these are finished and logged anything: the last round's of the
    reward model, all rounds' of PPO."""
    before, baseline = (
        [
            Chart(
                title,
                unit,
                [Line(kind, _points(_newest(run, stage), metric)) for metric, kind in lines.items()],
                source=_source(run, (stage, "metrics.jsonl", ", ".join(lines))),
            )
            for stage, title, unit, lines in charts
        ]
        for charts in (TRAINING, DPO)
    )
    rows = _ppo_rows(run)
    ppo = [
        Chart(
            title,
            unit,
            [Line("train", _points(rows, metric))],
            "update",
            bounds,
            source=_source(run, ("ppo", "metrics.jsonl", metric)),
        )
        for title, unit, metric, bounds in PPO
    ]
    parts = {"Before PPO": _with_points(before), "PPO": _with_points(ppo), "DPO": _with_points(baseline)}
    return {part: charts for part, charts in parts.items() if charts}


def along(run: RunSummary, found: Findings) -> list[Chart]:
    """Reward, KL and the independent judge along PPO, one round after the other."""
    if not found["ppo"]:
        return []
    rows, evaluation, starts = _ppo_rows(run), found["evaluation"], _starts(run)
    looks = [
        look | {"update": starts[number] + look["update"]}
        for number, made in by_round(run.stages, "ppo").items()
        for look in made.artifact.jsonl("looks.jsonl")
    ]
    judged = [
        look | {"update": starts[look.get("round", 1)] + look["update"]}
        for look in (evaluation["along"] if evaluation and evaluation["judge"] else [])
    ]
    target = found["ppo"]["kl_target"]
    kl = [Line("train", _points(rows, "objective/kl")), Line("held-out", _points(looks, "kl", "update"))]
    highest = max((y for line in kl for _, y in line.points), default=0.0)
    if target and rows and highest > target / 2:  # far below, the target would only press the curve flat
        kl.append(Line("level", [(rows[0]["step"], target), (rows[-1]["step"], target)]))
    score = [
        Line("train", _points(rows, "objective/scores")),
        Line("held-out", _points(looks, "score", "update")),
    ]
    errors = [Line("held-out", _points(judged, "slot_error_rate", "update"))]

    def both(metric: str, look: str) -> str:
        return _source(run, ("ppo", "metrics.jsonl", metric), ("ppo", "out/looks.jsonl", look))

    charts = [
        Chart("Reward model’s score", "mean", score, "update", source=both("objective/scores", "score")),
        Chart(
            "KL from SFT",
            f"nats a response{f' (target {shown(target)})' if target else ''}",
            kl,
            "update",
            source=both("objective/kl", "kl"),
        ),
        Chart(
            "Fact errors",
            "share of facts, by the independent judge",
            errors,
            "update",
            (0, None),
            source=_source(run, ("eval", "out/eval.json", "along[].slot_error_rate")),
        ),
    ]
    guards = found["guards"] or {}
    chosen = None
    if guards.get("watched") and guards["handed_on"] != guards["updates"]:
        chosen = starts[max(starts)] + guards["handed_on"]
    return [replace(chart, mark=chosen) for chart in _with_points(charts)]


def _source(run: RunSummary, *read: tuple[str, str, str]) -> str:
    """Of (stage, file, what of it): the files and what was read there."""
    return "; ".join(f"{path}: {what}" for stage, file, what in read for path in sources.of(run, stage, file))


def reliability(found: Findings) -> list[Chart]:
    """How often pairs were ordered as predicted, by the predicted chance."""
    table = found["reward"]["reliability"] if found["reward"] else []
    lines = [
        Line("level", [(0.0, 0.0), (1.0, 1.0)]),
        Line("held-out", [(row["predicted"], row["observed"]) for row in table]),
    ]
    chart = Chart(
        "Calibration",
        "share preferred",
        lines,
        "predicted chance of being preferred",
        (0, 1),
        square=True,
        source=f"{_quality(found)}: reliability",
    )
    return [chart] if table else []


def distributions(found: Findings) -> list[Chart]:
    """How the reward model's scores, and its accuracy over prompts, are spread on held-out prompts."""
    reward = found["reward"] or {}
    charts = [
        Chart(
            title,
            unit,
            [Line("histogram", _bars(reward.get(table, [])))],
            x,
            (0, None),
            source=f"{_quality(found)}: {table}",
        )
        for table, title, unit, x in (
            ("scores", "Scores of held-out answers", "answers", "score"),
            ("by_prompt", "Accuracy by held-out prompt", "prompts", "share of its pairs ordered rightly"),
        )
    ]
    return _with_points(charts)


def _quality(found: Findings) -> str:
    return next(iter(found["sources"].get("reward", [])), "")


def _bars(histogram: Iterable[dict[str, Any]]) -> list[Point]:
    """A histogram's bins by their middles, between two empty ones."""
    bins = [((row["low"] + row["high"]) / 2, float(row["count"])) for row in histogram]
    if len(bins) < 2:
        return []
    width = bins[1][0] - bins[0][0]
    return [(bins[0][0] - width, 0.0), *bins, (bins[-1][0] + width, 0.0)]


def _newest(run: RunSummary, stage: str) -> list[dict[str, Any]]:
    made = run.newest(stage)
    return list(read_metrics(made.folder / "metrics.jsonl")) if made else []


def _ppo_rows(run: RunSummary) -> list[dict[str, Any]]:
    """PPO's metrics of all rounds, their updates counted on from round to round."""
    starts = _starts(run)
    return [
        row | {"step": starts[number] + row["step"]}
        for number, made in by_round(run.stages, "ppo").items()
        for row in read_metrics(made.folder / "metrics.jsonl")
    ]


def _starts(run: RunSummary) -> dict[int, int]:
    """How many updates came before each round."""
    starts, done = {}, 0
    for number, made in by_round(run.stages, "ppo").items():
        starts[number] = done
        done += made.manifest.metrics["updates"]
    return starts


def _points(rows: Iterable[dict[str, Any]], metric: str, x: str = "step") -> list[Point]:
    return [(row[x], row[metric]) for row in rows if row.get(metric) is not None]


def _with_points(charts: Iterable[Chart]) -> list[Chart]:
    """Less the lines, and the charts, that have nothing to show."""
    kept = [replace(chart, lines=[line for line in chart.lines if line.points]) for chart in charts]
    return [chart for chart in kept if chart.lines]
