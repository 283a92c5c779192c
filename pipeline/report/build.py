"""Writes a run's report: one HTML file that loads nothing, and a JSON file with the same numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.files import readable_bytes, readable_seconds, write_atomic
from pipeline.plan import RunSummary
from pipeline.report import against, charts, comparison, exported, findings, plots, rankings, verdict, wording

HERE = Path(__file__).parent


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

    def draw(chart: plots.Chart) -> Markup:
        return plots.draw(chart, f"chart-{next(numbered)}")

    page = _template().render(
        found=found,
        verdict=reached,
        against=concluded,
        rows=comparison.rows(found["evaluation"]),
        models=comparison.MODELS,
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
    )
    text = json.dumps({"verdict": asdict(reached), **found}, indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, f"{text}\n")
    write_atomic(path, page)
    return "\n".join([reached.text, *([" ".join(concluded[1:])] if concluded else [])])


def _template() -> Template:
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
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.globals |= {
        "span": wording.span,
        "css": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    return environment.get_template("template.html")
