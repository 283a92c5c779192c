"""The command `tutelage`: runs the pipeline, says what it would do and what it did."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from typer.core import TyperGroup

from pipeline import clean as cleaning
from pipeline import environment, manifest, registry
from pipeline import launch as launching
from pipeline.boundary import translate
from pipeline.config.load import load_recipe
from pipeline.config.rank import AppConfig
from pipeline.config.rules import app_conflicts
from pipeline.device import resolve
from pipeline.errors import Interrupted, RecipeError, TutelageError
from pipeline.files import readable_bytes
from pipeline.hub import send, uploads
from pipeline.memory.forecast import Forecast
from pipeline.plan import Planner, StagePlan, StageRun
from pipeline.progress import Display
from pipeline.ranks import Ranks
from pipeline.rounds import step_name
from pipeline.runner import Runner, terminate_as_interrupt
from pipeline.stage import RANKINGS_DATABASE
from pipeline.tables import memory_table, plan_table, proposals, status_table

REPORT = "report.html"


def _home(path: Path) -> Path:
    """The path with `~` at its start as the home folder: shells leave it in `--runs=~/x` and in variables."""
    return path.expanduser()


RecipeOption = Annotated[Path, typer.Option("--recipe", "-r", callback=_home, help="The recipe's YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help='A value over the recipe\'s: "ppo.kl.target=8 seed=1". Repeatable.'),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="TUTELAGE_RUNS", callback=_home, help="The folder where runs are kept."),
]
StageArgument = Annotated[
    str | None,
    typer.Argument(help=f"One of {', '.join(registry.STAGES)}; ppo-2 in the second round. All when left out."),
]

ProcessesOption = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Processes that share sft, reward and ppo, one a card.")
]
OverlapOption = Annotated[int | None, typer.Option(min=1, help="How many annotators each item gets.")]
HostOption = Annotated[str | None, typer.Option(help="Address to serve at; 127.0.0.1 unless given.")]
PortOption = Annotated[int | None, typer.Option(help="Port to serve at; 0 takes a free one.")]
UrlOption = Annotated[str | None, typer.Option(help="How annotators reach the page, if not by host and port.")]


class Whose(StrEnum):
    human = "human"
    simulated = "simulated"


QUICKSTART = Path("recipes/quickstart.yaml")
RUNS = Path("runs")


class _Commands(TyperGroup):
    """Prints what a user can mend without a traceback; anything else is a bug and keeps it."""

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
    nproc: ProcessesOption = None,
) -> None:
    """Run a stage and what it needs, or all of them and the report. What is up to date is skipped."""
    loaded = load_recipe(recipe, sets or [])
    again = [] if not fresh else [stage] if stage else list(registry.steps(loaded.recipe))
    if (nproc or 1) > 1 and "WORLD_SIZE" not in os.environ:
        steps = Planner(loaded, runs, again).plan(stage)
        if any(step.spec.parallel and step.finished is None for step in steps):
            with terminate_as_interrupt():
                launching.launch(nproc or 1, _arguments(stage, recipe, sets, runs, fresh, force, wait, nproc))
            return
        nproc = 1  # nothing to share
    launching.end_with_launcher()
    ranks = Ranks.join(nproc)
    runner = Runner(loaded, runs, display=Display(_console()), fresh=again, force=force, wait=wait, ranks=ranks)
    if ranks.rank:
        runner.follow()
        return
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
    ranks.finish()


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
    """`run`'s command line again, for the processes that share it."""
    flags = {"--fresh": fresh, "--force": force, "--wait": wait}
    return [
        *("run", *([stage] if stage else []), "--recipe", str(recipe), "--runs", str(runs), "--nproc", str(nproc)),
        *(name for name, given in flags.items() if given),
        *(part for text in sets or [] for part in ("--set", text)),
    ]


@app.command("round")
def one_more(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    force: Annotated[bool, typer.Option("--force", help="Go on where a stage's own checks refuse.")] = False,
    nproc: ProcessesOption = None,
) -> None:
    """Run one more round of collect, rank, reward and ppo than is finished, then eval, export and the report."""
    given = sets or []
    finished = 0
    while _is_finished(_planner(recipe, [*given, f"rounds={finished + 1}"], runs), finished + 1):
        finished += 1
    rounds = f"rounds={finished + 1}"
    _print(f"{finished} round{'s are' if finished != 1 else ' is'} finished; now {rounds}")
    run(recipe=recipe, sets=[*given, rounds], runs=runs, force=force, nproc=nproc)
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
    """Say which stages would run, and why; what memory and time each takes, and what would make it fit."""
    planner = _planner(recipe, sets, runs)
    steps = planner.plan(stage)
    planner.check_model(_base(steps))
    _console().print(plan_table(steps))
    forecast = Forecast.of(planner.loaded, planner.latest("data"))
    _print("")
    _console().print(memory_table(forecast, planner))
    for line in proposals(forecast):
        _print(line)


def _base(steps: Sequence[StagePlan]) -> StageRun | None:
    """The finished `base` stage, if it is."""
    return next((step.finished for step in steps if step.spec.name == "base"), None)


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
    planner.check_model(_base(steps))
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


