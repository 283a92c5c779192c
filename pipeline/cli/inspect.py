"""The commands that inspect a recipe and its runs: plan, show, check, status, clean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.cli.app import (
    PLAN_NOTES,
    QUICKSTART,
    RECIPE_CHECKS,
    RUNS,
    STEP_NOTES,
    OptionalRecipe,
    ProcessesOption,
    RecipeOption,
    RunsOption,
    SetOption,
    TargetArgument,
    app,
    console,
    echo,
    planner_of,
    target,
)
from pipeline.cli.tables import memory_table, plan_table, proposals, status_table, total_time
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine import clean as cleaning
from pipeline.engine import manifest
from pipeline.engine.plan import StagePlan, StageRun
from pipeline.errors import TutelageError, all_of
from pipeline.files import readable_bytes
from pipeline.memory.forecast import Forecast


@app.command()
def plan(
    stage: TargetArgument = None,
    recipe: OptionalRecipe = None,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    nproc: ProcessesOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the parts of the memory, operations, and long reasons.")
    ] = False,
) -> None:
    """Show which stages would run and why, their memory and time, and changes that would make them fit."""
    stage, path = target(stage, recipe)
    planner = planner_of(path, sets, runs)
    steps = planner.plan(stage)
    planner.check_model(_finished(steps, "base"))
    terminal = console()
    terminal.print(plan_table(steps, terminal.width, verbose))
    forecast = Forecast.of(planner.loaded, planner.latest("data"), nproc or 1)
    echo("")
    terminal.print(memory_table(forecast, planner, terminal.width, verbose))
    if total := total_time(forecast, planner, steps):
        echo(total)
    for line in proposals(forecast):
        echo(line)
    for function in PLAN_NOTES:
        for line in function(planner.loaded, _finished(steps, "data")):
            echo(line)
    _say_notes(planner.loaded, steps)


def _say_notes(loaded: LoadedRecipe, steps: Sequence[StagePlan]) -> None:
    for function in STEP_NOTES:
        for line in function(loaded, steps):
            echo(line)


def _finished(steps: Sequence[StagePlan], stage: str) -> StageRun | None:
    """The run of a stage, if it is finished."""
    return next((step.finished for step in steps if step.spec.name == stage), None)


@app.command()
def show(recipe: RecipeOption = QUICKSTART, sets: SetOption = None) -> None:
    """Print every value of the recipe, and the file and line or flag that set it."""
    loaded = load_recipe(recipe, sets or [])
    lines = [
        (f"{path}: {json.dumps(value, ensure_ascii=False)}", loaded.describe(path))
        for path, value in loaded.values().items()
    ]
    width = min(max(len(text) for text, _ in lines), 72)
    for text, where in lines:
        echo(f"{text:{width}}  # {where}")


@app.command()
def check(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also read every finished artifact and verify its hashes.")
    ] = False,
) -> None:
    """Check the recipe, its local files, the first rows of its tables and, on request, its artifacts."""
    planner = planner_of(recipe, sets, runs)
    problems = [problem for function in RECIPE_CHECKS for problem in function(planner.loaded, echo)]
    try:
        steps = planner.plan()
        planner.check_model(_finished(steps, "base"))
    except TutelageError as error:
        if error.what not in {problem.what for problem in problems}:
            problems.insert(0, error)
    if problems:
        raise all_of(problems, f"{recipe} and its tables")
    _say_notes(planner.loaded, steps)
    echo(f"{recipe} is valid: {len(steps)} stages")
    for step in steps:
        if artifacts and step.finished:
            run = step.finished
            manifest.verify(run.folder, run.manifest, planner.hint(step.spec.name), contents=True)
            echo(f"{step.spec.name}: {len(run.manifest.files)} files are unchanged")


@app.command()
def status(recipe: RecipeOption = QUICKSTART, sets: SetOption = None, runs: RunsOption = RUNS) -> None:
    """Show each stage's state, and the time, memory and size of its newest run."""
    terminal = console()
    terminal.print(status_table(planner_of(recipe, sets, runs), terminal.width))


@app.command()
def clean(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    everything: Annotated[bool, typer.Option("--all", help="Remove all runs of the recipe.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove runs that the recipe's present values do not use."""
    planner = planner_of(recipe, sets, runs)
    leftovers = cleaning.leftovers(planner, everything)
    people = cleaning.kept(planner)
    if people:
        echo(f"kept, because people made it: {', '.join(str(path) for path in people)}")
    if not leftovers:
        echo("nothing to remove")
        return
    for leftover in leftovers:
        echo(f"{readable_bytes(leftover.size):>10}  {leftover.path}")
    if yes or typer.confirm("Remove them?"):
        echo(f"freed {readable_bytes(cleaning.remove(planner, leftovers, echo))}")
