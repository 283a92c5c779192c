"""Writes a run's report: one HTML file that loads nothing, and a JSON file with the same numbers.

A section of the page is: findings of its own in `report.json` (`findings.collect` calls the module that reads
them), a template of its own that template.html includes where it belongs, and its files in `sources.FILES`.
`guarding.py` with guards.html is the example.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline import wording
from pipeline.engine.plan import RunSummary
from pipeline.files import jsonable, readable_bytes, readable_seconds, write_atomic
from stages.report import (
    against,
    baselines,
    charts,
    compare,
    comparison,
    exported,
    findings,
    frontier,
    guarding,
    plots,
    rankings,
    verdict,
)

HERE = Path(__file__).parent
FORMAT = 1
"""Of report.json: raised when a reader of older ones would misread it."""


def build_report(run: RunSummary, path: Path, other: RunSummary | None = None, values: str = "") -> str:
    """Writes the report of the finished stages to `path` and, beside it, its numbers as JSON.

    Depends on the runs alone: the same give the same bytes. Returns the verdict as plain text.

    Args:
        other: a run of the same recipe under other `values`, to compare with.
    """
    found = findings.collect(run)
    reached = verdict.reach(found)
    found["against"] = against.compare(run, other, values) if other else None
    concluded = against.conclude(found["against"]) if other else None
    numbers = path.with_suffix(".json")
    numbered = count()

    drawn: list[dict[str, Any]] = []

    def draw(chart: plots.Chart) -> Markup:
        drawn.append(plots.numbers(chart))
        return plots.draw(chart, f"chart-{next(numbered)}")

    page = _template().render(
        found=found,
        verdict=reached,
        against=concluded,
        rows=comparison.rows(found["evaluation"]),
        models=baselines.names(found["evaluation"]),
        contests=baselines.contests(found["evaluation"]),
        against_sft=baselines.against_sft(found["evaluation"]),
        reach=baselines.reach(found["evaluation"]) if found["evaluation"] else "",
        frontier=frontier.charts(found["evaluation"]),
        frontier_says=frontier.conclude(found["evaluation"]),
        along=charts.along(run, found),
        curves=charts.curves(run),
        reliability=charts.reliability(found),
        distributions=charts.distributions(found),
        exported=exported.rows(found["export"]),
        exported_header=exported.HEADER,
        exported_text=exported.explanation(found["export"]) if found["export"] else "",
        annotator_columns=rankings.columns(found["rankings"]) if found["rankings"] else [],
        strengths=rankings.strengths(found["rankings"]) if found["rankings"] else [],
        shown_annotators=rankings.SHOWN,
        draw=draw,
        numbers=numbers.name,
        guard_summary=guarding.summary(found["guards"]) if found["guards"] else "",
        guard_looks=guarding.rows(found["guards"]) if found["guards"] else [],
    )
    told = {"format": FORMAT, "verdict": asdict(reached), **found, "charts": drawn}
    text = json.dumps(jsonable(told), indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, f"{text}\n")
    write_atomic(path, page)
    return "\n".join([reached.text, *([" ".join(concluded[1:])] if concluded else [])])


def compare_reports(a: Path, b: Path, out: Path) -> str:
    """Writes the comparison of two runs to `out` and, beside it, its numbers as JSON. Returns it as plain text."""
    names = (_named(a), _named(b))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    found = compare.compare(compare.read(a), compare.read(b), names)
    compare.write(found, out, _template("compare.html"))
    return compare.as_text(found)


def _named(path: Path) -> str:
    """A run's folder, or the file's name where it is not `report`."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.name if path.is_dir() or path.stem == "report" else path.stem


def _template(name: str = "template.html") -> Template:
    """Everything is escaped: what models say is not to be trusted."""
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
        "noted": wording.noted,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.globals |= {
        "span": wording.span,
        "css": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    return environment.get_template(name)
