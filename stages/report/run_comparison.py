"""Two runs side by side, from their report.json files alone: what differs in the recipes, and in the results.

Final policies are compared prompt by prompt where both runs were evaluated on the same prompts, so that the
interval is of the difference rather than of each result.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Template
from pydantic import Field

from pipeline import invocation
from pipeline.config.ppo import METHODS
from pipeline.engine.rounds import parse as parse_step
from pipeline.engine.stage import parse
from pipeline.errors import StageError
from pipeline.files import jsonable, readable_seconds, write_atomic
from pipeline.language import ENGLISH, PPO, translate
from pipeline.wording import DASH, MINUS, commas, fixed, percent, sentences, span
from stages.eval.artifact import Evaluation, JudgedPrompt, ModelResult
from stages.intervals import Interval
from stages.report.jsonform import json_form
from stages.report.model_table import ERRORS, METRICS, Metric, error_interval
from stages.report.recipe_comparison import RESAMPLES, change_text, paired_change
from stages.report.verdict import Tone
from stages.reward.artifact import HeldOut

FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    name: str
    key: str | None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AlertEntry:
    rule: str


@dataclass(frozen=True, kw_only=True)
class MonitorsEntry:
    watched: bool
    alerts: Annotated[Sequence[AlertEntry], Field(validation_alias="events")]
    selected: int | None
    updates: int | None
    planned_updates: int | None
    stopped_at: int | None


@dataclass(frozen=True, kw_only=True)
class RewardEntry:
    held_out: HeldOut


@dataclass(frozen=True, kw_only=True)
class CriterionEntry:
    name: str
    reward: RewardEntry | None = None


@dataclass(frozen=True, kw_only=True)
class ValueEntry:
    path: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The parts of a report.json that are compared. Reports of older versions lack some."""

    recipe: str
    seed: int
    seconds: float
    verdict: Mapping[str, Any]
    stages: Sequence[StageEntry]
    values: Sequence[ValueEntry]
    reward: RewardEntry | None = None
    criteria: Sequence[CriterionEntry] = ()
    monitors: MonitorsEntry | None = None
    evaluation: Evaluation | None = None
    judged: Sequence[JudgedPrompt] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = FILE) -> RunReport:
        return parse(cls, content, where)

    @classmethod
    def read(cls, path: Path) -> RunReport:
        """A run's report, by its folder, its report.html or its report.json. Raises `StageError`."""
        file = path / FILE if path.is_dir() else path.with_suffix(".json")
        try:
            return cls.of(json.loads(file.read_text(encoding="utf-8")), str(file))
        except FileNotFoundError:
            raise StageError(
                "this run has no report",
                where=str(file),
                hint=f"name a run's folder or its report.json, which `{invocation.command('report')}` writes",
            ) from None
        except (ValueError, StageError) as error:
            raise StageError(
                f"this is not a report: {error.what if isinstance(error, StageError) else error}",
                where=str(file),
                hint=f"`{invocation.command('report')}` writes a new one",
            ) from error

    @property
    def language(self) -> str:
        """The language of its texts; older reports are in English."""
        return next((str(row.value) for row in self.values if row.path == "report.language"), ENGLISH)

    @property
    def label(self) -> str:
        """The name of the method that trained its policy; of runs before there was a choice, `PPO`."""
        rows = (row.value for row in self.values if row.path == "ppo.advantage_estimator")
        return next((METHODS[value].label for value in rows if value in METHODS), PPO)

    def metric(self, stage: str, name: str) -> Any:
        """A metric of a stage's last finished round."""
        finished = [entry for entry in self.stages if entry.key and parse_step(entry.name)[0] == stage]
        return finished[-1].metrics.get(name) if finished else None

    @property
    def policy(self) -> ModelResult:
        """The evaluation of the final policy."""
        return self.evaluation.models.get("ppo", ModelResult()) if self.evaluation else ModelResult()


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Final policies on the prompts that both runs were evaluated on.

    Attributes:
        rates: fact errors of A and of B.
        change: relative change of fact errors from A to B; None if A makes none.
        win_rate: how often B's answer has fewer faults than A's; None if a report does not count faults.
    """

    judge: str | None
    prompts: int
    rates: tuple[float, float]
    change: Interval | None
    win_rate: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A recipe value that differs. None where a recipe does not have it.

    Attributes:
        section: whether it is a section that only one recipe has; `a` and `b` then say how many values it has.
    """

    path: str
    a: Any
    b: Any
    section: bool = False


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something about the two runs, as text."""

    label: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric of the two final policies, each on its own run's prompts."""

    label: str
    unit: str
    a: str
    b: str
    values: tuple[float | None, float | None]
    difference: str
    a_interval: str
    b_interval: str


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Everything that the page shows."""

    names: tuple[str, str]
    recipes: tuple[str, str]
    verdicts: tuple[Mapping[str, Any], Mapping[str, Any]]
    values: Sequence[Difference]
    runs: Sequence[Fact]
    models: Sequence[MetricRow]
    paired: Paired | None


def compare(a: RunReport, b: RunReport, names: tuple[str, str]) -> RunComparison:
    return RunComparison(
        names=names,
        recipes=(a.recipe, b.recipe),
        verdicts=(a.verdict, b.verdict),
        values=_differences(a, b),
        runs=_facts(a, b),
        models=[
            _row(metric, a.policy, b.policy)
            for metric in METRICS
            if metric.of(a.policy) is not None or metric.of(b.policy) is not None
        ],
        paired=paired(a, b),
    )


def paired(a: RunReport, b: RunReport) -> Paired | None:
    """The final policies prompt by prompt, with 95 % bootstrap intervals over prompts. None without a common judge,
    or without common prompts."""
    rows = {row.prompt: row for row in a.judged}
    shared = [(rows[row.prompt], row) for row in b.judged if row.prompt in rows]
    judges = {report.evaluation.judge if report.evaluation else None for report in (a, b)}
    if not shared or len(judges) > 1:
        return None
    errors_a, errors_b = ([pair[i].errors["ppo"] for pair in shared] for i in (0, 1))
    given = max(1, sum(row.given for row, _ in shared))
    comparison = Paired(
        judge=judges.pop(),
        prompts=len(shared),
        rates=(sum(errors_a) / given, sum(errors_b) / given),
        change=paired_change(errors_b, errors_a) if sum(errors_a) else None,
    )
    faults = [
        (x.faults["ppo"], y.faults["ppo"]) for x, y in shared if x.faults is not None and y.faults is not None
    ]
    return replace(comparison, win_rate=_win_rate(faults)) if len(faults) == len(shared) else comparison


def conclude(comparison: RunComparison) -> tuple[Tone, str, str]:
    """Tone (of B), headline and evidence."""
    (first, second), both = comparison.names, comparison.paired
    if both is None or both.change is None:
        return (
            "unknown",
            translate("The two cannot be compared answer by answer."),
            translate("That needs the same judge (eval.judge) and held-out prompts that both were evaluated on."),
        )
    side = both.change.side()
    tone: Tone = "good" if side < 0 else "bad" if side > 0 else "unclear"
    names = {"first": first, "second": second}
    headline = {
        "good": translate("{second} makes fewer fact errors than {first}.", **names),
        "bad": translate("{second} makes more fact errors than {first}.", **names),
        "unclear": translate("These prompts cannot tell whether {second} or {first} is better.", **names),
    }[tone]
    evidence = translate(
        "On the {prompts:,} held-out prompts of both, by the judge {judge}: {before} fact errors with {first}, "
        "{after} with {second}, a change of {change}.",
        prompts=both.prompts,
        judge=both.judge,
        before=percent(both.rates[0], 1),
        after=percent(both.rates[1], 1),
        change=change_text(both.change),
        **names,
    )
    if (win := both.win_rate) and win.low is not None and win.high is not None:
        fewer = translate(
            "{second}’s answer has fewer faults on {share} of them ({interval}; ties count half).",
            second=second,
            share=percent(win.value),
            interval=span(win.low, win.high),
        )
        return tone, headline, sentences(evidence, fewer)
    return tone, headline, evidence


def write(comparison: RunComparison, path: Path, template: Template) -> None:
    """Writes the page, and its numbers beside it as JSON."""
    numbers = path.with_suffix(".json")
    page = template.render(comparison=comparison, conclusion=conclude(comparison), numbers=numbers.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, json.dumps(jsonable(json_form(comparison)), indent=1, ensure_ascii=False) + "\n")
    write_atomic(path, page)


def _differences(a: RunReport, b: RunReport) -> list[Difference]:
    """The recipe values that differ, apart from the name. A section that one recipe lacks is one difference."""
    ours, theirs = ({row.path: row.value for row in report.values} for report in (a, b))
    differences: dict[str, Difference] = {}
    for path in {**ours, **theirs}:
        if path == "name" or ours.get(path) == theirs.get(path):
            continue
        if section := _lacking(path, ours, theirs):
            sizes = [_below(values, section) for values in (ours, theirs)]
            counts = [translate("{count} values", count=size) if size else None for size in sizes]
            differences[section] = Difference(path=section, a=counts[0], b=counts[1], section=True)
        else:
            differences[path] = Difference(path=path, a=ours.get(path), b=theirs.get(path))
    return list(differences.values())


def _lacking(path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The widest section around `path` that has several values in one recipe and none in the other."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        section = ".".join(parts[:length])
        fewer, more = sorted((_below(ours, section), _below(theirs, section)))
        if fewer == 0 and more > 1:
            return section
    return None


def _below(values: Mapping[str, Any], section: str) -> int:
    """How many of the values are in a section."""
    return sum(path.startswith(f"{section}.") for path in values)


def _facts(a: RunReport, b: RunReport) -> list[Fact]:
    """Seed, sizes and outcome of the two runs; without rows that neither run has."""

    def alerts(report: RunReport) -> str:
        if not (report.monitors and report.monitors.watched):
            return DASH
        return commas(alert.rule for alert in report.monitors.alerts) or translate("none")

    def selected(report: RunReport) -> str:
        monitors = report.monitors
        if not (monitors and monitors.watched):
            return DASH
        values = {"selected": monitors.selected, "updates": monitors.updates, "planned": monitors.planned_updates}
        if monitors.stopped_at:
            return translate("update {selected} of {updates}, stopped of {planned} planned", **values)
        return translate("update {selected} of {updates}", **values)

    def held_out(report: RunReport) -> str:
        each = [f"{entry.name} {of_model(entry.reward)}" for entry in report.criteria]
        return "; ".join(each) if each else of_model(report.reward)

    def of_model(reward: RewardEntry | None) -> str:
        quality = reward.held_out if reward else HeldOut()
        if quality.accuracy is None:
            return DASH
        measured = percent(quality.accuracy, 1)
        if quality.accuracy_low is None or quality.accuracy_high is None:
            return measured
        return f"{measured} ({span(quality.accuracy_low, quality.accuracy_high, 1)})"

    rows: list[tuple[str, Callable[[RunReport], str]]] = [
        (translate("Seed"), lambda r: str(r.seed)),
        (translate("Rankings"), lambda r: fixed(r.metric("rank", "rankings"), 0)),
        (translate("Reward accuracy, held out"), held_out),
        (translate("PPO episodes"), lambda r: fixed(r.metric("ppo", "episodes"), 0)),
        (translate("Selected policy"), selected),
        (translate("Alerts"), alerts),
        (translate("Whole run"), lambda r: readable_seconds(r.seconds)),
    ]
    facts = [Fact(label=label, a=describe(a), b=describe(b)) for label, describe in rows]
    return [fact for fact in facts if {fact.a, fact.b} != {DASH}]


def _row(metric: Metric, a: ModelResult, b: ModelResult) -> MetricRow:
    x, y = metric.of(a), metric.of(b)
    return MetricRow(
        label=translate(metric.label),
        unit=translate(metric.unit),
        a=metric.write(x),
        b=metric.write(y),
        values=(x, y),
        difference="" if x is None or y is None else metric.write_change(y - x),
        a_interval=error_interval(a) if metric is ERRORS else "",
        b_interval=error_interval(b) if metric is ERRORS else "",
    )


def _win_rate(faults: Sequence[tuple[int, int]]) -> Interval:
    import numpy as np

    wins = np.array([0.5 * (1 + np.sign(a - b)) for a, b in faults])
    means = wins[np.random.default_rng(0).integers(len(wins), size=(RESAMPLES, len(wins)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(value=float(wins.mean()), low=float(low), high=float(high))


def as_text(comparison: RunComparison) -> str:
    """For a terminal."""
    first, second = comparison.names
    _, headline, evidence = conclude(comparison)

    def shown(row: Difference, value: Any) -> str:
        if row.section:
            return value or translate("(absent)")
        return json.dumps(value, ensure_ascii=False)

    differences = [(row.path, shown(row, row.a), shown(row, row.b)) for row in comparison.values]
    parts = [
        (translate("recipe"), differences),
        (translate("run"), [(row.label, row.a, row.b) for row in comparison.runs]),
        (translate("PPO’s policy"), [(row.label, row.a, row.b) for row in comparison.models]),
    ]
    width = max((_columns(cells[0]) for _, rows in parts for cells in rows), default=0)
    middle = max((_columns(cells[1]) for _, rows in parts for cells in rows), default=0)
    middle = max(min(middle, 48), _columns(first))

    def line(label: str, a: str, b: str) -> str:
        return f"{_padded(label, width)}  {_padded(a, middle)}  {b}"

    lines = [sentences(headline, evidence), "", line("", first, second)]
    for title, rows in parts:
        lines += [title, *(line(*row) for row in rows)] if rows else []
    return "\n".join(lines).replace(MINUS, "-")


def _columns(text: str) -> int:
    """The width of a text in a terminal, where a Chinese character takes two columns."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))
