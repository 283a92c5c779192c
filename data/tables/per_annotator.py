"""Cells that hold one value per annotator.

Wherever a rating, a rank, a margin, a preference or a choice is expected, a cell may hold a list instead, with one
value for each annotator, as `reviews[*].overall` gives it. Who they are is told by the `annotator` cell with a list
of names in the same order, or, of an object with one value per annotator (`ratings.*`), by its keys. A `weight` may
be such a list too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data.tables.messages import LeftOut
from data.tables.paths import Keyed
from data.tables.sources import Row, is_empty
from data.tables.spelling import spelled
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data.tables.columns import Columns


class Annotator(NamedTuple):
    """Who ranked a row.

    Attributes:
        weight: of this annotator, where the row has a list of weights; None for that of the row.
    """

    name: str
    weight: float | None = None


def by_annotator(
    row: Row, columns: Columns, cells: Sequence[Any], names: Sequence[str | None] = ()
) -> list[tuple[Annotator, list[Any]]]:
    """Each annotator of a row with their values, in the order of `cells`.

    Args:
        cells: that order the completions of one ranking; one for each of them, or one for all. A text that spells a
            list is a single value if the recipe's `labels` or `scale` has it, or if it is one of `names`.
        names: what a single value may be, such as the texts of the completions.

    Raises:
        LeftOut: the lists are empty: nobody ranked.
        DataError: the cells are lists of different lengths, or only some are lists; or one of the weights is none.
    """
    cells = [_Single(cell) if columns.is_label(cell) or _is_name(cell, names) else cell for cell in cells]
    weights, listed = columns.weight_cell(row), any(as_values(cell) is not None for cell in cells)
    if isinstance(weights, Keyed):
        by_name = dict(zip(weights.keys, weights, strict=True))
        judged = [(name, values, by_name.get(name)) for name, values in _by_annotator(row, columns, cells)]
    elif listed and as_values(weights) is not None:
        judged = [
            (name, values, weight) for name, [*values, weight] in _by_annotator(row, columns, [*cells, weights])
        ]
    else:  # of the row
        return [(Annotator(name), values) for name, values in _by_annotator(row, columns, cells)]
    annotators = []
    for name, values, weight in judged:
        ranked_nothing = listed and all(map(is_empty, [*values, weight]))
        annotators.append((Annotator(name, 1.0 if ranked_nothing else columns.as_weight(weight, row)), values))
    return annotators


def _by_annotator(row: Row, columns: Columns, cells: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    lists = [as_values(cell) for cell in cells]
    filled = [values for values, cell in zip(lists, cells, strict=True) if not is_empty(cell)]
    if all(values is None for values in filled):
        return [(columns.annotator(row), list(cells))]
    if any(values is None for values in filled):
        raise DataError(
            "some values of the row are lists, one value per annotator, and others are not",
            where=row.where,
            hint="write a list for each completion, or a single value for each; empty cells are left out",
        )
    if not any(filled):
        raise LeftOut("nobody ranked the row", "no annotation", where=row.where, hint="remove the row, or rank it")
    names = as_values(columns.annotator_cell(row))
    if names is not None and any(isinstance(name, list) for name in names):
        return _by_name(_lists_of_names(names, lists, row), lists, row)
    keys = [set(values.keys) for values in filled if isinstance(values, Keyed)]
    if len(keys) == len(filled) and (names is None or set().union(*keys) <= set(map(str, names))):
        return _by_name([values.keys if isinstance(values, Keyed) else [] for values in lists], lists, row)
    if keys:
        raise DataError(
            "some values of the row are by the annotator's name, and others are in an order",
            where=row.where,
            hint="name objects with one value per annotator for all of them, ratings.*, or lists for all; names in "
            "`annotator` must be those of the objects, or be left out",
        )
    count = max(len(values) for values in filled if values is not None)
    if names is None:
        names = [f"{columns.annotator(row)}-{place}" for place in range(1, count + 1)]
    sizes = {len(names), *(len(values) for values in filled if values is not None)}
    if len(sizes) > 1:
        raise DataError(
            f"lists of one value per annotator have different lengths: {', '.join(map(str, sorted(sizes)))}",
            where=row.where,
            hint="write one value for each annotator, null where there is none, and one name in the list of names",
        )
    return [
        (
            _named(name, place),
            [None if values is None else values[place - 1] for values in lists],
        )
        for place, name in enumerate(names, 1)
    ]


class _Single(str):
    """A text that is a value of its own, also if it spells a list."""


def _is_name(cell: Any, names: Sequence[str | None]) -> bool:
    return isinstance(cell, str) and cell.strip() in {name.strip() for name in names if name}


def as_values(cell: Any) -> list[Any] | None:
    """A list cell, which a text may spell; None for any other cell."""
    if isinstance(cell, str) and not isinstance(cell, _Single) and cell.lstrip().startswith("["):
        cell = spelled(cell.strip())
    return cell if isinstance(cell, list) else None


def _named(name: Any, place: int) -> str:
    """An annotator's name; numbered where the table leaves it empty."""
    return f"unknown-{place}" if is_empty(name) else str(name)


def _lists_of_names(names: Sequence[Any], lists: Sequence[list[Any] | None], row: Row) -> list[list[str]]:
    """The names beside each cell, where the annotators' cell holds one list per completion."""
    sizes = [[] if values is None else values for values in lists]
    nested = [[] if is_empty(some) else some for some in names]
    if len(nested) != len(lists) or any(
        not isinstance(some, list) or len(some) != len(values) for some, values in zip(nested, sizes, strict=True)
    ):
        raise DataError(
            "the annotators' lists do not fit the lists of values",
            where=row.where,
            hint="name one annotator for each value of each completion, in the same order",
        )
    return [[_named(name, place) for place, name in enumerate(some, 1)] for some in nested]


def _by_name(
    names: Sequence[Sequence[str]], lists: Sequence[list[Any] | None], row: Row
) -> list[tuple[str, list[Any]]]:
    """The values of each name in any of the lists; None where it is not in one of them."""
    for some in names:
        if twice := {name for name in some if list(some).count(name) > 1}:
            raise DataError(
                f"the annotator {min(twice)!r} has two values for the same completion",
                where=row.where,
                hint="keep one of them, or give the annotators different names",
            )
    by_cell = [dict(zip(some, values or [], strict=True)) for some, values in zip(names, lists, strict=True)]
    everyone = dict.fromkeys(name for some in names for name in some)
    return [(name, [values.get(name) for values in by_cell]) for name in everyone]
