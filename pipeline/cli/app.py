"""What the commands share: the application, its options, and how they print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline.config.load import load_recipe
from pipeline.engine import launch as launching
from pipeline.engine.boundary import translate
from pipeline.engine.plan import Planner
from pipeline.errors import Interrupted, TutelageError


def home(path: Path) -> Path:
    """The path with `~` at its start as the home folder: shells leave it in `--runs=~/x` and in variables."""
    return path.expanduser()


RecipeOption = Annotated[Path, typer.Option("--recipe", "-r", callback=home, help="The recipe's YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help='A value over the recipe\'s: "ppo.kl.target=8 seed=1". Repeatable.'),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="TUTELAGE_RUNS", callback=home, help="The folder where runs are kept."),
]
StageArgument = Annotated[
    str | None,
    typer.Argument(help="A stage, as `tutelage plan` names them; ppo-2 in the second round. All when left out."),
]

ProcessesOption = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Processes that share sft, reward and ppo, one a card.")
]

QUICKSTART = Path("recipes/quickstart.yaml")
RUNS = Path("runs")


class _Commands(TyperGroup):
    """Prints what a user can fix without a traceback; anything else is a bug and keeps it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            problem: TutelageError = Interrupted("interrupted")
        except Exception as error:
            found = translate(error, f"tutelage {ctx.invoked_subcommand or ''}".strip())
            if found is None:
                raise
            problem = found
        if not launching.tell(problem):
            Console(stderr=True).print(f"{problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(problem.exit_code)


app = typer.Typer(
    cls=_Commands,
    help="Reinforcement learning from human rankings on one commodity GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


AfterRun = Callable[[Planner, bool], None]

AFTER_RUN: list[AfterRun] = []


def after_run(function: AfterRun) -> AfterRun:
    """Registers `function(planner, changed)`, which `tutelage run` calls once every stage of a recipe is finished;
    `changed` is whether anything ran or another run was chosen."""
    AFTER_RUN.append(function)
    return function


def planner_of(recipe: Path, sets: list[str] | None, runs: Path) -> Planner:
    return Planner(load_recipe(recipe, sets or []), runs)


def console() -> Console:
    """The terminal; what is not one gets long lines rather than folded ones."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def echo(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)
