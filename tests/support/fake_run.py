"""A finished run of fake stages that write the files that the report and the card read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline_fakes import FakeStages, write_all

from pipeline import wording
from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from stages.report import charts
from stages.report.build import build_report
from stages.report.findings import Findings, collect

HOSTILE = "</p><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>"


def model(rate: float, **changes: Any) -> dict[str, Any]:
    facts = {"missing": 0.5, "wrong": 0.1, "invented": 0.2, "repeated": 0.2, "faultless": 0.4}
    rates = {"slot_error_rate": rate, "slot_error_low": rate - 0.01, "slot_error_high": rate + 0.01}
    rest = {"score": 1.8, "length": 21.6, "ended": 1.0, "distinct_2": 0.31, "kl": None, "nll": 0.381}
    return {**rates, **facts, **rest, **changes}


def interval(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, **more}


def evaluation() -> dict[str, Any]:
    points = zip((0, 8, 16), (0.0, 0.9, 1.86), (1.8, 2.4, 2.7), (0.13, 0.09, 0.06), strict=True)
    return {
        "judge": "venues",
        "prompts": 256,
        "bootstrap": 2000,
        "models": {
            "base": model(0.16),
            "sft": model(0.13),
            "ppo": model(0.0585, kl=1.86, score=2.7, length=20.7, distinct_2=0.284, nll=0.392),
        },
        "win_rate": interval(0.71, 0.66, 0.76, ties=0.2, by="judge venues"),
        "reduction": interval(-0.55, -0.61, -0.48),
        "along": [
            {"update": update, "kl": kl, "score": score, "length": 21.0, "slot_error_rate": rate}
            for update, kl, score, rate in points
        ],
    }


def unjudged() -> dict[str, Any]:
    """The content of eval.json without a judge."""
    result = evaluation()
    del result["win_rate"], result["reduction"]
    metrics = ("score", "length", "ended", "distinct_2", "kl", "nll")
    result["models"] = {name: {key: numbers[key] for key in metrics} for name, numbers in result["models"].items()}
    for point in result["along"]:
        del point["slot_error_rate"]
    return result | {"judge": None}


QUALITY = {
    "pairs": 1506,
    "prompts": 150,
    "accuracy": 0.712,
    "accuracy_low": 0.684,
    "accuracy_high": 0.74,
    "length_accuracy": 0.51,
    "ece": 0.033,
    "brier": 0.175,
    "length_correlation": 0.36,
    "accuracy_by_prompt": 0.705,
    "above_length": 0.202,
    "above_length_low": 0.15,
    "above_length_high": 0.25,
    "bag_of_words_accuracy": 0.704,
    "above_bag_of_words": 0.008,
    "above_bag_of_words_low": -0.01,
    "above_bag_of_words_high": 0.03,
    "agreement": 0.731,
    "agreement_low": 0.681,
    "agreement_high": 0.779,
    "agreement_pairs": 1234,
    "predicted_by_others": 0.72,
    "ended_preferred": 0.93,
    "accuracy_by_annotator": {"careful": 0.78, HOSTILE: 0.66},
}
TABLES = {
    "by_annotator": [
        {"annotator": "careful", "pairs": 900, "accuracy": 0.78},
        {"annotator": HOSTILE, "pairs": 600, "accuracy": 0.66},
        *({"annotator": f"worker {i}", "pairs": 1, "accuracy": 0.0} for i in range(7)),
    ],
    "by_prompt": [{"low": i / 10, "high": (i + 1) / 10, "count": i * i} for i in range(10)],
    "scores": [{"low": i - 3.0, "high": i - 2.0, "count": 9 - abs(i - 5)} for i in range(10)],
}
RANKING = {
    "rankings": 1600,
    "tie_share": 0.17,
    "agreement": 0.69,
    "agreement_low": 0.67,
    "agreement_high": 0.71,
    "predicted_by_others": 0.7,
    "alpha": 0.41,
    "annotators": 4,
    "human": False,
}


def part(value: float | None, pairs: int = 100) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "pairs": 0}
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "pairs": pairs}


def annotator(count: int, **more: Any) -> dict[str, Any]:
    shares = {"agreement": part(0.7), "tau": part(0.4), "self_consistency": part(None), "first_shown": part(0.63)}
    return {"rankings": count, **shares, "longer": part(0.55), "seconds": None, "weight": 1.07, **more}


def agreement() -> dict[str, Any]:
    """The content of agreement.json, with more annotators than the page shows."""
    return {
        "pairwise": part(0.69, 4321),
        "by_others": part(0.7),
        "alpha": 0.41,
        "tau": part(0.38),
        "overlaps": 800,
        "annotators": 4,
        "self_consistency": part(0.83, 60),
        "first_shown": part(0.63),
        "longer": part(0.55),
        "seconds": {"median": 41.6, "p90": 120.0, "rankings": 1600},
        "sample": {"rankings": 1600, "of": 6400, "prompts": 400, "share": 0.25},
        "weights": {},
        "by_annotator": {f"worker {i}": annotator(1000 - i) for i in range(70)}
        | {HOSTILE: annotator(5000, seconds={"median": 12.3, "p90": 20.0, "rankings": 9})},
        "models": [
            {"model": "large", "strength": 0.5, "low": 0.4, "high": 0.6, "win_rate": 0.62, "pairs": 900},
            {"model": "small", "strength": -0.5, "low": -0.6, "high": -0.4, "win_rate": 0.38, "pairs": 900},
        ],
    }


SAMPLE = {
    "prompt": "name[Blue Mill], food[Thai]",
    "answers": {"base": HOSTILE, "sft": "Blue Mill is a pub.", "ppo": "Blue Mill serves Thai food."},
    "faults": {
        "sft": {"missing": ["food"], "wrong": [], "invented": ["kind"], "repeated": []},
        "ppo": {"missing": [], "wrong": [], "invented": [], "repeated": []},
    },
}


class FakeRun:
    """Makes a finished run of fake stages. Change the attributes first to change their results."""

    def __init__(self, stages: FakeStages, runner: Callable[..., Runner]) -> None:
        self.runner = runner
        self.ranking, self.quality, self.evaluation = dict(RANKING), dict(QUALITY), evaluation()
        self.tables: dict[str, Any] = dict(TABLES)
        self.agreement: dict[str, Any] | None = None
        self.sample: dict[str, Any] = SAMPLE
        self.dropped: list[dict[str, Any]] = []
        self.unfit: list[str] = []
        self.made: dict[str, int] = {}
        """Metrics of hard negatives."""
        self.warnings: list[str] = []
        self.left_out: dict[str, dict[str, int]] = {}
        """Further metrics by stage."""
        self.forced_past_gate: list[str] = []
        for name in ("base", "data", "sft", "rank", "reward", "ppo", "eval"):
            stages.does[name] = partial(self._stage, name)

    def __call__(self, until: str | None = None, *sets: str) -> RunSummary:
        runner = self.runner(*sets)
        runner.run(until)
        return runner.planner.summary()

    def findings(self) -> Findings:
        return collect(self("eval"))

    def _stage(self, name: str, *arguments: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = getattr(self, f"_{name}")(*arguments)
        return metrics | self.left_out.get(name, {})

    def _base(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        for step in range(1, 1001):
            ctx.metrics.log(step, loss=6 / step)
        return write_all(config, inputs, out, ctx) | {"parameters": 491904}

    def _sft(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        ctx.metrics.log(10, loss=0.385)
        ctx.metrics.log(20, eval_loss=0.381)
        return write_all(config, inputs, out, ctx) | {"demonstrations": 2703}

    def _data(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        (out / "dropped.jsonl").write_text("".join(json.dumps(place) + "\n" for place in self.dropped))
        reasons: dict[str, Any] = {"read_rankings": 900} if self.dropped else {}
        for place in self.dropped:
            name = f"dropped_{place['table']}/{place['reason']}"
            reasons[name] = reasons.get(name, 0) + 1
        return write_all(config, inputs, out, ctx) | reasons

    def _rank(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        if self.agreement is not None:
            (out / "agreement.json").write_text(json.dumps(self.agreement))
        return write_all(config, inputs, out, ctx) | self.ranking

    def _reward(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        ctx.metrics.log(10, loss=0.5, accuracy=0.6)
        ctx.metrics.log(20, loss=0.4, accuracy=0.7)
        ctx.metrics.log(20, eval_accuracy=0.69)
        table = [
            {"predicted": 0.2, "observed": 0.25, "count": 700},
            {"predicted": 0.8, "observed": 0.75, "count": 700},
        ]
        metrics = self.made | {f"eval_{name}": value for name, value in self.quality.items()}
        tables = {} if not self.quality["pairs"] else self.tables
        quality = {
            "metrics": metrics,
            "reliability": table,
            **tables,
            "unfit": self.unfit,
            "warnings": self.warnings,
        }
        (out / "quality.json").write_text(json.dumps(quality))
        return {**metrics, "rankings": 1600, "completions": 3157}

    def _ppo(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        for update in range(1, 17):
            share = update / 16
            ctx.metrics.log(
                update,
                **{"objective/kl": 1.86 * share, "objective/scores": 1.8 + share},
                **{name: share for _, _, name, _ in charts.PPO},
            )
        points = [point | {"prompts": [], "responses": []} for point in self.evaluation["along"]]
        (out / "evaluations.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        forced = {"forced_past_gate": self.forced_past_gate} if self.forced_past_gate else {}
        return {"updates": 16, "episodes": 2048, **forced}

    def _eval(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        (out / "eval.json").write_text(json.dumps(self.evaluation))
        sample = self.sample if self.evaluation["judge"] else self.sample | {"faults": {}}
        (out / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        return {"prompts": 256, "judge": self.evaluation["judge"] or "none"}


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._stack: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._stack.append(tag)

    def handle_data(self, data: str) -> None:
        if self._stack[-1:] != ["style"]:
            self.text += data.replace(wording.SPACE, " ")


UNREADABLE = re.compile(r"<built-in|object at 0x|<bound method|\b(None|nan|NaN|undefined|Undefined)\b")


def build(run: RunSummary, tmp_path: Path) -> tuple[str, Page]:
    """Writes the report. Returns what is printed, and the page, which must show no Python object."""
    path = tmp_path / "made" / "report.html"
    printed, page = build_report(run, path), Page(path)
    attributes = " ".join(str(value) for _, named in page.elements for value in named.values() if value is not None)
    for text in (printed, page.text, attributes):
        assert UNREADABLE.search(text) is None, UNREADABLE.findall(text)
    return printed, page
