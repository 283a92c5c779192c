"""The table of the evaluated models by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.language import translate
from pipeline.wording import between, fixed, percent, points, span
from stages.eval.artifact import Evaluation, ModelResult, in_words
from stages.report import win_rates


@dataclass(frozen=True)
class Metric:
    """A row. `key` is a field of `ModelResult`; `first` says whether the page shows the row unfolded. `label` and
    `unit` are translated where they are shown."""

    key: str
    label: str
    unit: str
    decimals: int = 2
    share: bool = False
    first: bool = False

    def of(self, result: ModelResult) -> float | None:
        value: float | None = getattr(result, self.key)
        return value

    def write(self, value: float | None) -> str:
        return percent(value, self.decimals) if self.share else fixed(value, self.decimals)

    def write_change(self, change: float) -> str:
        return points(change, self.decimals) if self.share else fixed(change, self.decimals, sign=True)


METRICS = (
    Metric("slot_error_rate", "Fact errors", "of given facts", 1, share=True, first=True),
    Metric("faultless", "Faultless answers", "of answers", 1, share=True),
    Metric("missing", "Missing facts", "per answer"),
    Metric("wrong", "Wrong facts", "per answer"),
    Metric("invented", "Invented facts", "per answer"),
    Metric("repeated", "Repeated facts", "per answer"),
    Metric("score", "Reward model’s score", "mean; what PPO optimises", first=True),
    Metric("kl", "KL from the reference", "nats per response", first=True),
    Metric("length", "Length", "tokens", 1, first=True),
    Metric("ended", "Ended with a stop token", "of answers", 1, share=True, first=True),
    Metric("distinct_2", "Distinct word pairs", "of all word pairs", 1, share=True),
    Metric("repetition", "Repeated sequences of four words", "of an answer’s", 1, share=True),
    Metric("nll", "Loss on held-out demonstrations", "nats per token", 3, first=True),
    Metric("text_nll", "Loss on held-out text", "nats per token", 3),
)
ERRORS, KL = METRICS[0], next(metric for metric in METRICS if metric.key == "kl")


@dataclass(frozen=True)
class Row:
    """Cells by model. `change` is PPO's from the reference, with the interval of the relative change where that was
    measured; `tone` is good or bad if the interval excludes zero."""

    metric: Metric
    cells: dict[str, str]
    change: str = ""
    change_interval: str = ""
    tone: str = ""
    intervals: dict[str, str] = field(default_factory=dict)


def rows(evaluation: Evaluation | None) -> list[Row]:
    """One row per metric that was measured; without a judge there are no facts."""
    models = evaluation.models if evaluation else {}
    ppo = models.get("ppo", ModelResult())
    reference = evaluation.reference if evaluation else "sft"
    table = [_row(metric, models, reference) for metric in METRICS if metric.of(ppo) is not None]
    from_start = replace(KL, label=translate("KL from {start}", start=in_words(reference)))
    table = [replace(row, metric=from_start) if row.metric is KL else row for row in table]
    reduction = evaluation.reduction if evaluation else None
    if reduction is None or reduction.low is None or reduction.high is None:
        return table
    interval = translate("relative: {interval}", interval=span(reduction.low, reduction.high, sign=True))
    tone = {-1: "good", 1: "bad", 0: ""}[reduction.side()]
    return [
        replace(row, tone=tone, change_interval=interval) if row.metric is ERRORS and row.change else row
        for row in table
    ]


def error_interval(result: ModelResult) -> str:
    """The interval of the fact errors; empty where none was measured."""
    if result.slot_error_low is None or result.slot_error_high is None:
        return ""
    return span(result.slot_error_low, result.slot_error_high, ERRORS.decimals)


def _row(metric: Metric, models: Mapping[str, ModelResult], reference: str) -> Row:
    values = {name: metric.of(models.get(name, ModelResult())) for name in win_rates.NAMES}
    cells = {name: metric.write(value) for name, value in values.items()}
    before, ppo = values[reference], values["ppo"]
    if metric is KL or before is None or ppo is None:  # the reference's KL from itself is no baseline
        if values["best_of_n"] is not None:
            cells["best_of_n"] = f"≤ {cells['best_of_n']}"
        return Row(metric, cells, intervals=_kl_intervals(models, reference))
    change = round(ppo - before, metric.decimals + 2 * metric.share)
    intervals = {}
    if metric is ERRORS:
        intervals = {name: error_interval(models[name]) for name in win_rates.NAMES if name in models}
    return Row(metric, cells, metric.write_change(change), intervals=intervals)


def _kl_intervals(models: Mapping[str, ModelResult], reference: str) -> dict[str, str]:
    return {
        name: between(fixed(result.kl_low), fixed(result.kl_high))
        for name, result in models.items()
        if name != reference and result.kl_low is not None
    }
