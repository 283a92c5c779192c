"""What the commands share: the application, options, and printing."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline import invocation, machine
from pipeline.config import shipped
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine import launch as launching
from pipeline.engine import registry
from pipeline.engine.boundary import translate
from pipeline.engine.plan import Planner, StagePlan, StageRun
from pipeline.engine.progress import print_line
from pipeline.errors import Interrupted, RecipeError, TutelageError


def home(path: Path | None) -> Path | None:
    """Expands a leading `~`, which shells leave in `--runs=~/x` and in variables."""
    return path and path.expanduser()


def _is_set(context: typer.Context, name: str | None) -> bool:
    """Whether the user set an option, rather than leaving its default."""
    source = context.get_parameter_source(name or "")
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _path(context: typer.Context, parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """`home`, and remembers what the user gave."""
    path = home(value)
    if path is not None and _is_set(context, parameter.name):
        invocation.remember(**{str(parameter.name): str(path)})
    return path


def _sets(value: list[str] | None) -> list[str] | None:
    invocation.remember(sets=tuple(value or ()))
    return value


def _processes(value: int | None) -> int | None:
    invocation.remember(processes=value)
    return value


def _target(value: str | None) -> str | None:
    if value:
        invocation.remember(**{"stage" if registry.is_step(value) else "recipe": value})
    return value


def _flag(parameter: typer.CallbackParam, value: bool) -> bool:
    if value:
        invocation.remember(flags=(*invocation.flags(), parameter.opts[0]))
    return value


def _complete_recipe(incomplete: str) -> list[str]:
    """For the shell: shipped recipes, YAML files, and folders."""
    paths = sorted(Path().glob(f"{glob.escape(incomplete)}*"))
    files = [f"{path}/" if path.is_dir() else str(path) for path in paths]
    names = [name for name in shipped.recipes() if name.startswith(incomplete)]
    return [*names, *(file for file in files if file.endswith(("/", ".yaml", ".yml")))]


def _complete_target(incomplete: str) -> list[str]:
    stages = [name for name in registry.STAGES if name.startswith(incomplete)]
    return [*stages, *_complete_recipe(incomplete)]


_RECIPE = "The recipe's YAML file, or the name of a shipped recipe."
RecipeOption = Annotated[
    Path, typer.Option("--recipe", "-r", callback=_path, help=_RECIPE, autocompletion=_complete_recipe)
]
OptionalRecipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        "-r",
        callback=_path,
        help=_RECIPE,
        show_default="quickstart",
        autocompletion=_complete_recipe,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        callback=_sets,
        help='Override values of the recipe: "ppo.kl.target=4 seed=1". Repeatable.',
    ),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="TUTELAGE_RUNS", callback=_path, help="The folder of all runs."),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", callback=_flag, help="Run the stage (or all stages) even if up to date.")
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", callback=_flag, help="Continue where a stage's checks refuse; this is recorded."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", callback=_flag, help="Wait if another process is working on the same stage.")
]
TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STAGE|RECIPE",
        callback=_target,
        autocompletion=_complete_target,
        help="A stage as `tutelage plan` lists it (ppo-2 is PPO of the second round), or a shipped recipe. "
        "Default: all stages.",
    ),
]

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--nproc", min=1, callback=_processes, help="Processes that share the training stages, one per GPU."
    ),
]

VERSIONS = ("tutelage", "python", "torch", "trl", "transformers", "peft", "accelerate")
"""What `--version` prints."""

UsageError: Any = typer.BadParameter.__mro__[1]
"""Base class of the command line's own errors, which typer does not export."""

QUICKSTART = Path("quickstart")
RUNS = Path("runs")


