"""What a recipe says about a table beyond the names of its columns: several annotators in one row (`annotations`),
and texts inside longer ones (`extract`).

Both turn into columns that a reader finds like any other: each row becomes one row per annotator, and what is
extracted is a column of its own. `arranged` gives the rows and the recipe's table with the names of these columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from data.tables.columns import ANONYMOUS, as_list
from data.tables.paths import Keyed
from data.tables.sources import Dropped, Row, is_empty
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError

Config = TypeVar("Config", TableConfig, RankingTableConfig)
LeaveOut = Callable[[Row, str, str], None]
"""Called with a row that is left out, the reason, and how to fix it."""

LISTS = ("completions", "ratings", "ranks", "models")
"""Our names that stand for one list where they name one column."""


def arranged(config: Config, rows: Iterable[Row], dropped: Dropped | None) -> tuple[Config, Iterator[Row]]:
    """The table with the columns that its reader looks up, and its rows with them. Rows that are left out are
    counted in `dropped`; without it they are a `DataError`."""

    def leave_out(row: Row, reason: str, hint: str) -> None:
        if dropped is None:
            raise DataError(reason, where=row.where, hint=hint)
        dropped.add(reason, row.number, hint)

    if isinstance(config, RankingTableConfig) and config.annotations is not None:
        if isinstance(config.annotations, str):
            rows = _one_per_entry(rows, config, config.annotations, leave_out)
        else:
            names = _of_annotators(config.annotations)
            rows = _one_per_annotator(rows, config.annotations, names, leave_out)
            config = replace(config, columns={"annotator": "annotator", **config.columns, **names})
        config = replace(config, annotations=None)
    if config.extract:
        columns: dict[str, Any] = {ours: config.columns.get(ours, ours) for ours in config.extract}
        names = {ours: _slots(ours, value) for ours, value in columns.items()}
        rows = _extracted(rows, config.extract, columns, names, leave_out)
        config = replace(config, columns={**config.columns, **names}, extract={})
    return config, iter(rows)


def _one_per_entry(
    rows: Iterable[Row], config: RankingTableConfig, path: str, leave_out: LeaveOut
) -> Iterator[Row]:
    """One row per entry of a list, or of an object by annotator. An entry's own columns come first; one that is no
    object is the column that the path names, without its wildcard."""
    column = path.removesuffix(".*").removesuffix("[*]")
    for row in rows:
        entries = as_list(row, path)
        keys = entries.keys if isinstance(entries, Keyed) else None
        found = False
        for place, entry in enumerate(entries, 1):
            if is_empty(entry):
                continue
            found = True
            its = row.with_cells(entry if isinstance(entry, dict) else {column: entry})
            if "annotator" not in config.columns and "annotator" not in its:
                its = its.with_cells({"annotator": keys[place - 1] if keys else f"{ANONYMOUS}-{place}"})
            yield its
        if not found:
            leave_out(row, "no annotation", "remove the row, or rank it")


Groups = Mapping[str, Mapping[str, str | list[str]]]
"""Each annotator's name -> our name -> the columns that are theirs."""


def _of_annotators(groups: Groups) -> dict[str, Any]:
    """Our name -> the column, or the list of columns, that each annotator's row has: named after those of all."""
    names: dict[str, Any] = {}
    for ours, value in next(iter(groups.values())).items():
        if isinstance(value, list):
            names[ours] = [
                " | ".join(same) for same in zip(*(group[ours] for group in groups.values()), strict=True)
            ]
        else:
            names[ours] = " | ".join(str(group[ours]) for group in groups.values())
    return names


def _one_per_annotator(
    rows: Iterable[Row], groups: Groups, names: Mapping[str, Any], leave_out: LeaveOut
) -> Iterator[Row]:
    """One row for each annotator who ranked: one of their columns is not empty."""
    for row in rows:
        found = False
        for annotator, columns in groups.items():
            cells = {
                name: row[theirs]
                for ours, value in columns.items()
                for name, theirs in zip(_listed(names[ours]), _listed(value), strict=True)
            }
            who = _listed(names["annotator"]) if "annotator" in names else []
            if all(is_empty(cell) for name, cell in cells.items() if name not in who):
                continue
            found = True
            yield row.with_cells(cells if who else {**cells, "annotator": annotator})
        if not found:
            leave_out(row, "no annotation", "fill an annotator's columns")


def _extracted(
    rows: Iterable[Row],
    patterns: Mapping[str, str],
    columns: Mapping[str, Any],
    names: Mapping[str, Any],
    leave_out: LeaveOut,
) -> Iterator[Row]:
    """The rows in which every pattern is found, with what it finds."""
    compiled = {ours: re.compile(pattern) for ours, pattern in patterns.items()}
    for row in rows:
        cells: dict[str, Any] = {}
        missed = ""
        for ours, pattern in compiled.items():
            for name, column in zip(_listed(names[ours]), _listed(columns[ours]), strict=True):
                is_list = ours in LISTS and isinstance(columns[ours], str)
                cell = as_list(row, column) if is_list else row[column]
                try:
                    cells[name] = _found(cell, pattern, ours, column, row)
                except LookupError:
                    missed = missed or ours
        if missed:
            hint = f"correct the pattern `extract: {{{missed}: ...}}`, or remove rows of another form"
            leave_out(row, f"the pattern of {missed} is not found", hint)
        else:
            yield row.with_cells(cells)


def _found(cell: Any, pattern: re.Pattern[str], ours: str, column: str, row: Row) -> Any:
    """The group of our name in a cell, or the first one; in each item of a list. An empty cell stays empty. Raises
    `LookupError` where the pattern is not found."""
    if isinstance(cell, Keyed):
        return Keyed([_found(item, pattern, ours, column, row) for item in cell], cell.keys)
    if isinstance(cell, list):
        return [_found(item, pattern, ours, column, row) for item in cell]
    if is_empty(cell):
        return cell
    if not isinstance(cell, str):
        raise DataError(
            f"column {column!r} must be text to extract {ours} from, got {cell!r:.60}",
            where=row.where,
            hint="name a text inside the cell by its path, such as [0].content",
        )
    match = pattern.search(cell)
    if match is None:
        raise LookupError
    return match[ours if ours in pattern.groupindex else 1]


def _slots(ours: str, value: str | list[str]) -> Any:
    """A name for the column of what is extracted."""
    return [f"{ours} in {name}" for name in value] if isinstance(value, list) else f"{ours} in {value}"


def column_of(ours: str, slot: str) -> str:
    """The table's column of what is extracted from it, or the column itself where nothing is."""
    return slot.removeprefix(f"{ours} in ")


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
