"""The commands that use a finished reward model: score, evaluate-reward, export-reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import invocation
from pipeline.cli.app import (
    QUICKSTART,
    RUNS,
    RecipeOption,
    RunsOption,
    SetOption,
    app,
    console,
    echo,
    home,
    planner_of,
)
from pipeline.config.data import TableConfig
from pipeline.device import available_device, resolve
from pipeline.engine.progress import Display
from pipeline.errors import RecipeError
from pipeline.files import need_file, need_folder, write_atomic
from pipeline.wording import counted, listing

if TYPE_CHECKING:
    from stages.score.model import RewardScorer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A reward model instead of the recipe's: the folder of a reward artifact or of an exported model, or "
        "the Hub id of a sequence classifier with one label.",
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="The commit of a Hub id.")]
SplitOption = Annotated[str, typer.Option(help="Of a Hub data set, or of a folder by save_to_disk.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None,
    typer.Option(help="Where to compute.", show_default="the recipe's; with --model auto"),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Completions scored at once.")]
CriterionOption = Annotated[
    str | None,
    typer.Option(help="Whose reward model, where the rankings have several criteria (data.rankings.criteria)."),
]
AggregateOption = Annotated[
    Literal["mean", "min", "uncertainty"] | None,
    typer.Option(help="How an ensemble's scores are combined.", show_default="ppo.reward; with --model mean"),
]


@app.command()
def score(
    file: Annotated[
        str | None,
        typer.Argument(help="A JSONL, CSV, TSV, JSON or Parquet file, or hub://owner/name@revision."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=home, help="The file to write: .jsonl, .csv, .tsv or .parquet."),
    ] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    model: ModelOption = None,
    revision: RevisionOption = None,
    prompt: Annotated[
        str, typer.Option(help="The column of prompts.", show_default="prompt, if there is one")
    ] = "",
    completions: Annotated[
        str,
        typer.Option(
            help="The column of completions (text, messages, or a list of them), or several: a,b.",
            show_default="completions, completion, responses, response, chosen and rejected, or messages",
        ),
    ] = "",
    prefix: Annotated[str, typer.Option(help="Put before the names of the columns that are added.")] = "",
    split: SplitOption = "train",
    limit: LimitOption = None,
    criterion: CriterionOption = None,
    aggregate: AggregateOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 64,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again, and replace the file.")] = False,
) -> None:
    """Score the completions in a table with the reward model, as PPO would. After an interruption the same command
    continues."""
    from stages.score import output, run

    if file is None or out is None:
        needs = {"a table of completions": file, "--out": out}
        raise RecipeError(
            f"score needs {listing([name for name, value in needs.items() if value is None])}",
            hint=f"for example `{invocation.command('score', 'answers.jsonl', '--out', 'scored.jsonl')}`",
        )
    display = Display(console())
    output.check_path(out, fresh=fresh)
    table = TableConfig(path=file, split=split, limit=limit)
    columns = [name.strip() for name in completions.split(",") if name.strip()]
    layout = run.layout_of(table, prompt, columns, prefix)
    total = run.count(table, layout, display.open)
    loaded = load(recipe, sets, runs, model, revision, criterion, aggregate, device, batch_size)
    describe(loaded)
    settings = {"table": run.fingerprint(table), "model": loaded.identity, "columns": layout.added(ensemble=True)}
    scored = run.score_table(
        table,
        layout,
        loaded,
        output.Output(out, settings | {"completions": layout.completions, "prompt": layout.prompt}),
        display.open,
        total=total,
        fresh=fresh,
    )
    earlier = f" ({scored.before:,} by an earlier run)" if scored.before else ""
    echo(f"{out}: {counted(scored.rows, 'row')}{earlier}, {counted(scored.completions, 'completion')}")
    if loaded.shortened:
        echo(
            f"{counted(loaded.shortened, 'text')} lost their beginning, as in PPO: the reward model reads "
            f"{loaded.longest:,} tokens"
        )


@app.command("evaluate-reward")
def evaluate_reward(
    file: Annotated[
        str | None,
        typer.Argument(help="A file of RewardBench 2, of RM-Bench, or of pairs; or hub://owner/name@revision."),
    ] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    model: ModelOption = None,
    revision: RevisionOption = None,
    form: Annotated[
        Literal["rewardbench-2", "rm-bench", "pairs"] | None,
        typer.Option("--format", help="The file's format.", show_default="by its first row"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", callback=home, help="A JSON file for the results.")
    ] = None,
    split: SplitOption = "train",
    limit: LimitOption = None,
    criterion: CriterionOption = None,
    aggregate: AggregateOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 64,
) -> None:
    """Evaluate the reward model on a benchmark, with the accuracies of the benchmark's own scorer."""
    from stages.score import evaluate

    if file is None:
        raise RecipeError(
            "evaluate-reward needs the file of a benchmark",
            hint=f"for example `{invocation.command('evaluate-reward', 'rewardbench2.jsonl')}`",
        )
    if out is not None:
        need_file(out, "results.json", "give another file with --out")
    table = TableConfig(path=file, split=split, limit=limit)
    form = form or evaluate.first_format(table)
    loaded = load(recipe, sets, runs, model, revision, criterion, aggregate, device, batch_size)
    describe(loaded)
    lines = evaluate.evaluate(table, loaded, Display(console()).open, form)
    width = max(len(line.name) for line in lines)
    echo(f"{form}: {file}")
    for line in lines:
        interval = "" if line.low is None else f"  ({line.low:.4f} to {line.high:.4f})"
        echo(f"  {line.name:<{width}}  {line.value:.4f}  {counted(line.rows, 'row'):>12}{interval}")
    if out is not None:
        write_atomic(out, json.dumps(evaluate.as_json(form, loaded, lines), indent=1) + "\n")
        echo(f"results: {out}")


