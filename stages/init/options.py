"""The command `init` and its options. Its steps are imported when it runs, because they read tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app, home


@app.command()
def init(
    demonstrations: Annotated[
        str | None,
        typer.Option(
            help="Table of prompts with good answers: a file, a folder, hub:// or https://. Without it there is no "
            "SFT."
        ),
    ] = None,
    rankings: Annotated[
        str | None, typer.Option(help="Table of ranked answers. Without it people rank in a browser.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model: a folder, a .gguf file, or OWNER/NAME[@COMMIT].")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the recipe and of its folder in runs/.")] = "",
    annotators: Annotated[str, typer.Option(help="Without --rankings: who will rank, ana,ben.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=home, help="The recipe to write.", show_default="beside the table"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept what is proposed; ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a recipe for your own tables and base model."""
    from stages.init import command

    command.Dialog(asks=command.interactive() and not yes).run(
        demonstrations, rankings, base, name, annotators, out, force
    )