@app.command("compare")
def compare_two(
    first: Annotated[
        Path, typer.Argument(callback=_home, help="A run: its folder, its report.json or its report.html.")
    ],
    second: Annotated[Path, typer.Argument(callback=_home, help="Another.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_home, help="Where the page goes.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Compare two runs, from their reports: what differs in the recipes and in the results, with intervals."""
    from pipeline.report.build import compare_reports

    _print(compare_reports(first, second, out))
    _print(f"comparison: {out}")


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
def judge(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    annotators: Annotated[str, typer.Option(help="Who judges: ana,ben. Else those of rank.app.")] = "",
    overlap: OverlapOption = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Held-out prompts, of those evaluated.")] = 100,
    host: HostOption = None,
    port: PortOption = None,
    url: UrlOption = None,
) -> None:
    """Have people compare PPO's answers with SFT's, blind; the report then says what they found."""
    planner = _planner(recipe, sets, runs)
    config = _asked(planner.recipe.rank.app, annotators, overlap, host, port, url, labels=[], ratings=False)
    display = Display(_console())
    compare = importlib.import_module("ranking.judge").judge
    compare(
        planner.summary(),
        config,
        prompts=prompts,
        say=display.say,
        progress=display.open,
        database=RANKINGS_DATABASE,
    )
    _report(planner)


@app.command()
def annotate(
    file: Annotated[Path, typer.Argument(callback=_home, help='JSONL of {"prompt", "completions"[, "models"]}.')],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_home, help="Where the rankings go, as JSONL.")],
    annotators: Annotated[str, typer.Option(help="Who ranks: ana,ben.")],
    overlap: OverlapOption = 1,
    repeats: Annotated[float, typer.Option(help="Share of items given again, unannounced.")] = 0.0,
    ratings: Annotated[bool, typer.Option("--ratings", help="Ask for ratings from 1 to 7 as well.")] = False,
    guidelines: Annotated[str, typer.Option(help="What to judge by.")] = "",
    host: HostOption = None,
    port: PortOption = None,
    url: UrlOption = None,
) -> None:
    """Have people rank the answers in a file. Without a recipe; the rankings can be `data.rankings` of one."""
    values = {"repeats": repeats, "ratings": ratings, "guidelines": guidelines}
    config = _asked(AppConfig(), annotators, overlap, host, port, url, **values)
    display = Display(_console())
    rank_file = importlib.import_module("ranking.files").rank_file
    count = rank_file(file, out, config, say=display.say, progress=display.open)
    _print(f"{count} rankings: {out}")


def _asked(
    app_config: AppConfig,
    annotators: str,
    overlap: int | None,
    host: str | None,
    port: int | None,
    url: str | None,
    **values: Any,
) -> AppConfig:
    """The section with what the command line says, checked as a recipe's would be."""
    names = [name.strip() for name in annotators.split(",") if name.strip()] or app_config.annotators
    given = {"annotators": names, "overlap": overlap, "host": host, "port": port, "url": url, **values}
    if overlap is None:
        given["overlap"] = min(app_config.overlap, max(1, len(names)))
    merged = {**asdict(app_config), **{name: value for name, value in given.items() if value is not None}}
    try:
        config = TypeAdapter(AppConfig).validate_json(json.dumps(merged))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{first['loc'][0]}: {first['msg']}", mend="see the command's --help") from None
    for path, problem in app_conflicts(config):
        raise RecipeError(f"{path.rpartition('.')[2]} {problem}", mend="give --annotators ana,ben (and --overlap)")
    return config


@app.command()
def publish(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact files, sizes and cards; upload nothing.")
    ] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Over publish.private of the recipe.")
    ] = None,
) -> None:
    """Upload the model and, when named, the rankings to the Hub. After an interruption the same command goes on."""
    summary = _planner(recipe, sets, runs).summary()
    display = Display(_console())
    made = uploads.uploads(summary, display.open, private)
    if dry_run:
        for upload in made:
            _print(upload.describe())
        return
    for upload in made:
        _print(f"published: {send.send(upload, display.open, display.say)}")
    if address := send.collect(summary.loaded.recipe.publish, made):
        _print(f"collection: {address}")


@app.command("export-rankings")
def export_rankings(
    folder: Annotated[Path, typer.Argument(callback=_home, help="Where the data set is written.")],
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    only: Annotated[
        Whose | None, typer.Option("--only", help="Only what people made, or what they did not.")
    ] = None,
) -> None:
    """Write the run's rankings as a data set for the Hub: Parquet files and a card. People become pseudonyms."""
    summary = _planner(recipe, sets, runs).summary()
    with Display(_console()).open("export-rankings"):
        made = uploads.export_rankings(summary, folder, None if only is None else only.value)
    counts = ", ".join(f"{count:,} {split}" for split, count in made.splits.items())
    _print(f"{folder}: {counts}, {len(made.files)} files")


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
    people = cleaning.kept(planner)
    if people:
        _print(f"kept, since people made it: {', '.join(str(path) for path in people)}")
    if not found:
        _print("nothing to remove")
        return
    for leftover in found:
        _print(f"{readable_bytes(leftover.size):>10}  {leftover.path}")
    if yes or typer.confirm("Remove them?"):
        _print(f"freed {readable_bytes(cleaning.remove(planner, found, _print))}")


def main() -> None:
    environment.prepare()
    try:
        app()
    except Exception as bug:
        if not launching.tell(bug):
            raise
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