@app.command("export-reward")
def export_reward(
    folder: Annotated[Path | None, typer.Argument(callback=home, help="The folder to write.")] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    member: Annotated[
        int | None, typer.Option(min=0, help="Which member of an ensemble.", show_default="publish.reward_member")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Whose reward model, where the rankings have several criteria.",
            show_default="publish.reward_criterion",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights.", show_default="export.dtype"),
    ] = None,
    merge_quantized: Annotated[
        bool, typer.Option("--merge-quantized", help="Merge an adapter with a base in 4 or 8 bits anyway.")
    ] = False,
) -> None:
    """Write the reward model as a sequence classifier with one label, with a card, for transformers, vLLM, TEI."""
    from stages.publish import uploads

    if folder is None:
        raise RecipeError(
            "export-reward needs a folder to write",
            hint=f"for example `{invocation.command('export-reward', 'my-reward-model')}`",
        )
    need_folder(folder, "the reward model", "name another folder")
    summary = planner_of(recipe, sets, runs).summary()
    options = {"member": member, "dtype": dtype, "merge_quantized": merge_quantized or None}
    with Display(console()).open("export-reward"):
        exported = uploads.export_reward_model(
            summary,
            folder,
            summary.loaded.recipe.publish.reward or folder.name,
            resolve(summary.loaded),
            criterion=criterion,
            **{name: value for name, value in options.items() if value is not None},
        )
    if exported.difference.other_model:
        echo(f"merged with its quantised base, it is another model: scores are {exported.difference.deviation}")
    if not exported.template_is_exact:
        echo("warning: apply_chat_template of this tokenizer does not give the ids of training (see its README.md)")
    echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def load(
    recipe: Path,
    sets: list[str] | None,
    runs: Path,
    model: str | None,
    revision: str | None,
    criterion: str | None,
    aggregate: Literal["mean", "min", "uncertainty"] | None,
    device: str | None,
    batch_size: int,
) -> RewardScorer:
    """The reward model that the options name."""
    from stages.score import source

    if model is not None:
        loaded = source.from_place(
            model, revision, available_device(device or "auto"), batch_size, aggregate, criterion
        )
    else:
        summary = planner_of(recipe, sets, runs).summary()
        where = resolve(summary.loaded) if device is None else available_device(device)
        loaded = source.from_run(summary, where, batch_size, aggregate, criterion=criterion)
    if aggregate not in (None, "mean") and loaded.size == 1:
        raise RecipeError(f"--aggregate {aggregate}: the reward model has one member", hint="drop --aggregate")
    return loaded


def describe(model: RewardScorer) -> None:
    """Prints which reward model scores, and what the user should know about it."""
    members = f", {model.size} members ({model.aggregation.aggregate})" if model.size > 1 else ""
    echo(f"reward model: {model.name}{members}")
    for note in model.notes:
        echo(f"warning: {note}")
