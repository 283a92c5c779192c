"""`tutelage run` and `tutelage round`."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import invocation
from pipeline.cli.app import (
    AFTER_RUN,
    QUICKSTART,
    RUNS,
    ForceOption,
    FreshOption,
    OptionalRecipe,
    ProcessesOption,
    RecipeOption,
    RunsOption,
    SetOption,
    TargetArgument,
    WaitOption,
    app,
    console,
    echo,
    planner_of,
    target,
)
from pipeline.cli.tables import plan_table
from pipeline.config.load import load_recipe
from pipeline.engine import launch as launching
from pipeline.engine import registry
from pipeline.engine.plan import Planner
from pipeline.engine.processes import Processes
from pipeline.engine.progress import Display
from pipeline.engine.rounds import step_name
from pipeline.engine.runner import Runner, foresee, terminate_as_interrupt
from pipeline.files import need_folder


@app.command()
def run(
    stage: TargetArgument = None,
    recipe: OptionalRecipe = None,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    fresh: FreshOption = False,
    force: ForceOption = False,
    wait: WaitOption = False,
    nproc: ProcessesOption = None,
) -> None:
    """Run all stages and write the report, or run one stage and those it needs. Stages that are up to date are
    skipped."""
    stage, path = target(stage, recipe)
    loaded = load_recipe(path, sets or [])
    need_folder(runs, "runs", "give another folder with --runs or TUTELAGE_RUNS")
    if (runs / loaded.recipe.name).exists():
        need_folder(runs / loaded.recipe.name, "runs", "give another folder with --runs or TUTELAGE_RUNS")
    again = [] if not fresh else [stage] if stage else list(registry.steps(loaded.recipe))
    if (nproc or 1) > 1 and "WORLD_SIZE" not in os.environ:
        planner = Planner(loaded, runs, again)
        steps = planner.plan(stage)
        if any(step.spec.parallel and step.finished is None for step in steps):
            foresee(planner, steps, force, nproc or 1)
            with terminate_as_interrupt():
                launching.launch(nproc or 1, _arguments(stage, path, sets, runs, fresh, force, wait, nproc))
            return
        nproc = 1  # no parallel stage would run
    launching.end_with_launcher()
    processes = Processes.join(nproc)
    display = Display(console())
    if note := processes.describe():
        display.say(note)
    runner = Runner(loaded, runs, display=display, fresh=again, force=force, wait=wait, processes=processes)
    if processes.rank:
        runner.follow()
        return
    steps = runner.run(stage)
    if all(step.action == "skip" for step in steps):
        terminal = console()
        terminal.print(plan_table(steps, terminal.width))
        echo("nothing to do: every stage is up to date")
    if stage is None:
        changed = runner.moved or any(step.action != "skip" for step in steps)
        for finish in AFTER_RUN:
            finish(runner.planner, changed)
    processes.finish()


def _arguments(
    stage: str | None,
    recipe: Path,
    sets: list[str] | None,
    runs: Path,
    fresh: bool,
    force: bool,
    wait: bool,
    nproc: int | None,
) -> list[str]:
    """The command line of `run`, for the processes that share it."""
    flags = {"--fresh": fresh, "--force": force, "--wait": wait}
    return [
        *("run", *([stage] if stage else []), "--nproc", str(nproc)),
        # Defaults are left out, because messages repeat what was given.
        *(("--recipe", str(recipe)) if recipe != QUICKSTART else ()),
        *(("--runs", str(runs)) if runs != RUNS else ()),
        *(name for name, is_set in flags.items() if is_set),
        *(part for text in sets or [] for part in ("--set", text)),
    ]


@app.command("round")
def one_more(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    force: ForceOption = False,
    nproc: ProcessesOption = None,
) -> None:
    """Run one more round of collect, rank, reward and ppo, then eval, export and the report."""
    values = sets or []
    finished = 0
    while _is_finished(planner_of(recipe, [*values, f"rounds={finished + 1}"], runs), finished + 1):
        finished += 1
    rounds = f"rounds={finished + 1}"
    invocation.remember(sets=(*values, rounds))
    echo(f"{finished} round{'s are' if finished != 1 else ' is'} finished; now {rounds}")
    run(recipe=recipe, sets=[*values, rounds], runs=runs, force=force, nproc=nproc)
    if load_recipe(recipe, values).recipe.rounds <= finished:
        echo(
            f"to keep this round, set {rounds} in the recipe, or give the value to the other "
            f"commands: `{invocation.command('report')}`"
        )


def _is_finished(planner: Planner, number: int) -> bool:
    last = step_name("ppo", number)
    return next(step for step in planner.plan(last) if step.spec.name == last).finished is not None
