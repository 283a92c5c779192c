"""The tables that `plan` and `status` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.engine.manifest import Manifest
from pipeline.engine.plan import KEY_DIGITS, Planner, StagePlan
from pipeline.files import folder_size, readable_bytes, readable_seconds
from pipeline.memory.advice import propose
from pipeline.memory.forecast import Forecast
from pipeline.memory.plan import StagePeak

_STYLES = {"skip": "dim", "run": "bold green", "resume": "bold yellow", "wait": "yellow"}


def plan_table(steps: Sequence[StagePlan]) -> Table:
    """Stage, action and reason, with notes below the reason."""
    table = Table("stage", "action", "why", box=None, header_style="bold")
    for step in steps:
        why = Text(step.reason)
        if step.note:
            why.append(f"\n{step.note}", style="dim")
        table.add_row(step.spec.name, Text(step.action, style=_STYLES[step.action]), why)
    return table


def status_table(planner: Planner) -> Table:
    """For each stage its state, and the key, time, duration and size of its newest run."""
    table = Table(
        "stage", "state", "key", "finished", "seconds", "on disk", "memory", "why", box=None, header_style="bold"
    )
    for step in planner.plan():
        run = step.finished or planner.latest(step.spec.name)
        if step.action == "skip":
            state, why = "finished", ""
        elif step.action == "resume":
            state, why = "incomplete", step.reason
        else:
            state, why = ("stale" if run else "missing"), step.reason
        cells = ["", "", "", "", ""]
        if run:
            when = run.manifest.finished[:19].replace("T", " ")
            size = readable_bytes(folder_size(run.folder))
            cells = [
                run.manifest.key[:KEY_DIGITS],
                f"{when} UTC",
                readable_seconds(run.manifest.seconds),
                size,
                memory_of(run.manifest),
            ]
        table.add_row(step.spec.name, state, *cells, Text(why))
    return table


def memory_of(record: Manifest) -> str:
    """A finished stage's peak memory, with the predicted one in brackets: of the GPU if one was used."""
    gpu = record.memory.get("peak_gpu_bytes")
    measured = gpu or record.memory.get("peak_bytes")
    predicted = record.predicted.get("allocated_bytes" if gpu else "peak_bytes")
    text = readable_bytes(measured) if measured else ""
    return f"{text} ({readable_bytes(predicted)} planned)" if predicted else text


GROUPS = {
    "weights": ("weights", "merged"),
    "adapters": ("adapters",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "cache": ("cache",),
    "logits": ("logits",),
    "rest": ("first use", "fragmentation", "libraries"),
}
"""The table's columns, and the components in each."""


def memory_table(forecast: Forecast, planner: Planner) -> Table | Text:
    """Each stage's peak memory by component, with its operations and time."""
    plan = forecast.plan
    if plan is None:
        return Text(f"no memory plan: {forecast.unknown}", style="yellow")
    has = f"of {readable_bytes(plan.limit)} ({plan.limit_from})" if plan.limit is not None else "limit not known"
    size = {4: "float32", 2: "16 bits"}[plan.model.size]
    held = size if plan.model.quantization == "none" else plan.model.quantization
    title = (
        f"memory on {plan.model.device}, {has}; {plan.model.architecture.parameters / 1e6:,.0f} M weights in {held}"
    )
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("stage", "peak in", "peak"):
        table.add_column(column)
    for column in (*GROUPS, "operations", "time"):
        table.add_column(column, justify="right")
    for stage, peak in plan.stages.items():
        large = stage in plan.too_large()
        total = Text(readable_bytes(peak.total), style="bold red" if large else "")
        sizes = [_sum(peak, names) for names in GROUPS.values()]
        count = forecast.flops.get(stage)
        table.add_row(
            stage, peak.phase, total, *sizes, f"{count:.1e}" if count else "", _time(forecast, planner, stage)
        )
    return table


def _sum(peak: StagePeak, names: Sequence[str]) -> str:
    size = sum(peak.components.get(name, 0.0) for name in names)
    return readable_bytes(size) if size >= 1 else "–"


def _time(forecast: Forecast, planner: Planner, stage: str) -> str:
    """Predicted time at the speed of the stage's last run here; without one, a lower bound from
    `hardware.tflops`."""
    count = forecast.flops.get(stage)
    if not count:
        return ""
    last = planner.latest(stage)
    if last and last.manifest.predicted.get("flops") and not last.manifest.resumed:
        return readable_seconds(last.manifest.seconds * count / last.manifest.predicted["flops"])
    speed = forecast.recipe.hardware.tflops
    return f"at least {readable_seconds(count / speed / 1e12)}" if speed else ""


def proposals(forecast: Forecast) -> list[str]:
    """Lines with the changes that would make the run fit; none if it fits."""
    plan = forecast.plan
    if plan is None or not (large := plan.too_large()):
        return []
    if forecast.recipe.sharding == "full":
        return ["these numbers are for whole models: the plan does not cover sharding = full"]
    changes = propose(forecast.recipe, plan)
    enough = bool(changes) and changes[-1].fits
    return [
        f"{', '.join(large)} would not fit; changes, the cheapest first:",
        *(f"  {change}" for change in changes),
        *([] if enough else ["that is not enough: use a smaller model"]),
    ]