def _without_bool(parameters: Any) -> Any:
    """Typer prints the type "<bool>" beside flags in the help, as if they took a value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.display_type = parameter.display_type_rich = lambda ctx: ""
    return parameters


class _Commands(TyperGroup):
    """Prints errors that a user can fix without a traceback; other exceptions are bugs and keep it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """As registered, but for those that run a recipe, which come first."""
        return sorted(super().list_commands(ctx), key=lambda name: name not in ("run", "round"))

    def get_params(self, ctx: Any) -> Any:
        return _without_bool(super().get_params(ctx))

    def get_command(self, ctx: Any, name: str) -> Any:
        command = super().get_command(ctx, name)
        if command is not None:
            _without_bool(command.get_params(ctx))
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        invocation.begin(name)
        if name not in self.commands and not name.startswith("-"):
            raise _unknown_command(name, list(self.commands))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            problem: TutelageError = Interrupted("interrupted")
        except UsageError as error:
            problem = _wrong_usage(error, ctx.invoked_subcommand or "")
        except Exception as error:
            translated = translate(error, f"tutelage {ctx.invoked_subcommand or ''}".strip())
            if translated is None:
                raise
            problem = translated
        if not launching.report_failure(problem):
            Console(stderr=True).print(f"{problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(problem.exit_code)


def _unknown_command(name: str, commands: list[str]) -> RecipeError:
    if registry.is_step(name) or name in shipped.recipes():
        kind = "a stage" if registry.is_step(name) else "a recipe"
        return RecipeError(
            f"there is no command {name}; it is {kind}", hint=f"run `{invocation.command('run', name)}`"
        )
    near = difflib.get_close_matches(name, commands, n=1)
    return RecipeError(
        f"there is no command {name}",
        hint=f"did you mean {near[0]}?" if near else f"commands are {', '.join(commands)}",
    )


def _wrong_usage(error: Any, name: str) -> RecipeError:
    """An option or argument that is missing, unknown or has a wrong value."""
    parameter = getattr(error, "param", None)
    if parameter is not None and parameter.param_type_name == "argument" and "issing" in error.format_message():
        wanted = invocation.command(name, str(parameter.name).upper())
        return RecipeError(f"{name} needs {parameter.name}", hint=f"write `{wanted}`")
    return RecipeError(
        f"{name}: {error.format_message().rstrip('.')}".removeprefix(": "),
        hint=f"`{invocation.program()} {name} --help` lists the options",
    )


app = typer.Typer(
    cls=_Commands,
    help="RLHF on one GPU: reinforcement learning from human rankings, with PPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        versions = machine.package_versions()
        echo("\n".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None: ...


AfterRun = Callable[[Planner, bool], None]

AFTER_RUN: list[AfterRun] = []


def after_run(function: AfterRun) -> AfterRun:
    """Registers `function(planner, changed)`. `tutelage run` calls it when every stage of a recipe is finished;
    `changed` says whether anything ran or the recipe now points to other runs."""
    AFTER_RUN.append(function)
    return function


RecipeCheck = Callable[[LoadedRecipe, Callable[[str], None]], Sequence[TutelageError]]

RECIPE_CHECKS: list[RecipeCheck] = []


def recipe_check(function: RecipeCheck) -> RecipeCheck:
    """Registers `function(loaded, say)`. `tutelage check` calls it; it says what it read, and returns what is
    wrong."""
    RECIPE_CHECKS.append(function)
    return function


PlanNotes = Callable[[LoadedRecipe, StageRun | None], Sequence[str]]

PLAN_NOTES: list[PlanNotes] = []


def plan_notes(function: PlanNotes) -> PlanNotes:
    """Registers `function(loaded, data)`, whose lines `tutelage plan` prints below its tables. `data`: the finished
    `data` stage; None if it is not finished."""
    PLAN_NOTES.append(function)
    return function


StepNotes = Callable[[LoadedRecipe, Sequence[StagePlan]], Sequence[str]]

STEP_NOTES: list[StepNotes] = []


def step_notes(function: StepNotes) -> StepNotes:
    """Registers `function(loaded, steps)`, whose lines `tutelage plan` and `check` print last."""
    STEP_NOTES.append(function)
    return function


def target(name: str | None, recipe: Path | None) -> tuple[str | None, Path]:
    """The stage and the recipe that the argument of `run` and `plan` selects.

    Args:
        name: a stage of `recipe`; or, where `recipe` is None, a shipped recipe or a YAML file. A stage wins.
    """
    if name is None or registry.is_step(name):
        return name, recipe or QUICKSTART
    if name not in shipped.recipes() and Path(name).suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(name, [*registry.STAGES, *shipped.recipes()], n=1)
        raise RecipeError(
            f"there is no stage or shipped recipe called {name}",
            hint=f"did you mean {near[0]}?"
            if near
            else f"stages are {', '.join(registry.STAGES)}; recipes are {shipped.listed()}",
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
    """The terminal. Output that goes elsewhere is not wrapped at 80 columns."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def echo(text: str) -> None:
    print_line(console(), text)
