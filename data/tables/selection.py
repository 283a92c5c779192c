"""Rows as a recipe selects and cleans them: missing values and decimal commas (`na_values`, `decimal`), empty cells
filled from above (`fill_down`), rows with given values (`only`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.tables.columns import key_of
from data.tables.sources import Row, is_empty
from pipeline.errors import DataError

NOT_SELECTED = "not among the rows of `only`"
"""Why rows with other values are left out."""


DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def cleaned(rows: Iterable[Row], na_values: Sequence[Any], decimal: str) -> Iterator[Row]:
    """`rows` whose cells, and the items inside them, are None where they are one of `na_values`, and have a decimal
    point where they are numbers with another `decimal` mark."""
    missing = {key_of(value) for value in na_values}

    def clean(cell: Any) -> Any:
        if isinstance(cell, list):
            return [clean(item) for item in cell]
        if isinstance(cell, dict):
            return {key: clean(item) for key, item in cell.items()}
        if missing and isinstance(cell, str | int | float) and key_of(cell) in missing:
            return None
        if decimal == "," and isinstance(cell, str) and DECIMAL_COMMA.fullmatch(cell.strip()):
            return cell.replace(",", ".")
        return cell

    for row in rows:
        yield row.with_cells({column: clean(cell) for column, cell in row.items()})


def filled_down(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Row]:
    """`rows` in which an empty cell of `columns` repeats the cell above it, as spreadsheets export merged cells.
    Every file starts anew. Raises `MissingColumn`."""
    file, above = "", dict[str, Any]()
    for row in rows:
        source = re.sub(r"\d+$", "", row.where)
        if source != file:
            file, above = source, {}
        above |= {column: row[column] for column in columns if not is_empty(row[column])}
        yield row.with_cells(above)


def selected(rows: Iterable[Row], values: Mapping[str, Any]) -> Iterator[Row]:
    """`rows`, with `left_out` set in those whose cells hold other values than a column's one, or its several.
    Raises `MissingColumn`."""
    wanted = {
        column: {key_of(value) for value in (value if isinstance(value, list) else [value])}
        for column, value in values.items()
    }
    for row in rows:
        other = next((column for column, keys in wanted.items() if key_of(row[column]) not in keys), None)
        if other is not None:
            row.left_out, row.hint = NOT_SELECTED, f"such as {other}: {str(row[other])!r:.40}"
        yield row


def usable(rows: Iterable[Row]) -> Iterator[Row]:
    """`rows`, for readers that leave none out but those that the recipe does not select. Raises `DataError` for one
    that is left out."""
    for row in rows:
        if row.left_out == NOT_SELECTED:
            continue
        if row.left_out:
            raise DataError(row.left_out, where=row.where, hint=row.hint)
        yield row
