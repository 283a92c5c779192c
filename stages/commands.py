"""The commands that use finished stages: report, compare, chat, judge, annotate, publish, export-rankings.

They import what they need when they run; only `chat` needs torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from pipeline import invocation
from pipeline.cli.app import (
    QUICKSTART,
    RUNS,
    RecipeOption,
    RunsOption,
    SetOption,
    after_run,
    app,
    console,
    echo,
    home,
    planner_of,
)
from pipeline.config.rank import AppConfig
from pipeline.config.rules import app_conflicts
from pipeline.device import resolve
from pipeline.engine.plan import Planner
from pipeline.engine.progress import Display
from pipeline.engine.stage import RANKINGS_DATABASE
from pipeline.errors import RecipeError
from pipeline.files import need_file, need_folder
from pipeline.wording import listing

REPORT = "report.html"

OverlapOption = Annotated[int | None, typer.Option(min=1, help="Annotators per item.")]
HostOption = Annotated[str | None, typer.Option(help="Address to serve at; default 127.0.0.1.")]
PortOption = Annotated[int | None, typer.Option(help="Port to serve at; 0 takes a free one.")]
UrlOption = Annotated[str | None, typer.Option(help="Address in annotators' links, if not host and port.")]


@app.command()
def report(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    against: Annotated[
        str | None,
        typer.Option("--against", help='Compare with the same recipe under other values: "rounds=1 seed=0".'),
    ] = None,
) -> None:
    """Write the report of the finished stages, as one HTML file."""
    write_report(planner_of(recipe, sets, runs), against)


@after_run
def report_of_run(planner: Planner, changed: bool) -> None:
    """Writes the report at the end of `tutelage run`."""
    path = planner.folder / REPORT
    if changed or not path.exists() or f'<html lang="{planner.recipe.report.language}">' not in _start(path):
        write_report(planner)
    else:
        echo(f"report: {path}")


def _start(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(200)


def interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def write_report(planner: Planner, against: str | None = None) -> None:
    from stages.report.build import build_report

    path = planner.folder / REPORT
    loaded, other = planner.loaded, None
    if against is not None:
        other = planner_of(loaded.path, [*loaded.sets, against], planner.folder.parent).summary()
    verdict = build_report(planner.summary(), path, other, against or "")
    if verdict:
        echo(verdict)
    echo(f"report: {path}")


@app.command("compare")
def compare_two(
    first: Annotated[
        Path, typer.Argument(callback=home, help="A run: its folder, its report.json or its report.html.")
    ],
    second: Annotated[Path, typer.Argument(callback=home, help="The other run.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=home,
            help="The page to write.",
            show_default="comparisons/ beside the first run",
        ),
    ] = None,
) -> None:
    """Compare two runs from their reports: differences in the recipes and in the results, with intervals."""
    from stages.report.build import compare_reports, run_name

    if out is None:
        folder = first.resolve() if first.is_dir() else first.resolve().parent
        out = folder.parent / "comparisons" / f"{run_name(first)}-{run_name(second)}.html"
        out = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    need_file(out, "comparison.html", "give another file with --out")
    echo(compare_reports(first, second, out))
    echo(f"comparison: {out}")


@app.command()
def chat(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="base, sft, ppo (of the last round), ppo-1, ...; several answer side by side."),
    ] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many most likely tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=1e-6, max=1.0, help="Draw from the tokens that make up this share.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 128,
) -> None:
    """Chat with a model of the run, or with several side by side. An empty line, exit or Ctrl-D quits."""
    from stages import chat as chatting

    summary = planner_of(recipe, sets, runs).summary()
    chatting.chat(
        summary,
        chatting.choose_models(summary, models or ["ppo"]),
        device=resolve(summary.loaded),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
    )


@app.command()
def judge(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    annotators: Annotated[str, typer.Option(help="Who judges: ana,ben. Default: the annotators of rank.app.")] = "",
    overlap: OverlapOption = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Evaluated prompts to judge.")] = 100,
    host: HostOption = None,
    port: PortOption = None,
    url: UrlOption = None,
) -> None:
    """Have people compare PPO's answers with SFT's, or the base model's without SFT, blind, for the report."""
    planner = planner_of(recipe, sets, runs)
    if not (annotators or planner.recipe.rank.app.annotators):
        raise RecipeError(
            "judge needs the people who compare the answers",
            hint=f"name them: `{invocation.command('judge', '--annotators', 'ana,ben')}`",
        )
    config = _app_config(planner.recipe.rank.app, annotators, overlap, host, port, url, labels=[], ratings=False)
    display = Display(console())
    from ranking.judge import judge as compare

    compare(
        planner.summary(),
        config,
        prompts=prompts,
        say=display.say,
        database=RANKINGS_DATABASE,
    )
    write_report(planner)


