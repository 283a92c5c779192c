"""The command `tutelage`: runs the pipeline, says what it would do and what it did."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline import clean as cleaning
from pipeline import hub, manifest, registry
from pipeline.config.load import load_recipe
from pipeline.device import resolve
from pipeline.errors import Interrupted, TutelageError
from pipeline.files import readable_bytes
from pipeline.plan import Planner
from pipeline.progress import Display
from pipeline.rounds import step_name
from pipeline.runner import Runner
from pipeline.tables import plan_table, status_table

REPORT = "report.html"

RecipeOption = Annotated[Path, typer.Option("--recipe", "-r", help="The recipe's YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help='A value over the recipe\'s: "ppo.kl.target=8 seed=1". Repeatable.'),
]
RunsOption = Annotated[Path, typer.Option("--runs", envvar="TUTELAGE_RUNS", help="The folder where runs are kept.")]
StageArgument = Annotated[
    str | None,
    typer.Argument(help=f"One of {', '.join(registry.STAGES)}; ppo-2 in the second round. All when left out."),
]

QUICKSTART = Path("recipes/quickstart.yaml")
RUNS = Path("runs")


class _Commands(TyperGroup):
    """Prints what a user can mend without a traceback; anything else is a bug and keeps it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            problem: TutelageError = Interrupted("interrupted")
        except TutelageError as error:
            problem = error
        Console(stderr=True).print(f"{problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(problem.exit_code)


app = typer.Typer(
    cls=_Commands,
    help="Reinforcement learning from human rankings on one commodity GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _planner(recipe: Path, sets: list[str] | None, runs: Path) -> Planner:
    return Planner(load_recipe(recipe, sets or []), runs)


def _console() -> Console:
    """The terminal; what is not one gets long lines rather than folded ones."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _print(text: str) -> None:
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    stage: StageArgument = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make the stage (or all) again, even if up to date.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on where a stage's own checks refuse.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another process on the same stage.")] = False,
) -> None:
    """Run a stage and what it needs, or all of them and the report. What is up to date is skipped."""
    loaded = load_recipe(recipe, sets or [])
    again = [] if not fresh else [stage] if stage else list(registry.steps(loaded.recipe))
    runner = Runner(loaded, runs, display=Display(_console()), fresh=again, force=force, wait=wait)
    steps = runner.run(stage)
    if all(step.finished for step in steps):
        _console().print(plan_table(steps))
        _print("nothing to do: every stage is up to date")
    if stage is None:
        path = runner.planner.folder / REPORT
        ran = any(not step.finished for step in steps)
        if ran or runner.moved or not path.exists():
            _report(runner.planner)
        else:
            _print(f"report: {path}")


@app.command("round")
def one_more(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    force: Annotated[bool, typer.Option("--force", help="Go on where a stage's own checks refuse.")] = False,
) -> None:
    """Run one more round of collect, rank, reward and ppo than is finished, then eval, export and the report."""
    given = sets or []
    finished = 0
    while _is_finished(_planner(recipe, [*given, f"rounds={finished + 1}"], runs), finished + 1):
        finished += 1
    rounds = f"rounds={finished + 1}"
    _print(f"{finished} round{'s are' if finished != 1 else ' is'} finished; now {rounds}")
    run(recipe=recipe, sets=[*given, rounds], runs=runs, force=force)
    if load_recipe(recipe, given).recipe.rounds <= finished:
        _print(f"to keep this round, set {rounds} in the recipe, or give --set {rounds} to the other commands")


def _is_finished(planner: Planner, number: int) -> bool:
    last = step_name("ppo", number)
    return next(step for step in planner.plan(last) if step.spec.name == last).finished is not None


@app.command()
def plan(
    stage: StageArgument = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
) -> None:
    """Say which stages would run, and why."""
    _console().print(plan_table(_planner(recipe, sets, runs).plan(stage)))


@app.command()
def show(recipe: RecipeOption = QUICKSTART, sets: SetOption = None) -> None:
    """Print every value, and the file and line or flag that set it."""
    loaded = load_recipe(recipe, sets or [])
    lines = [
        (f"{path}: {json.dumps(value, ensure_ascii=False)}", loaded.describe(path))
        for path, value in loaded.values().items()
    ]
    width = min(max(len(text) for text, _ in lines), 72)
    for text, where in lines:
        _print(f"{text:{width}}  # {where}")


@app.command()
def check(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also read every finished artifact and compare its hashes.")
    ] = False,
) -> None:
    """Check the recipe, its local files and, on request, its artifacts."""
    planner = _planner(recipe, sets, runs)
    steps = planner.plan()
    _print(f"{recipe} is valid: {len(steps)} stages")
    for step in steps:
        if artifacts and step.finished:
            made = step.finished
            manifest.verify(made.folder, made.manifest, planner.mend(step.spec.name), contents=True)
            _print(f"{step.spec.name}: {len(made.manifest.files)} files are as they were written")


@app.command()
def status(recipe: RecipeOption = QUICKSTART, sets: SetOption = None, runs: RunsOption = RUNS) -> None:
    """Show each stage's state, key, time and size."""
    _console().print(status_table(_planner(recipe, sets, runs)))


@app.command()
def report(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    against: Annotated[
        str | None,
        typer.Option("--against", help='Compare with the recipe under these values besides: "rounds=1 seed=0".'),
    ] = None,
) -> None:
    """Write the report of the finished stages, one HTML file."""
    _report(_planner(recipe, sets, runs), against)


def _report(planner: Planner, against: str | None = None) -> None:
    from pipeline.report.build import build_report

    path = planner.folder / REPORT
    loaded, other = planner.loaded, None
    if against is not None:
        other = _planner(loaded.path, [*loaded.sets, against], planner.folder.parent).summary()
    verdict = build_report(planner.summary(), path, other, against or "")
    if verdict:
        _print(verdict)
    _print(f"report: {path}")


@app.command()
def chat(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="base, sft, ppo (of the last round), ppo-1, ...; two talk side by side."),
    ] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
) -> None:
    """Talk to a model of the run, or to two side by side."""
    summary = _planner(recipe, sets, runs).summary()
    talk = importlib.import_module("stages.chat").chat
    talk(
        summary,
        models or ["ppo"],
        device=resolve(summary.loaded),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )


@app.command()
def publish(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be uploaded.")] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Over publish.private of the recipe.")
    ] = None,
) -> None:
    """Upload the exported model and, when named, the rankings to the Hub."""
    summary = _planner(recipe, sets, runs).summary()
    for upload in hub.uploads(summary, private):
        _print(upload.describe() if dry_run else f"uploading {len(upload.files)} files to {upload.repository}")
        if not dry_run:
            _print(f"published: {upload.send()}")


@app.command()
def clean(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    everything: Annotated[bool, typer.Option("--all", help="All of the recipe's runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the runs that the recipe's present values do not use."""
    planner = _planner(recipe, sets, runs)
    found = cleaning.leftovers(planner, everything)
    if not found:
        _print("nothing to remove")
        return
    for leftover in found:
        _print(f"{readable_bytes(leftover.size):>10}  {leftover.path}")
    if yes or typer.confirm("Remove them?"):
        _print(f"freed {readable_bytes(cleaning.remove(planner, found, _print))}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
