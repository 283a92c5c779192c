"""The picture of a model card: reward, KL and the independent judge during PPO, as in the report."""

from __future__ import annotations

from io import BytesIO

from pipeline.engine.plan import RunSummary
from stages.report import charts
from stages.report.findings import collect
from stages.report.plots import thinned

COLOURS = {"train": "#9aa5b1", "held-out": "#0b6bcb", "level": "#c0392b", "histogram": "#0b6bcb"}
MARKERS = {"held-out": "o"}


def training(run: RunSummary) -> bytes | None:
    """A PNG for light and dark pages; None if PPO logged nothing."""
    drawn = charts.along(run, collect(run))
    if not drawn:
        return None
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.8 * len(drawn), 2.8), layout="constrained", facecolor="white")
        for axes, chart in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            for line in chart.lines:
                axes.plot(
                    *zip(*thinned(line.points), strict=True),
                    color=COLOURS[line.kind],
                    linestyle="--" if line.kind == "level" else "-",
                    marker=MARKERS.get(line.kind),
                    markersize=3,
                )
            axes.set_title(chart.title, loc="left", fontweight="bold", pad=18)
            axes.text(0, 1.03, chart.unit, transform=axes.transAxes, color="#52606d")
            axes.set_xlabel(chart.x)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if chart.bounds:
                axes.set_ylim(*chart.bounds)
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
