"""The table of the evaluated models by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.wording import fixed, percent, points, span
from stages.eval.artifact import Evaluation, ModelResult
from stages.report import win_rates


@dataclass(frozen=True)
class Metric:
    """A row. `key` is a field of `ModelResult`; `better` is 1 if more is better, -1 if less is, 0 if neither."""

    key: str
    label: str
    unit: str
    better: int = 0
    decimals: int = 2
    share: bool = False

    def of(self, result: ModelResult) -> float | None:
        value: float | None = getattr(result, self.key)
        return value

    def write(self, value: float | None) -> str:
        return percent(value, self.decimals) if self.share else fixed(value, self.decimals)

    def write_change(self, change: float) -> str:
        return points(change, self.decimals) if self.share else fixed(change, self.decimals, sign=True)


METRICS = (
    Metric("slot_error_rate", "Fact errors", "of given facts", -1, 1, share=True),
    Metric("missing", "Missing facts", "per answer", -1),
    Metric("wrong", "Wrong facts", "per answer", -1),
    Metric("invented", "Invented facts", "per answer", -1),
    Metric("repeated", "Repeated facts", "per answer", -1),
    Metric("faultless", "Faultless answers", "of answers", 1, 1, share=True),
    Metric("score", "Reward model’s score", "mean; what PPO optimises"),
    Metric("kl", "KL from SFT", "nats per response"),
    Metric("length", "Length", "tokens", decimals=1),
    Metric("ended", "Ended with a stop token", "of answers", 1, 1, share=True),
    Metric("distinct_2", "Distinct word pairs", "of all word pairs", 1, 1, share=True),
    Metric("repetition", "Repeated sequences of four words", "of an answer’s", -1, 1, share=True),
    Metric("nll", "Loss on held-out demonstrations", "nats per token", -1, 3),
    Metric("text_nll", "Loss on held-out text", "nats per token", -1, 3),
)
ERRORS, KL = METRICS[0], next(metric for metric in METRICS if metric.key == "kl")


@dataclass(frozen=True)
class Row:
    """Cells by model. `change` is PPO's from SFT, and `tone` is good or bad if that is for better or worse."""

    metric: Metric
    cells: dict[str, str]
    change: str = ""
    tone: str = ""
    intervals: dict[str, str] = field(default_factory=dict)


def rows(evaluation: Evaluation | None) -> list[Row]:
    """One row per metric that was measured; without a judge there are no facts."""
    models = evaluation.models if evaluation else {}
    ppo = models.get("ppo", ModelResult())
    return [_row(metric, models) for metric in METRICS if metric.of(ppo) is not None]


def error_interval(result: ModelResult) -> str:
    """The interval of the fact errors; empty where none was measured."""
    if result.slot_error_low is None or result.slot_error_high is None:
        return ""
    return span(result.slot_error_low, result.slot_error_high, ERRORS.decimals)


def _row(metric: Metric, models: Mapping[str, ModelResult]) -> Row:
    values = {name: metric.of(models.get(name, ModelResult())) for name in win_rates.NAMES}
    cells = {name: metric.write(value) for name, value in values.items()}
    sft, ppo = values["sft"], values["ppo"]
    if metric is KL or sft is None or ppo is None:  # SFT's KL from itself is no baseline
        if values["best_of_n"] is not None:
            cells["best_of_n"] = f"≤ {cells['best_of_n']}"
        return Row(metric, cells, intervals=_kl_intervals(models))
    change = round(ppo - sft, metric.decimals + 2 * metric.share)
    gain = metric.better * change
    tone = "good" if gain > 0 else "bad" if gain < 0 else ""
    intervals = {}
    if metric is ERRORS:
        intervals = {name: error_interval(models[name]) for name in win_rates.NAMES if name in models}
    return Row(metric, cells, metric.write_change(change), tone, intervals)


def _kl_intervals(models: Mapping[str, ModelResult]) -> dict[str, str]:
    return {
        name: f"{fixed(result.kl_low)} to {fixed(result.kl_high)}"
        for name, result in models.items()
        if name != "sft" and result.kl_low is not None
    }
