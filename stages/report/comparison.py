"""The table of the evaluated models by metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.wording import fixed, percent, points, span
from stages.report import baselines


@dataclass(frozen=True)
class Metric:
    """A row. `better` is 1 where more is better, -1 where less is, 0 where neither is meant."""

    key: str
    label: str
    unit: str
    better: int = 0
    decimals: int = 2
    share: bool = False

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
    Metric("kl", "KL from SFT", "nats a response"),
    Metric("length", "Length", "tokens", decimals=1),
    Metric("ended", "Ended by themselves", "of answers", 1, 1, share=True),
    Metric("distinct_2", "Distinct word pairs", "of all word pairs", 1, 1, share=True),
    Metric("repetition", "Repeated sequences of four words", "of an answer’s", -1, 1, share=True),
    Metric("nll", "Loss on held-out demonstrations", "nats a token", -1, 3),
    Metric("text_nll", "Loss on held-out text", "nats a token", -1, 3),
)


@dataclass(frozen=True)
class Row:
    """Cells by model; `change` is PPO's from SFT, `tone` whether that is for the better (good, bad or "")."""

    metric: Metric
    cells: dict[str, str]
    change: str = ""
    tone: str = ""
    intervals: dict[str, str] = field(default_factory=dict)


def rows(evaluation: dict[str, Any] | None) -> list[Row]:
    """Only of what was measured: without a judge there are no facts."""
    models = evaluation["models"] if evaluation else {}
    return [_row(metric, models) for metric in METRICS if models.get("ppo", {}).get(metric.key) is not None]


def _row(metric: Metric, models: dict[str, Any]) -> Row:
    values = {name: models.get(name, {}).get(metric.key) for name in baselines.NAMES}
    cells = {name: metric.write(value) for name, value in values.items()}
    if metric.key == "kl" or values["sft"] is None:  # from itself, the SFT model has none
        if values["best_of_n"] is not None:
            cells["best_of_n"] = f"≤ {cells['best_of_n']}"
        return Row(metric, cells, intervals=_kl_intervals(models))
    change = round(values["ppo"] - values["sft"], metric.decimals + 2 * metric.share)
    gain = metric.better * change
    tone = "good" if gain > 0 else "bad" if gain < 0 else ""
    intervals = {}
    if metric.key == "slot_error_rate":
        intervals = {
            name: span(models[name]["slot_error_low"], models[name]["slot_error_high"], metric.decimals)
            for name in baselines.NAMES
            if name in models
        }
    return Row(metric, cells, metric.write_change(change), tone, intervals)


def _kl_intervals(models: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{fixed(found['kl_low'])} to {fixed(found['kl_high'])}"
        for name, found in models.items()
        if name != "sft" and "kl_low" in found
    }
