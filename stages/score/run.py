"""Scores a table of any length and writes the rows with their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.tables.fetch import is_url
from data.tables.sources import HUB, Row, read_table
from pipeline.config.data import TableConfig
from pipeline.config.table_files import files_of
from pipeline.engine.fingerprint import file_sha256, files_below
from pipeline.engine.lock import locked
from pipeline.engine.runner import terminate_as_interrupt
from pipeline.engine.stage import Progress
from pipeline.errors import Interrupted
from stages.score.model import Answers, RewardScorer
from stages.score.output import Output
from stages.score.rows import Layout

PART = 1024
"""Completions of one part: scored together, and written together."""

Opener = Callable[..., AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Scored:
    """What was done: rows and completions of the whole file, and how many rows were finished by an earlier run."""

    rows: int
    completions: int
    before: int


def layout_of(table: TableConfig, prompt: str, completions: Sequence[str], prefix: str) -> Layout:
    """The table's layout, by its first row. Raises `DataError`."""
    return Layout.of(next(read_table(table)), prompt, completions, prefix)


def count(table: TableConfig, layout: Layout, progress: Opener) -> int | None:
    """Reads a local table once, to find mistakes before anything is scored; returns its completions. None for a
    table elsewhere, which is read once only. Raises `DataError` with the row."""
    if any(source.startswith(HUB) for source in files_of(table.path)):
        return None
    completions = 0
    with progress("reading the table") as bar:
        for row in read_table(table):
            completions += len(layout.answers(row).completions)
            bar.advance()
    return completions


def fingerprint(table: TableConfig) -> object:
    """What tells the table's content from another's, as JSON values."""
    return [[_content(source) for source in files_of(table.path)], table.split, table.limit]


def _content(source: str) -> object:
    """The hashes of a local file, or of those in a folder; the name of a source elsewhere."""
    if source.startswith(HUB) or is_url(source):
        return source
    path = Path(source).expanduser()
    files = files_below(path) if path.is_dir() else {path.name: path}
    return {name: file_sha256(file) for name, file in files.items()}


def score_table(
    table: TableConfig,
    layout: Layout,
    model: RewardScorer,
    output: Output,
    progress: Opener,
    *,
    total: int | None,
    fresh: bool = False,
) -> Scored:
    """Scores the table's rows in order, in constant memory, and writes them.

    Args:
        total: completions of the table, for the display; None if that is not known.
        fresh: discard the parts of an interrupted run.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM. The finished parts are kept.
        RecipeError, DataError, StageError: as `Output.begin`, `Layout.answers` and `RewardScorer.score`.
    """
    hint = "wait for it to end, or give another file with --out"
    with locked(output.folder, wait=False, say=lambda line: None, what="this file", hint=hint):
        before = output.begin(fresh=fresh)
        rows = read_table(table)
        completions = sum(len(layout.answers(row).completions) for row in islice(rows, before))
        done = before
        with progress("score", total=total, done=completions) as bar:
            try:
                with terminate_as_interrupt():
                    for part in _parts(rows, layout):
                        scores = model.score([answers for _, answers in part], bar.advance)
                        output.write(
                            done,
                            [layout.scored(row, of_row) for (row, _), of_row in zip(part, scores, strict=True)],
                        )
                        done += len(part)
                        completions += sum(len(of_row.scores) for of_row in scores)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted: {done:,} rows are scored",
                    where=str(output.folder),
                    hint="run the same command again: it continues there",
                ) from None
        output.finish()
    return Scored(done, completions, before)


def _parts(rows: Iterator[Row], layout: Layout) -> Iterator[list[tuple[Row, Answers]]]:
    """Consecutive rows with at least `PART` completions together."""
    part: list[tuple[Row, Answers]] = []
    size = 0
    for row in rows:
        part.append((row, layout.answers(row)))
        size += len(part[-1][1].completions)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part
