"""The command `tutelage serve`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pipeline.cli.app import QUICKSTART, RUNS, RecipeOption, RunsOption, SetOption, app, console, echo, planner_of
from pipeline.device import available_device, resolve
from pipeline.engine.progress import Display
from pipeline.errors import RecipeError


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="base, sft, ppo (of the last round), ppo-1, ...", show_default="all that are finished"),
    ] = None,
    recipe: RecipeOption = QUICKSTART,
    sets: SetOption = None,
    runs: RunsOption = RUNS,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Instead of a run's models: the folder of an exported model, or a Hub id."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The commit of a Hub id.")] = None,
    quantization: Annotated[
        Literal["none", "nf4", "int8"] | None,
        typer.Option(help="How to hold the weights of --model.", show_default="as they are stored"),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="What --model computes in.", show_default="auto"),
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="Whose reward model, where the rankings have several criteria.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        typer.Option(help="Where to compute.", show_default="the recipe's; with --model auto"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve at; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Answers that may wait; more are refused (429).")] = 256,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Most tokens of a prompt and its answer.", show_default="the model's context"),
    ] = None,
) -> None:
    """Serve the run's models over HTTP, with OpenAI's API and a page to chat. The environment variable
    TUTELAGE_API_KEY sets an API key."""
    if model is None and (revision, quantization, dtype) != (None, None, None):
        raise RecipeError(
            "--revision, --quantization and --dtype belong to --model",
            hint="add --model, or drop them: a run's models are loaded as the recipe says",
        )
    if model is not None and criterion is not None:
        raise RecipeError("--criterion belongs to a run, and --model names a model", hint="drop one of the two")
    if model is not None and models:
        raise RecipeError(f"{' '.join(models)} and --model {model} both name models", hint="drop one of the two")
    display = Display(console())
    if model is None:
        from stages.chat import choose_models

        summary = planner_of(recipe, sets, runs).summary()
        names = choose_models(summary, models or [])
        summary.need("base")
        where = resolve(summary.loaded) if device is None else available_device(device)
        echo("loading the models ...")
        from stages.serve.models import load_run

        served = load_run(summary, names, where, max_length=max_length, criterion=criterion)
    else:
        where = available_device(device or "auto")
        echo(f"loading {model} ...")
        from stages.serve.models import load_place

        served = load_place(
            model,
            revision,
            where,
            dtype=dtype or "auto",
            quantization=quantization or "none",
            max_length=max_length,
        )
    from stages.serve.run import serve as run

    run(served, host=host, port=port, batch=batch, queue=queue, say=display.say)
