"""The rows that a reader of a table left out."""

from __future__ import annotations

from collections import defaultdict

from data.tables.sources import Dropped


def rows_by_reason(dropped: Dropped) -> dict[str, list[int]]:
    """Row numbers by reason, of the places that are kept."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, reason in dropped.places:
        rows[reason].append(row)
    return dict(rows)
