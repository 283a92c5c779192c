"""The tables that `plan` and `status` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.cli.columns import GAP, Column, fit
from pipeline.engine.durations import Durations
from pipeline.engine.manifest import Manifest
from pipeline.engine.plan import KEY_DIGITS, Planner, StagePlan
from pipeline.files import (
    about_seconds,
    folder_size,
    readable_bytes,
    readable_operations,
    readable_seconds,
    readable_weights,
)
from pipeline.memory.advice import propose
from pipeline.memory.forecast import Forecast
from pipeline.memory.plan import MemoryPlan, StagePeak

_STYLES = {"skip": "dim", "reuse": "cyan", "run": "bold green", "resume": "bold yellow", "wait": "green"}


def plan_table(steps: Sequence[StagePlan], width: int, verbose: bool = False) -> RenderableType:
    """Stage, action and reasons, one reason per line, with notes below the table.

    Args:
        verbose: whether reasons that are longer than a line continue on the next one; otherwise they are cut.
    """
    first = max(len("stage"), *(len(step.spec.name) for step in steps))
    room = width - first - len("action") - 2 * GAP
    table = Table(box=None, header_style="bold", padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("stage", no_wrap=True, min_width=first)
    table.add_column("action", no_wrap=True, min_width=len("action"))
    table.add_column("why", no_wrap=not verbose, overflow="fold" if verbose else "ellipsis", max_width=room)
    for step in steps:
        # A waiting stage runs too, or is skipped if its inputs come out unchanged: the reason says so.
        action = "run" if step.action == "wait" else step.action
        table.add_row(
            step.spec.name, Text(action, style=_STYLES[step.action]), Text(step.reason.replace("; ", "\n"))
        )
    below = [Text(f"{', '.join(names)}: {note}", style="dim") for note, names in _notes(steps).items()]
    if not verbose and any(len(line) > room for step in steps for line in step.reason.split("; ")):
        below.append(Text("--verbose prints the reasons in full.", style="dim"))
    return Group(table, *below)


def _notes(steps: Sequence[StagePlan]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for step in steps:
        if step.note:
            notes.setdefault(step.note, []).append(step.spec.name)
    return notes


def status_table(planner: Planner, width: int) -> RenderableType:
    """Each stage's state, and the newest run's time, duration, memory, size and key; below, why a stage is not up
    to date."""
    steps = planner.plan()
    runs = [step.finished or planner.latest(step.spec.name) for step in steps]
    records = [run.manifest if run else None for run in runs]
    states = [
        {"skip": "finished", "reuse": "elsewhere", "resume": "incomplete"}.get(
            step.action, "stale" if run else "missing"
        )
        for step, run in zip(steps, runs, strict=True)
    ]
    memory = [_memory(record) if record else ("", "") for record in records]
    finished = [record.finished[:16].replace("T", " ") if record else "" for record in records]
    table, _ = fit(
        [
            Column("stage", [step.spec.name for step in steps]),
            Column("state", states),
            Column("finished (UTC)", finished, spare=1),
            Column("took", [readable_seconds(record.seconds) if record else "" for record in records], True, 2),
            Column("memory", [measured for measured, _ in memory], True, 3),
            Column("planned", [planned for _, planned in memory], True, 4),
            Column("on disk", [readable_bytes(folder_size(run.folder)) if run else "" for run in runs], True, 5),
            Column("key", [record.key[:KEY_DIGITS] if record else "" for record in records], spare=6),
        ],
        width,
    )
    reasons = [
        Text(f"{step.spec.name} is {state}: {step.reason}")
        for step, state in zip(steps, states, strict=True)
        if state in ("stale", "incomplete", "elsewhere")
    ]
    return Group(table, *reasons)


def _memory(record: Manifest) -> tuple[str, str]:
    """A finished stage's peak memory and the predicted one: of the GPU if one was used."""
    measured = record.peak_memory
    predicted = record.predicted.get("allocated_bytes" if record.memory.get("peak_gpu_bytes") else "peak_bytes")
    return readable_bytes(measured) if measured else "", readable_bytes(predicted) if predicted else ""


GROUPS = {
    "weights": ("weights", "merged", "gathered", "scorers"),
    "adapters": ("adapters",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "cache": ("cache",),
    "logits": ("logits",),
    "rest": ("first use", "fragmentation", "libraries"),
}
"""The columns of `plan --verbose`, and the components in each."""


def memory_table(forecast: Forecast, planner: Planner, width: int, verbose: bool = False) -> RenderableType:
    """Each stage's peak memory, whether it fits, and its time; with `verbose` also the peak's components and the
    operations, as far as there is room."""
    plan = forecast.plan
    if plan is None:
        return Text(f"no memory plan: {forecast.unknown}", style="yellow")
    stages, large = plan.stages, plan.too_large()
    peaks = [
        Text(readable_bytes(peak.total), "bold red" if stage in large else "") for stage, peak in stages.items()
    ]
    limit = "" if plan.limit is None else readable_bytes(plan.limit)
    fits = ["" if plan.limit is None else "no" if stage in large else "yes" for stage in stages]
    columns = [
        Column("stage", list(stages)),
        Column("peak", peaks, True),
        Column("limit", [limit] * len(peaks), True),
        Column("fits?", fits),
        Column("time", [_time(forecast, planner, stage) for stage in stages], True),
    ]
    if verbose:
        counts = [forecast.flops.get(stage) for stage in stages]
        columns += [
            Column("operations", [readable_operations(count) if count else "" for count in counts], True, 1),
            Column("peak in", [peak.phase for peak in stages.values()], spare=2),
            *(
                Column(name, [_sum(peak, parts) for peak in stages.values()], True, spare)
                for spare, (name, parts) in enumerate(GROUPS.items(), 3)
            ),
        ]
    table, left_out = fit(columns, width)
    below = [Text(f"no room for: {', '.join(left_out)}", style="dim")] if left_out else []
    return Group(Text(_title(plan), style="italic"), table, *below)


def _title(plan: MemoryPlan) -> str:
    size = {4: "float32", 2: "16 bits"}[plan.model.size]
    held = size if plan.model.quantization == "none" else plan.model.quantization
    limit = f"limit from {plan.limit_from}" if plan.limit is not None else "limit not known: set hardware.memory"
    weights = readable_weights(plan.model.architecture.parameters)
    each = f" of each of {plan.processes} processes" if plan.processes > 1 else ""
    return f"memory on {plan.model.device}{each}: {weights} weights in {held}, {limit}"


def _sum(peak: StagePeak, names: Sequence[str]) -> str:
    size = sum(peak.components.get(name, 0.0) for name in names)
    return readable_bytes(size) if size >= 1 else "–"


def _time(forecast: Forecast, planner: Planner, stage: str) -> str:
    """Estimated from the stage's last run here; without one, a lower bound from `hardware.tflops`."""
    assert forecast.plan is not None
    seconds = Durations(planner, forecast.flops, forecast.plan.model.device).seconds(stage)
    if seconds is not None:
        return about_seconds(seconds)
    count, speed = forecast.flops.get(stage), forecast.recipe.hardware.tflops
    return f"at least {readable_seconds(count / speed / 1e12)}" if count and speed else ""


def total_time(forecast: Forecast, planner: Planner, steps: Sequence[StagePlan]) -> str:
    """The line that says how long the stages that would run take; empty if that is not known."""
    names = [step.spec.name for step in steps if step.action not in ("skip", "reuse")]
    if forecast.plan is None or not names:
        return ""
    seconds = Durations(planner, forecast.flops, forecast.plan.model.device).total(names)
    return "" if seconds is None else f"{len(names)} of {len(steps)} stages to run: {about_seconds(seconds)}"


def proposals(forecast: Forecast) -> list[str]:
    """Lines with the changes that would make the run fit; none if it fits."""
    plan = forecast.plan
    if plan is None or not (large := plan.too_large()):
        return []
    changes = propose(forecast.recipe, plan)
    enough = bool(changes) and changes[-1].fits
    return [
        f"{', '.join(large)} would not fit; changes, the cheapest first:",
        *(f"  {change}" for change in changes),
        *([] if enough else ["that is not enough: use a smaller model"]),
    ]
