"""A table with what lies inside its cells, or in another table beside it, as columns of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.tables.guess.sample import Sample, is_conversation
from data.tables.sources import Row, is_empty, kind
from data.tables.spelling import spelled
from data.tables.suggest import words_of
from pipeline.config.data import TableConfig
from pipeline.errors import DataError

DEPTH = 2
"""Objects inside objects that are looked into."""
ENOUGH = 0.9
"""Share of a table's rows that must have a partner in the other one."""
NEIGHBOURS = 20
"""Files beside a table that are looked into."""
ID_WORDS = {"id", "item", "instance", "example", "task", "key", "uid", "qid", "question", "prompt", "sample"}
"""Words of a table's key, if no column has the same name in both tables."""


def flattened(sample: Sample) -> Sample:
    """The table with a column for each key of the objects in its cells, by its path. Of a list of objects the first
    one stands for all, under `reviews[*].score`."""
    rows = [row.with_cells(dict(_inside(row))) for row in sample.rows]
    return sample.with_rows(rows)


def _inside(cells: Mapping[str, Any], before: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    for name, cell in cells.items():
        path = before + str(name)
        if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
            cell = spelled(cell.strip())
        if not depth or not isinstance(cell, list | dict) or is_conversation(cell):
            continue
        first = cell[0] if isinstance(cell, list) and cell else cell
        if isinstance(first, dict):
            start = f"{path}." if isinstance(cell, dict) else f"{path}[*]."
            yield from ((start + str(key), value) for key, value in first.items())
            yield from _inside(first, start, depth - 1)


def with_neighbours(sample: Sample) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """The table with the columns of each other one in its folder that has the same key and texts, with the recipe's
    `join`. Those that share most columns come first."""
    path = Path(sample.path)
    if not path.is_file():
        return
    files = [file for file in sorted(path.parent.iterdir()) if file != path and file.is_file() and kind(file)]
    found = []
    for file in files[:NEIGHBOURS]:
        try:
            other = Sample.of(TableConfig(path=str(file)))
        except DataError:
            continue
        on = _key(sample, other)
        if on and (joined := _joined(sample, other, on)) is not None:
            found.append((len(on), joined))
    found.sort(key=lambda item: -item[0])
    yield from (joined for _, joined in found)


def _joined(sample: Sample, other: Sample, on: dict[str, str]) -> tuple[Sample, dict[str, Any]] | None:
    added = [column for column in other.columns if column not in on.values()]
    if not any(other.is_text(column) or other.lists(column) for column in added):
        return None
    partners = {_cells(row, on.values()): row for row in reversed(other.rows)}
    rows = [
        row.with_cells({name: cell for name, cell in partner.items() if name in added and name not in row})
        for row in sample.rows
        if (partner := partners.get(_cells(row, on))) is not None
    ]
    if len(rows) < ENOUGH * len(sample.rows) or len(partners) < len(other.rows):
        return None
    join: dict[str, Any] = {"path": other.path, "on": _shortest(on)}
    if set(added) & set(sample.columns):
        join["columns"] = [column for column in added if column not in sample.columns]
    return sample.with_rows(rows), join


def _key(sample: Sample, other: Sample) -> dict[str, str]:
    """This table's columns -> the other's, that tell its rows apart."""
    same = {name: name for name in sample.columns if name in other.columns and _contains(other, name, sample, name)}
    if same:
        return same
    ids = [name for name in other.columns if set(words_of(name)) & ID_WORDS]
    keys = [name for name in sample.columns if set(words_of(name)) & ID_WORDS]
    pairs = ((ours, theirs) for theirs in ids for ours in keys)
    return next(({ours: theirs} for ours, theirs in pairs if _contains(other, theirs, sample, ours)), {})


def _contains(other: Sample, theirs: str, sample: Sample, ours: str) -> bool:
    """Whether the cells of a column occur among those of the other table's, and tell its rows apart at all."""
    cells, known = map(_as_set, (sample.cells(ours), other.cells(theirs)))
    return len(known) > 1 and len(cells & known) >= ENOUGH * len(cells) > 0


def _as_set(cells: list[Any]) -> set[str]:
    return {str(cell).strip() for cell in cells if not isinstance(cell, list | dict)}


def _cells(row: Row, columns: Any) -> tuple[str, ...]:
    return tuple("" if is_empty(row.get(column)) else str(row.get(column)).strip() for column in columns)


def _shortest(on: dict[str, str]) -> Any:
    """`on` as a recipe writes it: a name, a list of names, or a mapping."""
    names = list(on)
    return on if names != list(on.values()) else names[0] if len(names) == 1 else names
