"""Writes a run's report: one HTML file that loads nothing, and a JSON file with the same numbers.

A new section of the page needs a module that turns typed artifacts into the section's findings (`findings.collect`
calls it), a template that template.html includes, and the section's files in `sources.FILES`. `monitors.py` with
monitors.html is an example.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline import invocation, wording
from pipeline.engine.plan import RunSummary
from pipeline.files import jsonable, readable_bytes, readable_seconds, write_atomic
from stages.report import (
    charts,
    exported,
    frontier,
    model_table,
    monitors,
    plots,
    rankings,
    recipe_comparison,
    run_comparison,
    verdict,
    win_rates,
)
from stages.report.findings import collect
from stages.report.jsonform import json_form

HERE = Path(__file__).parent
FORMAT = 2
"""The version of report.json's layout."""


def build_report(run: RunSummary, path: Path, other: RunSummary | None = None, values: str = "") -> str:
    """Writes the report of the finished stages to `path` and, beside it, its numbers as JSON.

    The result depends on the runs alone, to the byte. Returns the verdict as plain text.

    Args:
        other: a run of the same recipe under other `values`, to compare with.
    """
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

    page = _template().render(
        findings=findings,
        verdict=concluded,
        against=against,
        rows=model_table.rows(evaluation),
        models=win_rates.names(evaluation),
        contests=win_rates.rows(evaluation),
        against_sft=win_rates.against_sft(evaluation),
        reach=win_rates.reach(evaluation) if evaluation else "",
        frontier=frontier.charts(evaluation),
        frontier_text=frontier.conclude(evaluation),
        along=charts.along(run, findings),
        curves=charts.curves(run),
        reliability=charts.reliability(findings),
        distributions=charts.distributions(findings),
        exported=exported.rows(findings.export),
        exported_header=exported.HEADER,
        exported_text=exported.explanation(findings.export) if findings.export else "",
        annotator_columns=rankings.columns(findings.rankings) if findings.rankings else [],
        strengths=rankings.strengths(findings.rankings) if findings.rankings else [],
        shown_annotators=rankings.SHOWN,
        draw=draw,
        numbers=numbers.name,
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
    return "\n".join([concluded.text, *([" ".join(against[1:])] if against else [])])


def compare_reports(a: Path, b: Path, out: Path) -> str:
    """Writes the comparison of two runs to `out` and, beside it, its numbers as JSON. Returns it as plain text."""
    names = (run_name(a), run_name(b))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    reports = run_comparison.RunReport.read(a), run_comparison.RunReport.read(b)
    comparison = run_comparison.compare(*reports, names)
    run_comparison.write(comparison, out, _template("compare.html"))
    return run_comparison.as_text(comparison)


def run_name(path: Path) -> str:
    """The name of a run: its folder's, or the file's if that is not called `report`."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.name if path.is_dir() or path.stem == "report" else path.stem


def _template(name: str = "template.html") -> Template:
    """A template. Everything is escaped, because models' answers are untrusted text."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": wording.fixed,
        "number": wording.number,
        "percent": wording.percent,
        "moment": wording.moment,
        "listing": wording.listing,
        "bytes": readable_bytes,
        "seconds": readable_seconds,
        "plain": wording.plain,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.globals |= {
        "command": invocation.command,
        "span": wording.span,
        "css": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    return environment.get_template(name)
