"""The rows that a table reader dropped."""

from __future__ import annotations

from collections import defaultdict

from data.tables.sources import Dropped


def rows_by_reason(dropped: Dropped) -> dict[str, list[int]]:
    """Reason -> the row numbers recorded for it."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, reason in dropped.places:
        rows[reason].append(row)
    return dict(rows)
