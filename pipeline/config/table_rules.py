"""What can be wrong with the values of one table: its files, joined tables, annotators and patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.config.data import JoinConfig, RankingTableConfig, TableConfig
from pipeline.config.formats import ColumnNames, TableFormat
from pipeline.config.table_files import joins_of

Problem = tuple[str, str]
"""A dotted path, and what is wrong with its value."""

TOOLS = ("native", "tree", "argilla", "label_studio")
"""Formats with a layout of their own: their annotators and texts are not columns of the table."""


def problems(name: str, table: TableConfig | RankingTableConfig, format: TableFormat) -> Iterator[Problem]:
    """What conflicts in the table at a dotted path."""
    yield from _files(name, table)
    for place, join in joins_of(name, table):
        yield from _files(place, join)
        yield from _join(place, join)
    if isinstance(table, RankingTableConfig) and table.annotations is not None:
        yield from _annotations(name, table, format)
    yield from _extract(name, table, format)


def of_an_annotator(table: TableConfig | RankingTableConfig) -> ColumnNames:
    """`columns`, with those of the first annotator under `annotations`."""
    groups = table.annotations if isinstance(table, RankingTableConfig) else None
    return {**table.columns, **(next(iter(groups.values()), {}) if isinstance(groups, dict) else {})}


def _files(name: str, table: TableConfig | RankingTableConfig | JoinConfig) -> Iterator[Problem]:
    given = [table.path] if isinstance(table.path, str) else table.path
    for path in given:
        if path.startswith("hub://") and "@" not in path:
            yield f"{name}.path", "needs the commit to read, because branches move: hub://owner/name@commit"
    for path in sorted({path for path in given if given.count(path) > 1}):
        yield f"{name}.path", f"names {path} twice, so that its rows would count twice: name it once"


def _join(name: str, join: JoinConfig) -> Iterator[Problem]:
    keys = [join.on] if isinstance(join.on, str) else list(join.on)
    if not keys or not all(key.strip() for key in keys):
        yield f"{name}.on", "names no column: write the columns that both tables share"
    if isinstance(join.columns, list) and len(set(join.columns)) < len(join.columns):
        yield f"{name}.columns", "names a column twice: name each once"


def _annotations(name: str, table: RankingTableConfig, format: TableFormat) -> Iterator[Problem]:
    groups, path = table.annotations, f"{name}.annotations"
    if format.name in TOOLS:
        yield path, f"does not apply to the format {format.name}, which says itself who ranked: leave it out"
        return
    if not groups:
        yield path, "is empty: leave it out, or name the annotators and their columns"
        return
    if isinstance(groups, str):
        return
    if table.columns.get("annotator"):
        yield f"{name}.columns.annotator", f"is also told by {path}, whose keys name the annotators: leave it out"
    first = next(iter(groups))
    for annotator, columns in groups.items():
        if not columns:
            yield f"{path}.{annotator}", "names no column: write those that this annotator filled"
        elif _shape(columns) != _shape(groups[first]):
            yield (
                f"{path}.{annotator}",
                f"must name the same kinds of columns as {first}, and as many in each list: "
                f"{', '.join(groups[first])}",
            )
        for column, what, hint in format.problems({**table.columns, **columns}):
            if column in columns and annotator != first:  # the first one's are among those of `columns`
                yield f"{path}.{annotator}.{column}", f"{what}; {hint}"
    for ours in groups[first]:
        if ours in table.columns:
            yield f"{name}.columns.{ours}", f"is also named under {path}: name it in one place"


def _shape(columns: ColumnNames) -> dict[str, int | None]:
    return {ours: len(value) if isinstance(value, list) else None for ours, value in columns.items()}


def _extract(name: str, table: TableConfig | RankingTableConfig, format: TableFormat) -> Iterator[Problem]:
    known = [column.name for column in format.columns]
    for ours, pattern in table.extract.items():
        path = f"{name}.extract.{ours}"
        if format.name in TOOLS or ours not in known:
            near = format.nearest(ours)
            also = f"; did you mean {near}?" if near and format.name not in TOOLS else ""
            what = (
                "nothing can be extracted from" if format.name in TOOLS else f"has no column {ours!r} to extract in"
            )
            yield path, f"{format.described}: {what}{also}"
            continue
        if format.name in ("scored", "choice") and ours in ("text", "score", "rank", "model"):
            yield path, "lies inside the completions: name them by path, completions: completions[*].text"
            continue
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            yield path, f"is no regular expression: {error}"
            continue
        if not groups:
            yield path, f"has no group: put the part that is the {ours} in brackets, (...)"
