"""What the commands share: the application, its options, and how they print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline.config import shipped
from pipeline.config.load import load_recipe
from pipeline.engine import launch as launching
from pipeline.engine import registry
from pipeline.engine.boundary import translate
from pipeline.engine.plan import Planner
from pipeline.errors import Interrupted, RecipeError, TutelageError


def home(path: Path | None) -> Path | None:
    """The path with `~` at its start as the home folder: shells leave it in `--runs=~/x` and in variables."""
    return path and path.expanduser()


_RECIPE = "The recipe's YAML file, or the name of a shipped recipe."
RecipeOption = Annotated[Path, typer.Option("--recipe", "-r", callback=home, help=_RECIPE)]
OptionalRecipe = Annotated[
    Path | None, typer.Option("--recipe", "-r", callback=home, help=_RECIPE, show_default="quickstart")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help='A value over the recipe\'s: "ppo.kl.target=8 seed=1". Repeatable.'),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="TUTELAGE_RUNS", callback=home, help="The folder where runs are kept."),
]
TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STAGE|RECIPE",
        help="A stage, as `tutelage plan` names them (ppo-2 in the second round), or a shipped recipe. "
        "All stages when left out.",
    ),
]

ProcessesOption = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Processes that share sft, reward and ppo, one a card.")
]

QUICKSTART = Path("quickstart")
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


def target(name: str | None, recipe: Path | None) -> tuple[str | None, Path]:
    """The stage and the recipe that the argument of `run` and `plan` selects.

    Args:
        name: a stage of `recipe`; or, where `recipe` is None, a shipped recipe or a YAML file. A stage wins.
    """
    if name is None or registry.is_step(name):
        return name, recipe or QUICKSTART
    if name not in shipped.recipes() and Path(name).suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"there is no stage or shipped recipe called {name}",
            hint=f"stages are {', '.join(registry.STAGES)}; recipes are {', '.join(shipped.recipes())}",
        )
    if recipe is not None:
        raise RecipeError(
            f"{name} and --recipe {recipe} both name a recipe",
            hint=f"drop one of the two; for one stage, write its name in the place of {name}",
        )
    return None, Path(name).expanduser()


def planner_of(recipe: Path, sets: list[str] | None, runs: Path) -> Planner:
    return Planner(load_recipe(recipe, sets or []), runs)


def console() -> Console:
    """The terminal; what is not one gets long lines rather than folded ones."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def echo(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)
