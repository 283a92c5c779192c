"""Draws charts as inline SVG in the page's font and colours, light or dark.

matplotlib writes colours into the SVG, so charts are drawn in placeholder colours that are then replaced by the CSS
variables of style.css.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

from markupsafe import Markup, escape

from pipeline.language import translate
from pipeline.wording import commas, number

Point = tuple[float, float]
Bounds = tuple[float | None, float | None]
Kind = Literal["train", "held-out", "other", "point", "triangle", "level", "histogram"]

TEXT, GRID = "#010203", "#010204"
COLOURS = {
    TEXT: "var(--muted)",
    GRID: "var(--rule)",
    "#010205": "var(--train)",
    "#010206": "var(--held-out)",
    "#010207": "var(--other)",
}
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#010205", "linewidth": 1.4},
    "held-out": {"color": "#010206", "linewidth": 1.4, "marker": "o", "markersize": 4},
    "other": {"color": "#010207", "linewidth": 1.4, "marker": "s", "markersize": 4},
    "point": {"color": "#010207", "linestyle": "none", "marker": "D", "markersize": 7},
    "triangle": {"color": "#010207", "linestyle": "none", "marker": "^", "markersize": 7},
    "level": {"color": TEXT, "linewidth": 1.0, "linestyle": (0, (4, 3))},
    "histogram": {"color": "#010206", "linewidth": 1.4, "drawstyle": "steps-mid"},
}
FONT = "DejaVu Sans"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tutelage",
    "font.family": FONT,
    "font.size": 11,
    "text.color": TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "ytick.major.size": 0,
    "axes.unicode_minus": True,
}
MOST_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A curve: of training batches (train), of held-out prompts (held-out), of another method (other) or a single
    point of one (point, triangle), a level to compare with (level), or a histogram."""

    kind: Kind
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """A small plot. `unit` is that of the vertical axis, whose ends `bounds` may fix."""

    title: str
    unit: str
    lines: Sequence[Line]
    x: str = "step"
    bounds: Bounds | None = None
    square: bool = False
    fraction: bool = False
    """Whether the horizontal axis has fractions rather than whole steps."""
    mark: float | None = None
    """The update whose policy was selected, if the horizontal axis should mark it."""
    source: str = ""
    """The metrics and files that the points are from."""


def numbers(chart: Chart) -> dict[str, Any]:
    """A chart as JSON values: the drawn points, and where they come from."""
    lines = [{"kind": line.kind, "points": [list(point) for point in thinned(line.points)]} for line in chart.lines]
    return {"title": chart.title, "unit": chart.unit, "x": chart.x, "source": chart.source, "lines": lines}


def in_words(chart: Chart) -> str:
    """The points of a chart that has too few to draw: none of its lines has two. Empty for other charts."""
    lines = [line for line in chart.lines if line.kind != "level"]
    if any(len(line.points) > 1 for line in lines):
        return ""
    labels = {"train": translate("training batch"), "held-out": translate("held out")}

    def place(line: Line, x: float, y: float) -> str:
        if line.kind not in labels:
            return number(y)
        return translate(
            "{y} at {axis} {x} ({kind})", y=number(y), axis=chart.x, x=number(x), kind=labels[line.kind]
        )

    points = [place(line, x, y) for line in lines for x, y in line.points]
    if not points:
        return translate("Not measured.")
    return translate("Measured once: {points}.", points=translate("; ").join(points))


def draw(chart: Chart, name: str) -> Markup:
    """The chart as an `<svg>` element, or as a sentence if it has too few points. `name` makes its ids unique in
    the page."""
    if text := in_words(chart):
        return Markup("<p class='few'>{}</p>").format(text)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(SETTINGS):
        width, height = (300, 280) if chart.square else (330, 170)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")  # a point is a CSS pixel
        axes = figure.subplots()
        for line in chart.lines:
            alone: dict[str, Any] = {"marker": "o", "markersize": 4} if len(line.points) == 1 else {}
            axes.plot(*zip(*thinned(line.points), strict=True), **(alone | STYLES[line.kind]))
        if chart.mark is not None:
            axes.axvline(chart.mark, **STYLES["level"])
            place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            axes.annotate(
                translate("selected"), (chart.mark, 1), (4, -1), va="top", fontsize=9, color=TEXT, **place
            )
        axes.set_xlabel(chart.x)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not (chart.square or chart.fraction)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=chart.square, axis="x")
        axes.margins(x=0.03, y=0.08)
        if chart.bounds:
            axes.set_ylim(*chart.bounds)
        svg = StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the date would differ at each run
        with warnings.catch_warnings():  # the browser's font draws the text
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            figure.savefig(svg, format="svg", metadata=metadata)
    label = commas([chart.title, chart.unit]) if chart.unit else chart.title
    return Markup(_inline(svg.getvalue(), name, escape(label)))


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: the means of groups of neighbours."""
    run = -(-len(points) // most)
    if run <= 1:
        return list(points)
    parts = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _inline(svg: str, name: str, label: str) -> str:
    """A file's SVG as an element of an HTML page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{label}" \1>', svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="|(?<=url\()#|(?<=href=")#', lambda match: f"{match[0]}{name}-", svg)
    svg = svg.replace(f"'{FONT}'", "var(--sans)")
    for placeholder, colour in COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg
