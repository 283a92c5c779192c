"""What `plan` and `status` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.files import folder_size, readable_bytes, readable_seconds
from pipeline.plan import KEY_DIGITS, Planner, StagePlan

_STYLES = {"skip": "dim", "run": "bold green", "resume": "bold yellow", "wait": "yellow"}


def plan_table(steps: Sequence[StagePlan]) -> Table:
    """Stage, action and reason; notes below the reason."""
    table = Table("stage", "action", "why", box=None, header_style="bold")
    for step in steps:
        why = Text(step.reason)
        if step.note:
            why.append(f"\n{step.note}", style="dim")
        table.add_row(step.spec.name, Text(step.action, style=_STYLES[step.action]), why)
    return table


def status_table(planner: Planner) -> Table:
    """For each stage its state, and of its newest run the key, when, how long, how large."""
    table = Table("stage", "state", "key", "finished", "seconds", "on disk", "why", box=None, header_style="bold")
    for step in planner.plan():
        run = step.finished or planner.latest(step.spec.name)
        if step.action == "skip":
            state, why = "finished", ""
        elif step.action == "resume":
            state, why = "incomplete", step.reason
        else:
            state, why = ("stale" if run else "missing"), step.reason
        cells = ["", "", "", ""]
        if run:
            when = run.manifest.finished[:19].replace("T", " ")
            size = readable_bytes(folder_size(run.folder))
            cells = [
                run.manifest.key[:KEY_DIGITS],
                f"{when} UTC",
                readable_seconds(run.manifest.seconds),
                size,
            ]
        table.add_row(step.spec.name, state, *cells, Text(why))
    return table
