"""Columns of another table, added to the rows with the same key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data.tables.sources import MissingColumn, Row, is_empty
from data.tables.spill import Values, values
from data.tables.suggest import listed, probable
from pipeline.config.data import JoinConfig
from pipeline.config.table_files import shown
from pipeline.errors import DataError


def joined(rows: Iterable[Row], join: JoinConfig, partners: Iterable[Row]) -> Iterator[Row]:
    """`rows` with the columns of their partners, which wait in a temporary database. A row without a partner, or
    with an empty cell in its key, has `left_out` set.

    Raises:
        DataError: two partners with the same key differ, or both tables have a column that is added.
            Or a table lacks a column of the key, or one that is added.
    """
    ours, theirs = _sides(join)
    name = shown(join.path)
    key = ", ".join(ours)
    with values() as first:
        for partner in partners:
            try:
                _keep(partner, first, theirs, join)
            except MissingColumn as error:
                raise _lacking(error, f"{name}, which is joined,", "`on` or `columns`") from None
        for row in rows:
            if row.left_out:
                yield row
                continue
            try:
                shared = _key(row, ours)
            except MissingColumn as error:
                raise _lacking(error, "the table", "`on`") from None
            found = None if shared is None else first.get(shared)
            if found is None:
                row.left_out = f"no row of {name} with its {key}" if shared else f"empty key of a join ({key})"
                row.hint = "add the row to that table, or correct the key" if shared else "fill the cell"
                yield row
                continue
            cells = found[1]
            if clash := [column for column in cells if column in row]:
                raise DataError(
                    f"both this table and {name} have a column {clash[0]!r}",
                    where=row.where,
                    hint="name the columns to add, `columns: [text]` under `join`, or give the column another name "
                    f"there, `columns: {{their_{clash[0]}: {clash[0]}}}`",
                )
            yield row.with_cells(cells)


def _lacking(error: MissingColumn, table: str, where: str) -> DataError:
    near = probable(error.column, error.columns)
    return DataError(
        f"{table} has no column {error.column!r}" + (f"; {near!r} is probably meant" if near else ""),
        where=error.where,
        hint=f"correct {where} under `join`: the columns are {listed(error.columns, 30)}",
    )


def _sides(join: JoinConfig) -> tuple[list[str], list[str]]:
    """The columns of the key in this table and in the other one."""
    if isinstance(join.on, dict):
        return list(join.on), list(join.on.values())
    names = [join.on] if isinstance(join.on, str) else join.on
    return names, names


def _keep(partner: Row, first: Values, key: list[str], join: JoinConfig) -> None:
    shared = _key(partner, key)
    if shared is None:  # no row can have it as its partner
        return
    cells = _added(partner, key, join.columns)
    # Through JSON, as the database holds them: equal content must compare as equal.
    kept = json.loads(json.dumps(cells, default=str))
    earlier = first.setdefault(shared, [partner.where, kept])
    if earlier is not None and earlier[1] != kept:
        differing = [column for column in kept if kept[column] != earlier[1].get(column)]
        raise DataError(
            f"two rows of {shown(join.path)} have the same {', '.join(key)} and differ in {listed(differing)}",
            where=f"{earlier[0]} and {partner.where}",
            hint="remove one of them, name more columns under `on` that tell them apart, or name the columns that "
            "are needed, `columns: [text]`",
        )


def _added(partner: Row, key: list[str], columns: list[str] | Mapping[str, str]) -> dict[str, Any]:
    if not columns:
        return {name: value for name, value in partner.items() if name not in key}
    names = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    return {ours: partner[theirs] for ours, theirs in names.items()}


def _key(row: Row, columns: list[str]) -> str | None:
    """The cells of a key as one text: 1, 1.0 and "1" are equal. None where one of them is empty."""
    cells = [_as_key(row[column]) for column in columns]
    return None if None in cells else json.dumps(cells)


def _as_key(value: Any) -> str | None:
    if is_empty(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
