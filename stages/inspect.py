"""`tutelage inspect`: what a table is, how its rows are read, its figures, and the recipe's section to paste."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.app import app, echo
from pipeline.errors import DataError, RecipeError

if TYPE_CHECKING:
    from data.tables.guess.guess import Guess


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A table: a file, a folder, https://... or hub://OWNER/NAME@REVISION."),
    ],
    split: Annotated[str, typer.Option(help="Of a data set on the Hub, or of a folder of splits.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only the first rows.", show_default="all rows")
    ] = None,
) -> None:
    """Say what a table is, how its rows are read and what they hold; print the section for a recipe."""
    for line in inspect_table(path, split, limit, echo):
        echo(line)


def inspect_table(path: str, split: str, limit: int | None, say: Callable[[str], None]) -> Iterator[str]:
    """Lines about a table: the guess with what is open, three rows, figures over all rows, and the section.

    Args:
        limit: rows to read; None: all.
        say: called before a download.

    Raises `DataError` if the table cannot be read, in any way or in the way that its first rows look like.
    """
    from data.tables.guess.rankings import any_table
    from data.tables.guess.sample import Sample
    from data.tables.guess.section import section
    from pipeline.config.data import TableConfig
    from stages.init import show

    guess = any_table(Sample.of(TableConfig(path=path, split=split), say))
    guess.sort()
    yield f"{path}: {guess.looks}"
    yield from show.mapping(guess)
    problem: DataError | None = None
    if not guess.open:
        try:
            shown, figures, question = _read(guess, path, split, limit, say)
            yield ""
            yield from shown
            yield ""
            yield from figures
            if question is not None:
                yield ""
                yield f"question: {question.what}"
                yield f"  where: {question.where}"
                yield f"  {question.hint}"
        except (DataError, RecipeError) as error:
            problem = DataError(error.what, where=error.where, hint=error.hint)
    yield ""
    yield "The section for a recipe" + (", to be completed:" if guess.open else ":")
    yield ""
    yield from section(guess, path, split)
    if problem is not None:
        raise problem


def _read(
    guess: Guess, path: str, split: str, limit: int | None, say: Callable[[str], None]
) -> tuple[Sequence[str], Sequence[str], DataError | None]:
    """Reads all rows: lines about the first of what they become, lines with figures, and the question that they
    raise, who ranked, if they do."""
    from data.schema import Ranking
    from data.tables.check import parse
    from data.tables.first_wins import FirstWins
    from data.tables.guess.section import config_of
    from data.tables.reading import Reading
    from data.tables.repeats import repeats
    from data.tables.spill import seen
    from data.tables.suggest import count_of
    from data.tables.summary import read_line, summary
    from pipeline.config.data import RankingTableConfig
    from stages.init import show

    config = config_of(guess, path, split, limit)
    name, reading = guess.table, Reading(guess.table, config)
    first_wins = FirstWins.of(config) if isinstance(config, RankingTableConfig) else FirstWins("")
    first: list[Any] = []
    question, again = None, 0
    with ExitStack() as opened:
        texts = opened.enter_context(seen())
        figures = opened.enter_context(summary(first_wins))
        if isinstance(config, RankingTableConfig):
            reading.repeats = opened.enter_context(repeats(name, config, reading.profile))
        try:
            for item in parse(name, config, reading.dropped, repeats=reading.repeats, say=say):
                reading.kept += 1
                if isinstance(item, Ranking):
                    figures.add(item)
                else:
                    again += not texts.first(_content(item))
                if len(first) < show.ROWS:
                    first.append(item)
        except DataError as error:
            question = reading.repeats.problem() if reading.repeats is not None else None
            if question is None or question.what != error.what:
                raise
    lines = [read_line(name, guess.kind, reading.dropped, reading.kept), *figures.lines(name, reading.repeats)]
    if again:
        lines.append(f"{name}: {again:,} of {count_of(reading.kept, guess.kind)} repeat an earlier one")
    told = [] if question is not None else [*reading.lines()]
    return [*show.rows(first)], [*lines, *told], question


def _content(item: Any) -> str:
    """All the text of what a row became."""
    return repr(item if isinstance(item, tuple) else (item.prompt, getattr(item, "completion", "")))
