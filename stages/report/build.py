"""Writes a run's report: one HTML file that loads nothing, and a JSON file with the same numbers.

A new section of the page needs a module that turns typed artifacts into the section's findings (`findings.collect`
calls it), a template that templates/report.html includes, and the section's files in `sources.FILES`. `monitors.py`
with templates/monitors.html is an example.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline import language, wording
from pipeline.engine.plan import RunSummary
from pipeline.files import jsonable, readable_bytes, readable_seconds, write_atomic
from pipeline.language import ENGLISH, Language, mark
from stages.report import (
    charts,
    cost,
    exported,
    frontier,
    model_table,
    monitors,
    next_steps,
    plots,
    rankings,
    recipe_comparison,
    reward_terms,
    run_comparison,
    tables,
    verdict,
    win_rates,
)
from stages.report.contents import Contents
from stages.report.findings import collect
from stages.report.glossary import Glossary, terms
from stages.report.jsonform import json_form

HERE = Path(__file__).parent
FORMAT = 2
"""The version of report.json's layout."""
PEOPLE = {
    "simulated": ("simulated annotator", mark("simulated annotators")),
    "human": ("human annotator", mark("human annotators")),
    "unknown": ("annotator of unknown kind", mark("annotators of unknown kind")),
}
"""Who ranked, as one and as several."""
MESSAGES = HERE / "messages"
SHOWN_SAMPLES = 2
"""Prompts whose answers the page shows unfolded."""


def build_report(run: RunSummary, path: Path, other: RunSummary | None = None, values: str = "") -> str:
    """Writes the report of the finished stages to `path` and, beside it, its numbers as JSON.

    The result depends on the runs and on how the user called the command, to the byte. Returns the verdict as plain
    text. All texts are in the recipe's `report.language`.

    Args:
        other: a run of the same recipe under other `values`, to compare with.
    """
    recipe = run.loaded.recipe
    shown = replace(Language.of(MESSAGES, recipe.report.language), policy=recipe.ppo.method.label)
    with language.using(shown):
        return _build(run, path, other, values)


def _build(run: RunSummary, path: Path, other: RunSummary | None, values: str) -> str:
    findings = collect(run)
    evaluation, monitored = findings.evaluation, findings.monitors
    concluded = verdict.reach(findings)
    comparison = recipe_comparison.compare(run, other, values) if other else None
    against = recipe_comparison.conclude(comparison) if comparison else None
    numbers = path.with_suffix(".json")
    ids = count()
    drawn: list[dict[str, Any]] = []

    def draw(chart: plots.Chart) -> Markup:
        drawn.append(plots.numbers(chart))
        return plots.draw(chart, f"chart-{next(ids)}")

    costs = cost.costs(run, evaluation)
    page = _template().render(
        findings=findings,
        finished=[stage for stage in findings.stages if stage.key],
        people=PEOPLE,
        shown_samples=SHOWN_SAMPLES,
        costs=costs,
        costs_note=cost.left_out(costs),
        why_ppo=cost.why_ppo(costs, evaluation),
        next_steps=next_steps.steps(run, findings),
        glossary=terms(),
        verdict=concluded,
        against=against,
        rows=model_table.rows(evaluation),
        models=win_rates.names(evaluation),
        contests=win_rates.rows(evaluation),
        against_reference=win_rates.against_reference(evaluation),
        reach=win_rates.reach(evaluation) if evaluation else "",
        frontier=frontier.charts(evaluation),
        frontier_text=frontier.explain(evaluation),
        possible=frontier.possible(evaluation),
        frontier_form=frontier.form(evaluation),
        along=charts.along(run, findings),
        curves=charts.curves(run),
        quality_charts=lambda part: charts.reliability(findings, part) + charts.distributions(findings, part),
        exported=exported.rows(findings.export),
        exported_header=exported.HEADER,
        exported_text=exported.explanation(findings.export) if findings.export else "",
        strengths=rankings.strengths,
        shown_annotators=rankings.SHOWN,
        hard_negatives=rankings.hard_negatives,
        draw=draw,
        numbers=numbers.name,
        reward_terms=reward_terms.rows(findings.ppo.terms) if findings.ppo else [],
        monitor_summary=monitors.summary(monitored) if monitored else "",
        monitor_rows=monitors.rows(monitored) if monitored else [],
    )
    content = {
        "format": FORMAT,
        "verdict": asdict(concluded),
        **findings.as_json(),
        "against": json_form(comparison),
        "charts": drawn,
    }
    text = json.dumps(jsonable(content), indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, f"{text}\n")
    write_atomic(path, page)
    return "\n".join([concluded.text, *([wording.sentences(*against[1:])] if against else [])])


def compare_reports(a: Path, b: Path, out: Path) -> str:
    """Writes the comparison of two runs to `out` and, beside it, its numbers as JSON. Returns it as plain text. Its
    language is that of the two reports if they share one, else English."""
    names = (run_name(a), run_name(b))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    reports = run_comparison.RunReport.read(a), run_comparison.RunReport.read(b)
    languages, policies = {report.language for report in reports}, {report.label for report in reports}
    code = languages.pop() if len(languages) == 1 else ENGLISH
    policy = policies.pop() if len(policies) == 1 else language.PPO
    with language.using(replace(Language.of(MESSAGES, code), policy=policy)):
        comparison = run_comparison.compare(*reports, names)
        run_comparison.write(comparison, out, _template("compare.html"))
        return run_comparison.as_text(comparison)


def run_name(path: Path) -> str:
    """The name of a run: its folder's, or the file's if that is not called `report`."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.name if path.is_dir() or path.stem == "report" else path.stem


def _paragraph(html: str) -> Markup:
    """A paragraph of several sentences. Chinese has no spaces between them."""
    return Markup(re.sub(r"(?<=。)\s+(?=\S)", "", html))


def _template(name: str = "report.html") -> Template:
    """A template for one page. Everything is escaped, because models' answers are untrusted text."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": wording.fixed,
        "number": wording.number,
        "percent": wording.percent,
        "counted": wording.counted,
        "moment": wording.moment,
        "listing": wording.listing,
        "bytes": readable_bytes,
        "seconds": readable_seconds,
        "plain": wording.plain,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "terms": Glossary().link,
        "recorded": language.recorded,
        "paragraph": _paragraph,
        "cards": tables.cards,
    }
    environment.globals |= {
        "contents": Contents(),
        "tone": lambda low, high: "good" if low > 0.5 else "bad" if high < 0.5 else "",
        "span": wording.span,
        "between": wording.between,
        "css": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    language.current().install(environment)
    return environment.get_template(name)