@app.command()
def annotate(
    file: Annotated[
        Path | None, typer.Argument(callback=home, help='JSONL of {"prompt", "completions"[, "models"]}.')
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", callback=home, help="The JSONL file for the rankings.")
    ] = None,
    annotators: Annotated[str, typer.Option(help="Who ranks: ana,ben.")] = "",
    overlap: OverlapOption = 1,
    repeats: Annotated[float, typer.Option(help="Share of items that come again, unannounced.")] = 0.0,
    ratings: Annotated[bool, typer.Option("--ratings", help="Ask for ratings from 1 to 7 as well.")] = False,
    guidelines: Annotated[str, typer.Option(help="Instructions for annotators.")] = "",
    host: HostOption = None,
    port: PortOption = None,
    url: UrlOption = None,
) -> None:
    """Have people rank the answers in a file, without a recipe. The result can be a recipe's `data.rankings`."""
    if file is None or out is None or not annotators:
        needs = {"a file of answers": file, "--annotators": annotators, "--out": out}
        example = invocation.command(
            "annotate", "answers.jsonl", "--annotators", "ana,ben", "--out", "rankings.jsonl"
        )
        raise RecipeError(
            f"annotate needs {listing([name for name, value in needs.items() if not value])}",
            hint=f'for example `{example}`; a line of answers.jsonl is {{"prompt": "...", "completions": ["...", '
            '"..."]}',
        )
    values = {"repeats": repeats, "ratings": ratings, "guidelines": guidelines}
    config = _app_config(AppConfig(), annotators, overlap, host, port, url, **values)
    display = Display(console())
    from ranking.files import rank_file

    need_file(out, "rankings.jsonl", "give another file with --out")
    count = rank_file(file, out, config, say=display.say)
    echo(f"{count} rankings: {out}")


def _app_config(
    app_config: AppConfig,
    annotators: str,
    overlap: int | None,
    host: str | None,
    port: int | None,
    url: str | None,
    **values: Any,
) -> AppConfig:
    """The `rank.app` section with the values of the command line, checked like a recipe's."""
    names = [name.strip() for name in annotators.split(",") if name.strip()] or app_config.annotators
    values_set = {"annotators": names, "overlap": overlap, "host": host, "port": port, "url": url, **values}
    if overlap is None:
        values_set["overlap"] = min(app_config.overlap, max(1, len(names)))
    merged = {**asdict(app_config), **{name: value for name, value in values_set.items() if value is not None}}
    try:
        config = TypeAdapter(AppConfig).validate_json(json.dumps(merged))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{first['loc'][0]}: {first['msg']}", hint="see the command's --help") from None
    for path, problem in app_conflicts(config):
        raise RecipeError(f"{path.rpartition('.')[2]} {problem}", hint="set --annotators ana,ben (and --overlap)")
    return config


@app.command()
def publish(
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact files and sizes; upload nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the cards, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Overrides publish.private of the recipe.")
    ] = None,
) -> None:
    """Upload models and rankings to the Hub, after a list of the files and a question. After an interruption the
    same command continues."""
    from stages.publish import send, uploads

    summary = planner_of(recipe, sets, runs).summary()
    display = Display(console())
    planned = uploads.uploads(summary, display.open, private)
    if not dry_run:
        send.check_login(planned[-1].repository)
    for upload in planned:
        echo(upload.describe(verbose))
    if not verbose:
        echo(f"--verbose prints the cards ({uploads.CARD}), too")
    if dry_run:
        return
    if not yes:
        if not interactive():
            raise RecipeError(
                "publish asks before it uploads, and there is no terminal to ask on",
                hint=f"check the list above, then run `{invocation.again('--yes')}`",
            )
        typer.confirm("Upload?", abort=True)
    for upload in planned:
        echo(f"published: {send.send(upload, display.open, display.say)}")
    if address := send.collect(summary.loaded.recipe.publish, planned):
        echo(f"collection: {address}")


@app.command("export-rankings")
def export_rankings(
    folder: Annotated[Path | None, typer.Argument(callback=home, help="The folder to write.")] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    only: Annotated[
        Literal["human", "simulated"] | None,
        typer.Option("--only", help="Only rankings by people, or only simulated ones."),
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="By which criterion, where the rankings have several.")
    ] = None,
) -> None:
    """Write the run's rankings as a data set for the Hub: Parquet files and a card. Annotators become
    pseudonyms."""
    from stages.publish import uploads

    if folder is None:
        raise RecipeError(
            "export-rankings needs a folder to write",
            hint=f"for example `{invocation.command('export-rankings', 'my-rankings')}`",
        )
    need_folder(folder, "rankings", "name another folder")
    summary = planner_of(recipe, sets, runs).summary()
    with Display(console()).open("export-rankings"):
        exported = uploads.export_rankings(summary, folder, only, criterion)
    counts = ", ".join(f"{count:,} {split}" for split, count in exported.splits.items())
    echo(f"{folder}: {counts}, {len(exported.files)} files")
